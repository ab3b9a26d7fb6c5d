"""The numerical core on a GPU, compared with the CPU; without a GPU the CPU stands in for it.

Tolerances: results on the device in float32 are compared with float64 on the CPU, the norm of the
difference with the norm of the result: at most ``FP32`` of it, in bfloat16 at most ``BF16``. TF32
is off, as torch leaves it. Captions must be equal, or tied: with scores that differ by less than
``TIE``.
"""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from support.decoders import BASIC, EVERY, B, T, V, build, features
from torch import Tensor

from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis
from captioner.generation import generate, make_steppers
from captioner.models.features import Features
from captioner.models.packing import IGNORED, Packing
from captioner.models.recurrence.fused import CHOICE
from captioner.models.recurrence.unroll import Recurrence
from captioner.tokenizers import build_tokenizer
from captioner.training.losses import cross_entropy

FP32, BF16, TIE = 1e-5, 2e-2, 1e-5
SIZES = (5, 4, 4, 4, 3, 1)
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NO_TRITON = pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")
LOOPS = [
    ("cpu", "plain"),
    *(pytest.param("cuda", name, marks=NO_GPU) for name in ("plain", "graphs")),
    pytest.param("cuda", "triton", marks=[NO_GPU, NO_TRITON]),
]
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
DECODERS = [
    name for name in EVERY if name.split()[1:2] == ["lstm"] or name.startswith("transformer")
]


def close(result: Tensor, exact: Tensor, bound: float) -> None:
    """The error of a result, relative to the norm of the exact one."""
    error = (result.detach().double().cpu() - exact).norm()
    assert error <= bound * exact.norm() + 1e-7, (float(error), float(exact.norm()))


def everything(
    ours: Recurrence, inputs: Tensor, weights: Tensor, *, fused: bool, half: bool = False
) -> list[Tensor]:
    """Outputs, last state, and the gradients of inputs, first state and parameters."""
    ours.fused = fused
    x = inputs.clone().requires_grad_()
    zeros = ours.zeros(SIZES[0])
    state = {name: (zero + 0.1).requires_grad_() for name, zero in zeros.items()}
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
        outputs, last = ours(x, state, sizes=SIZES)
    loss = (outputs * weights).sum() + sum(value.square().sum() for value in last.values())
    given = (x, *state.values(), *ours.parameters())
    return [outputs, *last.values(), *torch.autograd.grad(loss, given)]


@pytest.mark.parametrize(("device", "loop"), LOOPS)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("cell", BASIC)
def test_the_recurrence_equals_the_readable_loop_in_float64(
    cell: str, half: bool, device: str, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CHOICE, loop)
    exact = Recurrence(cell=cell, input_size=37, hidden_size=45, layers=2).double()
    inputs, weights = (torch.randn(sum(SIZES), n, dtype=torch.float64) for n in (37, 45))
    ours = copy.deepcopy(exact).float().to(device)
    given = [value.float().to(device) for value in (inputs, weights)]
    expected = everything(exact, inputs, weights, fused=False)
    for _ in range(2):  # a graph is captured, and then used again
        results = everything(ours, *given, fused=True, half=half)
        for result, right in zip(results, expected, strict=True):
            close(result, right, BF16 if half else FP32)


def batch() -> tuple[Tensor, Tensor]:
    """Inputs and targets of B captions with different lengths, [B, T]."""
    targets = torch.randint(4, V, (B, T))
    targets[torch.arange(T) >= torch.tensor([T, 2, 3])[:, None]] = IGNORED
    first = torch.ones(B, 1, dtype=torch.long)
    return torch.cat([first, targets[:, :-1].clamp_min(0)], dim=1), targets


def learn(decoder: Any, images: Features, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """The loss of a batch and the gradients of all parameters."""
    packing = Packing.of((targets != IGNORED).sum(1))
    logits = decoder(images, inputs, packing)
    loss = cross_entropy(logits, packing.pack(targets), label_smoothing=0.1, in_place=True)
    parameters = tuple(decoder.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [loss, *(g for g in gradients if g is not None)]


@pytest.mark.parametrize(("device", "loop"), LOOPS[:3])
@pytest.mark.parametrize("name", DECODERS)
def test_losses_and_gradients_equal_those_in_float64(
    name: str, device: str, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CHOICE, loop)
    exact, images = build(name), features()
    inputs, targets = batch()
    decoder = copy.deepcopy(exact).float().to(device)
    on_device = Features(*(part.float().to(device) for part in images if part is not None))
    expected = learn(exact, images, inputs, targets)
    for _ in range(2):  # a graph is captured, and then used again
        results = learn(decoder, on_device, inputs.to(device), targets.to(device))
        for result, right in zip(results, expected, strict=True):
            close(result, right, FP32)


def captions(
    decoder: Any, images: Features, options: DecodingOptions, *, quick: bool
) -> list[list[Hypothesis]]:
    """Hypotheses of a decoder, by its steppers or by itself."""

    class Model:
        def encode(self, source: Features) -> Features:
            return source

    model: Any = Model()
    model.decoder = decoder
    words = [f"w{number}" for number in range(V - 4)]
    tokenizer = build_tokenizer([" ".join(words)], name="word", min_count=1)
    assert len(tokenizer.vocabulary.words) == V
    steppers = make_steppers([model], options) if quick else None
    return generate([model], [images], tokenizer, options, steppers=steppers)


@DEVICES
@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("name", DECODERS)
def test_captions_equal_those_of_the_cpu(name: str, beam: int, device: str) -> None:
    decoder, images = build(name).float(), features(12)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2)  # logits that are far apart
    on_cpu = Features(*(part.float() for part in images if part is not None))
    options = DecodingOptions(max_length=8, beam_size=beam)
    expected = captions(decoder, on_cpu, options, quick=False)
    moved = copy.deepcopy(decoder).to(device)
    results = captions(moved, on_cpu.to(device), options, quick=True)
    for ours, right in zip(results, expected, strict=True):
        tied = abs(ours[0].score - right[0].score) < TIE
        assert ours[0].tokens == right[0].tokens or tied
