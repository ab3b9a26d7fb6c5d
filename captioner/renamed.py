"""Old names of options, which keep working for this release.

In captioner 0.1 the group ``training`` had the options of the objective, the optimizer and the
learning rate's schedule, which are now separate groups. Overrides are renamed where they are
parsed, stored and composed configurations where they are read.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from captioner.process import is_first

_OBJECTIVE = (
    *("label_smoothing", "scheduled_sampling", "attention_penalty"),
    *("samples", "baseline", "temperature", "rewards", "dropout", "cross_entropy_weight"),
    *("least_distinct", "most_repeats", "most_endless"),
)
_OPTIMIZER = ("lr", "encoder_lr", "weight_decay")
_SCHEDULE = {"warmup": "warmup", "plateau_factor": "factor", "plateau_patience": "patience"}
KEPT = ("word_vectors", "freeze_words", "unfreeze_at", "unfreeze_stages")
"""The options that the group ``training`` still has."""

NAMES: dict[str, str] = {
    "training.objective": "objective",
    "training.schedule": "schedule",
    **{f"training.{name}": f"objective.{name}" for name in _OBJECTIVE},
    **{f"training.{name}": f"optimizer.{name}" for name in _OPTIMIZER},
    **{f"training.{old}": f"schedule.{new}" for old, new in _SCHEDULE.items()},
}
"""Old name of an option -> its name: a group, where the option chose a component."""

_CHOICES = {"default": "cross_entropy", "scst": "scst"}  # training=OLD -> objective=NEW
_OVERRIDE = re.compile(r"(?P<marks>[+~]*)(?P<key>[^=@]+)(?P<rest>.*)", re.DOTALL)


def renamed(line: str) -> str:
    """An override with the option's present name; warns where it had an old one.

    Args:
        line: ``key=value``, ``+key=value`` or ``~key``.
    """
    parts = _OVERRIDE.fullmatch(line)
    if parts is None:
        return line
    marks, key, rest = parts.groups()
    if key == "training" and rest.startswith("="):
        return _with_choices(line, rest[1:])
    old = next((name for name in NAMES if key == name or key.startswith(f"{name}.")), None)
    if old is None:
        return line
    new = NAMES[old] + key[len(old) :]
    if "." not in new:
        marks = ""  # Hydra refuses +group=option of a group that exists
    warn_of(key, new)
    return f"{marks}{new}{rest}"


def _with_choices(line: str, value: str) -> str:
    """``training=scst``, which chooses an objective now; the user's own options stay."""
    names = value.split(",")
    if not all(name in _CHOICES for name in names):
        return line
    new = f"objective={','.join(_CHOICES[name] for name in names)}"
    warn_of(line, new)
    return new


def modernized(config: Mapping[str, Any], *, warn: bool = False) -> dict[str, Any]:
    """A configuration whose group ``training`` no longer has old options.

    Args:
        config: of a checkpoint or run of captioner 0.1, or composed from a user's YAML that has old
            names; any other is returned unchanged.
        warn: warn of each old name.
    """
    training = config.get("training")
    if not isinstance(training, Mapping) or set(training) <= set(KEPT):
        return dict(config)
    groups: dict[str, dict[str, Any]] = {
        name: dict(config.get(name) or {}) for name in ("objective", "optimizer", "schedule")
    }
    groups["training"] = {}
    name = groups["objective"].get("name")
    if training.get("objective", name) != name:
        groups["objective"] = {}  # its options are those of another objective
    for key, value in training.items():
        _move(groups, key, value)
        if warn and key not in KEPT:
            warn_of(f"training.{key}", NAMES.get(f"training.{key}", f"objective.{key}"))
    groups["objective"].setdefault("name", "cross_entropy")
    groups["optimizer"].setdefault("name", "adamw")
    if groups["schedule"].setdefault("name", "cosine") != "plateau":
        for name in ("factor", "patience"):
            groups["schedule"].pop(name, None)
    return {**config, **groups}


def _move(groups: dict[str, dict[str, Any]], key: str, value: Any) -> None:
    """Move an option of the old group ``training`` to its new group."""
    if key in ("objective", "schedule"):
        groups[key]["name"] = value
    elif key in KEPT:
        groups["training"][key] = value
    elif key in _OPTIMIZER:
        groups["optimizer"][key] = value
    elif key in _SCHEDULE:
        groups["schedule"][_SCHEDULE[key]] = value
    else:  # also those of the user's own objective
        groups["objective"][key] = value


def warn_of(old: str, new: str) -> None:
    """Warn, in the first process, of an old name."""
    if is_first():
        message = f"{old} is now {new}; the old name works in this release"
        warnings.warn(message, FutureWarning, stacklevel=3)
