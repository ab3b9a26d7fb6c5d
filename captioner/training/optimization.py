"""Optimization: which weights are trained, by which optimizer, at which learning rate.

Weight decay applies to matrices, but not to biases, normalization and embeddings. Decoder and
encoder have separate learning rates and one schedule. If an encoder is unfrozen during a run, its
schedule covers the steps that remain.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from captioner import torch_optimizers
from captioner.config import Config, check_range, make, pick, unknown_key
from captioner.models.captioning import CaptioningModel
from captioner.training.restoring import scalar_states
from captioner.training.schedules import Schedule, build_schedule
from captioner.training.unfreezing import Unfreezing


@dataclass(frozen=True, kw_only=True)
class LearnedWeights:
    """Which weights are trained, and the initial word embedding: the group ``training``.

    Attributes:
        word_vectors: a file of word vectors, which ``train`` copies into the decoder's embedding.
        freeze_words: do not train the decoder's embedding.
        unfreeze_at: number of epochs after which a frozen encoder is trained, or a fraction of all
            epochs; from then on images are read from their files. None: never.
        unfreeze_stages: number of its last stages that are trained, from 1; None: all.
        skip_bad_steps: number of steps that may be skipped because the loss or the gradient is not
            finite (``SkippedSteps``, which ``train`` adds), from 0.

    Raises:
        ValueError: ``skip_bad_steps`` is out of range.
    """

    word_vectors: str | None = None
    freeze_words: bool = False
    unfreeze_at: int | float | None = None
    unfreeze_stages: int | None = None
    skip_bad_steps: int = 0

    def __post_init__(self) -> None:
        if self.skip_bad_steps < 0:
            raise ValueError(
                f"training.skip_bad_steps={self.skip_bad_steps} is not accepted; choose 0 or more"
            )

    def freeze(self, model: CaptioningModel) -> None:
        """Freeze the decoder's embedding if ``freeze_words`` is set."""
        if self.freeze_words:
            model.decoder.words.requires_grad_(False)

    def unfreezing(self, model: CaptioningModel, *, epochs: int, steps: int) -> Unfreezing | None:
        """The callback that unfreezes the encoder; None if it stays as it is.

        Args:
            model: the model; its encoder is frozen.
            epochs: epochs in the whole training.
            steps: optimizer steps in the whole training.

        Raises:
            ValueError: the encoder is not frozen, or a value out of range.
        """
        if self.unfreeze_at is None:
            return None
        encoder, at, stages = model.encoder, self.unfreeze_at, self.unfreeze_stages
        return Unfreezing(encoder, at=at, stages=stages, epochs=epochs, steps=steps)


