"""Which image each worker process of a loader reads, so that the error about a dead one names it.

A worker that the system has killed cannot say anything. So each worker writes its process id and
the path into memory that it shares with the process that has started it.
"""

from __future__ import annotations

import mmap
import os
import re
import struct

from torch.utils.data import get_worker_info

_HEAD = struct.Struct("<qi")  # process id, and bytes of the path
_SLOT = 4096 + _HEAD.size  # no path of Linux is longer
_DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)\s*([^.\n]*)")


class WorkerFiles:
    """The files that the workers of loaders read at this moment.

    Args:
        workers: number of worker processes of a loader; 0: nothing is noted.
    """

    def __init__(self, workers: int) -> None:
        self._slots = mmap.mmap(-1, workers * _SLOT) if workers else None

    def __getstate__(self) -> dict[str, None]:
        """Memory cannot be pickled: a worker that is not forked notes nothing."""
        return {"_slots": None}

    def note(self, path: str) -> None:
        """Note in a worker which file it reads next; "" for none. Elsewhere nothing happens."""
        worker = get_worker_info()
        if worker is None or self._slots is None:
            return
        name = os.fsencode(path)[: _SLOT - _HEAD.size]
        start = worker.id * _SLOT
        self._slots[start : start + _HEAD.size] = _HEAD.pack(os.getpid(), 0)
        self._slots[start + _HEAD.size : start + _HEAD.size + len(name)] = name
        self._slots[start : start + _HEAD.size] = _HEAD.pack(os.getpid(), len(name))

    def read_by(self, process: int) -> str | None:
        """The file that a worker was reading; None if it is not known, or was reading none."""
        for start in range(0, len(self._slots or b""), _SLOT):
            assert self._slots is not None
            worker, length = _HEAD.unpack(self._slots[start : start + _HEAD.size])
            if worker == process and length:
                first = start + _HEAD.size
                return os.fsdecode(self._slots[first : first + length])
        return None


def explained(error: RuntimeError, files: list[WorkerFiles]) -> Exception:
    """The error of a dead worker as one that names its file; any other error unchanged."""
    match = _DEAD.search(str(error))
    if match is None:
        return error
    for process in map(int, match[1].split(",")):
        for path in (known.read_by(process) for known in files):
            if path is not None:
                return ValueError(
                    f"{path}: a worker process ({process}) {match[2].strip()} while it read this "
                    "file, which is damaged, or needs more memory than there is; try "
                    "loader.workers=0"
                )
    return error
