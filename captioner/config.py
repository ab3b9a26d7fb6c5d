"""Configuration: compose ``conf/``, hold values against signatures, suggest near misses.

Hydra composes plain YAML into one plain dict. Every group names the arguments of one component, so
a group is passed to it as keyword arguments once its names and types have been held against the
component's signature. Nothing in a configuration names code: components are chosen from tables.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from captioner import parts
from captioner.overrides import Override, parse, quote

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

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


def unknown_key(group: str, key: str, names: Iterable[str], choice: str = "") -> ValueError:
    """The error for an option that does not exist: its neighbours and the near miss.

    Args:
        group: whose option it would be; empty at the top.
        key: the option.
        names: the options that there are.
        choice: what is chosen of the group, where that decides which options there are.
    """
    names = [str(name) for name in names]
    prefix, whose = (f"{group}.", f"{choice or group} has") if group else ("", "there are")
    hint = _near(key, names, prefix)
    return ValueError(f"{prefix}{key} is not an option; {whose} {', '.join(names)}{hint}")


def check_range(option: str, value: float, high: float = math.inf) -> None:
    """Raise unless an option's value lies from 0 to `high`, both included."""
    if not 0 <= value <= high:
        most = "" if high == math.inf else f" to {high:g}"
        raise ValueError(f"{option}={value} is not accepted; choose a number from 0{most}")


def pick(
    table: Mapping[str, _Made], name: str, what: str, interface: type[Any] | None = None
) -> _Made:
    """The component called `name`.

    Args:
        table: name -> component.
        name: a name in the table, or that of a user's class, ``package.module:Class``.
        what: the option that chooses it, for the error.
        interface: whose members a user's class must have; None is the base that the classes of the
            table share.

    Raises:
        ValueError: an unknown name, or a class without these members.
    """
    demanded = interface or _common_base(table)
    if demanded is not None and parts.is_own(name):
        part: Any = parts.find_class(name, what)
        parts.require_interface(part, demanded, f"{what}={name}")
        return typing.cast(_Made, part)
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


def _common_base(table: Mapping[str, Any]) -> type[Any] | None:
    """The class of this package that all classes of a table inherit from; None if there is none."""
    first, *others = table.values()
    if not all(map(inspect.isclass, table.values())):
        return None
    own = (base for base in inspect.getmro(first) if base.__module__.startswith("captioner."))
    return next((base for base in own if all(issubclass(one, base) for one in others)), None)


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


def groups(config_dir: str | Path | None = None) -> list[str]:
    """The names of the groups, as Hydra finds them in ``conf/`` and in `config_dir`, sorted."""
    with hydra_loader() as loader:
        return _groups(loader, _searched(config_dir))


def options(group: str, config_dir: str | Path | None = None) -> list[str]:
    """The names that choose within a group, as Hydra finds them, sorted."""
    with hydra_loader() as loader:
        return _options(loader, group, _searched(config_dir))


def _groups(loader: ConfigLoader, search: list[str]) -> list[str]:
    from hydra.core.object_type import ObjectType

    found = loader.get_group_options("", ObjectType.GROUP, *_primary(search))
    return sorted(set(found) - {"hydra"})


def _options(loader: ConfigLoader, group: str, search: list[str]) -> list[str]:
    from hydra.core.object_type import ObjectType

    found = loader.get_group_options(group, ObjectType.CONFIG, *_primary(search))
    return sorted(name for name in set(found) if not parts.is_own(name))


def _primary(search: list[str]) -> tuple[Any, ...]:
    """What Hydra has to compose before it knows where to look; nothing, if in ``conf/`` alone."""
    return ("config", search) if search else ()


