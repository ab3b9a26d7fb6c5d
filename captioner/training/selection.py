"""The ranking of epochs, for the best checkpoint, the kept epochs and early stopping.

    rank = (monitored score, CIDEr-D, -dev loss)        compared from the left; higher is better

BLEU-4 of a few images is often 0, because no 4-gram matches. Then CIDEr-D decides, and the loss if
CIDEr-D is equal too. Of two epochs with equal ranks the earlier one is better.

The best rank so far is read from the checkpoints in the run folder, which contain their dev scores.
So a run folder may be moved: no stored state contains the names of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback, Checkpoint

from captioner import runs
from captioner.checkpoints.checkpoint import read, read_block
from captioner.overrides import shell_word
from captioner.training.restoring import require_like

Rank = tuple[float, ...]


def rank(scores: Mapping[str, float], monitor: str) -> Rank:
    """The rank of an epoch; higher is better.

    Args:
        scores: the scores of its validation, with dev_cider and dev_loss.
        monitor: the name of the score that is compared first.
    """
    return scores[monitor], scores["dev_cider"], -scores["dev_loss"]


class BestCheckpoint(Checkpoint):
    """Writes best.ckpt whenever a validation ranks higher than all earlier ones.

    Args:
        folder: the run folder.
        monitor: see `rank`.
    """

    def __init__(self, folder: Path, monitor: str) -> None:
        self.path, self.monitor = runs.checkpoint_file(folder), monitor
        self.best: Rank | None = None

    def setup(self, *unused: Any, **named: Any) -> None:
        self.best = _rank_of(self.path, self.monitor) if self.path.is_file() else None

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.sanity_checking:
            return
        now = rank(module.dev_scores, self.monitor)
        if self.best is None or now > self.best:
            trainer.save_checkpoint(self.path, weights_only=True)
            self.best = now


class KeptEpochs(Checkpoint):
    """Keeps epoch-NN.ckpt of the best epochs, counted from 1 as in the output.

    Of all files and the current epoch, the best stay. So an epoch that is repeated, because the run
    was interrupted before last.ckpt was written, leaves the same files as if it had run once.

    Args:
        folder: the run folder.
        monitor: see `rank`.
        count: number of epochs to keep.
    """

    def __init__(self, folder: Path, monitor: str, count: int) -> None:
        self.folder, self.monitor, self.count = folder, monitor, count
        self.ranks: dict[int, Rank] = {}

    def setup(self, *unused: Any, **named: Any) -> None:
        files = runs.kept_epochs(self.folder)
        self.ranks = {epoch: _rank_of(file, self.monitor) for epoch, file in files.items()}

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.sanity_checking:
            return
        now = trainer.current_epoch + 1
        ranks = {**self.ranks, now: rank(module.dev_scores, self.monitor)}
        best = sorted(ranks, key=lambda epoch: (ranks[epoch], -epoch), reverse=True)[: self.count]
        if now in best:
            trainer.save_checkpoint(runs.epoch_file(self.folder, now), weights_only=True)
        for epoch in ranks.keys() - best:
            if trainer.is_global_zero:
                runs.epoch_file(self.folder, epoch).unlink(missing_ok=True)
        self.ranks = {epoch: ranks[epoch] for epoch in best}


class Patience(Callback):
    """Stops a training after a number of consecutive validations without a new best score.

    Args:
        monitor: see `rank`.
        patience: from 1.
    """

    def __init__(self, monitor: str, patience: int) -> None:
        self.monitor, self.patience = monitor, patience
        self.best: Rank | None = None
        self.waited = 0

    @property
    def exhausted(self) -> bool:
        """Whether this callback has ended the training."""
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": None if self.best is None else list(self.best), "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        require_like(state["waited"], 0, "the number of validations without a better one")
        if state["best"] is not None:
            require_like(state["best"], [0.0] * 3, "the best score")
        self.best = None if state["best"] is None else tuple(state["best"])
        self.waited = state["waited"]

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.sanity_checking:
            return
        now = rank(module.dev_scores, self.monitor)
        if self.best is None or now > self.best:
            self.best, self.waited = now, 0
            return
        self.waited += 1
        trainer.should_stop = trainer.should_stop or self.exhausted


def require_whole(run: Path, *, keep: int) -> None:
    """Check the checkpoints that a resumed run compares its epochs with, before it trains any.

    Args:
        run: the run folder.
        keep: ``callbacks.keep``; with 0 the epochs that are there are not read.

    Raises:
        ValueError: one is damaged.
    """
    best, epochs = runs.checkpoint_file(run), runs.kept_epochs(run).values()
    for file in (best, *(epochs if keep else ())):
        try:
            if file.is_file():
                read(file)
        except ValueError as error:
            fault = str(error).removeprefix(str(file)).partition("; ")[0]
            raise ValueError(
                f"{file}{fault}; copy it again from where it came, or remove it: then "
                f"{shell_word('resume', run)} selects among the epochs that follow"
            ) from None


def _rank_of(file: Path, monitor: str) -> Rank:
    """The rank of a checkpoint; without dev scores it is lower than all others."""
    try:
        return rank(read_block(file)["scores"], monitor)
    except KeyError:
        return (float("-inf"),)