@dataclass(frozen=True)
class Optimization:
    """How the weights are changed.

    Attributes:
        schedule: the schedule of the learning rates.
        optimizer: a class of ``torch.optim``, or one with the same interface.
        arguments: arguments of the optimizer, except learning rate and weight decay.
        unfreezing: the callback that unfreezes the encoder; None if it stays as it is.
        lr: peak learning rate of the decoder, from 0.
        encoder_lr: peak learning rate of a trainable encoder, from 0.
        weight_decay: weight decay of matrices, from 0.

    Raises:
        ValueError: a value out of range.
    """

    schedule: Schedule
    optimizer: type[Optimizer]
    arguments: Mapping[str, Any]
    unfreezing: Unfreezing | None
    _: KW_ONLY
    lr: float = 1e-3
    encoder_lr: float = 1e-5
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("lr", "encoder_lr", "weight_decay"):
            check_range(f"optimizer.{name}", getattr(self, name))
        try:  # checked here, before the features of all images are computed
            self._build([{"params": [nn.Parameter(torch.zeros(1))]}], fused=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"optimizer: {error}") from None

    def configure(self, model: CaptioningModel, *, fused: bool) -> tuple[Optimizer, LambdaLR]:
        """The optimizer of a model's weights, and the scheduler of its learning rates.

        Args:
            model: the model.
            fused: use the fused implementation, if the optimizer has one.
        """
        groups = self.parameter_groups(model)
        optimizer = self._build(groups, fused=fused)
        firsts = (self._first_step(group["params"][0]) for group in groups)
        rates: list[Any] = [partial(self.schedule.rate, first=first or 0) for first in firsts]
        return optimizer, LambdaLR(optimizer, rates)

    def moments(self) -> int:
        """How many tensors of its shape the optimizer stores for a weight: two for Adam."""
        optimizer = self._build([{"params": [nn.Parameter(torch.zeros(1))]}], fused=False)
        try:
            return sum(not scalar for scalar in scalar_states(optimizer).values())
        except TypeError:  # one of the user's own, whose step needs a closure
            return 2

    def parameter_groups(self, model: CaptioningModel) -> list[dict[str, Any]]:
        """The trained weights with learning rate and weight decay, as torch expects them."""
        groups = []
        for part, lr in ((model.decoder, self.lr), (model.encoder, self.encoder_lr)):
            owners: dict[
                nn.Parameter, nn.Module
            ] = {}  # tied weights belong to the first: the embedding
            for module in part.modules():
                for parameter in module.parameters(recurse=False):
                    owners.setdefault(parameter, module)
            learned = [(m, p) for p, m in owners.items() if self._first_step(p) is not None]
            matrices = [p for m, p in learned if p.ndim > 1 and not isinstance(m, nn.Embedding)]
            others = [p for m, p in learned if p.ndim <= 1 or isinstance(m, nn.Embedding)]
            for parameters, decay in ((matrices, self.weight_decay), (others, 0.0)):
                if parameters:
                    groups.append({"params": parameters, "lr": lr, "weight_decay": decay})
        return groups

    def _build(self, groups: list[dict[str, Any]], *, fused: bool) -> Optimizer:
        kind: Any = self.optimizer
        takes_fused = "fused" in inspect.signature(kind).parameters
        options = {"fused": fused} if takes_fused else {}
        return kind(groups, lr=self.lr, **self.arguments, **options)

    def _first_step(self, parameter: nn.Parameter) -> int | None:
        """The first step that trains a parameter; None if it is never trained."""
        if self.unfreezing is not None and parameter in self.unfreezing.parameters:
            return self.unfreezing.first_step
        return 0 if parameter.requires_grad else None


def build_optimization(config: Config, model: CaptioningModel, total_steps: int) -> Optimization:
    """The optimization of the groups ``optimizer``, ``schedule`` and ``training``.

    Args:
        config: the configuration of the run.
        model: the model to train; its embedding is frozen if the configuration says so.
        total_steps: optimizer steps in the whole training.

    Raises:
        ValueError: an unknown name or option, or a value out of range.
    """
    weights = make(LearnedWeights, "training", config["training"])
    weights.freeze(model)
    epochs = config["trainer"]["max_epochs"] if weights.unfreeze_at is not None else 0
    unfreezing = weights.unfreezing(model, epochs=epochs, steps=total_steps)
    schedule = build_schedule(config["schedule"], total_steps)
    options = dict(config["optimizer"])
    kind = pick(torch_optimizers.table(), options.pop("name", "adamw"), "optimizer.name")
    shared = ("lr", "encoder_lr", "weight_decay")
    own = torch_optimizers.arguments(kind)
    for name in options:
        if name not in (*shared, *own):
            raise unknown_key("optimizer", name, dict.fromkeys(["name", *shared, *own]))
    arguments = {k: _tuple_of_list(v) for k, v in options.items() if k not in shared}
    rates = {name: options[name] for name in shared if name in options}
    return make(Optimization, "optimizer", rates, schedule, kind, arguments, unfreezing)


def _tuple_of_list(value: Any) -> Any:
    """A list from YAML as the tuple that torch expects, such as ``betas``."""
    return tuple(value) if isinstance(value, list) else value
