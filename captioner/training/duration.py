"""The length of a training: its default, and errors if nothing would be trained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from captioner.plain_data import shortened

EPOCHS, STEPS, STEPS_BETWEEN = 15, 300, 20
"""Defaults if neither trainer.max_epochs nor trainer.max_steps is set: EPOCHS epochs or, from
random weights, at least STEPS optimizer steps, with a validation after each epoch or, if epochs are
shorter, after about STEPS_BETWEEN steps.

With forty photographs an epoch is one step. A model with random weights then reaches its best score
after about 200 steps, one that starts from trained weights after a few."""


_TIME = re.compile(r"(?!0+:00:00:00)\d{1,6}:\d\d:\d\d:\d\d")
"""A trainer.max_time above 0, as Lightning reads it; 999999 days are the most."""

_UNLIMITED = ("max_epochs", "max_steps")
_FROM_ONE = ("accumulate_grad_batches", "log_every_n_steps")
_ABOVE_ZERO = ("limit_train_batches", "accumulate_grad_batches", "check_val_every_n_epoch")


def resolve_length(trainer: Mapping[str, Any], batches: int, *, new: bool) -> dict[str, Any]:
    """The group ``trainer`` with the options that depend on the length of an epoch.

    max_epochs and check_val_every_n_epoch get numbers if they are null, and log_every_n_steps is at
    most the number of steps of an epoch, so that the training loss is logged at least once per
    epoch.

    Args:
        trainer: the group.
        batches: training batches in an epoch.
        new: whether the model starts from random weights.

    Raises:
        ValueError: a number with which nothing would be trained or validated.
    """
    for name in _ABOVE_ZERO:
        value = trainer.get(name)
        if isinstance(value, int | float) and value <= 0:
            raise ValueError(f"trainer.{name}={value} is not accepted; choose a number above 0")
    steps = steps_of(trainer, batches)
    log_every = min(trainer.get("log_every_n_steps", 50), steps)
    epochs, every = trainer["max_epochs"], trainer["check_val_every_n_epoch"]
    if epochs is None and not new and trainer.get("max_steps", -1) < 0:
        epochs = EPOCHS
    if epochs is None:
        every = every or max(1, STEPS_BETWEEN // steps)
        max_steps = trainer.get("max_steps", -1)
        unlimited = max(EPOCHS, math.ceil(STEPS / steps))
        epochs = unlimited if max_steps < 0 else math.ceil(max_steps / steps)
        epochs = every * math.ceil(epochs / every)  # the last epoch is validated
    lengths = {"max_epochs": epochs, "check_val_every_n_epoch": every or 1}
    return {**trainer, **lengths, "log_every_n_steps": log_every}


def steps_of(trainer: Mapping[str, Any], batches: int) -> int:
    """Optimizer steps in an epoch, at least 1."""
    limit = trainer.get("overfit_batches") or trainer.get("limit_train_batches", 1.0)
    used = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return max(1, math.ceil(used / max(1, trainer.get("accumulate_grad_batches", 1))))


def require_batches(trainer: Mapping[str, Any], *, train: int, val: int) -> None:
    """Refuse fractions of the batches that are less than one batch, before anything is computed.

    Args:
        trainer: the group.
        train: training batches in an epoch.
        val: batches of the dev split.

    Raises:
        ValueError: names the option and the smallest fraction.
    """
    for name, batches in (("train", train), ("val", val)):
        option = f"limit_{name}_batches"
        fraction = trainer[option]
        if isinstance(fraction, float) and 0 < fraction < 1 and int(fraction * batches) < 1:
            counted = "1 batch" if batches == 1 else f"{batches} batches"
            raise ValueError(
                f"trainer.{option}={fraction} of {counted} is less than one; choose "
                f"{math.ceil(100 / batches) / 100} or more, or a whole number of batches"
            )


def require_epochs(checkpoint: Mapping[str, Any] | None, trainer: Mapping[str, Any]) -> None:
    """Refuse a length of which nothing is trained, and to resume when all epochs are done.

    Args:
        checkpoint: as Lightning wrote it; None if the training is new.
        trainer: the group; its max_epochs may be negative (no limit) or None (not known yet).

    Raises:
        ValueError: says what to set.
    """
    _require_counts(trainer)
    _require_time(trainer.get("max_time"))
    max_epochs, max_steps = trainer["max_epochs"], trainer.get("max_steps", -1)
    if checkpoint is None or max_epochs is None:
        return
    done: Any = checkpoint.get("loops", {})
    for name in ("fit_loop", "epoch_progress", "current"):
        done = done.get(name, {})
        if not isinstance(done, dict):
            raise ValueError(
                f"damaged captioner checkpoint ({name} of its training is {shortened(done)})"
            )
    done = done.get("processed", 0)
    if type(done) is not int:
        raise ValueError(f"damaged captioner checkpoint ({shortened(done)} epochs are done)")
    if not 0 <= max_epochs <= done:
        return
    reached, also = plural(done, "epoch is", "epochs are") + " done", ""
    if max_steps >= 0:  # this limit may have ended the last epoch early
        steps, epochs = checkpoint.get("global_step", 0), plural(done, "epoch", "epochs")
        reached = f"{plural(steps, 'step is', 'steps are')} done, in {epochs}"
        also = f" and trainer.max_steps above {steps}" if max_steps <= steps else ""
    raise ValueError(
        f"{reached}, and trainer.max_epochs={max_epochs}: "
        f"set trainer.max_epochs above {done}{also} to continue"
    )


def _require_counts(trainer: Mapping[str, Any]) -> None:
    for name in (*_UNLIMITED, *_FROM_ONE):
        value, unlimited = trainer.get(name), name in _UNLIMITED
        if value is None or (type(value) is int and (value >= 1 or (unlimited and value == -1))):
            continue
        more = ", or -1 for no limit" if unlimited else ""
        raise ValueError(
            f"trainer.{name}={shortened(value)} is not accepted; choose a whole number from 1{more}"
        )


def _require_time(value: Any) -> None:
    if value is None or (isinstance(value, str) and _TIME.fullmatch(value.strip())):
        return
    raise ValueError(
        f"trainer.max_time={shortened(value)} is not accepted; choose "
        "days:hours:minutes:seconds above 0, such as 00:08:00:00 for eight hours"
    )


def plural(count: int, singular: str, others: str) -> str:
    """A count and its noun, such as "2 epochs".

    Args:
        count: the number.
        singular: the noun for 1.
        others: the noun for any other number.
    """
    return f"{count} {singular if count == 1 else others}"
