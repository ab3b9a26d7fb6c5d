"""The state of a training that is resumed, checked before it is restored.

A checkpoint may be damaged or a stranger's. torch and Lightning believe what they restore: a text
in place of a number is an error of some later step, a state may replace methods of a schedule, and
a number may be any. So each part is compared with that of the new training: the same names, types,
shapes and finite values. What cannot be restored in spite of that is an error of the file as well.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from captioner.checkpoints.checkpoint import Checkpoint
from captioner.overrides import shell_word
from captioner.plain_data import shortened
from captioner.process import interruption_of, is_out_of_memory

_LARGEST = 2**40
"""No training has more steps or epochs."""
_IMPLEMENTATION = ("foreach", "fused")
"""Options of an optimizer that depend on the device, and change no result."""


class StateError(ValueError):
    """A state that no training of this configuration can have."""


class RestoredState(Callback):
    """Checks the state of a resumed training before Lightning restores it.

    Args:
        checkpoint: from which the training resumes.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self._restored = checkpoint, False

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        content = self.checkpoint.lightning
        for part in ("epoch", "global_step"):
            require_like(content[part], 0, part)
        stored = content["optimizer_states"], content["lr_schedulers"]
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        if [*map(len, stored)] != [len(trainer.optimizers), len(schedules)]:
            raise StateError("it has another number of optimizers or schedules")
        for state, optimizer in zip(stored[0], trainer.optimizers):
            require_optimizer(state, optimizer)
        for state, schedule in zip(stored[1], schedules):
            require_schedule(state, schedule)
        require_own_schedule(content.get("schedule", {}), module.optimization.schedule.state_dict())
        loop = trainer.fit_loop.state_dict()
        require_like(content["loops"].get("fit_loop"), loop, "fit_loop", more=True)

    def on_train_epoch_start(self, *unused: Any) -> None:
        self._restored = True

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Within the block, an error until the state is restored names the checkpoint."""
        try:
            yield
        except (MemoryError, OSError):
            raise
        except Exception as error:
            lost = interruption_of(error) is not None or "gloo" in str(error).lower()
            if self._restored or lost or is_out_of_memory(error):
                raise
            weights = shell_word("resume_weights", self.checkpoint.path)
            reason = str(error) if isinstance(error, ValueError) else repr(error)
            raise ValueError(
                f"{self.checkpoint.path}: its training cannot be resumed, because its state is "
                f"damaged ({' '.join(reason.split())[:200]}); {weights} starts another training "
                "from its weights"
            ) from error


def require_optimizer(stored: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Check a stored state of an optimizer.

    Args:
        stored: what its ``state_dict`` returned.
        optimizer: a new one of the same kind, for the same parameters.

    Raises:
        StateError: it has other groups, names or shapes, or a value that is not finite.
    """
    groups: Any = stored.get("param_groups")
    states: Any = stored.get("state")
    scalars, used = scalar_states(optimizer), set[int]()
    _require(isinstance(states, dict), f"the states of the optimizer are {shortened(states)}")
    same = isinstance(groups, list) and len(groups) == len(optimizer.param_groups)
    _require(same, f"the groups of the optimizer are {shortened(groups)}")
    for group, new in zip(groups, optimizer.param_groups):
        numbers = _require_group(group, new)
        for number, parameter in zip(numbers, new["params"]):
            used.add(number)
            if number in states:
                _require_moments(states[number], parameter, scalars)
    parameters = sum(len(new["params"]) for new in optimizer.param_groups)
    _require(len(used) == parameters, "a parameter of the optimizer is repeated")
    _require(states.keys() <= used, "the optimizer has states of other parameters")


def _require_group(stored: Any, new: Mapping[str, Any]) -> list[int]:
    """Check the options of a group of parameters; returns the numbers of the parameters."""
    _require(isinstance(stored, dict), f"a group of the optimizer is {shortened(stored)}")
    numbers = stored.get("params")
    same = isinstance(numbers, list) and len(numbers) == len(new["params"])
    _require(same and all(type(n) is int for n in numbers), "it has another number of parameters")
    for name, value in new.items():
        added = isinstance(value, bool) or value is None  # by another version of torch
        if name == "params" or (name not in stored and added):
            continue
        after = stored.get(name)
        if name in _IMPLEMENTATION:
            _require(after in (None, False, True), f"{name} of the optimizer is {shortened(after)}")
        else:
            require_like(after, value, f"{name} of the optimizer")
        if isinstance(value, bool) and name not in _IMPLEMENTATION:
            _require(after is value, f"{name} of the optimizer is {shortened(after)}")
        numbers_in = after if isinstance(after, (list, tuple)) else [after]
        low = any(isinstance(n, float) and not 0 <= n < math.inf for n in numbers_in)
        _require(not low, f"{name} of the optimizer is {shortened(after)}")
    return list(numbers)


