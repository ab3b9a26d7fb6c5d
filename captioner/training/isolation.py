"""The settings of the process that a training changes, and that its caller gets back."""

from __future__ import annotations

import logging
import os
import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch

_LOGGERS = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
_SEEDS = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
"""Environment variables in which Lightning passes the seed to other processes."""
_HIDDEN = (
    r".*does not have many workers.*",
    r"Found \d+ module\(s\) in eval mode.*",  # intended for a frozen encoder
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*dirpath has changed.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*`broadcast_buffers` is deprecated.*",  # older versions of torch lack the new name
    r".*It is recommended to use `self\.log\(.*sync_dist=True.*",  # all ranks log one value
)


@contextmanager
def isolated() -> Iterator[None]:
    """Within the block Lightning is quiet; after it, what a training changes is as before.

    These are the states of the random generators of Python, numpy and torch (on GPUs only if they
    were in use before), the filters of warnings, the levels of Lightning's loggers, and the
    environment variables of the seed. A thread of TensorBoard that fails prints nothing: the next
    write to its log raises the same error.
    """
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    seeds = {name: os.environ.get(name) for name in _SEEDS}
    states = random.getstate(), numpy.random.get_state()
    hook = threading.excepthook
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with warnings.catch_warnings(), torch.random.fork_rng(gpus):
        try:
            _quieten()
            threading.excepthook = lambda error: None if _is_raised_again(error) else hook(error)
            yield
        finally:
            threading.excepthook = hook
            random.setstate(states[0])
            numpy.random.set_state(states[1])
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            for name, seed in seeds.items():
                os.environ.pop(name, None)
                os.environ.update({} if seed is None else {name: seed})


def _is_raised_again(error: threading.ExceptHookArgs) -> bool:
    return type(error.thread).__module__.startswith("tensorboard.")


def _quieten() -> None:
    """Hide the advertisements and hints of Lightning, but not its warnings."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _HIDDEN:
        warnings.filterwarnings("ignore", message=message)
