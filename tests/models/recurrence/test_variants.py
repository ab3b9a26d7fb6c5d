"""The variants of the cells, compared with the equations of their papers, in numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy import tanh
from torch import nn

from captioner.models.recurrence.cells import Cell
from captioner.models.recurrence.table import CELLS
from captioner.models.recurrence.unroll import Recurrence

B, T, E, H = 2, 5, 7, 6
VARIANTS = [name for name in CELLS if name not in ("rnn", "gru", "lstm")]


def σ(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def norm(a: np.ndarray) -> np.ndarray:
    mean = a.mean(1, keepdims=True)
    return (a - mean) / np.sqrt(((a - mean) ** 2).mean(1, keepdims=True) + 1e-5)


class Blackboard:
    """The equations, each gate with one matrix on [h, x]; h and c as they stand after each step."""

    def __init__(self, cell: Cell) -> None:
        self.weights = {name: one.detach().numpy() for name, one in cell.named_parameters()}
        of_hidden = self.weights["of_hidden.weight"]
        if "of_gated.weight" in self.weights:
            of_hidden = np.concatenate([of_hidden, self.weights["of_gated.weight"]])
        stacked = np.concatenate([of_hidden, self.weights["of_input.weight"]], axis=1)
        count = len(cell.gate_names)
        self.matrices = dict(zip(cell.gate_names, np.split(stacked, count)))
        bias = self.weights.get("of_input.bias", self.weights.get("bias"))
        bias = bias + self.weights.get("of_hidden.bias", 0)
        self.biases = dict(zip(cell.gate_names, np.split(bias, count)))

    def w(self, gate: str, h: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.concatenate([h, x], axis=1) @ self.matrices[gate].T + self.biases[gate]

    def irnn(self, h, c, x):
        return np.maximum(0, self.w("candidate", h, x)), c

    def gru_reset_first(self, h, c, x):
        r, z = σ(self.w("r", h, x)), σ(self.w("z", h, x))
        return z * h + (1 - z) * tanh(self.w("candidate", r * h, x)), c

    def mgu(self, h, c, x):
        f = σ(self.w("f", h, x))
        return (1 - f) * h + f * tanh(self.w("candidate", f * h, x)), c

    def lstm_peephole(self, h, c, x):
        p_f, p_i, p_o = np.split(self.weights["peepholes"], 3)
        f, i = σ(self.w("f", h, x) + c @ np.diag(p_f)), σ(self.w("i", h, x) + c @ np.diag(p_i))
        c = f * c + i * tanh(self.w("candidate", h, x))
        return σ(self.w("o", h, x) + c @ np.diag(p_o)) * tanh(c), c

    def lstm_coupled(self, h, c, x):
        f = σ(self.w("f", h, x))
        c = f * c + (1 - f) * tanh(self.w("candidate", h, x))
        return σ(self.w("o", h, x)) * tanh(c), c

    def lstm_no_forget(self, h, c, x):
        c = c + σ(self.w("i", h, x)) * tanh(self.w("candidate", h, x))
        return σ(self.w("o", h, x)) * tanh(c), c

    def lstm_no_input(self, h, c, x):
        c = σ(self.w("f", h, x)) * c + tanh(self.w("candidate", h, x))
        return σ(self.w("o", h, x)) * tanh(c), c

    def lstm_no_output(self, h, c, x):
        c = σ(self.w("f", h, x)) * c + σ(self.w("i", h, x)) * tanh(self.w("candidate", h, x))
        return tanh(c), c

    def lstm_no_output_tanh(self, h, c, x):
        c = σ(self.w("f", h, x)) * c + σ(self.w("i", h, x)) * tanh(self.w("candidate", h, x))
        return σ(self.w("o", h, x)) * c, c

    def lstm_layer_norm(self, h, c, x):
        w = self.weights
        sums = norm(x @ w["of_input.weight"].T) * w["norm_input.weight"]
        sums = sums + norm(h @ w["of_hidden.weight"].T) * w["norm_hidden.weight"] + w["bias"]
        f, i, candidate, o = np.split(sums, 4, axis=1)
        c = σ(f) * c + σ(i) * tanh(candidate)
        return σ(o) * tanh(norm(c) * w["norm_memory.weight"] + w["norm_memory.bias"]), c


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_computes_the_equations_of_its_paper(name: str) -> None:
    ours = Recurrence(cell=name, input_size=E, hidden_size=H).double()
    for parameter in ours.parameters():  # gains are not ones, and biases not zeros
        nn.init.normal_(parameter, std=0.5)
    inputs = torch.randn(B, T, E, dtype=torch.float64)
    state = {part: torch.randn_like(zero) for part, zero in ours.zeros(B).items()}
    with torch.no_grad():
        outputs, last = ours(inputs, state)
    board = Blackboard(ours.first)
    h, c = (state.get(part, state["h"])[:, 0].numpy() for part in ("h", "c"))
    for t in range(T):
        h, c = getattr(board, name)(h, c, inputs[:, t].numpy())
        np.testing.assert_allclose(outputs[:, t], h, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(last.get("c", outputs[:, -1:])[:, 0], c if "c" in last else h)


def test_a_new_irnn_sums_its_inputs() -> None:
    cell = CELLS["irnn"](input_size=E, hidden_size=H)
    state = {"h": torch.rand(B, H)}
    assert torch.equal(cell(torch.zeros(B, E), state)["h"], state["h"])
    assert 0 < cell.of_input.weight.abs().max() < 0.01


def test_a_layer_norm_lstm_does_not_depend_on_the_scale_of_its_weights() -> None:
    cell = CELLS["lstm_layer_norm"](input_size=E, hidden_size=H).double()
    x, h, c = (torch.randn(B, size, dtype=torch.float64) for size in (E, H, H))
    before = cell(x, {"h": h, "c": c})
    with torch.no_grad():
        cell.of_input.weight.mul_(100)
        cell.of_hidden.weight.mul_(10)
    for part, value in cell(x, {"h": h, "c": c}).items():
        torch.testing.assert_close(value, before[part], rtol=1e-3, atol=1e-3)


def test_the_documentation_lists_every_cell() -> None:
    text = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    section = text.split("\n## Cells\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| `")]
    assert rows[1:] == [f"`{name}`" for name in CELLS]
