"""The cost of a training: ``costs.json`` in the run folder, for the tables that compare recipes."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from captioner.files import write_whole
from captioner.plain_data import read_json
from captioner.runs import COSTS

EVERY = 50  # steps between two measurements of the memory


class Costs(Callback):
    """Measures the cost of a training and writes it to a file after every epoch.

    Keys of the file: minutes (of training and validation, without the computation of cached
    features, and without the time of a killed process after its last epoch), epochs,
    peak_memory_gib (of the process, without memory-mapped files; on a GPU, of the GPU),
    learned_parameters, all_parameters, threads, processes, torch, and ended: whether this epoch was
    the last one (``captioner.runs.has_ended``). With several devices, memory and threads are those
    of the first process, which writes the file.

    Args:
        folder: the run folder; a resumed run adds to the values in its file.
        module: the module that is trained.
    """

    def __init__(self, folder: Path, module: nn.Module) -> None:
        self.file, self.module = folder / COSTS, module
        self.before, self.peak = self._before()
        self.started = time.monotonic()

    def on_fit_start(self, *_: Any) -> None:
        self.started = time.monotonic()  # all ranks have joined

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step % EVERY == 1:
            self.peak = max(self.peak, memory())

    def on_train_epoch_end(self, trainer: lightning.Trainer, _: Any) -> None:
        if not trainer.is_global_zero:
            return
        self.peak = max(self.peak, memory())
        parameters = list(self.module.parameters())
        spent: dict[str, Any] = {
            "minutes": round(self.before + (time.monotonic() - self.started) / 60, 2),
            "epochs": trainer.current_epoch + 1,
            "peak_memory_gib": round(self.peak / 2**30, 2),
            "learned_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "all_parameters": sum(p.numel() for p in parameters),
            "threads": torch.get_num_threads(),
            "processes": trainer.world_size,
            "torch": torch.__version__,
            "ended": _is_last_epoch(trainer),
        }
        write_whole(self.file, json.dumps(spent, indent=2) + "\n")

    def _before(self) -> tuple[float, float]:
        """Minutes and bytes of a run that is resumed, otherwise 0."""
        try:
            spent = read_json(self.file, fault="")
            return float(spent["minutes"]), float(spent["peak_memory_gib"]) * 2**30
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError):
            return 0.0, 0.0


def _is_last_epoch(trainer: lightning.Trainer) -> bool:
    """Whether no epoch follows, because of max_epochs, max_steps, or a callback (patience)."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    done = epochs is not None and 0 <= epochs <= trainer.current_epoch + 1
    return trainer.should_stop or done or 0 <= steps <= trainer.global_step


def memory() -> float:
    """Bytes of memory that this process uses: on a GPU, the peak of the GPU; 0 if unknown."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if match:
            return 1024 * int(match[1])
        import resource
    except (OSError, ImportError):  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # includes memory-mapped files
    return peak if sys.platform == "darwin" else peak * 1024
