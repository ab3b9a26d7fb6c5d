"""Exact resuming: what last.ckpt contains, and when and how it is written."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy
import pytorch_lightning as lightning
import torch
from pytorch_lightning import callbacks
from pytorch_lightning.plugins.io import TorchCheckpointIO

from captioner.checkpoints.checkpoint import Checkpoint, read, write
from captioner.runs import LAST, checkpoint_file
from captioner.training import ranks
from captioner.training.loggers import log_step
from captioner.training.restoring import require_like


class LastCheckpoint(callbacks.Checkpoint):
    """Writes last.ckpt, from which a run resumes exactly as if it had never stopped.

    It is written before the first step, so that a run can be resumed from its start; after every
    few steps; and at the end of an epoch, after everything else: what an interrupted epoch has
    written before is written again when it is repeated. The last step of an epoch writes none:
    Lightning would resume behind the validation.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path = checkpoint_file(folder, LAST)
        self.every = every
        self._saved_at = 0

    def on_train_start(self, trainer: lightning.Trainer, *unused: Any) -> None:
        self._saved_at = trainer.global_step
        if trainer.ckpt_path is None:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer: lightning.Trainer, *unused: Any) -> None:
        step = trainer.global_step
        if step % self.every == 0 and step != self._saved_at and not trainer.is_last_batch:
            log_step(trainer)
            self._save(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, *unused: Any) -> None:
        self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        self._saved_at = trainer.global_step
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.path)


class RandomState(callbacks.Callback):
    """Stores every random generator of every rank in the checkpoint, as tensors and plain lists.

    Rank 0 draws the same numbers as a single process; the other ranks have seeds of their own. A
    resumed run restores the generators of all ranks.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        first, *others = ranks.gather(_generators())
        return {**first, "others": others} if others else first

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = [state, *state.get("others", [])]
        for generators in self._restored:
            _require_generators(generators)

    def on_train_start(self, trainer: lightning.Trainer, *unused: Any) -> None:
        rank = ranks.number()
        if rank < len(self._restored):
            _set_generators(self._restored[rank])
        elif rank:
            offset = 1_000_003 * rank + trainer.global_step
            lightning.seed_everything((torch.initial_seed() + offset) % 2**32, verbose=False)
        self._restored = []


def _generators() -> dict[str, Any]:
    """The state of every generator of this process."""
    kind, keys, position, has_gauss, gauss = numpy.random.get_state(legacy=True)
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, [int(key) for key in keys], position, has_gauss, gauss],
        "python": [version, list(words), gauss_next],
    }


def _set_generators(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words), gauss_next))


def _require_generators(state: dict[str, Any]) -> None:
    """Raise an error for a state that no generator can have."""
    torch.Generator().set_state(state["torch"].cpu())
    require_like([generator.dtype == torch.uint8 for generator in state["cuda"]], [], "cuda")
    kind, keys, *rest = state["numpy"]
    numpy.random.RandomState().set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))
    version, words, gauss_next = state["python"]
    random.Random().setstate((version, tuple(words), gauss_next))


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoint files, written completely or not at all, read without executing code.

    Args:
        resumed: a checkpoint that has already been read, so that it is not read again.
    """

    def __init__(self, resumed: Checkpoint | None = None) -> None:
        super().__init__()
        self.resumed = resumed

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        write(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        resumed, self.resumed = self.resumed, None
        if resumed is None or Path(path) != resumed.path:
            resumed = read(path)
        # The optimizer keeps its tensors: copies, as those of the file are mapped into memory.
        return copy.deepcopy(resumed.lightning)
