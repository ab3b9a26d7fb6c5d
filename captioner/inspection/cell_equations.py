"""The equations of each class of cell, as its paper writes them, with the numbers of one unit.

A function for each family of cells: RNN (Elman, 1990), LSTM (Hochreiter and Schmidhuber, 1997; Gers
et al., 2000) and its variants, GRU (Cho et al., 2014), MGU (Zhou et al., 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from captioner.inspection.terms import (
    LEFT,
    Equation,
    Unit,
    bias_of,
    factor,
    joined,
    number,
    product,
)
from captioner.models.recurrence.cells import GRU, LSTM, RNN, Cell
from captioner.models.recurrence.variants import (
    IRNN,
    MGU,
    CoupledLSTM,
    LayerNormLSTM,
    NoForgetLSTM,
    NoInputLSTM,
    NoOutputLSTM,
    NoOutputTanhLSTM,
    PeepholeLSTM,
    ResetFirstGRU,
)


def _write_rnn(unit: Unit, function: str = "tanh") -> list[Equation]:
    terms = unit.terms("candidate")
    biases = [unit.part(bias_of(linear), "candidate") for linear in _linears(unit.cell)]
    terms = [terms[1], biases[0], terms[0], biases[1]]
    formula = unit.named("(W_ih x° + b_ih + W_hh h' + b_hh)")
    opening, closing = ("max(0, ", ")") if function == "relu" else (f"{function}(", ")")
    stages = (opening + joined(terms) + closing, opening + number(sum(terms)) + closing)
    right = opening + formula[1:-1] + closing
    return [Equation(unit.named("h°"), right, stages, unit["hidden"])]


def _write_irnn(unit: Unit) -> list[Equation]:
    return _write_rnn(unit, "relu")


def _write_lstm(unit: Unit) -> list[Equation]:
    names = unit.cell.gate_names
    peepholes = _peepholes(unit)
    lines = []
    for gate, letter, function, site in _LSTM_GATES:
        if gate in names:
            more = [peepholes[gate]] if gate in peepholes else ()
            lines.append(unit.gate(gate, letter, function, site, more=more))
        elif gate == "i" and isinstance(unit.cell, CoupledLSTM):
            f = unit["forget_gate"]
            lines.append(unit.product("i", "1 - f°", f"1 - {number(f)}", site))
    return [*_memory_before_o(lines, unit), _hidden(unit)]


def _memory_before_o(lines: list[Equation], unit: Unit) -> list[Equation]:
    """The lines of the gates, with that of C_t before that of o_t."""
    f, i, candidate = unit["forget_gate"], unit["input_gate"], unit["candidate"]
    before = unit["previous_memory"]
    numbers = f"{factor(f)} * {factor(before)} + {factor(i)} * {factor(candidate)}"
    memory = unit.product("C", "f° * C' + i° * C~°", numbers, "memory")
    last = [line for line in lines if line.left.startswith("o")]
    return [*(line for line in lines if line not in last), memory, *last]


def _hidden(unit: Unit) -> Equation:
    o, c = unit["output_gate"], unit["memory"]
    if isinstance(unit.cell, NoOutputTanhLSTM):
        return unit.product("h", "o° * C°", f"{factor(o)} * {factor(c)}", "hidden")
    numbers = f"{factor(o)} * tanh({number(c)})"
    return unit.product("h", "o° * tanh(C°)", numbers, "hidden")


def _write_normalized_lstm(unit: Unit) -> list[Equation]:
    cell: Any = unit.cell
    norm_h = normalize(cell.norm_hidden, unit.of_hidden)
    norm_x = normalize(cell.norm_input, unit.of_input)
    lines = []
    for gate, letter, function, site in _LSTM_GATES:
        parts = (norm_h, norm_x, cell.bias.detach().double())
        terms = [unit.part(values, gate) for values in parts]
        formula = f"{function}(norm(W_h h') + norm(W_x x°) + b_{letter})"
        stages = (f"{function}({joined(terms)})", f"{function}({number(sum(terms))})")
        left = unit.named(f"{LEFT.get(letter, letter)}°")
        lines.append(Equation(left, unit.named(formula), stages, unit[site]))
    normalized = normalize(cell.norm_memory, unit.values["memory"])[unit.unit]
    o = unit["output_gate"]
    numbers = f"{factor(o)} * tanh({number(float(normalized))})"
    hidden = unit.product("h", "o° * tanh(norm(C°))", numbers, "hidden")
    return [*_memory_before_o(lines, unit), hidden]


def _write_gru(unit: Unit) -> list[Equation]:
    r, z = (unit.gate(gate, gate, "σ", site) for gate, site in _GRU_GATES)
    inner = unit.part(unit.of_hidden, "candidate")
    inner_bias = unit.part(bias_of(unit.cell.of_hidden), "candidate")
    of_input = unit.part(unit.of_input, "candidate")
    total = of_input + unit["reset_gate"] * (inner + inner_bias)
    product = f"{factor(unit['reset_gate'])} * {factor(inner + inner_bias)}"
    stages = (f"tanh({number(of_input)} + {product})", f"tanh({number(total)})")
    formula = unit.named("tanh(W_in x° + b_in + r° * (W_hn h' + b_hn))")
    return [r, z, Equation(unit.named("n°"), formula, stages, unit["candidate"]), _mixed(unit)]


def _write_reset_first_gru(unit: Unit) -> list[Equation]:
    r, z = (unit.gate(gate, gate, "σ", site) for gate, site in _GRU_GATES)
    return [r, z, _gated_candidate(unit, "r", "reset_gate"), _mixed(unit)]


def _write_mgu(unit: Unit) -> list[Equation]:
    f = unit.gate("f", "f", "σ", "forget_gate")
    gate, n, h = unit["forget_gate"], unit["candidate"], unit["previous_hidden"]
    numbers = f"(1 - {number(gate)}) * {factor(h)} + {factor(gate)} * {factor(n)}"
    hidden = unit.product("h", "(1 - f°) * h' + f° * n°", numbers, "hidden")
    return [f, _gated_candidate(unit, "f", "forget_gate"), hidden]


def _gated_candidate(unit: Unit, letter: str, site: str) -> Equation:
    """The candidate of a cell that multiplies h by a gate before the product."""
    cell: Any = unit.cell
    gated = product(cell.of_gated.weight, unit.values[site] * unit.h)
    bias = unit.part(bias_of(cell.of_input), "candidate")
    terms = [float(gated[unit.unit]), unit.part(unit.of_input, "candidate") - bias, bias]
    formula = unit.named(f"tanh(W_n [{letter}° * h', x°] + b_n)")
    stages = (f"tanh({joined(terms)})", f"tanh({number(sum(terms))})")
    return Equation(unit.named("n°"), formula, stages, unit["candidate"])


def _mixed(unit: Unit) -> Equation:
    z, n, h = unit["update_gate"], unit["candidate"], unit["previous_hidden"]
    numbers = f"(1 - {number(z)}) * {factor(n)} + {factor(z)} * {factor(h)}"
    return unit.product("h", "(1 - z°) * n° + z° * h'", numbers, "hidden")


def _peepholes(unit: Unit) -> dict[str, float]:
    """What each gate of a peephole LSTM adds of the memory; empty for other cells."""
    if not isinstance(unit.cell, PeepholeLSTM):
        return {}
    weights = unit.cell.peepholes.detach().double().chunk(3)
    memories = (unit["previous_memory"], unit["previous_memory"], unit["memory"])
    return {gate: float(weight[unit.unit]) * c for gate, weight, c in zip("fio", weights, memories)}


_LSTM_GATES = (
    ("f", "f", "σ", "forget_gate"),
    ("i", "i", "σ", "input_gate"),
    ("candidate", "C", "tanh", "candidate"),
    ("o", "o", "σ", "output_gate"),
)
_GRU_GATES = (("r", "reset_gate"), ("z", "update_gate"))

WRITERS: Mapping[type[Cell], Callable[[Unit], list[Equation]]] = {
    RNN: _write_rnn,
    IRNN: _write_irnn,
    GRU: _write_gru,
    ResetFirstGRU: _write_reset_first_gru,
    MGU: _write_mgu,
    LayerNormLSTM: _write_normalized_lstm,
    **dict.fromkeys(
        (
            LSTM,
            PeepholeLSTM,
            CoupledLSTM,
            NoForgetLSTM,
            NoInputLSTM,
            NoOutputLSTM,
            NoOutputTanhLSTM,
        ),
        _write_lstm,
    ),
}
"""How the equations of each class of cell are written."""


def _linears(cell: Cell) -> tuple[Any, Any]:
    return cell.of_input, cell.of_hidden


def normalize(norm: Any, values: Tensor) -> Tensor:
    """A LayerNorm in float64."""
    bias = None if norm.bias is None else norm.bias.detach().double()
    weight = norm.weight.detach().double()
    return torch.nn.functional.layer_norm(values, values.shape, weight, bias, norm.eps)
