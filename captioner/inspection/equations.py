"""The equations of a cell with the numbers of one step and one unit, as the textbook writes them.

    f_3  = σ(W_f [h_2, x_3] + b_f) = σ(0.3121 - 0.1204 + 1.0310) = σ(1.2227) = 0.7725

The three numbers are W_h h_{t-1}, W_x x_t and b, summed over all units. x_t is the word, or X_0 at
step 0; where a decoder adds more to the input of the cell (the context of an attention, the image
at every step), that is in the second number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.models.decoders.decoder import Decoder
from captioner.models.recurrence.cells import GRU, LSTM, RNN, Cell
from captioner.models.recurrence.unroll import Recurrence
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
from captioner.tracing.trace import Trace


@dataclass(frozen=True)
class Equation:
    """One equation.

    Attributes:
        left: what is computed, as "f_3".
        right: the formula, with the step's numbers as indices.
        numbers: the formula with values in place of its terms; it may have several stages.
        value: the result.
    """

    left: str
    right: str
    numbers: tuple[str, ...]
    value: float

    def __str__(self) -> str:
        stages = " = ".join(self.numbers)
        return f"{self.left:<4} = {self.right} = {stages} = {_number(self.value)}"


def equations(
    trace: Trace, decoder: Decoder, *, step: int, unit: int, layer: int = 0
) -> list[Equation]:
    """The equations of one unit at one step, in the order in which the cell computes them.

    Args:
        trace: of a model with this decoder, in float32 and without edits.
        decoder: with the weights.
        step: 0 reads X_0, 1 reads <start>.
        unit: 0 to H - 1.
        layer: 0 to L - 1.

    Raises:
        ValueError: a number out of range, or a decoder or cell whose equations are not known.
    """
    recurrence = getattr(decoder, "recurrence", getattr(decoder, "language", None))
    if not isinstance(recurrence, Recurrence):
        raise ValueError(f"{type(decoder).__name__} has no recurrent cell, so no equations")
    first = 0 if trace.reads[0] == "X_0" else 1
    for name, value, least, most in (
        ("step", step, first, len(trace.reads) - 1),
        ("layer", layer, 0, len(recurrence.cells) - 1),
        ("unit", unit, 0, recurrence.first.hidden_size - 1),
    ):
        if not least <= value <= most:
            raise ValueError(f"{name}={value} is not accepted; choose {least} to {most}")
    cell: Any = recurrence.cells[layer]
    write = _WRITERS.get(type(cell))
    if write is None:
        raise ValueError(f"the equations of {type(cell).__name__} are not known")
    return write(_Unit(cell, trace, step, unit, layer))


def word_equations(
    trace: Trace, decoder: Decoder, words: Sequence[str], *, step: int
) -> list[Equation]:
    """From the output layer to the probability of the word that a step gives.

    Args:
        trace, decoder: as for ``equations``.
        words: of the vocabulary.
        step: 1 reads <start>; step 0 gives no word.

    Returns:
        the logit of the word, and its softmax; empty for step 0. The input of the output layer is
        h, or u if the decoder changes h before.
    """
    if step == 0:
        return []
    word, hidden = trace.words[step - 1], torch.from_numpy(trace["output.hidden"][step]).double()
    logits = torch.from_numpy(trace["output.logits"][step]).double()
    layer: Any = decoder.output
    token = words.index(word)
    of_hidden = float(layer.weight[token].detach().double() @ hidden)
    bias = float(layer.bias[token].detach())
    state = trace.sites.get("cell.hidden")
    same = state is not None and np.array_equal(state[step, -1], trace["output.hidden"][step])
    name = f"{'h' if same else 'u'}_{step}"
    logit, total = float(logits[token]), float(logits.logsumexp(0))
    return [
        Equation(
            f"l_{step}({word})",
            f"w_{word} {name} + b_{word}",
            (_sum([of_hidden, bias]),),
            logit,
        ),
        Equation(
            f"p_{step}({word})",
            f"exp(l_{step}({word})) / Σ exp(l_{step})",
            (f"exp({_number(logit)}) / exp({_number(total)})",),
            math.exp(logit - total),
        ),
    ]


class _Unit:
    """The numbers of one unit at one step, in float64.

    Args:
        cell: of the layer.
        trace, step, unit, layer: as for ``equations``.
    """

    def __init__(self, cell: Cell, trace: Trace, step: int, unit: int, layer: int) -> None:
        self.cell, self.step, self.unit = cell, step, unit
        self.size = cell.hidden_size
        self._values = {
            site.removeprefix("cell."): torch.from_numpy(array[step, layer]).double()
            for site, array in trace.sites.items()
            if site.startswith("cell.")
        }
        self.h = self._values["previous_hidden"]  # [H]
        self.of_input = self._values["input"]  # [gates * H]
        self.of_hidden = _product(cell.of_hidden.weight, self.h)  # [gates * H]

    def __getitem__(self, site: str) -> float:
        """The unit's value of a site, without "cell."."""
        return float(self._values[site][self.unit])

    def part(self, values: Tensor | None, gate: str) -> float:
        """The unit's number in values that are stacked by gate."""
        if values is None:
            return 0.0
        return float(values[self.cell.gate_names.index(gate) * self.size + self.unit])

    def terms(self, gate: str) -> list[float]:
        """W_h h_{t-1}, W_x x_t and b of a gate."""
        bias = self.part(_bias(self.cell.of_input), gate)
        hidden_bias = _bias(self.cell.of_hidden)
        of_hidden = self.part(self.of_hidden, gate)
        both = bias + self.part(hidden_bias, gate)
        return [of_hidden, self.part(self.of_input, gate) - bias, both]

    def named(self, text: str) -> str:
        """A formula with the numbers of the steps: "h' x" becomes "h_2 x_3"."""
        before = "-1" if self.step == 0 else str(self.step - 1)
        before = f"{{{before}}}" if self.step == 0 else before
        return text.replace("'", f"_{before}").replace("°", f"_{self.step}")

    def gate(
        self, gate: str, letter: str, function: str, site: str, *, more: Sequence[float] = ()
    ) -> Equation:
        """A gate that is a function of a sum of terms.

        Args:
            more: further terms, which the formula has as peepholes.
        """
        terms = [*self.terms(gate), *more]
        peephole = f" + p_{letter} * C{'°' if gate == 'o' else chr(39)}" if more else ""
        formula = f"{function}(W_{letter} [h', x°]{peephole} + b_{letter})"
        total = sum(terms)
        stages = (f"{function}({_sum(terms)})", f"{function}({_number(total)})")
        return Equation(
            self.named(f"{_LEFT.get(letter, letter)}°"), self.named(formula), stages, self[site]
        )

    def product(self, left: str, formula: str, numbers: str, site: str) -> Equation:
        """An equation of products of values that are known already."""
        return Equation(self.named(left + "°"), self.named(formula), (numbers,), self[site])


