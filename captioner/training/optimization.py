"""How a training changes the weights: which learn, by which optimizer, at which rate.

Matrices decay; biases, normalization and embeddings do not. Decoder and encoder have learning rates
of their own; both follow one schedule. An encoder that is unfrozen within a run has the schedule of
the steps that remain.
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
from captioner.training.schedules import Schedule, build_schedule
from captioner.training.unfreezing import Unfreezing


@dataclass(frozen=True, kw_only=True)
class LearnedWeights:
    """Which weights learn, and where the embedding starts: the group ``training``.

    Attributes:
        word_vectors: a file of word vectors from which ``train`` fills the decoder's embedding.
        freeze_words: do not learn the decoder's embedding.
        unfreeze_at: epochs after which a frozen encoder begins to learn, or a share of all epochs;
            from then on images are read live. None: never.
        unfreeze_stages: how many of its last stages, from 1; None: all of them.
    """

    word_vectors: str | None = None
    freeze_words: bool = False
    unfreeze_at: int | float | None = None
    unfreeze_stages: int | None = None

    def freeze(self, model: CaptioningModel) -> None:
        """Freeze the decoder's embedding, where that is asked for."""
        if self.freeze_words:
            model.decoder.words.requires_grad_(False)

    def unfreezing(self, model: CaptioningModel, *, epochs: int, steps: int) -> Unfreezing | None:
        """What unfreezes the encoder; None where nothing does.

        Args:
            model: its encoder is frozen.
            epochs: of the whole training.
            steps: of the optimizer in the whole training.

        Raises:
            ValueError: the encoder is not frozen, or a value out of range.
        """
        if self.unfreeze_at is None:
            return None
        encoder, at, stages = model.encoder, self.unfreeze_at, self.unfreeze_stages
        return Unfreezing(encoder, at=at, stages=stages, epochs=epochs, steps=steps)


@dataclass(frozen=True)
class Optimization:
    """How the weights change.

    Attributes:
        schedule: of the learning rates.
        optimizer: a class of ``torch.optim``, or one like it.
        arguments: of the optimizer, except learning rate and weight decay.
        unfreezing: unfreezes the encoder within the run; None where nothing does.
        lr: peak learning rate of the decoder, from 0.
        encoder_lr: peak learning rate of a trainable encoder, from 0.
        weight_decay: of matrices, from 0.

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
        try:  # now, not after the features of all images are computed
            self._build([{"params": [nn.Parameter(torch.zeros(1))]}], fused=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"optimizer: {error}") from None

    def configure(self, model: CaptioningModel, *, fused: bool) -> tuple[Optimizer, LambdaLR]:
        """The optimizer of a model's weights, and what sets its learning rates at each step.

        Args:
            model: the model.
            fused: compute a step in one pass, where the optimizer can.
        """
        groups = self.parameter_groups(model)
        optimizer = self._build(groups, fused=fused)
        firsts = (self._first_step(group["params"][0]) for group in groups)
        rates: list[Any] = [partial(self.schedule.rate, first=first or 0) for first in firsts]
        return optimizer, LambdaLR(optimizer, rates)

    def parameter_groups(self, model: CaptioningModel) -> list[dict[str, Any]]:
        """The weights that learn, with learning rate and weight decay, as torch takes them."""
        groups = []
        for part, lr in ((model.decoder, self.lr), (model.encoder, self.encoder_lr)):
            owners: dict[nn.Parameter, nn.Module] = {}  # of tied weights the first: the embedding
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
        more = {"fused": fused} if takes_fused else {}
        return kind(groups, lr=self.lr, **self.arguments, **more)

    def _first_step(self, parameter: nn.Parameter) -> int | None:
        """The step in which a parameter begins to learn; None for one that never learns."""
        if self.unfreezing is not None and parameter in self.unfreezing.parameters:
            return self.unfreezing.first_step
        return 0 if parameter.requires_grad else None


def build_optimization(config: Config, model: CaptioningModel, total_steps: int) -> Optimization:
    """The optimization of the groups ``optimizer``, ``schedule`` and ``training``.

    Args:
        config: of the run.
        model: what is trained; its embedding is frozen where that is asked for.
        total_steps: of the optimizer in the whole training.

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
    arguments = {k: _as_torch_takes(v) for k, v in options.items() if k not in shared}
    rates = {name: options[name] for name in shared if name in options}
    return make(Optimization, "optimizer", rates, schedule, kind, arguments, unfreezing)


def _as_torch_takes(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
