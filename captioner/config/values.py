"""Values of a configuration, checked against the signature of a component."""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from captioner import parts
from captioner.plain_data import shortened

Config = dict[str, Any]
"""A composed configuration as plain data: dicts, lists, strings, numbers, booleans and None."""

_Made = TypeVar("_Made")

_TYPE_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
    list[str]: "a list of texts",
    list[float]: "a list of numbers",
}


def unknown(what: str, value: object, choices: Iterable[str]) -> ValueError:
    """The error for a name that is not known.

    Args:
        what: the option.
        value: the name.
        choices: the known names; the error suggests the nearest one.
    """
    names = [str(choice) for choice in choices]
    return ValueError(
        f"{what}={shortened(value)} is not known; choose {', '.join(names)}"
        f"{near_miss(str(value), names)}"
    )


def unknown_key(
    group: str,
    key: str,
    names: Iterable[str],
    choice: str = "",
    leaves: Sequence[str] = (),
    hint: str = "",
) -> ValueError:
    """The error for an option that does not exist.

    Args:
        group: the group that would have it; empty at the top.
        key: the option.
        names: the options that exist; the error suggests the nearest one.
        choice: the ``group=option`` that decides which options exist.
        leaves: dotted keys of options in all groups; the error suggests those with the same name.
        hint: the end of the message, instead of a suggestion.
    """
    names = [str(name) for name in names]
    prefix, whose = (f"{group}.", f"{choice or group} has") if group else ("", "there are")
    candidates = names if group else [*names, "experiment"]  # chosen, but not an option
    hint = (
        hint
        or near_miss(key, candidates, prefix, cutoff=0.8)
        or same_name(key, leaves)
        or near_miss(key, candidates, prefix)
    )
    return ValueError(f"{prefix}{key} is not an option; {whose} {', '.join(names)}{hint}")


def near_miss(value: str, names: Iterable[str], prefix: str = "", *, cutoff: float = 0.5) -> str:
    """`` (did you mean NAME?)`` for the name that is nearest to a value; empty if none is near."""
    near = difflib.get_close_matches(value, list(names), n=1, cutoff=cutoff)
    return f" (did you mean {prefix}{near[0]}?)" if near else ""


def same_name(name: str, leaves: Sequence[str]) -> str:
    """`` (did you mean GROUP.NAME?)`` for options of all groups; empty if none has such a name.

    Args:
        name: the last part of a key; it may be misspelled.
        leaves: dotted keys of options.
    """
    lasts = {key.rpartition(".")[2] for key in leaves}
    near = difflib.get_close_matches(name, lasts, n=1, cutoff=0.8)
    keys = [key for key in leaves if near and key.rpartition(".")[2] == near[0]]
    return f" (did you mean {' or '.join(keys)}?)" if 0 < len(keys) <= 3 else ""


def check_range(option: str, value: float, high: float = math.inf) -> None:
    """Check that the value of an option is in [0, high].

    Raises:
        ValueError: it is not in this range.
    """
    if not 0 <= value <= high:
        most = "" if high == math.inf else f" to {high:g}"
        raise ValueError(f"{option}={value} is not accepted; choose a number from 0{most}")


def require_plain(config: Any) -> None:
    """Check that a configuration is plain data with finite numbers.

    Args:
        config: dicts and lists of texts, numbers, booleans and None.

    Raises:
        ValueError: a part has another type, or a number is infinite or NaN; it names the option.
    """
    for key, value in _leaves(config, ""):
        if type(value) not in (str, int, float, bool, type(None)):
            raise ValueError(
                f"the configuration{key and f' has {key}, which'} is a {type(value).__name__}, not "
                "plain data; pass captioner.config.compose([...]), or of an OmegaConf tree "
                "OmegaConf.to_container(config, resolve=True)"
            )
    require_finite(config)


def require_finite(values: Any, group: str = "") -> None:
    """Check that all numbers of a configuration, or of a group, are finite.

    Raises:
        ValueError: one is not; it names the option.
    """
    for key, value in _leaves(values, group):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}={value} is not accepted; choose a finite number")


def _leaves(values: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The dotted key and the value of each option, and of each element of a list."""
    if type(values) is dict:
        for name, value in values.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif type(values) in (list, tuple):
        for value in values:
            yield from _leaves(value, key)
    else:
        yield key, values


def pick(
    table: Mapping[str, _Made], name: str, what: str, interface: type[Any] | None = None
) -> _Made:
    """The component with this name.

    Args:
        table: name -> component.
        name: a name in the table, or that of a user's class, ``package.module:Class``.
        what: the option that chooses it, for the error.
        interface: a class whose members a user's class must have; None: the common base class of
            the table.

    Raises:
        ValueError: an unknown name, or a class without these members.
    """
    required = interface or _common_base(table)
    if required is not None and parts.is_own(name):
        part: Any = parts.find_class(name, what)
        parts.require_interface(part, required, f"{what}={name}")
        return typing.cast(_Made, part)
    if not isinstance(name, str) or name not in table:
        raise unknown(what, name, table)
    return table[name]


def _common_base(table: Mapping[str, Any]) -> type[Any] | None:
    """The class of this package that all classes of a table inherit from; None if there is none."""
    first, *others = table.values()
    if not all(map(inspect.isclass, table.values())):
        return None
    own = (base for base in inspect.getmro(first) if base.__module__.startswith("captioner."))
    return next((base for base in own if all(issubclass(other, base) for other in others)), None)


def arguments(component: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a function or constructor, which a configuration can set."""
    parameters = inspect.signature(component).parameters
    return {n: p for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def make(
    component: Callable[..., _Made],
    group: str,
    values: Mapping[str, Any],
    *objects: Any,
    **given: Any,
) -> _Made:
    """Call a component with a group of the configuration.

    Args:
        component: a function or class; its options are keyword-only arguments.
        group: the group's name, for errors.
        values: the group, as plain data.
        objects: positional arguments, which are not options.
        given: keyword-only arguments that are not options of the group.

    Raises:
        ValueError: the component does not have an option, an option is missing, or its value has
            the wrong type or is infinite or NaN.
    """
    require_finite(dict(values), group)
    target = component.__init__ if inspect.isclass(component) else component
    hints = typing.get_type_hints(target)
    names = [name for name in arguments(component) if name not in given]
    for name, value in values.items():
        if name not in names:
            raise unknown_key(group, name, names)
        if name in hints and not _fits(hints[name], value):
            raise ValueError(
                f"{group}.{name}={value!r} is not accepted; choose {_describe(hints[name])}"
            )
    for name, parameter in arguments(component).items():
        if parameter.default is inspect.Parameter.empty and name not in {*values, *given}:
            raise ValueError(f"{group}.{name} is missing; give {group}.{name}=...")
    return component(*objects, **values, **given)


def _fits(annotation: Any, value: object) -> bool:
    """Whether plain data fits an annotation; True for annotations that are not plain data."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(_fits(member, value) for member in typing.get_args(annotation))
    if annotation in (int, float):
        numbers = (int, float) if annotation is float else (int,)
        return isinstance(value, numbers) and not isinstance(value, bool)
    if annotation in (bool, str, type(None)):
        return isinstance(value, annotation)
    if typing.get_origin(annotation) is list:
        (inner,) = typing.get_args(annotation)
        return isinstance(value, list) and all(_fits(inner, item) for item in value)
    return True


def _describe(annotation: Any) -> str:
    """An annotation as text, such as "a whole number or null"."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_describe(member) for member in typing.get_args(annotation))
    return _TYPE_NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))