def _require_moments(stored: Any, parameter: Tensor, scalars: Mapping[str, bool]) -> None:
    """Check what an optimizer has stored for a parameter."""
    kept = {k: v for k, v in stored.items() if v is not None} if isinstance(stored, dict) else {}
    _require(
        kept.keys() == scalars.keys(), f"the optimizer has other states than {', '.join(scalars)}"
    )
    for name, value in kept.items():
        tensor = torch.tensor(float(value)) if type(value) in (int, float) else value
        _require(isinstance(tensor, Tensor), f"{name} of the optimizer is {shortened(value)}")
        shape = torch.Size() if scalars[name] else parameter.shape
        _require(tensor.shape == shape, f"{name} of the optimizer has shape {[*tensor.shape]}")
        finite = tensor.is_floating_point() or scalars[name]
        finite = finite and bool(tensor.isfinite().all())
        _require(finite, f"{name} of the optimizer has values that are not finite numbers")


def scalar_states(optimizer: Optimizer) -> dict[str, bool]:
    """The names of what an optimizer stores for a parameter, and whether each is one number."""
    accepted = inspect.signature(type(optimizer)).parameters.keys() - {*_IMPLEMENTATION, "params"}
    options = {k: v for k, v in optimizer.param_groups[0].items() if k in accepted}
    parameter = nn.Parameter(torch.zeros(2, 3))
    trial: Optimizer = type(optimizer)([parameter], **options)
    parameter.grad = torch.zeros(2, 3)
    trial.step()
    states = trial.state[parameter].items()
    return {k: torch.as_tensor(v).ndim == 0 for k, v in states if v is not None}


def require_schedule(stored: Mapping[str, Any], schedule: Any) -> None:
    """Check a stored state of a schedule, which may set any attribute.

    Args:
        stored: what its ``state_dict`` returned.
        schedule: a new one of the same kind.

    Raises:
        StateError: a value has another type, or a name is that of something else.
    """
    new = schedule.state_dict()
    for name in stored.keys() - new.keys():  # of another version of torch
        other = not isinstance(name, str) or hasattr(schedule, name)
        _require(not other, f"the schedule has {shortened(name)}")
    require_like({name: stored.get(name) for name in new.keys() & stored.keys()}, new, "schedule")


def require_own_schedule(stored: Any, new: Mapping[str, Any]) -> None:
    """Check a stored state of a ``schedules.Schedule``; `new` is that of a new one."""
    require_like(stored, new, "schedule", more=True)  # captioner 0.1 stored more
    best = stored.get("best")  # captioner 0.1 stored only the score
    scores = best if isinstance(best, (list, tuple)) else [] if best is None else [best]
    require_like(scores, [0.0] * len(scores), "the best score of the schedule")


def require_average(average: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Check a stored average of weights.

    Args:
        average: tensors by name; some may be missing.
        weights: all weights of the model.

    Raises:
        StateError: a name, a shape or a value is not that of a weight.
    """
    for name, tensor in average.items():
        same = isinstance(tensor, Tensor) and name in weights
        same = same and tensor.shape == weights[name].shape and tensor.is_floating_point()
        finite = same and bool(tensor.isfinite().all())
        _require(finite, f"the average of {shortened(name)} is not that of a weight")


def require_like(stored: Any, new: Any, name: str, *, more: bool = False) -> None:
    """Check that a value has the structure and the types of another one.

    Args:
        stored: the value; a dict may have fewer keys.
        new: the other one.
        name: for errors.
        more: dicts may have more keys, too.

    Raises:
        StateError: it has other types, is NaN, or is negative or huge and a count.
    """
    fault = f"{name} is {shortened(stored)}"
    if isinstance(new, dict):
        _require(isinstance(stored, dict), fault)
        _require(more or stored.keys() <= new.keys(), fault)
        for key in stored.keys() & new.keys():
            require_like(stored[key], new[key], str(key), more=more)
    elif isinstance(new, (list, tuple)):
        _require(isinstance(stored, (list, tuple)), fault)
        _require(not new or len(stored) == len(new), fault)
        for before, after in zip(stored, new):
            require_like(before, after, name, more=more)
    elif type(new) is int:
        _require(type(stored) is int and 0 <= stored < _LARGEST, fault)
    elif isinstance(new, float):
        _require(type(stored) in (int, float) and not math.isnan(stored), fault)
    elif isinstance(new, (bool, str)):
        _require(isinstance(stored, type(new)), fault)


def _require(condition: object, fault: str) -> None:
    if not condition:
        raise StateError(fault)
