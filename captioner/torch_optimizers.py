"""The optimizers of ``torch.optim``, by name, and the options that each takes."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer

_UNFIT = {"Optimizer", "LBFGS", "SparseAdam", "Muon"}
"""The base class, and the optimizers that need a closure, sparse gradients or only matrices."""

_EXECUTION = {"foreach", "maximize", "capturable", "differentiable", "fused"}
"""Arguments that say how a step is computed, and the sign of the loss."""

_ENCODER_LR = 1e-5


def table() -> dict[str, type[Optimizer]]:
    """Name in lower case -> class: "adamw", "sgd", "rmsprop", ..."""
    from torch import optim

    classes = (value for value in vars(optim).values() if inspect.isclass(value))
    return {
        kind.__name__.lower(): kind
        for kind in classes
        if issubclass(kind, optim.Optimizer) and kind.__name__ not in _UNFIT
    }


def arguments(kind: type[Optimizer]) -> dict[str, Any]:
    """The arguments of an optimizer and their defaults as plain data, without its parameters."""
    parameters = list(inspect.signature(kind).parameters.values())[1:]
    defaults = {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.name not in _EXECUTION
    }
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()
    }


def options(name: str, kind: type[Optimizer]) -> dict[str, Any]:
    """What a YAML of the group ``optimizer`` lists for an optimizer: its name and arguments.

    Args:
        name: the name that chooses it.
        kind: the class.
    """
    own = arguments(kind)
    return {"name": name, "lr": own.pop("lr"), "encoder_lr": _ENCODER_LR, **own}
