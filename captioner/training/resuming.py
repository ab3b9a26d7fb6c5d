"""Options for ``resume=RUN``: the configuration of the run, with some changes.

A resumed run continues exactly as if it had never stopped: optimizer, schedule and the order of
batches are those of its checkpoint. Some options may change: new values are used and recorded. Any
other option is refused if its value differs from that of the run.

A sweep that is started again resumes its jobs as well (`earlier`); then no option may change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from captioner.checkpoints import checkpoint
from captioner.checkpoints.checkpoint import Checkpoint
from captioner.checkpoints.places import anchored, confined
from captioner.config import Config, compose, override
from captioner.metrics.novelty import CaptionHashes
from captioner.overrides import Override, parse, shell_word
from captioner.runs import LAST, checkpoint_file

CHANGEABLE = (
    "trainer.*",
    "decoding.*",
    "logger.*",
    "objective.*",
    "callbacks.patience",
    "callbacks.save_every",
    "callbacks.samples",
    "callbacks.keep",
    "callbacks.progress",
    "loader.workers",
    "loader.cache",
    "loader.cache_folder",
    "data.root",
    "data.captions",
    "data.images",
    "training.skip_bad_steps",
    "encoder.precision",
    "encoder.gradient_checkpointing",
)
"""Options that may change when a run is resumed: where it runs, how long, what is logged and
written, and what the objective computes from a batch."""

_FIXED = ("objective.name",)
"""Options that may not change, although a pattern above matches them."""

_SUMMARY = (
    "trainer.*, decoding.*, logger.*, callbacks.* except monitor and ema, loader.workers and "
    "cache, data.root, training.skip_bad_steps, encoder.precision and the options of the objective"
)

_GROWING = (
    "trainer",
    "decoding",
    "logger",
    "callbacks",
    "loader",
    "training",
)  # an older run may lack options of these groups
_INHERITED = ("tokenizer", "encoder", "decoder")  # from the run that resume_weights names

_DECIDED = ("run_dir", "resume", "trainer.log_every_n_steps")
"""Options that a run records with another value than it was given."""


def resumed(
    saved: Config,
    overrides: Sequence[str | Override],
    *,
    run: str,
    folder: Path,
    config_dir: str | Path | None = None,
) -> Config:
    """The configuration with which a run is resumed.

    Args:
        saved: the configuration in its checkpoint; see `confined`.
        overrides: ``key=value`` as typed, or as parsed; ``resume`` and those of Hydra are ignored.
        run: the run as the user named it, for errors.
        folder: its run folder.
        config_dir: a folder with the user's own options.

    Returns:
        the configuration to run with and to record.

    Raises:
        ValueError: an option that cannot change when a run is resumed has another value than that
            of the run.
    """
    named = {change.key_or_group: change for change in parse(overrides)}
    saved = confined(anchored(saved), named)
    _require_same_places(saved, named, run, folder)
    ignored = {"resume", "run_dir", "resume_weights"}
    changes = [
        change
        for key, change in named.items()
        if key not in ignored and (key == "hydra.searchpath" or not key.startswith("hydra"))
    ]
    defaults = compose() if changes else {}
    whole = {key: _completed(saved[key], defaults.get(key), key) for key in saved}
    wanted = anchored(override(whole, changes, config_dir=config_dir))
    if saved.get("resume_weights") is not None and "experiment" in named:
        own = [change for change in changes if change.key_or_group != "experiment"]
        without = override(whole, own, config_dir=config_dir)
        wanted |= {group: without[group] for group in _INHERITED if group in without}
    _require_same_choices(saved, wanted, named, run)
    _require_changeable(_leaves(saved), _leaves(whole), _leaves(wanted), named, run)
    for group in _GROWING:  # an option that the run lacks is added only if it was set
        old, new = saved.get(group, {}), wanted.get(group, {})
        wanted[group] = {k: v for k, v in new.items() if k in old or v != whole[group].get(k)}
    return {**wanted, "run_dir": saved.get("run_dir", str(folder))}


def earlier(config: Config, folder: Path) -> Checkpoint | None:
    """The last checkpoint of a job that an earlier command has trained, or has begun to train.

    Args:
        config: the configuration of the job, with its precisions resolved.
        folder: its run folder.

    Returns:
        None if there is none.

    Raises:
        ValueError: it is damaged, or of a training with other options.
    """
    file = checkpoint_file(folder, LAST)
    if not file.is_file():
        return None
    last = checkpoint.read(file)
    before, now = _leaves(last.config), _leaves(anchored(config))
    for key in sorted(before.keys() & now.keys() - {*_DECIDED}):
        if now[key] not in (None, before[key]):  # null: its value was decided by the training
            raise ValueError(
                f"{key}={now[key]} differs from the run that is in {folder}, which has "
                f"{before[key]}; choose another run_dir, or continue that run with "
                f"{shell_word('resume', folder)}"
            )
    return last


def _require_same_places(saved: Config, named: Mapping[str, Any], run: str, folder: Path) -> None:
    """Refuse another run folder and other initial weights."""
    weights = named["resume_weights"].value() if "resume_weights" in named else None
    start = None if weights is None else anchored({"resume_weights": str(weights)})
    if start is not None and start["resume_weights"] != saved.get("resume_weights"):
        raise ValueError("resume and resume_weights exclude each other; give one of them")
    place = named["run_dir"].value() if "run_dir" in named else None
    if place is not None and Path(os.path.expanduser(str(place))).resolve() != folder.resolve():
        raise ValueError(
            f"run_dir={place} cannot be combined with resume={run}, which continues in {folder}; "
            "leave run_dir out, or start another run from its weights: "
            f"{shell_word('resume_weights', run)}"
        )


def require_same_captions(
    now: CaptionHashes,
    *,
    known: CaptionHashes | None,
    more: CaptionHashes | None = None,
    root: str,
    run: Path,
) -> None:
    """Refuse to resume a run on other training captions than those it was trained on.

    Args:
        now: hashes of the captions of the dataset.
        known: hashes of the captions of the run; None if its checkpoint does not contain them.
        more: for such a checkpoint, hashes of all captions that its weights were trained on.
        root: the folder of the dataset, for errors.
        run: the run folder, for errors.

    Raises:
        ValueError: some captions are new or missing; the error gives their numbers.
    """
    before = known if known is not None else more
    if before is None:
        return
    new, gone = now.without(before), known.without(now) if known is not None else 0
    if new or gone:
        raise ValueError(
            f"data.root={root} has other training captions than resume={run} was trained on: "
            f"{new:,} are new, {gone:,} are missing; set data.root=... to its data, or start "
            f"another run on these with {shell_word('resume_weights', run)}"
        )


def _require_same_choices(
    saved: Config, wanted: Config, named: Mapping[str, Override], run: str
) -> None:
    """Refuse another option of a group; the error names the override of the user."""
    for group, change in named.items():
        before, after = saved.get(group), wanted.get(group)
        if not isinstance(before, dict) or not isinstance(after, dict):
            continue
        if before.get("name") != after.get("name") and not _is_changeable(f"{group}.name"):
            raise ValueError(
                f"{group}={change.value()} cannot be combined with resume={run}, which has "
                f"{before.get('name')}; {_advice(run)}"
            )


def _advice(run: str) -> str:
    return (
        f"when resuming, only {_SUMMARY} can be changed; "
        f"{shell_word('resume_weights', run)} starts another training from its weights"
    )


def _require_changeable(
    saved: Mapping[str, Any],
    whole: Mapping[str, Any],
    wanted: Mapping[str, Any],
    named: Mapping[str, Override],
    run: str,
) -> None:
    """Refuse a value that differs from that of the run; the error names its override."""
    for key in sorted({*whole, *wanted}):
        before, after = whole.get(key), wanted.get(key)
        if before == after or _is_changeable(key):
            continue
        choice = _choice_of(key, named)
        prefix, leave_out = (f"{choice}: ", f"leave {choice} out; ") if choice else ("", "")
        raise ValueError(
            f"{prefix}{key}={after} cannot be combined with resume={run}, which has "
            f"{saved.get(key)}; {leave_out}{_advice(run)}"
        )


def _choice_of(key: str, named: Mapping[str, Override]) -> str | None:
    """The override that set a key by choosing an option of a group; None if one set the key itself.

    Returns:
        for ``schedule.patience`` for example ``schedule=plateau``.
    """
    if key in named:
        return None
    choice = named.get(key.partition(".")[0]) or named.get("experiment")
    return None if choice is None else f"{choice.key_or_group}={choice.value()}"


def _is_changeable(key: str) -> bool:
    return key not in _FIXED and any(fnmatchcase(key, pattern) for pattern in CHANGEABLE)


def _completed(values: Any, defaults: Any, group: str) -> Any:
    """A group of an old run, with the default values of options that it lacks."""
    if group in _GROWING and isinstance(values, dict) and isinstance(defaults, dict):
        return {**defaults, **values}
    return values


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """The single values of nested dicts: dotted key -> value."""
    if not isinstance(tree, dict):
        return {path: tree}
    parts = (_leaves(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items())
    return {key: value for part in parts for key, value in part.items()}
