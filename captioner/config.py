"""Configuration: compose ``conf/``, hold values against signatures, suggest near misses.

Hydra composes plain YAML into one plain dict. Every group names the arguments of one component, so
a group is passed to it as keyword arguments once its names and types have been held against the
component's signature. Nothing in a configuration names code: components are chosen from tables.
"""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Config = dict[str, Any]
"""A composed configuration as plain data: dicts, lists, strings, numbers, booleans and None."""

_Made = TypeVar("_Made")


# Names and values -----------------------------------------------------------------------------


def unknown(what: str, value: object, choices: Iterable[str]) -> ValueError:
    """The error for a name that is not known: what, the value, the choices and the near miss."""
    names = [str(choice) for choice in choices]
    return ValueError(
        f"{what}={value!r} is not known; choose {', '.join(names)}{_near(str(value), names)}"
    )


def unknown_key(group: str, key: str, names: Iterable[str]) -> ValueError:
    """The error for an option that does not exist: its neighbours and the near miss."""
    names = [str(name) for name in names]
    prefix, whose = (f"{group}.", f"{group} has") if group else ("", "there are")
    hint = _near(key, names, prefix)
    return ValueError(f"{prefix}{key} is not an option; {whose} {', '.join(names)}{hint}")


def check_range(option: str, value: float, high: float = math.inf) -> None:
    """Raise unless an option's value lies from 0 to `high`, both included."""
    if not 0 <= value <= high:
        raise ValueError(f"{option}={value} is not accepted; choose a number from 0 to {high:g}")


def pick(table: Mapping[str, _Made], name: str, what: str) -> _Made:
    """The component called `name`; `what` is the override that chooses it, for the error."""
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