@contextmanager
def hydra_loader() -> Iterator[ConfigLoader]:
    """Hydra's loader over ``conf/``, also while an application of Hydra's runs."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), "captioner", version_base="1.3"):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = running


def _searched(config_dir: str | Path | None, changes: Sequence[Override] = ()) -> list[str]:
    """The override that makes Hydra look into a folder and where ``hydra.searchpath`` says."""
    where = []
    for change in changes:
        if change.key_or_group == "hydra.searchpath":
            where += [str(one) for one in change.value()]
    if config_dir is not None:
        folder = Path(os.path.expanduser(config_dir)).absolute()
        if not folder.is_dir():
            raise FileNotFoundError(f"--config-dir={config_dir}: no such folder")
        where.append(f"file://{folder}")
    return [f"hydra.searchpath=[{','.join(map(quote, where))}]"] if where else []


# Composition ----------------------------------------------------------------------------------


def compose(overrides: Sequence[str] = (), *, config_dir: str | Path | None = None) -> Config:
    """The configuration that ``captioner train`` sees with these overrides, as plain data.

    Args:
        overrides: ``key=value`` as typed.
        config_dir: a folder with options of one's own, as ``--config-dir`` takes one.

    Raises:
        ValueError: an override that does not fit, in one line with the near miss.
    """
    composed = compose_all(checked(overrides, config_dir=config_dir), config_dir=config_dir)
    del composed["hydra"]
    config = plain(composed)
    parts.plug_in_all(config)
    return config


def compose_all(lines: Sequence[str], *, config_dir: str | Path | None = None) -> Any:
    """The configuration of overrides as ``checked`` gives them, with Hydra's own beneath ``hydra``.

    Returns:
        an OmegaConf tree, nothing in it resolved; sweeps are left out, but for the first option of
        a group.
    """
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    with hydra_loader() as loader:
        changes = parse(lines, several=True, loader=loader)
        search = _searched(config_dir, changes)
        sweeps = any(change.is_sweep_override() for change in changes)
        known = _groups(loader, search) if sweeps else []
        given = [_first(change, known) for change in changes]
        others = [line for line in given if line and not line.startswith("hydra.searchpath=")]
        try:
            composed = hydra_compose("config", [*others, *search], return_hydra_config=True)
        except HydraException as error:
            raise ValueError(_one_line(error)) from None
    OmegaConf.set_struct(composed, False)
    return composed


def _one_line(error: Exception) -> str:
    """What Hydra says, with what OmegaConf says where that is the cause."""
    said = [str(one).strip() for one in (error, error.__cause__) if one is not None]
    return " ".join(": ".join(one for one in said if one).split())


def checked(
    overrides: Sequence[str], *, several: bool = False, config_dir: str | Path | None = None
) -> list[str]:
    """The overrides as Hydra understands them, each held against ``conf/`` first.

    ``encoder=NAME`` with the name of a timm or torchvision network, which has no YAML file of its
    own, becomes ``encoder=LIBRARY encoder.network=NAME``; of ``decoder=package.module:Class`` an
    option is made; ``+key=value`` of a key that is there loses its plus.

    Args:
        overrides: ``key=value`` as typed.
        several: whether they may sweep (``a=1,2``), as after ``train -m``.
        config_dir: a folder with options of one's own.

    Raises:
        ValueError: bad grammar, an unknown group option or an unknown key.
    """
    with hydra_loader() as loader:
        changes = parse(overrides, several=several, loader=loader)
        search = _searched(config_dir, changes)
        known = _groups(loader, search)
        result: list[str] = []
        for change in changes:
            if change.is_sweep_override() and not several:
                raise _several(change)
            group = change.key_or_group
            if group in ("hydra/sweeper", "hydra/launcher"):
                _require_plugin(change, _options(loader, group, search))
            if group in known and not change.is_delete():
                result += _checked_group(change, _options(loader, group, search))
            else:
                result.append(str(change.input_line))
    base, others = _bases(result, config_dir)
    for place, change in enumerate(parse(result, several=several)):
        key = change.key_or_group
        if key in known or key.startswith("hydra"):
            continue
        there = has(base, key) or any(has(one, key) for one in others())
        if change.is_add() and there:  # Hydra refuses +key=value of a key that is there
            result[place] = result[place].lstrip("+")
        elif not change.is_add() and not there:
            _check_key(base, key)
    return result


def compose_base(lines: Sequence[str], *, config_dir: str | Path | None = None) -> Any:
    """As ``compose_all``, of what overrides choose and set of Hydra's own, without other values.

    Of a sweep it is the first combination that can be composed.
    """
    return _bases(lines, config_dir)[0]


def _bases(
    lines: Sequence[str], config_dir: str | Path | None
) -> tuple[Any, Callable[[], Iterator[Any]]]:
    """What overrides choose, composed: of a sweep the first combination, and what gives the others.

    Raises:
        ValueError: not one can be composed.
    """
    with hydra_loader() as loader:
        changes = parse(lines, several=True, loader=loader)
        known = _groups(loader, _searched(config_dir, changes))
    kept = [c for c in changes if c.key_or_group in known or c.key_or_group.startswith("hydra")]
    each = [
        _single_choices(change) if change.key_or_group in known else [str(change.input_line)]
        for change in kept
    ]
    combinations = [list(one) for one in itertools.product(*each)]

    def composed() -> Iterator[Any]:
        for one in combinations:
            with suppress(ValueError):
                yield compose_all(one, config_dir=config_dir)

    first = next(composed(), None)
    base = compose_all(combinations[0], config_dir=config_dir) if first is None else first
    return base, lambda: itertools.islice(composed(), 1, None)


def _single_choices(change: Override) -> list[str]:
    """An override that chooses an option, once for each option that a sweep chooses."""
    if not change.is_sweep_override():
        return [str(change.input_line)]
    return [f"{change.get_key_element()}={name}" for name in _names(change)]


def _first(change: Override, known: Sequence[str]) -> str:
    """An override without its sweep: the first option of a group; nothing for a value."""
    if not change.is_sweep_override():
        return str(change.input_line)
    if change.key_or_group not in known:
        return ""
    return f"{change.get_key_element()}={_names(change)[0]}"


def override(
    config: Config,
    overrides: Sequence[str],
    *,
    config_dir: str | Path | None = None,
    extra: Mapping[str, Config] | None = None,
) -> Config:
    """A copy of a checkpoint's configuration with overrides applied.

    What the overrides do not mention stays as the model was trained; ``group=name`` replaces the
    whole group by one of its YAML files, ``experiment=NAME`` changes what it sets of the groups
    that the configuration has.

    Args:
        config: plain data.
        overrides: ``key=value`` as typed.
        config_dir: a folder with options of one's own.
        extra: keys that are options here though no YAML lists them, by group.

    Raises:
        ValueError: bad grammar, a sweep, an unknown group option or an unknown key.
    """
    from omegaconf import OmegaConf

    changes = parse(overrides)
    for change in changes:
        if change.is_sweep_override():
            raise _several(change)
        if change.is_delete():
            raise ValueError(f"{change.input_line}: nothing can be taken away from a trained model")
    known = groups(config_dir)
    choices = {c.key_or_group: str(c.input_line) for c in changes if c.key_or_group in known}
    search = [str(c.input_line) for c in changes if c.key_or_group == "hydra.searchpath"]
    result = _with_choices(config, choices, search, config_dir)
    for group, values in (extra or {}).items():
        result[group] = {**result[group], **values}
    tree = OmegaConf.create(result)
    for change in changes:
        key = change.key_or_group
        if key not in choices and not key.startswith("hydra."):
            if not change.is_add():
                _check_key(tree, key)
            OmegaConf.update(tree, key, change.value(), force_add=True)
    return plain(tree)


def _with_choices(
    config: Config, choices: Mapping[str, str], search: list[str], config_dir: str | Path | None
) -> Config:
    """A configuration with groups replaced by the options of theirs that overrides choose."""
    result = dict(config)
    if not choices:
        return result
    chosen = compose([*choices.values(), *search], config_dir=config_dir)
    for group in choices:
        if group in chosen:
            if group not in config:
                raise unknown_key("", group, config)
            result[group] = chosen[group]
    if "experiment" in choices:
        others = [line for group, line in choices.items() if group != "experiment"]
        without = compose([*others, *search], config_dir=config_dir)
        for key in set(result) & set(chosen) - {*choices, "run_dir"}:  # its date differs
            result[key] = _changed(result[key], without.get(key), chosen[key])
    return result


def _changed(values: Any, before: Any, after: Any) -> Any:
    """`values` with what differs between `before` and `after`; whole where the keys differ."""
    if not all(isinstance(one, dict) for one in (values, before, after)):
        return values if before == after else after
    if set(before) != set(after):
        return after
    return {**values, **{k: _changed(values.get(k), before[k], after[k]) for k in after}}


def plain(config: Any) -> Config:
    """An OmegaConf tree as plain dicts and lists, interpolations resolved."""
    from omegaconf import MissingMandatoryValue, OmegaConf

    try:
        found = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise ValueError(f"{key} has no value of its own: set {key}=...") from None
    return typing.cast(Config, found)


def _several(change: Override) -> ValueError:
    line = str(change.input_line)
    key, _, value = line.partition("=")
    return ValueError(
        f"{line}: several values are for train -m; a value with a comma in it stands in quotes: "
        f"'{key}=\"{value}\"'"
    )


def _names(change: Override) -> list[str]:
    """The option names of a group override, several where it sweeps.

    Raises:
        ValueError: a sweep that chooses no options.
    """
    if not change.is_sweep_override():
        return [str(change.value())]
    if not change.is_discrete_sweep():
        raise ValueError(
            f"{change.input_line}: a group takes names; write {change.key_or_group}=a,b"
        )
    names = [name.strip("'\"") for name in change.sweep_string_iterator()]
    if "glob(" in str(change.input_line):  # of options that lie in files
        names = [name for name in names if not parts.is_own(name)]
    if not names:
        raise ValueError(f"{change.input_line} matches no option of {change.key_or_group}")
    return names


def _checked_group(change: Override, known: Sequence[str]) -> list[str]:
    group, names = change.key_or_group, _names(change)
    for name in names:
        if parts.is_own(name):
            _add_option(group, name)
    missing = [n for n in names if n not in known and n != "None" and not parts.is_own(n)]
    if not missing:
        return [str(change.input_line)]
    if group != "encoder" or len(missing) < len(names):
        raise unknown(group, missing[0], known)
    return [f"encoder={_library(names[0], known)}", f"encoder.network={','.join(names)}"]


def _require_plugin(change: Override, known: Sequence[str]) -> None:
    """Raise for a sweeper or launcher of Hydra's that is not installed."""
    if change.value() not in known:
        raise ValueError(
            f"{change.input_line} is not installed; choose {', '.join(known)}, or install optuna, "
            "joblib and submitit: pip install 'captioner[sweep]'"
        )


