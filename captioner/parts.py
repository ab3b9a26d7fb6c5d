"""A user's own components: ``package.module:Class`` in place of a table's name.

A class is imported because a person names it: on the command line, in a YAML file of theirs, by
``--plugin``, or by an import in Python. A name in a checkpoint is looked up among the modules that
are imported already, and the class must have the members of an interface; it is never imported.
"""

from __future__ import annotations

import importlib
import inspect
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from captioner import torch_optimizers

PLACES = (
    ("decoder", "name"),
    ("decoder", "cell"),
    ("encoder", "library"),
    ("tokenizer", "name"),
    ("objective", "name"),
    ("optimizer", "name"),
)
"""Where a configuration names a component: group and key."""

_KEYS = {group: key for group, key in PLACES if key != "cell"}  # groups that a class may choose
_SET_HERE = (
    "vocabulary_size",
    "feature_size",
    "initialise",
    "vocabulary",
)  # the user does not set them


def is_own(name: object) -> bool:
    """Whether a name is that of a user's class, ``package.module:Class``."""
    return isinstance(name, str) and ":" in name and len(name) <= 200 and name.isprintable()


def plug_in(module: str) -> None:
    """Import a module because a person names it; modules in the current folder are found as well.

    Args:
        module: ``package.module``; a colon and what follows it are ignored.

    Raises:
        ValueError: it cannot be imported.
    """
    name = module.partition(":")[0]
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(name)
    except Exception as error:
        raise ValueError(
            f"{module}: cannot import {name or 'nothing'} ({type(error).__name__}: {error}); name "
            "a module that is in this folder or installed"
        ) from error


def plug_in_all(config: Mapping[str, Any]) -> None:
    """Import the modules of the classes that a configuration names.

    Args:
        config: composed from overrides and YAML; never one from a checkpoint.

    Raises:
        ValueError: one cannot be imported.
    """
    for group, key in PLACES:
        values = config.get(group)
        name = values.get(key) if isinstance(values, Mapping) else None
        if is_own(name):
            plug_in(str(name))


def find_class(name: str, option: str) -> type[Any]:
    """The class with a name, of a module that is imported already.

    Args:
        name: ``package.module:Class``.
        option: the option that names it, for the error.

    Raises:
        ValueError: the module is not imported, or has no such class.
    """
    module, _, attribute = name.partition(":")
    if module not in sys.modules:
        raise ValueError(
            f"{option}={name} is the user's own class, which no checkpoint may import: name it "
            f"again with --plugin {shlex.quote(module)} (in Python: import {module} first)"
        )
    value = getattr(sys.modules[module], attribute, None)
    if not inspect.isclass(value):
        raise ValueError(f"{option}={name}: {module} has no class {attribute!r}")
    return value


def class_options(name: str, group: str) -> dict[str, Any]:
    """What a YAML of a group would list for a class: its name, and its arguments with defaults.

    Args:
        name: ``package.module:Class``, of a module that is imported.
        group: one of PLACES.

    Returns:
        plain data; "???", Hydra's mark for a missing value, if an argument has no default.

    Raises:
        ValueError: there is no such class, or the group takes none.
    """
    if group not in _KEYS:
        raise ValueError(
            f"{group}={name}: the user's own classes can be used for {', '.join(_KEYS)}"
        )
    kind = find_class(name, group)
    if group == "optimizer":
        return torch_optimizers.options(name, kind)
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(kind).parameters.values()
    own = {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind is keyword_only
    }
    values = {
        key: "???" if default is inspect.Parameter.empty else default
        for key, default in own.items()
    }
    if group == "tokenizer":
        values = {"min_count": 1}
    if group == "encoder":
        values["network"] = name.partition(":")[2]
    return {_KEYS[group]: name, **{k: v for k, v in values.items() if k not in _SET_HERE}}


def require_interface(part: object, interface: type[Any], option: str) -> None:
    """Check that a class or an object has all public members of an interface.

    Args:
        part: an object, whose attributes and methods are checked, or a class, whose methods are.
        interface: a Protocol or a base class.
        option: the option that names the part, for the error.

    Raises:
        ValueError: members are missing.
    """
    kind = _methods if inspect.isclass(part) else _members
    missing = sorted(name for name in kind(interface) if not hasattr(part, name))
    if missing:
        raise ValueError(
            f"{option} does not have {', '.join(missing[:6])}, which {interface.__module__}."
            f"{interface.__qualname__} requires"
        )


def _members(interface: type[Any]) -> set[str]:
    """The public names of a class and of its bases within this package."""
    own = (base for base in interface.__mro__ if base.__module__.partition(".")[0] == "captioner")
    return {name for base in own for name in vars(base) if not name.startswith("_")}


def _methods(interface: type[Any]) -> set[str]:
    """Those members that can be called on an object; attributes may be set by a constructor."""
    return {n for n in _members(interface) if callable(getattr(interface, n, None))}
