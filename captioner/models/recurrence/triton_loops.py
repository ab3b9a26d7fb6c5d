"""The loops of ``loops.py`` with Triton: one kernel for a whole step, on CUDA.

    forward     one kernel per step, for the product with W_h, the gates and the new state
    backward    one kernel per step for G_t from ∂h_t; ∂h_{t-1} = G_t W_h is a product of torch

Signatures and results are those of ``loops.py``; what is stored is explained there. Products in
float32 use TF32 only if torch's do.

This module is imported only where Triton is installed. With TRITON_INTERPRET=1, set before Triton
is imported, the kernels run on the CPU; a test compares them with the readable loop in this way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from captioner.models.matmul import add_product, product
from captioner.models.precision import multiplies_in_tf32
from captioner.models.recurrence.cells import GRU, LSTM, RNN, Cell
from captioner.models.recurrence.loops import Gradients, before_each, ended_each
from captioner.models.recurrence.triton_kernels import (
    gru_back,
    gru_step,
    lstm_back,
    lstm_step,
    rnn_back,
    rnn_step,
)

DTYPES = (torch.float32, torch.bfloat16)
"""The dtypes of the products."""

_BLOCK = 512  # elements that a program of a backward kernel computes


def _settings(rows: int, width: int, weight: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid of programs of a step, and its constants.

    The tiles are small, so that some hundred programs exist even for a small batch. They were
    chosen by counting, not by measuring.
    """
    m, n = (16 if rows <= 64 else 32 if rows <= 256 else 64), (16 if rows <= 256 else 32)
    half = weight.dtype == torch.bfloat16
    precision = "tf32" if not half and multiplies_in_tf32() else "ieee"
    wide = half and os.environ.get("TRITON_INTERPRET") == "1"
    grid = (triton.cdiv(rows, m), triton.cdiv(width, n))
    k = 64 if half else 32
    return grid, {"H": width, "TF": precision, "WIDE": wide, "M": m, "N": n, "K": k}


def _blocks(count: int) -> tuple[int]:
    return (triton.cdiv(count, _BLOCK),)


def _reversed(sizes: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The number and the rows of each step, from the last one."""
    yield from reversed([*enumerate(sizes)])


class _RNN:
    """h_t = tanh(A_t); only h is stored."""

    @staticmethod
    def forward(sums: Tensor, w_h: Tensor, b_h: Tensor, state: Any, sizes: Any) -> Any:
        width, steps = w_h.shape[1], sums.add_(b_h).split(sizes)
        h, w_h = state[0].to(sums.dtype).contiguous(), w_h.contiguous()
        for rows, step in zip(sizes, steps):
            grid, constants = _settings(rows, width, w_h)
            rnn_step[grid](h, w_h, step, rows, **constants)
            h = step
        return sums, [ended_each(steps, sizes)], []

    @staticmethod
    def backward(
        kept: Any, outputs: Tensor, w_h: Tensor, state: Any, gradients: Any, sizes: Any
    ) -> Gradients:
        of_sums = torch.empty_like(outputs)
        hs, of_outputs, gs = (x.split(sizes) for x in (outputs, gradients[0].contiguous(), of_sums))
        of_h = gradients[1].clone().contiguous()
        for t, rows in _reversed(sizes):
            count = rows * outputs.shape[1]
            rnn_back[_blocks(count)](of_h, of_outputs[t], hs[t], gs[t], count, BLOCK=_BLOCK)
            product(gs[t], w_h, out=of_h[:rows])
        return Gradients(of_sums, of_sums, [of_h])


class _GRU:
    """Stores the gates, and W_hn h + b_hn, by which the reset gate is multiplied."""

    @staticmethod
    def forward(sums: Tensor, w_h: Tensor, b_h: Tensor, state: Any, sizes: Any) -> Any:
        width = w_h.shape[1]
        outputs, inside = sums.new_empty(2, len(sums), width)
        steps, hs, insides = (x.split(sizes) for x in (sums, outputs, inside))
        h, w_h = state[0].to(sums.dtype).contiguous(), w_h.contiguous()  # rounded
        running = state[0].clone().contiguous()  # not rounded
        for t, rows in enumerate(sizes):
            grid, constants = _settings(rows, width, w_h)
            gru_step[grid](h, w_h, b_h, steps[t], running, insides[t], hs[t], rows, **constants)
            h = hs[t]
        return outputs, [running], [sums, inside]

    @staticmethod
    def backward(
        kept: Any, outputs: Tensor, w_h: Tensor, state: Any, gradients: Any, sizes: Any
    ) -> Gradients:
        gates, inside = kept
        width = w_h.shape[1]
        of_hidden, of_n = torch.empty_like(gates), torch.empty_like(inside)
        before = before_each(state[0], outputs, sizes)
        of_h = gradients[1].to(outputs.dtype, copy=True).contiguous()
        given = (gradients[0].contiguous(), before, gates, inside, of_hidden, of_n)
        steps = [*zip(*(x.split(sizes) for x in given))]
        for t, rows in _reversed(sizes):
            count, now = rows * width, of_h[:rows]
            gru_back[_blocks(count)](of_h, *steps[t], count, H=width, BLOCK=_BLOCK)
            add_product(now, steps[t][4], w_h, out=now)
        of_input = torch.cat([of_hidden[:, : 2 * width], of_n], dim=1)
        return Gradients(of_input, of_hidden, [of_h])


class _LSTM:
    """Stores the gates, c and tanh(c)."""

    @staticmethod
    def forward(sums: Tensor, w_h: Tensor, b_h: None, state: Any, sizes: Any) -> Any:
        width = w_h.shape[1]
        outputs, memory, tanh_memory = sums.new_empty(3, len(sums), width)
        hs, *steps = (x.split(sizes) for x in (outputs, sums, memory, tanh_memory))
        h, w_h = state[0].to(sums.dtype).contiguous(), w_h.contiguous()
        c = state[1].clone().contiguous()  # never rounded
        for t, rows in enumerate(sizes):
            grid, constants = _settings(rows, width, w_h)
            gates, cs, tanh_cs = (step[t] for step in steps)
            lstm_step[grid](h, w_h, gates, c, cs, tanh_cs, hs[t], rows, **constants)
            h = hs[t]
        return outputs, [ended_each(hs, sizes), c], [sums, memory, tanh_memory]

    @staticmethod
    def backward(
        kept: Any, outputs: Tensor, w_h: Tensor, state: Any, gradients: Any, sizes: Any
    ) -> Gradients:
        gates, memory, tanh_memory = kept
        width = w_h.shape[1]
        of_sums = torch.empty_like(gates)
        of_h, of_c = (gradient.clone().contiguous() for gradient in gradients[1:])
        of_outputs, cs, *steps = (
            x.split(sizes) for x in (gradients[0].contiguous(), memory, gates, tanh_memory, of_sums)
        )
        for t, rows in _reversed(sizes):
            count, before = rows * width, cs[t - 1] if t else state[1].contiguous()
            now = (step[t] for step in steps)
            lstm_back[_blocks(count)](
                of_h, of_c, of_outputs[t], before, *now, count, H=width, BLOCK=_BLOCK
            )
            product(steps[2][t], w_h, out=of_h[:rows])
        return Gradients(of_sums, of_sums, [of_h, of_c])


LOOPS: dict[type[Cell], Any] = {RNN: _RNN, GRU: _GRU, LSTM: _LSTM}
"""The loop of each class of cell that has one, as in ``loops.py``."""
