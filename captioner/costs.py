"""What a training cost: ``costs.json`` in the run folder, for the tables that compare recipes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captioner.data.records import write_whole

FILE = "costs.json"


class Costs:
    """Watches a training from its first step on.

    Args:
        folder: the run folder; a training that goes on adds to what is written there.
        module: what learns.
    """

    def __init__(self, folder: Path, module: nn.Module) -> None:
        self.file, self.module = folder / FILE, module
        self.before = self._minutes_before()
        self.started = time.monotonic()

    def write(self, *, epochs: int) -> None:
        """Leave what was spent until now.

        Keys: minutes (of training with its looks at dev; features of images, which are cached once,
        are not among them, and what a killed process spent is lost), epochs, peak_memory_gib (of
        the process, with the pages of cached features that it has looked at; on a GPU of that),
        learned_parameters, all_parameters, threads, torch.
        """
        parameters = list(self.module.parameters())
        spent: dict[str, Any] = {
            "minutes": round(self.before + (time.monotonic() - self.started) / 60, 2),
            "epochs": epochs,
            "peak_memory_gib": round(peak_memory() / 2**30, 2),
            "learned_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "all_parameters": sum(p.numel() for p in parameters),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        write_whole(self.file, json.dumps(spent, indent=2) + "\n")

    def _minutes_before(self) -> float:
        try:
            return float(json.loads(self.file.read_text(encoding="utf-8"))["minutes"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0


def peak_memory() -> int:
    """Bytes: the most this process has held at a time, on the GPU where there is one; 0 unknown."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
