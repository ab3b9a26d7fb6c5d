"""Which dotted keys a composed configuration has."""

from __future__ import annotations

from typing import Any

from captioner.config.values import unknown_key


def check_key(config: Any, key: str) -> None:
    """Check that a dotted key is in an OmegaConf tree.

    Raises:
        ValueError: names the first part of it that is not, and the nearest option.
    """
    from omegaconf import OmegaConf

    within, path = config, ""
    for part in key.lstrip("+~").split("."):
        if not OmegaConf.is_dict(within):
            raise ValueError(f"{key} is not an option; {path} is a single value")
        if part not in list(within):  # `part in within` is false for values that are still missing
            names = [name for name in within if name != "hydra"]
            raise unknown_key(path, part, names, _choice(config, path), leaves(config))
        path = f"{path}.{part}" if path else part
        within = within._get_node(part)


def has(config: Any, key: str) -> bool:
    """Whether a dotted key is in an OmegaConf tree."""
    try:
        check_key(config, key)
    except ValueError:
        return False
    return True


def leaves(config: Any, group: str = "") -> list[str]:
    """The dotted keys of all single values in an OmegaConf tree, Hydra's own left out."""
    from omegaconf import OmegaConf

    keys: list[str] = []
    for name in list(config):
        inner = config._get_node(name)
        if OmegaConf.is_dict(inner) and not inner._is_none() and not inner._is_interpolation():
            keys += [] if name == "hydra" else leaves(inner, f"{group}{name}.")
        else:
            keys.append(f"{group}{name}")
    return keys


def _choice(config: Any, group: str) -> str:
    """``group=option``, for an error; empty where Hydra has not composed the configuration."""
    from omegaconf import OmegaConf

    choices = OmegaConf.select(config, "hydra.runtime.choices", default=None) or {}
    return f"{group}={choices[group]}" if group in choices else ""