def _add_option(group: str, name: str) -> None:
    """Make an option of a group of a class that a person names."""
    from hydra.core.config_store import ConfigStore

    parts.plug_in(name)
    ConfigStore.instance().store(group=group, name=name, node=parts.option_of(name, group))


def _library(network: str, known: Sequence[str]) -> str:
    """The library that has a network of this name."""
    import timm
    import torchvision

    for library, names in (
        ("timm", timm.list_models()),
        ("torchvision", torchvision.models.list_models()),
    ):
        if network.split(".")[0] in names:
            return library
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
        if part not in list(within):  # `in` alone passes over values that are missing as yet
            names = [name for name in within if name != "hydra"]
            raise unknown_key(path, part, names, _choice(config, path))
        path = f"{path}.{part}" if path else part
        within = within._get_node(part)


def _choice(config: Any, group: str) -> str:
    """``group=option``, as an error names it; nothing where Hydra has not composed it."""
    from omegaconf import OmegaConf

    choices = OmegaConf.select(config, "hydra.runtime.choices", default=None) or {}
    return f"{group}={choices[group]}" if group in choices else ""


def has(config: Any, key: str) -> bool:
    """Whether a dotted key is in what was composed."""
    try:
        _check_key(config, key)
    except ValueError:
        return False
    return True
