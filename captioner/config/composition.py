"""Compose a configuration from overrides, and apply overrides to a stored configuration."""

from __future__ import annotations

import itertools
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from captioner import old_names, parts
from captioner.config.choices import (
    checked_choice,
    option_names,
    require_plugin,
    several_values,
    single_choices,
)
from captioner.config.keys import check_key, has
from captioner.config.loading import find_groups, find_options, groups, hydra_loader, search_path
from captioner.config.values import Config, unknown_key
from captioner.overrides import Override, line_of, parse


def compose(
    overrides: Sequence[str | Override] = (), *, config_dir: str | Path | None = None
) -> Config:
    """The configuration that ``captioner train`` has with these overrides, as plain data.

    Args:
        overrides: ``key=value`` as typed, or as parsed.
        config_dir: a folder with the user's own options, see ``--config-dir``.

    Raises:
        ValueError: an override does not fit; the message is one line and names the nearest option.
    """
    changes, base = _checked_with_base(
        overrides, several=False, config_dir=config_dir, warn=old_names.warn_renamed
    )
    composed = compose_all(changes, config_dir=config_dir) if base is None else base
    del composed["hydra"]
    config = plain(composed)
    parts.plug_in_all(config)
    return config


def compose_all(
    overrides: Sequence[str | Override], *, config_dir: str | Path | None = None
) -> Any:
    """The configuration of checked overrides, with Hydra's own configuration below ``hydra``.

    Args:
        overrides: as returned by `checked`; for a sweep over a group the first option is used,
            other sweeps are left out.
        config_dir: a folder with the user's own options.

    Returns:
        an OmegaConf tree with unresolved interpolations.
    """
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    with hydra_loader() as loader:
        changes = parse(overrides, several=True, loader=loader)
        search = search_path(config_dir, changes)
        sweeps = any(change.is_sweep_override() for change in changes)
        known = find_groups(loader, search) if sweeps else []
        lines = [_first_choice(change, known) for change in changes]
        others = [line for line in lines if line and not line.startswith("hydra.searchpath=")]
        try:
            composed = hydra_compose("config", [*others, *search], return_hydra_config=True)
        except HydraException as error:
            raise ValueError(_one_line(error)) from None
    OmegaConf.set_struct(composed, False)
    return composed


def checked(
    overrides: Sequence[str | Override],
    *,
    several: bool = False,
    config_dir: str | Path | None = None,
    warn: old_names.Warn = old_names.warn_renamed,
) -> list[Override]:
    """Parse overrides and check them against ``conf/``.

    ``encoder=NAME`` with the name of a timm or torchvision network, which has no YAML file,
    becomes ``encoder=LIBRARY encoder.network=NAME``; ``decoder=package.module:Class`` and
    ``optimizer=NAME`` with an optimizer of torch become options; ``+key=value`` becomes
    ``key=value`` if the key exists. Old names of options in a user's YAML become overrides, which
    come first; in a sweep, each of its jobs does this.

    Args:
        overrides: ``key=value`` as typed, or as parsed.
        several: whether they may be sweeps (``a=1,2``), as after ``train -m``.
        config_dir: a folder with the user's own options.
        warn: called with each old name and its present name.

    Raises:
        ValueError: an override has wrong syntax, or an unknown option or key.
    """
    changes, _ = _checked_with_base(overrides, several=several, config_dir=config_dir, warn=warn)
    return changes


def _checked_with_base(
    overrides: Sequence[str | Override],
    *,
    several: bool,
    config_dir: str | Path | None,
    warn: old_names.Warn,
) -> tuple[list[Override], Any]:
    """As `checked`; and the composed configuration if the overrides are choices of groups only."""
    with hydra_loader() as loader:
        changes = parse(overrides, several=several, loader=loader, warn=warn)
        search = search_path(config_dir, changes)
        known = find_groups(loader, search)
    result = _checked_choices(changes, known, search, several=several)
    base, others = _bases(
        result, known, lambda choices: _compose_choices(choices, known, config_dir)
    )
    deletions: list[Override] = []
    if not several:
        for old, new in old_names.names_in(base).items():
            warn(old, new)
        deletions, renamed = _renamed(base, result, config_dir)
        result = _checked_choices(renamed, known, search, several=False) + result
    valid = deletions + [
        change
        if change.key_or_group in known or change.key_or_group.startswith("hydra")
        else _checked_key(change, base, others)
        for change in result
    ]
    only_choices = all(change.key_or_group in known for change in valid)
    return valid, base if only_choices and not several else None


