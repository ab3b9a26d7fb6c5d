"""Lightning's Trainer: its options, and the number of steps of a training."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, SimpleProfiler
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from captioner.config import Config, check_range, pick, unknown
from captioner.models.precision import device_of, resolve_trainer
from captioner.runs import LOGS
from captioner.training.duration import EPOCHS
from captioner.training.launcher import started_by_torchrun
from captioner.training.objectives.table import objective_class
from captioner.training.schedules import ENDLESS, schedule_class

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")
"""Strategies for several devices, each of which holds all weights."""

_PROCESSES, _NODES = 16, 1024
"""Most processes of a machine, unless it has more cores, and most machines of a training."""

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")

PROFILERS: Mapping[str, type[Profiler]] = MappingProxyType(
    {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
)
"""The profilers of Lightning that write a table."""


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """Options of a Lightning Trainer, with Lightning's names and meaning: the group ``trainer``.

    Attributes:
        max_epochs: passes over the training captions, or images; -1: no limit; ``train``
            chooses a value for None.
        max_steps: optimizer steps; -1: no limit.
        max_time: days:hours:minutes:seconds after which the training stops; None: no limit.
        accelerator: one of ACCELERATORS.
        devices: number per machine, a list ("0,2"), or "auto".
        num_nodes: number of machines, from 1.
        strategy: one of STRATEGIES.
        precision: "auto", "32-true", "bf16-mixed" or, on a GPU, "16-mixed"; "auto" is bf16-mixed
            if the device supports bfloat16, else 32-true.
        gradient_clip_val: maximum norm of the gradient, above 0; 0: no clipping.
        accumulate_grad_batches: batches per optimizer step, from 1.
        check_val_every_n_epoch: epochs between two validations.
        limit_train_batches: number of batches (whole number) or a fraction of them.
        limit_val_batches: likewise, of the dev batches of all devices.
        overfit_batches: likewise; the same batches in every epoch, and as many for dev; 0: all.
        fast_dev_run: run this number of steps and dev batches (True: 1) and stop, without logs.
        log_every_n_steps: steps between two rows of the logs; ``train`` uses at most the number of
            steps of an epoch.
        profiler: a key of PROFILERS: write a table of times below logs/.
        detect_anomaly: stop if a gradient becomes NaN, and name the operation; slow.
    """

    max_epochs: int | None = EPOCHS
    max_steps: int = -1
    max_time: str | None = None
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: int | str = "auto"
    gradient_clip_val: float = 5.0
    accumulate_grad_batches: int = 1
    check_val_every_n_epoch: int | None = 1
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    overfit_batches: int | float = 0
    fast_dev_run: bool | int = False
    log_every_n_steps: int = 50
    profiler: str | None = None
    detect_anomaly: bool = False


_OURS = (
    "strategy",
    "overfit_batches",
    "devices",
    "num_nodes",
)  # these are not passed to Lightning unchanged


def build_trainer(
    options: TrainerOptions,
    folder: Path,
    callbacks: list[Callback],
    loggers: list[Logger],
    files: CheckpointIO,
) -> lightning.Trainer:
    """A Lightning Trainer.

    Args:
        options: the options of the trainer.
        folder: the run folder.
        callbacks: the callbacks of the run.
        loggers: the loggers of the run.
        files: reads and writes checkpoints.

    Raises:
        ValueError: a value that Lightning does not accept.
    """
    if options.strategy not in STRATEGIES:
        raise unknown("trainer.strategy", options.strategy, STRATEGIES)
    check_range("trainer.gradient_clip_val", options.gradient_clip_val)
    _require_devices(options.accelerator, options.devices, options.num_nodes)
    arguments = {
        **_passed_on(options, folder),
        "callbacks": callbacks,
        "logger": loggers,
        "plugins": [files],
        "enable_progress_bar": any(isinstance(call, ProgressBar) for call in callbacks),
    }
    try:
        devices, num_nodes = started_by_torchrun(options.devices, options.num_nodes)
        arguments |= {"devices": devices, "num_nodes": num_nodes}
        trainer = lightning.Trainer(**arguments, strategy=options.strategy)
        if not isinstance(trainer.strategy, DDPStrategy):
            return trainer
        # Broadcast buffers would make a frozen encoder copy its weights again at every step.
        unused = options.strategy.endswith("unused_parameters_true")
        several = DDPStrategy(broadcast_buffers=False, find_unused_parameters=unused)
        return lightning.Trainer(**arguments, strategy=several)
    except (MisconfigurationException, TypeError) as error:
        raise ValueError(f"trainer: {error}") from None


def _passed_on(options: TrainerOptions, folder: Path) -> dict[str, Any]:
    """The arguments of Lightning's Trainer that follow from the options."""
    arguments = {
        field.name: getattr(options, field.name)
        for field in fields(options)
        if field.name not in _OURS
    }
    if options.overfit_batches:  # Lightning's own option does not shuffle
        arguments |= dict.fromkeys(
            ("limit_train_batches", "limit_val_batches"), options.overfit_batches
        )
    profiler = None
    if options.profiler is not None:
        kind: Any = pick(PROFILERS, options.profiler, "trainer.profiler")
        profiler = kind(dirpath=folder / LOGS, filename="profile")
    return {
        **arguments,
        "default_root_dir": folder,
        "precision": resolve_trainer(options.precision, device_of(options.accelerator)),
        "profiler": profiler,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # our sampler distributes the batches
        "enable_model_summary": False,
    }


