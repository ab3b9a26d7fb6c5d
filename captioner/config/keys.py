"""The dotted keys of a composed configuration."""

from __future__ import annotations

from typing import Any

from captioner.config.loading import conf_folder
from captioner.config.values import unknown_key


def check_key(config: Any, key: str, *, value: str = "...") -> None:
    """Check that a dotted key is in an OmegaConf tree.

    Args:
        config: the tree.
        key: the key.
        value: its value in an override, for the error.

    Raises:
        ValueError: it is not; the error names the part that is missing and the nearest option.
    """
    from omegaconf import OmegaConf

    within, path = config, ""
    for part in key.lstrip("+~").split("."):
        if not OmegaConf.is_dict(within):
            raise ValueError(f"{key} is not an option; {path} is a single value")
        if part not in list(within):  # `part in within` is false for missing values
            names = [name for name in within if name != "hydra"]
            hint = _other_choices(path, part) or _group_itself(config, path, part, value)
            raise unknown_key(path, part, names, _choice(config, path), leaves(config), hint)
        path = f"{path}.{part}" if path else part
        within = within._get_node(part)


def _other_choices(group: str, name: str) -> str:
    """`` (an option of GROUP=CHOICE)`` for an option that other choices of its group have."""
    from omegaconf import OmegaConf

    files = sorted((conf_folder() / group).glob("*.yaml")) if group and "." not in group else []
    owners = [f"{group}={path.stem}" for path in files if name in (OmegaConf.load(path) or {})]
    return f" (an option of {' or '.join(owners)})" if 0 < len(owners) <= 3 else ""


def _group_itself(config: Any, group: str, name: str, value: str) -> str:
    """`` (did you mean NAME=VALUE?)`` for the name of a group written as an option of another."""
    from omegaconf import OmegaConf

    is_group = bool(group) and name in config and OmegaConf.is_dict(config._get_node(name))
    return f" (did you mean {name}={value}?)" if is_group else ""


def has(config: Any, key: str) -> bool:
    """Whether a dotted key is in an OmegaConf tree."""
    try:
        check_key(config, key)
    except ValueError:
        return False
    return True


def leaves(config: Any, group: str = "") -> list[str]:
    """The dotted keys of all single values in an OmegaConf tree, except those of Hydra."""
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
    """``group=option``, for an error; empty if Hydra has not composed the configuration."""
    from omegaconf import OmegaConf

    choices = OmegaConf.select(config, "hydra.runtime.choices", default=None) or {}
    return f"{group}={choices[group]}" if group in choices else ""
