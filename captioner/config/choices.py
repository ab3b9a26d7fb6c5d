"""Overrides that choose an option of a group: ``decoder=up_down``, ``encoder=NETWORK``, ...

In addition to the YAML files of a group, these are names of networks (timm, torchvision) and of
optimizers (torch), and the user's own classes, ``package.module:Class``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captioner import parts, torch_optimizers
from captioner.config.values import near_miss, unknown
from captioner.overrides import Override, parse


def several_values(change: Override) -> ValueError:
    """The error for several values, if only one is accepted."""
    line = str(change.input_line)
    key, _, value = line.partition("=")
    return ValueError(
        f"{line}: several values are for train -m; a value that contains a comma needs quotes: "
        f"'{key}=\"{value}\"'"
    )


def option_names(change: Override) -> list[str]:
    """The names of options in an override of a group; several if it is a sweep.

    Raises:
        ValueError: a sweep over a range or an interval, or one that matches no option.
    """
    if not change.is_sweep_override():
        return [str(change.value())]
    if not change.is_discrete_sweep():
        raise ValueError(
            f"{change.input_line}: a group takes names; write {change.key_or_group}=a,b"
        )
    names = [name.strip("'\"") for name in change.sweep_string_iterator()]
    if _is_glob(change):  # it matches only YAML files
        names = [name for name in names if not parts.is_own(name)]
    if not names:
        raise ValueError(f"{change.input_line} matches no option of {change.key_or_group}")
    return names


def _is_glob(change: Override) -> bool:
    return "glob(" in str(change.input_line)


def single_choices(change: Override) -> list[Override]:
    """An override of a group as several overrides, one for each option that it names."""
    if not change.is_sweep_override():
        return [change]
    return parse([f"{change.get_key_element()}={name}" for name in option_names(change)])


def checked_choice(change: Override, known: Sequence[str], *, several: bool) -> list[Override]:
    """An override of a group in the form that Hydra accepts.

    Args:
        change: the override.
        known: the options of the group that are YAML files.
        several: whether it may be a sweep.

    Raises:
        ValueError: an option that does not exist.
    """
    group, names = change.key_or_group, option_names(change)
    for name in names:
        if name not in known:
            _add_option(group, name)
    missing = [n for n in names if n not in known and n != "None" and not _is_added(group, n)]
    if not missing:
        by_name = f"{change.get_key_element()}={','.join(names)}"
        return parse([by_name], several=several) if _is_glob(change) else [change]
    if group != "encoder" or len(missing) < len(names):
        torch_names = torch_optimizers.table() if group == "optimizer" else {}
        raise unknown(group, missing[0], sorted({*known, *torch_names}))
    lines = [f"encoder={_library(names[0], known)}", f"encoder.network={','.join(names)}"]
    return parse(lines, several=several)


def require_plugin(change: Override, known: Sequence[str]) -> None:
    """Check that a sweeper or launcher of Hydra is installed.

    Raises:
        ValueError: it is not installed.
    """
    if change.value() not in known:
        raise ValueError(
            f"{change.input_line} is not installed; choose {', '.join(known)}, or install optuna, "
            "joblib and submitit: pip install 'captioner[sweep]'"
        )


def _is_added(group: str, name: str) -> bool:
    return parts.is_own(name) or (group == "optimizer" and name in torch_optimizers.table())


def _add_option(group: str, name: str) -> None:
    """Make a class of the user, or an optimizer of torch, an option of a group."""
    from hydra.core.config_store import ConfigStore

    values: dict[str, Any] | None = None
    if parts.is_own(name):
        parts.plug_in(name)
        values = parts.class_options(name, group)
    elif group == "optimizer" and name in torch_optimizers.table():
        values = torch_optimizers.options(name, torch_optimizers.table()[name])
    if values is not None:
        ConfigStore.instance().store(group=group, name=name, node=values)


def _library(network: str, known: Sequence[str]) -> str:
    """The library that has a network with this name.

    Raises:
        ValueError: neither timm nor torchvision has it.
    """
    import timm
    import torchvision

    networks = {"timm": timm.list_models(), "torchvision": torchvision.models.list_models()}
    for library, names in networks.items():
        if network.split(".")[0] in names:
            return library
    near = near_miss(network, [*known, *networks["timm"], *networks["torchvision"]])
    raise ValueError(
        f"encoder={network!r} is not known; choose {', '.join(known)} or any network of timm or "
        f"torchvision{near}"
    )
