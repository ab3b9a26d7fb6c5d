"""Deferred gradients of weights, compared with autograd, in decoders and in a plain loop."""

import gc
from typing import Any

import pytest
import torch
from support.decoders import B, T, V, build, features
from torch import Tensor, nn
from torch.nn import functional

from captioner.models.decoders.deferred_gradients import deferred
from captioner.models.features import Features
from captioner.models.packing import Packing
from captioner.models.recurrence.table import CELLS

EXACT = {"rtol": 1e-10, "atol": 1e-10}
NAMES = ("show_attend_tell", "up_down", "adaptive")


def gradients(decoder: Any, images: Features, inputs: Tensor, packing: Packing | None) -> list:
    logits, weights = decoder.attend(images, inputs, packing)
    loss = logits.square().sum() + (1 - weights).square().sum()
    return [logits, *torch.autograd.grad(loss, tuple(decoder.parameters()))]


@pytest.mark.parametrize("packing", [None, Packing.of(torch.tensor([2, 5, 4]))])
@pytest.mark.parametrize(
    ("cell", "score"), [*((cell, "additive") for cell in CELLS), ("rnn", "dot"), ("lstm", "dot")]
)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_decoders_equal_those_of_autograd(
    name: str, cell: str, score: str, packing: Any
) -> None:
    decoder = build(f"{name} two layers, tied", cell=cell, score=score, hidden_size=16)
    images, inputs = features(), torch.randint(V, (B, T))
    actual = gradients(decoder, images, inputs, packing)
    decoder.defers = False
    for mine, right in zip(actual, gradients(decoder, images, inputs, packing), strict=True):
        torch.testing.assert_close(mine, right, **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_nearer_to_the_exact_gradient_than_the_plain_loop(name: str) -> None:
    """One product is rounded once, a sum over steps at every step."""
    decoder = build(f"{name} two layers, tied", hidden_size=64, layers=1).float()
    images = Features(*(one.float() for one in features()))
    inputs = torch.randint(V, (B, 20))
    _, *exact = gradients(decoder, images, inputs, None)
    errors = []
    for decoder.defers in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            _, *rounded = gradients(decoder, images, inputs, None)
        pairs = zip(rounded, exact, strict=True)
        errors.append(torch.stack([(a - b).norm() / b.norm() for a, b in pairs]))
    assert errors[0].mean() < errors[1].mean()
    assert errors[0].median() < 0.01


@pytest.mark.parametrize("turned", [False, True])
def test_gradients_of_matrices_per_row_may_be_repeated_and_partial(turned: bool) -> None:
    x = torch.randn(4, 1, 6).double().requires_grad_()
    values, sizes = torch.randn(4, 6, 6).double().requires_grad_(), (4, 4, 3, 1)

    def total() -> Tensor:
        outputs, now = [], x
        with deferred(sizes, x.device, [values]):
            for rows in sizes:
                of_rows = values[:rows].transpose(1, 2) if turned else values[:rows]
                now = torch.tanh(now[:rows] @ of_rows)
                outputs.append(now)
        return torch.cat(outputs).square().sum()

    plain, now = [], x
    for rows in sizes:
        now = torch.tanh(
            torch.einsum("bki,boi->bko" if turned else "bki,bio->bko", now[:rows], values[:rows])
        )
        plain.append(now)
    expected = torch.autograd.grad(torch.cat(plain).square().sum(), (x, values))
    held = total()
    for part in (slice(0, 1), slice(None), slice(1, None), slice(None)):
        actual = torch.autograd.grad(held, (x, values)[part], retain_graph=True)
        for mine, right in zip(actual, expected[part], strict=True):
            torch.testing.assert_close(mine, right, **EXACT)


def loop(linear: nn.Linear, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    outputs = []
    with deferred(sizes, x.device):
        for rows in sizes:
            x = torch.tanh(linear(x[:rows]))
            outputs.append(x)
    return torch.cat(outputs)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_a_loop_may_be_repeated_and_partial(bias: bool) -> None:
    linear = nn.Linear(6, 6, bias=bias).double()
    x, sizes = torch.randn(4, 6).double().requires_grad_(), (4, 4, 3, 1)
    learned = tuple(linear.parameters())
    plain, states = [], x
    for rows in sizes:
        states = torch.tanh(functional.linear(states[:rows], *learned))
        plain.append(states)
    expected = torch.autograd.grad(torch.cat(plain).square().sum(), (x, *learned))
    total = loop(linear, x, sizes).square().sum()
    for part in (slice(0, 1), slice(None), slice(1, None), slice(None)):
        actual = torch.autograd.grad(total, (x, *learned)[part], retain_graph=True)
        for mine, right in zip(actual, expected[part], strict=True):
            torch.testing.assert_close(mine, right, **EXACT)


def gated(linear: nn.Linear, values: Tensor, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A loop that calls one layer twice a step, once more in every other, and once with all rows.

    It multiplies by the matrices of its rows twice, and by several vectors at once.
    """
    outputs = []
    for step, rows in enumerate(sizes):
        inner = torch.tanh(linear(x[:rows]))
        x = torch.tanh(linear(inner) + (inner.unsqueeze(1) @ values[:rows]).squeeze(1))
        x = x + (x.unsqueeze(1) @ values[:rows]).squeeze(1)
        x = x + (torch.stack([x, inner], dim=1) @ values[:rows]).sum(1)
        if step % 2 == 0:
            x = x + linear(x)
        outputs.append(x + linear(torch.cat([x, x, inner])).sum(0))
    return torch.cat(outputs)


def test_matrices_of_a_single_row_may_be_transposed() -> None:
    x, values = torch.randn(3, 1, 6).double(), torch.randn(3, 1, 6).double().requires_grad_()
    with deferred((3, 2), x.device, [values]):
        outputs = [(x[:rows] @ values[:rows].transpose(1, 2)).square().sum() for rows in (3, 2)]
    (gradient,) = torch.autograd.grad(sum(outputs), values)
    plain = [torch.einsum("roi,roi->r", x[:rows], values[:rows]).square().sum() for rows in (3, 2)]
    torch.testing.assert_close(gradient, torch.autograd.grad(sum(plain), values)[0], **EXACT)


@pytest.mark.parametrize("sizes", [(4, 4, 3, 1), (3, 2, 2, 2), (1,)])
def test_a_layer_may_be_called_several_times_a_step(sizes: tuple[int, ...]) -> None:
    linear = nn.Linear(6, 6).double()
    x, values = torch.randn(4, 6).double().requires_grad_(), torch.randn(4, 6, 6).double()
    values.requires_grad_()
    learned = (x, values, *linear.parameters())
    expected = torch.autograd.grad(gated(linear, values, x, sizes).square().sum(), learned)
    with deferred(sizes, x.device, [values]):
        total = gated(linear, values, x, sizes).square().sum()
    for part in (slice(0, 1), slice(None), slice(2, None)):
        actual = torch.autograd.grad(total, learned[part], retain_graph=True)
        for mine, right in zip(actual, expected[part], strict=True):
            torch.testing.assert_close(mine, right, **EXACT)


def test_only_large_weights_of_the_loop_are_deferred() -> None:
    linear = nn.Linear(6, 6)
    names = []
    for rows in (2, 50):  # fewer numbers than the weight has, and more
        y = loop(linear, torch.randn(rows, 6), (rows,))
        names.append(y.grad_fn.next_functions[0][0].next_functions[0][0].name())
    assert names[0].startswith("_LayerStep")
    assert not names[1].startswith("_LayerStep")
    with torch.no_grad():
        assert loop(linear, torch.randn(2, 6), (2,)).grad_fn is None
    outside = linear(torch.randn(2, 6))
    assert outside.grad_fn.name() == "AddmmBackward0"


def test_a_graph_is_freed_with_its_output() -> None:
    """The garbage collector finds no tensor that only points at itself."""
    linear = nn.Linear(6, 6)
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        loop(linear, torch.randn(2, 6), (2, 2, 2)).sum().backward()
        gc.collect()
        assert not [one for one in gc.garbage if isinstance(one, Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