def arguments(component: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a function or constructor: what a configuration may set."""
    parameters = inspect.signature(component).parameters
    return {n: p for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def make(
    component: Callable[..., _Made],
    group: str,
    values: Mapping[str, Any],
    *objects: Any,
    **given: Any,
) -> _Made:
    """Call `component` with a group of the configuration.

    Args:
        component: a function or class whose options are keyword-only.
        group: the group's name, for errors.
        values: the group, as plain data.
        objects: positional arguments, which no configuration chooses.
        given: keyword-only arguments that this group does not choose.

    Raises:
        ValueError: an option that the component does not have, or of the wrong type.
    """
    target = component.__init__ if inspect.isclass(component) else component
    hints = typing.get_type_hints(target)
    names = [name for name in arguments(component) if name not in given]
    for name, value in values.items():
        if name not in names:
            raise unknown_key(group, name, names)
        if name in hints and not _fits(hints[name], value):
            raise ValueError(
                f"{group}.{name}={value!r} is not accepted; choose {_in_words(hints[name])}"
            )
    return component(*objects, **values, **given)


def _near(value: str, names: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(value, list(names), n=1, cutoff=0.5)
    return f" (did you mean {prefix}{near[0]}?)" if near else ""


def _fits(annotation: Any, value: object) -> bool:
    """Whether plain data fits an annotation; annotations beyond plain data are not judged."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(_fits(one, value) for one in typing.get_args(annotation))
    if annotation in (int, float):
        wanted = (int, float) if annotation is float else (int,)
        return isinstance(value, wanted) and not isinstance(value, bool)
    if annotation in (bool, str, type(None)):
        return isinstance(value, annotation)
    if typing.get_origin(annotation) is list:
        (inner,) = typing.get_args(annotation)
        return isinstance(value, list) and all(_fits(inner, one) for one in value)
    return True


def _in_words(annotation: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    words |= {type(None): "null", list[str]: "a list of texts"}
    parts = typing.get_args(annotation) or (annotation,)
    return " or ".join(words.get(part, getattr(part, "__name__", str(part))) for part in parts)


# Files ----------------------------------------------------------------------------------------


def conf_folder() -> Path:
    """Where the YAML lies: beside the package's modules in a wheel, one up in a clone."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/config.yaml in or beside {package}: install captioner again")


def groups() -> list[str]:
    """The names of the groups: the folders of ``conf/``."""
    return sorted({path.parent.name for path in conf_folder().glob("*/*.yaml")})


def options(group: str) -> list[str]:
    """The names of a group's YAML files, sorted."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


# Composition ----------------------------------------------------------------------------------


def compose(overrides: Sequence[str] = ()) -> Config:
    """The configuration that ``captioner train`` sees with these overrides, as plain data.

    Raises:
        ValueError: an override that does not fit, in one line with the near miss.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    overrides = checked(overrides)
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return plain(hydra_compose("config", overrides=list(overrides)))


def checked(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra understands them, each held against ``conf/`` first.

    ``encoder=NAME`` with the name of a timm or torchvision network, which has no YAML file of its
    own, becomes ``encoder=LIBRARY encoder.network=NAME``; ``+key=value`` of a key that is there
    loses its plus. Sweeps (``a=1,2``) pass.

    Raises:
        ValueError: bad grammar, an unknown group option or an unknown key.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    result: list[str] = []
    for change in _parse(overrides):
        result += _checked_group(change) if change.key_or_group in groups() else [change.input_line]
    chosen = [change for change in _parse(result) if change.key_or_group in groups()]
    first = [f"{change.key_or_group}={_values(change)[0]}" for change in chosen]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        base = hydra_compose("config", overrides=first)
    for place, change in enumerate(_parse(result)):
        key = change.key_or_group
        if key in groups() or key.startswith("hydra"):
            continue
        if change.is_add() and _has(base, key):  # Hydra refuses +key=value of a key that is there
            result[place] = change.input_line.lstrip("+")
        elif not change.is_add():
            _check_key(base, key)
    return result


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A copy of a checkpoint's configuration with overrides applied.

    What the overrides do not mention stays as the model was trained; ``group=name`` replaces the
    whole group by one of its YAML files.

    Raises:
        ValueError: bad grammar, a sweep, an unknown group option or an unknown key.
    """
    from omegaconf import OmegaConf

    changes = _parse(overrides)
    for change in changes:
        if change.is_sweep_override():
            raise ValueError(f"{change.input_line}: give one value; sweeps are for train -m")
    chosen = {c.key_or_group: c.input_line for c in changes if c.key_or_group in groups()}
    replaced = compose(list(chosen.values())) if chosen else {}
    result = OmegaConf.create({**config, **{group: replaced[group] for group in chosen}})
    for change in changes:
        if change.key_or_group not in chosen:
            _check_key(result, change.key_or_group)
            OmegaConf.update(result, change.key_or_group, change.value())
    return plain(result)


def plain(config: Any) -> Config:
    """An OmegaConf tree as plain dicts and lists, interpolations resolved."""
    from omegaconf import OmegaConf

    return typing.cast(Config, OmegaConf.to_container(config, resolve=True))


def _parse(overrides: Sequence[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    changes = []
    for line in overrides:
        line = line.replace(
            "=~/", f"={Path.home()}/"
        )  # shells leave it, Hydra's grammar refuses it
        try:
            changes += OverridesParser.create().parse_overrides([line])
        except HydraException:
            raise ValueError(
                f"{line!r} is not an override; write key=value, such as training.lr=1e-3 or "
                "decoder.cell=gru"
            ) from None
    return changes


def _values(change: Any) -> list[str]:
    """The option names of a group override, several where it sweeps."""
    values = change.value().list if change.is_choice_sweep() else [change.value()]
    return [str(value) for value in values]


def _checked_group(change: Any) -> list[str]:
    group, names = change.key_or_group, _values(change)
    missing = [name for name in names if name not in options(group) and name != "None"]
    if not missing:
        return [change.input_line]
    if group != "encoder" or len(missing) < len(names):
        raise unknown(group, missing[0], options(group))
    return [f"encoder={_library(names[0])}", f"encoder.network={','.join(names)}"]


def _library(network: str) -> str:
    """The library that has a network of this name."""
    import timm
    import torchvision

    for library, names in (
        ("timm", timm.list_models()),
        ("torchvision", torchvision.models.list_models()),
    ):
        if network.split(".")[0] in names:
            return library
    known = options("encoder")
    near = _near(network, [*known, *timm.list_models(), *torchvision.models.list_models()])
    raise ValueError(
        f"encoder={network!r} is not known; choose {', '.join(known)} or any network of timm or "
        f"torchvision{near}"
    )


def _check_key(config: Any, key: str) -> None:
    """Raise for the first part of a dotted key that is not there."""
    from omegaconf import OmegaConf

    within, path = config, ""
    for part in key.lstrip("+~").split("."):
        if not OmegaConf.is_dict(within):
            raise ValueError(f"{key} is not an option; {path} is a single value")
        if part not in within:
            raise unknown_key(path, part, [name for name in within if name != "hydra"])
        path = f"{path}.{part}" if path else part
        within = within._get_node(part)


def _has(config: Any, key: str) -> bool:
    try:
        _check_key(config, key)
    except ValueError:
        return False
    return True