def _require_devices(accelerator: str, devices: int | str, num_nodes: int) -> None:
    """Refuse devices that do not exist; the error names the option."""
    if accelerator not in ACCELERATORS:
        raise unknown("trainer.accelerator", accelerator, ACCELERATORS)
    available = {
        "auto": True,
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    available["gpu"] = available["cuda"] or available["mps"]
    if not available[accelerator]:
        raise ValueError(
            f"trainer.accelerator={accelerator} is not available: torch finds no such device on "
            "this machine; choose auto or cpu"
        )
    if not re.fullmatch(r"auto|-1|0*[1-9]\d*|\d+(,\d+)+,?|\d+,", str(devices)):
        raise ValueError(
            f"trainer.devices={devices!r} is not accepted; choose a number from 1, a list "
            "('0,2'), or auto"
        )
    most = max(_PROCESSES, os.cpu_count() or 1)
    if str(devices).isdigit() and int(devices) > most:
        raise ValueError(
            f"trainer.devices={devices} is not accepted; choose at most {most} on this machine"
        )
    if num_nodes < 1:
        raise ValueError(f"trainer.num_nodes={num_nodes} is not accepted; choose 1 or more")
    if num_nodes > _NODES:
        raise ValueError(f"trainer.num_nodes={num_nodes} is not accepted; choose at most {_NODES}")


def optimizer_steps(batches: int, trainer: lightning.Trainer) -> int:
    """The number of optimizer steps in the whole training.

    Args:
        batches: training batches in an epoch.
        trainer: the trainer with its limits.

    Returns:
        at least 1; ENDLESS if neither epochs nor steps are limited.
    """
    limit = trainer.limit_train_batches
    used = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    epochs, max_steps = trainer.max_epochs, trainer.max_steps
    limits = [max_steps] if max_steps >= 0 else []
    if epochs is not None and epochs >= 0:
        limits.append(math.ceil(used / trainer.accumulate_grad_batches) * epochs)
    return max(1, min(limits, default=ENDLESS))


def require_end(config: Config, steps: int) -> None:
    """Refuse fractions of an unlimited training, and epochs if the training is limited by steps.

    Args:
        config: the configuration of the run.
        steps: optimizer steps in the whole training.

    Raises:
        ValueError: these options do not fit; the error says what to set instead.
    """
    trainer, unfreeze_at = config["trainer"], config["training"].get("unfreeze_at")
    if unfreeze_at is not None and trainer.get("max_steps", -1) >= 0:
        raise ValueError(
            f"trainer.max_steps={trainer['max_steps']} cannot be combined with "
            "training.unfreeze_at, which counts epochs; set trainer.max_epochs instead"
        )
    dependent = _length_dependent(config)
    if steps == ENDLESS and dependent:
        raise ValueError(
            f"trainer.max_epochs={trainer['max_epochs']} has no end, and "
            f"{' and '.join(dependent)} {'needs' if len(dependent) == 1 else 'need'} one; set "
            "trainer.max_epochs or trainer.max_steps, or train at a constant rate: "
            "schedule=constant (or plateau) schedule.warmup=0"
        )


def _length_dependent(config: Config) -> list[str]:
    """The options that depend on the length of the training, as ``key=value``."""
    name = config["schedule"].get("name", "cosine")
    dependent = [f"schedule={name}"] if schedule_class(config["schedule"]).ends else []
    options = [("schedule", "warmup")]
    options += [("objective", key) for key in objective_class(config["objective"]).length_options]
    for group, key in options:
        if config[group].get(key):
            dependent.append(f"{group}.{key}={config[group][key]}")
    if config["training"].get("unfreeze_at") is not None:
        dependent.append(f"training.unfreeze_at={config['training']['unfreeze_at']}")
    return dependent
