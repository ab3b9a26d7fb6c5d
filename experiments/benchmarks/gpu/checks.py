"""Whether results on the GPU are right: recurrences, features, captions of the bundled model."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from workload import Sizes, draw_lengths, loop, loops, tf32

import captioner
from captioner.data.shapes import draw
from captioner.decoding.options import DecodingOptions
from captioner.generation import generate
from captioner.images import open_image
from captioner.models.features import Features
from captioner.models.packing import Packing
from captioner.models.recurrence.unroll import Recurrence
from captioner.transforms import stack_pixels

FP32, BF16, TIE = 1e-5, 2e-2, 1e-4
"""Tolerances: the norm of an error relative to that of the result; and the difference between the
scores of two captions that counts as a tie."""


def recurrences(sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    """Every loop in fp32 and bf16, compared with the readable loop in float64 on the CPU.

    The largest relative error of outputs, last states and all gradients; twice, as graphs are
    captured the first time.
    """
    rows = []
    words = draw_lengths(min(sizes.batches), more=2)
    for cell in ("rnn", "gru", "lstm"):
        exact = Recurrence(cell=cell, input_size=sizes.hidden, hidden_size=sizes.hidden).double()
        inputs = torch.randn(int(words.sum()), sizes.hidden, dtype=torch.float64)
        weights = torch.randn_like(inputs)
        exact.fused = False
        right = _everything(exact, inputs, weights, words)
        ours = copy.deepcopy(exact).float().to(device)
        ours.fused = True
        given = [tensor.float().to(device) for tensor in (inputs, weights)]
        for name in loops(device):
            for half in (False, True):
                with loop(name):
                    _everything(ours, *given, words, half=half)
                    results = _everything(ours, *given, words, half=half)
                error = max(map(relative_error, results, right))
                label = f"{cell}, {name}, {'bf16' if half else 'fp32'}: relative error"
                rows.append(_check(label, error, BF16 if half else FP32))
    return rows


def _everything(
    ours: Recurrence, inputs: Tensor, weights: Tensor, words: Tensor, *, half: bool = False
) -> list[Tensor]:
    x = inputs.clone().requires_grad_()
    sizes = Packing.of(words).sizes
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
        outputs, last = ours(x, ours.zeros(len(words)), sizes=sizes)
    loss = (outputs * weights).sum() + sum(part.float().square().sum() for part in last.values())
    return [outputs, *last.values(), *torch.autograd.grad(loss, (x, *ours.parameters()))]


def relative_error(result: Tensor, right: Tensor) -> float:
    """The norm of the difference, relative to that of the right result."""
    right = right.detach()
    return float((result.detach().double().cpu() - right).norm() / right.norm())


def captions(sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    """The bundled model on drawn scenes: features, and captions from the same features in fp32."""
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), seed=0, train=sizes.images, dev=1, test=1, progress=False)
        files = sorted(Path(folder).rglob("*.png"))[: sizes.images]
        on_cpu, on_device = (captioner.load(device=name) for name in ("cpu", str(device)))
        transform = on_cpu.encoders[0].transform
        pixels = stack_pixels([transform.pixels(open_image(file)) for file in files])
    rows, features = [], []
    with torch.inference_mode():
        for ours, reference in zip(on_device.encoders, on_cpu.encoders):
            features.append(reference.float()(pixels))
            with tf32(False):
                pooled = ours.float()(pixels.to(device)).pooled
            error = relative_error(pooled, features[-1].pooled.double())
            rows.append(_check(f"{ours.network}, fp32: relative error", error, 1e-3))
    for beam in (1, 5):
        options = DecodingOptions(beam_size=beam)
        right = _captions(on_cpu, features, options)
        moved = [source.to(device) for source in features]
        results = _captions(on_device, moved, options)
        differing = [(a, b) for a, b in zip(results, right) if a.tokens != b.tokens]
        ties = sum(abs(a.score - b.score) < TIE for a, b in differing)
        label = f"captions by {'greedy' if beam == 1 else f'beam {beam}'}: different, no tie"
        rows.append(_check(label, len(differing) - ties, 0, ties=ties, images=len(files)))
    return rows


def _captions(model: Any, features: list[Features], options: DecodingOptions) -> list[Any]:
    sources = [features[encoder] for encoder in model._encoder_of]
    found = generate(model.models, sources, model.tokenizer, options)
    return [hypotheses[0] for hypotheses in found]


def _check(name: str, value: float, most: float, **more: Any) -> dict[str, Any]:
    return {"row": name, "value": value, "most": most, "met": value <= most, **more}
