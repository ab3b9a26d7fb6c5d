"""Optimization against torch's optimizers, used as a PyTorch user would."""

import pytest
import torch
from torch import nn

from captioner.config import compose
from captioner.models.captioning import build_model
from captioner.training.optimization import Optimization, build_optimization

SMALL = ("encoder=test_resnet", "encoder.pretrained=false", "encoder.image_size=32")


def optimization(*overrides: str, total: int = 100) -> tuple[Optimization, nn.Module]:
    config = compose([*SMALL, *overrides])
    model = build_model(config["encoder"], config["decoder"], vocabulary_size=9)
    return build_optimization(config, model, total), model


@pytest.mark.parametrize(
    ("overrides", "kind", "arguments"),
    [
        ([], torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.01}),
        (["optimizer.betas=[0.8,0.9]"], torch.optim.AdamW, {"betas": (0.8, 0.9)}),
        (
            ["optimizer=sgd", "optimizer.lr=0.1", "optimizer.weight_decay=0.01"],
            torch.optim.SGD,
            {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        ),
        (["optimizer=radam", "optimizer.weight_decay=0.01"], torch.optim.RAdam, {}),
        (["optimizer=rmsprop", "optimizer.alpha=0.9"], torch.optim.RMSprop, {"alpha": 0.9}),
    ],
)
def test_steps_equal_those_of_torch(overrides, kind, arguments) -> None:
    ours, model = optimization("schedule=constant", "schedule.warmup=0", *overrides)
    optimizer, _ = ours.configure(model, fused=False)
    assert type(optimizer) is kind
    weight = _matrix(model)
    reference = nn.Parameter(weight.detach().clone())
    other = kind([reference], **{"lr": ours.lr, "weight_decay": ours.weight_decay, **arguments})
    for step in range(3):
        gradient = torch.full_like(weight, 0.1 * (step + 1))
        weight.grad, reference.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        other.step()
    torch.testing.assert_close(weight, reference, rtol=0, atol=0)


def _matrix(model: nn.Module) -> nn.Parameter:
    """A matrix of the decoder, to which weight decay applies."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = (p for p in model.decoder.parameters() if p.ndim > 1 and id(p) not in embeddings)
    return next(matrices)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.betas=[0.9,2]"], "optimizer: Invalid beta"),
        (["optimizer=sgd", "optimizer.nesterov=true", "optimizer.dampening=0.5"], "Nesterov"),
        (["optimizer.lr=fast"], "optimizer.lr='fast' is not accepted; choose a number"),
        (["optimizer.name=adamv"], "optimizer.name='adamv' is not known; choose "),
        (["+optimizer.momentum=0.9"], "optimizer.momentum is not an option"),
        (["schedule.name=cosin"], "schedule.name='cosin' is not known"),
        (["training.freeze_words=3"], "training.freeze_words=3 is not accepted; choose true"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(overrides, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        optimization(*overrides)
    assert "\n" not in str(error.value)


def test_a_frozen_embedding_is_not_trained() -> None:
    ours, model = optimization("training.freeze_words=true")
    learned = {id(p) for group in ours.parameter_groups(model) for p in group["params"]}
    assert id(model.decoder.words.weight) not in learned
    assert not model.decoder.words.weight.requires_grad
