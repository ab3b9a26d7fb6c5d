"""The disk space that a training takes, checked before it starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from captioner.files import format_bytes
from captioner.runs import LAST, checkpoint_file, kept_epochs
from captioner.training.module import LitCaptioner

_FRAME = 512
"""Bytes of a tensor in a checkpoint besides its values: header, padding, names and shape."""
_PLAIN = 50_000
"""Bytes of a checkpoint's configuration, progress and random generators."""
_WORD = 40
"""Bytes of a word in a checkpoint."""


@dataclass(frozen=True)
class CheckpointSizes:
    """What the checkpoints of a training take, in bytes.

    Attributes:
        best: one of best.ckpt and the kept epochs: the weights.
        last: one of last.ckpt, which is replaced by a new one beside it.
        keep: ``callbacks.keep``.
    """

    best: int
    last: int
    keep: int

    def needed(self, run: Path, *, resumes: bool) -> int:
        """The most that they take at a time, in addition to what a run folder has already.

            2 last + best.ckpt + keep epochs - what is there of best.ckpt and of the epochs

        A resumed training has the last.ckpt that it was started from mapped into memory. So the
        system frees its space only at the end, although it has been replaced.

        Args:
            run: the run folder.
            resumes: whether the run in it is resumed.
        """
        best, last, there = self.best, self.last, 0
        if resumes:
            files = [checkpoint_file(run), *kept_epochs(run).values()][: 1 + self.keep]
            best = max(best, *map(_size, files))
            last = max(last, _size(checkpoint_file(run, LAST)))
            there = sum(map(_size, files))
        return 2 * last + (1 + self.keep) * best - there


def checkpoint_sizes(module: LitCaptioner, *, ema: float, keep: int) -> CheckpointSizes:
    """The sizes of the checkpoints of a training.

        best = weights + vocabulary + hashes of the captions
        last = best + what the optimizer stores (two moments for Adam) + the average, if there is

    Args:
        module: the module that is trained.
        ema: ``callbacks.ema``.
        keep: ``callbacks.keep``.
    """
    groups = module.optimization.parameter_groups(module.model)
    learned = [parameter for group in groups for parameter in group["params"]]
    hashes = [h.hashes.nbytes for h in (module.training_captions, module.own_captions) if h]
    plain = _PLAIN + _WORD * len(module.tokenizer.vocabulary) + sum(hashes)
    best = _bytes(module.state_dict().values()) + plain
    copies = module.optimization.moments() + (1 if ema else 0)
    return CheckpointSizes(best, best + copies * _bytes(learned) + _FRAME * len(learned), keep)


def require_space(
    run: Path, sizes: CheckpointSizes, report: Callable[[str], object], *, resumes: bool = False
) -> int:
    """Say what the checkpoints of a training take, and refuse it if the disk cannot hold them.

    Args:
        run: the run folder.
        sizes: of the checkpoints.
        report: called with the line to print.
        resumes: whether the run in the folder is resumed.

    Returns:
        the bytes that the checkpoints still need.

    Raises:
        ValueError: less is free.
    """
    more, free = sizes.needed(run, resumes=resumes), shutil.disk_usage(run).free
    if more > free:
        place = "move the run folder to another disk" if resumes else "choose another run_dir"
        lower = ", or lower callbacks.keep" if sizes.keep else ""
        raise ValueError(
            f"run_dir={run}: the checkpoints need up to {format_bytes(more)}, but "
            f"{format_bytes(free)} are free; free some space{',' if lower else ' or'} {place}"
            f"{lower}"
        )
    report(f"disk: the checkpoints take up to {format_bytes(more)}, {format_bytes(free)} are free")
    return more


def on_same_disk(run: Path, folder: Path) -> bool:
    """Whether a folder, which may not exist yet, is on the disk of a run folder."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return existing.stat().st_dev == run.stat().st_dev


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() + _FRAME for tensor in tensors)
