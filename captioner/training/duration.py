"""The length of a training: chosen where no option says it, refused where nothing would happen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

EPOCHS, STEPS, STEPS_BETWEEN = 15, 300, 20
"""Without trainer.max_epochs and trainer.max_steps: this number of epochs or, from random weights,
the number that makes this number of optimizer steps, with a validation after each epoch, or after
this number of steps.
Forty photographs are one step per epoch: a model with random weights is at its best after 200, one
that starts from another's weights after a few."""


_ABOVE_ZERO = (
    *("max_epochs", "limit_train_batches"),
    *("accumulate_grad_batches", "check_val_every_n_epoch"),
)


def settled(trainer: Mapping[str, Any], batches: int, *, new: bool) -> dict[str, Any]:
    """The group ``trainer`` with what depends on the length of an epoch.

    max_epochs and check_val_every_n_epoch get numbers where they are null, and log_every_n_steps is
    at most the steps of an epoch, so that the training loss is logged at least once per epoch.

    Args:
        trainer: the group.
        batches: training batches in an epoch.
        new: whether the model starts from random weights.

    Raises:
        ValueError: a number with which nothing would happen.
    """
    for name in _ABOVE_ZERO:
        value = trainer.get(name)
        if isinstance(value, int | float) and (value == 0 or (value < 0 and name != "max_epochs")):
            raise ValueError(f"trainer.{name}={value} is not accepted; choose a number above 0")
    steps = steps_of(trainer, batches)
    logged = min(trainer.get("log_every_n_steps", 50), steps)
    epochs, every = trainer["max_epochs"], trainer["check_val_every_n_epoch"]
    if epochs is None and not new and trainer.get("max_steps", -1) < 0:
        epochs = EPOCHS
    if epochs is None:
        every = every or max(1, STEPS_BETWEEN // steps)
        most = trainer.get("max_steps", -1)
        epochs = max(EPOCHS, math.ceil(STEPS / steps)) if most < 0 else math.ceil(most / steps)
        epochs = every * math.ceil(epochs / every)  # the last one is validated
    lengths = {"max_epochs": epochs, "check_val_every_n_epoch": every or 1}
    return {**trainer, **lengths, "log_every_n_steps": logged}


def steps_of(trainer: Mapping[str, Any], batches: int) -> int:
    """Steps of the optimizer in an epoch, at least 1."""
    limit = trainer.get("overfit_batches") or trainer.get("limit_train_batches", 1.0)
    taken = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return max(1, math.ceil(taken / max(1, trainer.get("accumulate_grad_batches", 1))))


def require_batches(trainer: Mapping[str, Any], *, train: int, val: int) -> None:
    """Refuse shares of the batches that are less than one batch, before the work begins.

    Args:
        trainer: the group.
        train: training batches in an epoch.
        val: batches of the dev split.

    Raises:
        ValueError: names the option and the least share.
    """
    for name, batches in (("train", train), ("val", val)):
        option = f"limit_{name}_batches"
        share = trainer[option]
        if isinstance(share, float) and 0 < share < 1 and int(share * batches) < 1:
            counted = "1 batch" if batches == 1 else f"{batches} batches"
            raise ValueError(
                f"trainer.{option}={share} of {counted} is less than one; choose "
                f"{math.ceil(100 / batches) / 100} or more, or a whole number of batches"
            )


def require_epochs(checkpoint: Mapping[str, Any] | None, trainer: Mapping[str, Any]) -> None:
    """Refuse to resume a training whose epochs are all done.

    Args:
        checkpoint: as Lightning wrote it; None where the training is new.
        trainer: the group; its max_epochs may be negative: no limit, or None: not known yet.

    Raises:
        ValueError: says what to set.
    """
    max_epochs, max_steps = trainer["max_epochs"], trainer.get("max_steps", -1)
    if checkpoint is None or max_epochs is None:
        return
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    done = loop.get("epoch_progress", {}).get("current", {}).get("processed", 0)
    if not 0 <= max_epochs <= done:
        return
    reached, also = plural(done, "epoch is", "epochs are") + " done", ""
    if max_steps >= 0:  # they may have ended the last epoch early
        steps, epochs = checkpoint.get("global_step", 0), plural(done, "epoch", "epochs")
        reached = f"{plural(steps, 'step is', 'steps are')} done, in {epochs}"
        also = f" and trainer.max_steps above {steps}" if max_steps <= steps else ""
    raise ValueError(
        f"{reached}, and trainer.max_epochs={max_epochs}: "
        f"set trainer.max_epochs above {done}{also} to continue"
    )


def plural(count: int, one: str, more: str) -> str:
    """A count and its noun.

    Args:
        count: how many.
        one: the noun for 1.
        more: the noun for any other number.
    """
    return f"{count} {one if count == 1 else more}"