def _renamed(
    base: Any, changes: Sequence[Override], config_dir: str | Path | None
) -> tuple[list[Override], list[Override]]:
    """Overrides that give the options of a YAML their present names.

    Args:
        base: the choices of groups, composed.
        changes: overrides; options that they set are left out.
        config_dir: a folder with the user's own options.

    Returns:
        overrides that delete the old names, and overrides that set the present ones.

    Raises:
        ValueError: the YAML sets an option under both names.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    options = old_names.options_in(base)
    old_names.require_one_name(
        options, base, lambda line: compose_all([line], config_dir=config_dir)
    )
    named = {change.key_or_group for change in changes}
    lines = [
        line_of(new, value)
        for new, (_, value) in options.items()
        if new not in named and old_names.is_used(new, base)
    ]
    deletions = OverridesParser.create().parse_overrides(old_names.deletions(options))
    return list(deletions), parse(lines)


def _checked_choices(
    changes: Sequence[Override], known: Sequence[str], search: list[str], *, several: bool
) -> list[Override]:
    """Overrides, with those of groups in the form that Hydra accepts.

    Raises:
        ValueError: an unknown option of a group, or a sweep that is not allowed.
    """
    result: list[Override] = []
    with hydra_loader() as loader:
        for change in changes:
            if change.is_sweep_override() and not several:
                raise several_values(change)
            group = change.key_or_group
            if group in ("hydra/sweeper", "hydra/launcher"):
                require_plugin(change, find_options(loader, group, search))
            if group in known and not change.is_delete():
                names = find_options(loader, group, search)
                result += checked_choice(change, names, several=several)
            else:
                result.append(change)
    return result


def _checked_key(change: Override, base: Any, others: Callable[[], Iterator[Any]]) -> Override:
    """An override of a value, without a plus if its key exists.

    Args:
        change: the override.
        base: the configuration of the choices of groups.
        others: see `_bases`.
    """
    key = change.key_or_group
    exists = has(base, key) or any(has(other, key) for other in others())
    if change.is_add() and exists:  # Hydra refuses +key=value of a key that exists
        (change,) = parse([str(change.input_line).lstrip("+")], several=True)
    elif not change.is_add() and not exists:
        check_key(base, key, value=str(change.input_line).partition("=")[2])
    _require_number(change, base)
    return change


def _require_number(change: Override, base: Any) -> None:
    """Refuse text for a number of the objective, optimizer or schedule, before any training.

    Raises:
        ValueError: the value is text.
    """
    from omegaconf import OmegaConf

    key = change.key_or_group
    if key.partition(".")[0] not in ("objective", "optimizer", "schedule"):
        return
    if change.is_sweep_override() or change.is_delete() or "." not in key:
        return
    before, value = OmegaConf.select(base, key), change.value()
    is_number = isinstance(before, int | float) and not isinstance(before, bool)
    if is_number and isinstance(value, str) and "${" not in value:
        raise ValueError(f"{key}={value!r} is not accepted; choose a number")


def compose_base(changes: Sequence[Override], *, config_dir: str | Path | None = None) -> Any:
    """As `compose_all`, but only with choices of groups and options of Hydra itself.

    For a sweep it is the first combination that can be composed.
    """
    with hydra_loader() as loader:
        known = find_groups(loader, search_path(config_dir, changes))
    return _bases(changes, known, lambda choices: compose_all(choices, config_dir=config_dir))[0]


def _compose_choices(
    choices: Sequence[Override], known: Sequence[str], config_dir: str | Path | None
) -> Any:
    """As `compose_all`, also with the options of groups that a YAML chooses by old names."""
    composed = compose_all(choices, config_dir=config_dir)
    named = {change.key_or_group for change in choices}
    lines = [
        line_of(new, value)
        for new, (_, value) in old_names.options_in(composed).items()
        if "." not in new and new not in named
    ]
    if not lines:
        return composed
    more = _checked_choices(parse(lines), known, search_path(config_dir, choices), several=False)
    return compose_all([*more, *choices], config_dir=config_dir)


def _bases(
    changes: Sequence[Override],
    known: Sequence[str],
    compose_choices: Callable[[Sequence[Override]], Any],
) -> tuple[Any, Callable[[], Iterator[Any]]]:
    """The composed choices of groups: a sweep's first combination, and an iterator of the others.

    Args:
        changes: overrides.
        known: the names of the groups.
        compose_choices: a function that composes one combination.

    Raises:
        ValueError: no combination can be composed.
    """
    kept = [c for c in changes if c.key_or_group in known or c.key_or_group.startswith("hydra")]
    choices = [single_choices(c) if c.key_or_group in known else [c] for c in kept]
    combinations = [list(combination) for combination in itertools.product(*choices)]

    def composed() -> Iterator[Any]:
        for combination in combinations:
            with suppress(ValueError):
                yield compose_choices(combination)

    first = next(composed(), None)
    base = compose_choices(combinations[0]) if first is None else first
    return base, lambda: itertools.islice(composed(), 1, None)


def _first_choice(change: Override, known: Sequence[str]) -> str:
    """An override without its sweep: the first option of a group; empty for a sweep of values."""
    if not change.is_sweep_override():
        return str(change.input_line)
    if change.key_or_group not in known:
        return ""
    return f"{change.get_key_element()}={option_names(change)[0]}"


def _one_line(error: Exception) -> str:
    """The message of Hydra, with that of its cause (OmegaConf), in one line."""
    messages = [str(e).strip() for e in (error, error.__cause__) if e is not None]
    return " ".join(": ".join(message for message in messages if message).split())


# A stored configuration -----------------------------------------------------------------------


def override(
    config: Config,
    overrides: Sequence[str | Override],
    *,
    config_dir: str | Path | None = None,
    extra: Mapping[str, Config] | None = None,
) -> Config:
    """A copy of a checkpoint's configuration with overrides applied.

    Options that no override names keep their values; ``group=name`` replaces the whole group by one
    of its YAML files; ``experiment=NAME`` changes the values that it sets, in the groups that the
    configuration has.

    Args:
        config: plain data.
        overrides: ``key=value`` as typed, or as parsed.
        config_dir: a folder with the user's own options.
        extra: additional options that no YAML lists, by group.

    Raises:
        ValueError: an override has wrong syntax, is a sweep, or has an unknown option or key.
    """
    from omegaconf import OmegaConf

    changes = parse(overrides)
    for change in changes:
        if change.is_sweep_override():
            raise several_values(change)
        if change.is_delete():
            raise ValueError(f"{change.input_line}: a trained model's options cannot be deleted")
    known = groups(config_dir)
    choices = {c.key_or_group: c for c in changes if c.key_or_group in known}
    search = [c for c in changes if c.key_or_group == "hydra.searchpath"]
    result = _with_choices(config, choices, search, config_dir)
    for group, values in (extra or {}).items():
        result[group] = {**result[group], **values}
    tree = OmegaConf.create(literal(result))
    for change in changes:
        key = change.key_or_group
        if key not in choices and not key.startswith("hydra."):
            if not change.is_add():
                check_key(tree, key)
            OmegaConf.update(tree, key, change.value(), force_add=True)
    return plain(tree)


def _with_choices(
    config: Config,
    choices: Mapping[str, Override],
    search: list[Override],
    config_dir: str | Path | None,
) -> Config:
    """A configuration in which groups are replaced by the options that overrides choose."""
    result = dict(config)
    if not choices:
        return result
    composed = compose([*choices.values(), *search], config_dir=config_dir)
    for group in choices:
        if group in composed:
            if group not in config:
                raise unknown_key("", group, config)
            result[group] = composed[group]
    if "experiment" in choices:
        others = [change for group, change in choices.items() if group != "experiment"]
        without = compose([*others, *search], config_dir=config_dir)
        for key in set(result) & set(composed) - {*choices, "run_dir"}:  # its date differs
            result[key] = _changed(result[key], without.get(key), composed[key])
    return result


def _changed(values: Any, before: Any, after: Any) -> Any:
    """`values` with the changes from `before` to `after`; `after` if their keys differ."""
    if not all(isinstance(tree, dict) for tree in (values, before, after)):
        return values if before == after else after
    if set(before) != set(after):
        return after
    return {**values, **{k: _changed(values.get(k), before[k], after[k]) for k in after}}


def literal(tree: Any) -> Any:
    """Plain data in which OmegaConf resolves nothing: each ``${`` of a text is escaped."""
    if isinstance(tree, dict):
        return {key: literal(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [literal(value) for value in tree]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", tree) if isinstance(tree, str) else tree


def to_yaml(config: Config) -> str:
    """A configuration as YAML, from which OmegaConf reads the same values."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(literal(config)))


def plain(config: Any) -> Config:
    """An OmegaConf tree as plain dicts and lists, with interpolations resolved.

    Raises:
        ValueError: a value is missing.
    """
    from omegaconf import MissingMandatoryValue, OmegaConf

    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise ValueError(f"{key} has no default value: set {key}=...") from None
    return typing.cast(Config, values)
