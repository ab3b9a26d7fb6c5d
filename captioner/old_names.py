"""Old names of options, which still work in this release.

In captioner 0.1 the group ``training`` had the options of the objective, the optimizer and the
learning rate schedule, which are now separate groups. An old name may be in

    an override              `renamed` replaces it when the override is parsed
    a user's YAML            `options_in` finds it in the composed configuration; it becomes an
                             override before those of the command line, in a run or a sweep's job
    a stored configuration   `modernized` replaces it when the file is read, without a warning
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from captioner import parts
from captioner.process import is_first

_OBJECTIVE = (
    *("label_smoothing", "scheduled_sampling", "attention_penalty"),
    *("samples", "baseline", "temperature", "rewards", "dropout", "cross_entropy_weight"),
    *("least_distinct", "most_repeats", "most_endless"),
)
_OPTIMIZER = ("lr", "encoder_lr", "weight_decay")
_SCHEDULE = {"warmup": "warmup", "plateau_factor": "factor", "plateau_patience": "patience"}
KEPT = ("word_vectors", "freeze_words", "unfreeze_at", "unfreeze_stages", "skip_bad_steps")
"""The options that the group ``training`` still has."""

NAMES: dict[str, str] = {
    "training.objective": "objective",
    "training.schedule": "schedule",
    **{f"training.{name}": f"objective.{name}" for name in _OBJECTIVE},
    **{f"training.{name}": f"optimizer.{name}" for name in _OPTIMIZER},
    **{f"training.{old}": f"schedule.{new}" for old, new in _SCHEDULE.items()},
}
"""Old name of an option -> its present name: a group, if the option chose a component."""

_CHOICES = {"default": "cross_entropy", "scst": "scst"}  # training=OLD -> objective=NEW
_OF_PLATEAU = ("factor", "patience")  # in 0.1 every schedule had them
_OVERRIDE = re.compile(r"(?P<marks>[+~]*)(?P<key>[^=@]+)(?P<rest>.*)", re.DOTALL)

Warn = Callable[[str, str], None]
"""Called with an old name and the present name."""


def warn_renamed(old: str, new: str) -> None:
    """Warn, in the first process, of an old name."""
    if is_first():
        message = f"{old} is now {new}; the old name works in this release"
        warnings.warn(message, FutureWarning, stacklevel=3)


class WarnOnce:
    """Warns of each old name once."""

    def __init__(self) -> None:
        self.warned: set[str] = set()

    def __call__(self, old: str, new: str) -> None:
        if old not in self.warned:
            self.warned.add(old)
            warn_renamed(old, new)


# Overrides ------------------------------------------------------------------------------------


def renamed(line: str, warn: Warn = warn_renamed) -> str:
    """An override with the option's present name.

    Args:
        line: ``key=value``, ``+key=value`` or ``~key``.
        warn: called if the name is an old one.
    """
    parsed = _OVERRIDE.fullmatch(line)
    if parsed is None:
        return line
    marks, key, rest = parsed.groups()
    if key == "training" and rest.startswith("="):
        names = rest[1:].split(",")
        if not all(name in _CHOICES for name in names):
            return line  # the user's own options stay
        new = f"objective={','.join(_CHOICES[name] for name in names)}"
        warn(line, new)
        return new
    old = next((name for name in NAMES if key == name or key.startswith(f"{name}.")), None)
    if old is None:
        return line
    new = NAMES[old] + key[len(old) :]
    warn(key, new)
    if "." not in new:
        marks = ""  # Hydra refuses +group=option of a group that exists
    return f"{marks}{new}{rest}"


# The user's YAML ------------------------------------------------------------------------------


def options_in(composed: Any) -> dict[str, tuple[str, Any]]:
    """The options that YAML sets by old names: dotted new key -> (old key, value).

    New keys without a dot choose an option of a group; they come first.

    Args:
        composed: an OmegaConf tree.

    Raises:
        ValueError: an option has never existed.
    """
    from omegaconf import OmegaConf

    group = composed.get("training")
    training: Any = OmegaConf.to_container(group) if OmegaConf.is_dict(group) else {}
    for name in sorted(set(training) - set(KEPT)):
        if f"training.{name}" not in NAMES and not _has_own_objective(composed, training):
            raise _unknown(f"training.{name}")
    options = {
        new + path: (old + path, value)
        for new, (old, values) in _moved(training).items()
        for path, value in _leaves(values)
    }
    return dict(sorted(options.items(), key=lambda item: ("." in item[0], item[0])))


def names_in(composed: Any) -> dict[str, str]:
    """The old names in YAML: old name -> present name.

    Args:
        composed: an OmegaConf tree with Hydra's own options.

    Raises:
        ValueError: an option has never existed.
    """
    names = {old: new for new, (old, _) in options_in(composed).items()}
    choice = composed.hydra.runtime.choices.get("training")
    if choice in _CHOICES and choice != "default":
        names[f"training={choice}"] = f"objective={_CHOICES[choice]}"
    return names


def require_one_name(
    options: Mapping[str, tuple[str, Any]], composed: Any, compose_choice: Callable[[str], Any]
) -> None:
    """Refuse a YAML in which the old and the new name of an option have different values.

    Args:
        options: as returned by `options_in`.
        composed: the configuration that contains them.
        compose_choice: a function that composes ``group=option`` alone.

    Raises:
        ValueError: they differ; the error contains both names.
    """
    from omegaconf import OmegaConf

    choices = {key.partition("@")[0]: name for key, name in composed.hydra.runtime.choices.items()}
    for new, (old, value) in options.items():
        group = new.partition(".")[0]
        present = OmegaConf.select(composed, new)
        if new == group or present is None or present == value:
            continue
        if present != OmegaConf.select(compose_choice(f"{group}={choices[group]}"), new):
            raise ValueError(
                f"{old}={value} and {new}={present} are the old and the new name of one option; "
                f"remove {old}"
            )


def is_used(key: str, composed: Any) -> bool:
    """Whether an option is used; those of ``schedule=plateau`` only if the schedule has them."""
    group, _, name = key.partition(".")
    return group != "schedule" or name not in _OF_PLATEAU or name in composed.schedule


def deletions(options: Mapping[str, tuple[str, Any]]) -> list[str]:
    """The overrides that delete the old names of `options_in`, in the syntax of Hydra."""
    return sorted({f"~{'.'.join(old.split('.')[:2])}" for old, _ in options.values()})


def _has_own_objective(composed: Any, training: Mapping[Any, Any]) -> bool:
    present = (composed.get("objective") or {}).get("name")
    return any(parts.is_own(name) for name in (training.get("objective"), present))


def _unknown(old: str) -> ValueError:
    near = difflib.get_close_matches(old, NAMES, n=1, cutoff=0.8)
    hint = f" (did you mean {NAMES[near[0]]}?)" if near else ""
    return ValueError(f"{old} is not an option; training has {', '.join(KEPT)}{hint}")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, f"{path}.{name}")


# Stored configurations ------------------------------------------------------------------------


def modernized(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration whose group ``training`` no longer has old options.

    Args:
        config: a configuration of captioner 0.1; any other is returned unchanged.
    """
    training = config.get("training")
    if not isinstance(training, Mapping) or set(training) <= set(KEPT):
        return dict(config)
    groups: dict[str, dict[str, Any]] = {
        name: dict(config.get(name) or {}) for name in ("objective", "optimizer", "schedule")
    }
    groups["training"] = {name: training[name] for name in training if name in KEPT}
    for new, (_, value) in _moved(training).items():
        group, _, name = new.partition(".")
        groups[group][name or "name"] = value
    for group, default in (("objective", "cross_entropy"), ("optimizer", "adamw")):
        groups[group].setdefault("name", default)
    if groups["schedule"].setdefault("name", "cosine") != "plateau":
        for name in _OF_PLATEAU:
            groups["schedule"].pop(name, None)
    return {**config, **groups}


def _moved(training: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """The old options of the group ``training``: new key -> (old key, value).

    Names that are not in NAMES are options of the user's own objective.
    """
    old = {f"training.{name}": value for name, value in training.items() if name not in KEPT}
    return {
        NAMES.get(key, f"objective.{key.partition('.')[2]}"): (key, value)
        for key, value in old.items()
    }