_LEFT = {"C": "C~"}


def _write_rnn(unit: _Unit, function: str = "tanh") -> list[Equation]:
    terms = unit.terms("candidate")
    biases = [unit.part(_bias(linear), "candidate") for linear in _linears(unit.cell)]
    terms = [terms[1], biases[0], terms[0], biases[1]]
    formula = unit.named("(W_ih x° + b_ih + W_hh h' + b_hh)")
    opening, closing = ("max(0, ", ")") if function == "relu" else (f"{function}(", ")")
    stages = (opening + _sum(terms) + closing, opening + _number(sum(terms)) + closing)
    right = opening + formula[1:-1] + closing
    return [Equation(unit.named("h°"), right, stages, unit["hidden"])]


def _write_irnn(unit: _Unit) -> list[Equation]:
    return _write_rnn(unit, "relu")


def _write_lstm(unit: _Unit) -> list[Equation]:
    names = unit.cell.gate_names
    peepholes = _peepholes(unit)
    lines = []
    for gate, letter, function, site in _LSTM_GATES:
        if gate in names:
            more = [peepholes[gate]] if gate in peepholes else ()
            lines.append(unit.gate(gate, letter, function, site, more=more))
        elif gate == "i" and isinstance(unit.cell, CoupledLSTM):
            f = unit["forget_gate"]
            lines.append(unit.product("i", "1 - f°", f"1 - {_number(f)}", site))
    return [*_memory_before_o(lines, unit), _hidden(unit)]


def _memory_before_o(lines: list[Equation], unit: _Unit) -> list[Equation]:
    """The lines of the gates, with that of C_t before that of o_t."""
    f, i, candidate = unit["forget_gate"], unit["input_gate"], unit["candidate"]
    before = unit["previous_memory"]
    numbers = f"{_factor(f)} * {_factor(before)} + {_factor(i)} * {_factor(candidate)}"
    memory = unit.product("C", "f° * C' + i° * C~°", numbers, "memory")
    last = [line for line in lines if line.left.startswith("o")]
    return [*(line for line in lines if line not in last), memory, *last]


def _hidden(unit: _Unit) -> Equation:
    o, c = unit["output_gate"], unit["memory"]
    if isinstance(unit.cell, NoOutputTanhLSTM):
        return unit.product("h", "o° * C°", f"{_factor(o)} * {_factor(c)}", "hidden")
    numbers = f"{_factor(o)} * tanh({_number(c)})"
    return unit.product("h", "o° * tanh(C°)", numbers, "hidden")


