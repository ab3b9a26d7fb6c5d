"""Time of the recurrence, compared with torch.nn and with the cell as in tutorials.

Forward and backward with all gradients, E = H = 512, in one process and in turn. Every task starts
from the same padded inputs [B, T, E] and computes their gradient and those of all parameters.

    CAPTIONER_KEEP_MEMORY=1 python experiments/benchmarks/recurrence.py --flickr8k ~/flickr8k
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from paired import (
    Pair,
    add_captions,
    compare_times,
    draw_lengths,
    finish,
    make_parser,
    run_guarded,
    start,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioner.models.packing import Packing
from captioner.models.recurrence.unroll import Recurrence

E = H = 512
T = 16
BATCHES = (32, 128, 256)
PEERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
TUTORIAL = {32: 0.65, 128: 0.8, 256: 0.8}  # goals: fraction of its time, by batch size


class TutorialLSTM(nn.Module):
    """Four linear layers on [h, x] and a Python loop, as in tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.i, self.g, self.o = (nn.Linear(H + E, H) for _ in range(4))

    def forward(self, inputs: Tensor) -> Tensor:
        h = c = inputs.new_zeros(len(inputs), H)
        outputs = []
        for x in inputs.unbind(1):
            hx = torch.cat([h, x], dim=1)
            f, i, o = (torch.sigmoid(gate(hx)) for gate in (self.f, self.i, self.o))
            c = f * c + i * torch.tanh(self.g(hx))
            h = o * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, dim=1)


def ours(cell: str, *, fused: bool = True) -> Recurrence:
    recurrence = Recurrence(cell=cell, input_size=E, hidden_size=H)
    recurrence.fused = fused
    return recurrence


def task(
    module: nn.Module, inputs: Tensor, run: Callable[[Tensor], Tensor], *, half: bool = False
) -> Callable[[], Any]:
    """Return a task: forward, and backward to the inputs and all parameters."""

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outputs = run(inputs)
        torch.autograd.grad(outputs, (inputs, *module.parameters()), torch.ones_like(outputs))

    return work


def full(cell: str, batch: int, *, fused: bool = True) -> Callable[[], Any]:
    module = ours(cell, fused=fused)
    inputs = torch.randn(batch, T, E, requires_grad=True)
    return task(module, inputs, lambda x: module(x, module.zeros(batch))[0])


def packed(cell: str, words: Tensor, *, half: bool = False) -> Callable[[], Any]:
    module = ours(cell)
    inputs = torch.randn(len(words), int(words.max()), E, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        packing = Packing.of(words)
        return module(packing.pack(x), module.zeros(len(words)), sizes=packing.sizes)[0]

    return task(module, inputs, run, half=half)


def peer_full(cell: str, batch: int, steps: int = T) -> Callable[[], Any]:
    module = PEERS[cell](E, H, batch_first=True)
    return task(module, torch.randn(batch, steps, E, requires_grad=True), lambda x: module(x)[0])


def peer_packed(cell: str, words: Tensor, *, half: bool = False) -> Callable[[], Any]:
    module = PEERS[cell](E, H, batch_first=True)
    inputs = torch.randn(len(words), int(words.max()), E, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        rows = pack_padded_sequence(x, words, batch_first=True, enforce_sorted=False)
        return module(rows)[0].data

    return task(module, inputs, run, half=half)


def lstm_tasks(batch: int, words: Tensor) -> tuple[dict[str, Callable[[], Any]], list[Pair]]:
    tutorial = TutorialLSTM()
    tasks = {
        "full": full("lstm", batch),
        "real": packed("lstm", words),
        "real, bf16": packed("lstm", words, half=True),
        "readable": full("lstm", batch, fused=False),
        "nn": peer_full("lstm", batch),
        "nn padded": peer_full("lstm", batch, int(words.max())),
        "nn packed": peer_packed("lstm", words),
        "nn packed, bf16": peer_packed("lstm", words, half=True),
        "tutorial": task(tutorial, torch.randn(batch, T, E, requires_grad=True), tutorial),
    }
    real = float(words.sum()) / (batch * int(words.max()))
    pairs = [
        Pair(f"B={batch}: nn.LSTM, fp32, full length", "full", "nn", 1.05),
        Pair(f"B={batch}: nn.LSTM padded, fp32 ({real:.0%} real)", "real", "nn padded", 0.65),
        Pair(f"B={batch}: nn.LSTM packed, fp32", "real", "nn packed"),
        Pair(f"B={batch}: nn.LSTM packed, bf16", "real, bf16", "nn packed, bf16", 0.45, True),
        Pair(f"B={batch}: tutorial cell, fp32, full length", "full", "tutorial", TUTORIAL[batch]),
        Pair(f"B={batch}: our readable loop, fp32, full length", "full", "readable"),
    ]
    return tasks, pairs


def rnn_and_gru_tasks(batch: int, words: Tensor) -> tuple[dict[str, Callable[[], Any]], list[Pair]]:
    tasks, pairs = {}, []
    for cell in ("rnn", "gru"):
        tasks |= {f"{cell} full": full(cell, batch), f"{cell} real": packed(cell, words)}
        tasks |= {
            f"nn {cell}": peer_full(cell, batch),
            f"nn {cell} packed": peer_packed(cell, words),
        }
        name = f"nn.{cell.upper()}"
        pairs.append(Pair(f"B={batch}: {name}, fp32, full length", f"{cell} full", f"nn {cell}"))
        pairs.append(Pair(f"B={batch}: {name} packed, fp32", f"{cell} real", f"nn {cell} packed"))
    return tasks, pairs


def main() -> None:
    options = add_captions(make_parser(__doc__, rounds=11)).parse_args()
    about, rows = start(options), []
    for batch in BATCHES:
        words = draw_lengths(options.flickr8k, batch, more=2)  # X_0 and <start>
        rows += compare_times(*lstm_tasks(batch, words), options.rounds)
    rows += compare_times(
        *rnn_and_gru_tasks(128, draw_lengths(options.flickr8k, 128, more=2)), options.rounds
    )
    finish(about, rows, options.json)


if __name__ == "__main__":
    run_guarded(main)
