"""The disk space that a training takes, checked before it starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from captioner.files import format_bytes
from captioner.runs import checkpoint_files


def checkpoint_bytes(module: nn.Module, *, ema: float, keep: int) -> int:
    """The most that the checkpoints of a training take at a time.

        last = weights + 2 learned (the moments of Adam) + learned, with an average
        all  = last + weights (best.ckpt) + keep * weights + last (while a new one replaces it)

    Args:
        module: the module that is trained.
        ema: ``callbacks.ema``.
        keep: ``callbacks.keep``.
    """
    weights = sum(map(_bytes, module.state_dict().values()))
    learned = sum(_bytes(p) for p in module.parameters() if p.requires_grad)
    last = weights + (3 if ema else 2) * learned
    return 2 * last + (1 + keep) * weights


def require_space(run: Path, needed: int, report: Callable[[str], object]) -> int:
    """Say what the checkpoints of a training take, and refuse it if the disk cannot hold them.

    Args:
        run: the run folder; the checkpoints that it has will be replaced.
        needed: as returned by `checkpoint_bytes`.
        report: called with the line to print.

    Returns:
        the bytes that the checkpoints still need.

    Raises:
        ValueError: less is free.
    """
    more = max(0, needed - sum(file.stat().st_size for file in checkpoint_files(run)))
    free = shutil.disk_usage(run).free
    if more > free:
        raise ValueError(
            f"run_dir={run}: the checkpoints need up to {format_bytes(more)}, but "
            f"{format_bytes(free)} are free; free some space, choose another run_dir, or lower "
            "callbacks.keep"
        )
    report(f"disk: the checkpoints take up to {format_bytes(more)}, {format_bytes(free)} are free")
    return more


def on_same_disk(run: Path, folder: Path) -> bool:
    """Whether a folder, which may not exist yet, is on the disk of a run folder."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return existing.stat().st_dev == run.stat().st_dev


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