def _write_normalized_lstm(unit: _Unit) -> list[Equation]:
    cell: Any = unit.cell
    norm_h = _normalize(cell.norm_hidden, unit.of_hidden)
    norm_x = _normalize(cell.norm_input, unit.of_input)
    lines = []
    for gate, letter, function, site in _LSTM_GATES:
        parts = (norm_h, norm_x, cell.bias.detach().double())
        terms = [unit.part(values, gate) for values in parts]
        formula = f"{function}(norm(W_h h') + norm(W_x x°) + b_{letter})"
        stages = (f"{function}({_sum(terms)})", f"{function}({_number(sum(terms))})")
        left = unit.named(f"{_LEFT.get(letter, letter)}°")
        lines.append(Equation(left, unit.named(formula), stages, unit[site]))
    normalized = _normalize(cell.norm_memory, unit._values["memory"])[unit.unit]
    o = unit["output_gate"]
    numbers = f"{_factor(o)} * tanh({_number(float(normalized))})"
    hidden = unit.product("h", "o° * tanh(norm(C°))", numbers, "hidden")
    return [*_memory_before_o(lines, unit), hidden]


def _write_gru(unit: _Unit) -> list[Equation]:
    r, z = (unit.gate(gate, gate, "σ", site) for gate, site in _GRU_GATES)
    inner = unit.part(unit.of_hidden, "candidate")
    inner_bias = unit.part(_bias(unit.cell.of_hidden), "candidate")
    of_input = unit.part(unit.of_input, "candidate")
    total = of_input + unit["reset_gate"] * (inner + inner_bias)
    product = f"{_factor(unit['reset_gate'])} * {_factor(inner + inner_bias)}"
    stages = (f"tanh({_number(of_input)} + {product})", f"tanh({_number(total)})")
    formula = unit.named("tanh(W_in x° + b_in + r° * (W_hn h' + b_hn))")
    return [r, z, Equation(unit.named("n°"), formula, stages, unit["candidate"]), _mixed(unit)]


def _write_reset_first_gru(unit: _Unit) -> list[Equation]:
    r, z = (unit.gate(gate, gate, "σ", site) for gate, site in _GRU_GATES)
    return [r, z, _gated_candidate(unit, "r", "reset_gate"), _mixed(unit)]


def _write_mgu(unit: _Unit) -> list[Equation]:
    f = unit.gate("f", "f", "σ", "forget_gate")
    gate, n, h = unit["forget_gate"], unit["candidate"], unit["previous_hidden"]
    numbers = f"(1 - {_number(gate)}) * {_factor(h)} + {_factor(gate)} * {_factor(n)}"
    hidden = unit.product("h", "(1 - f°) * h' + f° * n°", numbers, "hidden")
    return [f, _gated_candidate(unit, "f", "forget_gate"), hidden]


def _gated_candidate(unit: _Unit, letter: str, site: str) -> Equation:
    """The candidate of a cell that multiplies h by a gate before the product."""
    cell: Any = unit.cell
    gated = _product(cell.of_gated.weight, unit._values[site] * unit.h)
    bias = unit.part(_bias(cell.of_input), "candidate")
    terms = [float(gated[unit.unit]), unit.part(unit.of_input, "candidate") - bias, bias]
    formula = unit.named(f"tanh(W_n [{letter}° * h', x°] + b_n)")
    stages = (f"tanh({_sum(terms)})", f"tanh({_number(sum(terms))})")
    return Equation(unit.named("n°"), formula, stages, unit["candidate"])


def _mixed(unit: _Unit) -> Equation:
    z, n, h = unit["update_gate"], unit["candidate"], unit["previous_hidden"]
    numbers = f"(1 - {_number(z)}) * {_factor(n)} + {_factor(z)} * {_factor(h)}"
    return unit.product("h", "(1 - z°) * n° + z° * h'", numbers, "hidden")


def _peepholes(unit: _Unit) -> dict[str, float]:
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

_WRITERS: Mapping[type[Cell], Callable[[_Unit], list[Equation]]] = {
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


def _bias(linear: Any) -> Tensor | None:
    return None if linear.bias is None else linear.bias.detach().double()


def _product(weight: Tensor, vector: Tensor) -> Tensor:
    return weight.detach().double() @ vector


def _normalize(norm: Any, values: Tensor) -> Tensor:
    """A LayerNorm in float64."""
    bias = None if norm.bias is None else norm.bias.detach().double()
    weight = norm.weight.detach().double()
    return torch.nn.functional.layer_norm(values, values.shape, weight, bias, norm.eps)


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else str(value)


def _factor(value: float) -> str:
    """A number in a product; in parentheses if negative."""
    return f"({_number(value)})" if value < 0 else _number(value)


def _sum(terms: Sequence[float]) -> str:
    """Numbers joined by plus and minus."""
    first, *rest = terms
    return _number(first) + "".join(f" {'-' if t < 0 else '+'} {_number(abs(t))}" for t in rest)
