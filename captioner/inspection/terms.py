"""The terms of an equation: the numbers of one unit at one step, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captioner.models.recurrence.cells import Cell
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
        return f"{self.left:<4} = {self.right} = {stages} = {number(self.value)}"


class Unit:
    """The numbers of one unit at one step, in float64.

    Args:
        cell: of the layer.
        trace, step, unit, layer: as for ``equations``.

    Attributes:
        values: of all units, by site without "cell.", [H] each.
        h: h_{t-1}, [H].
        of_input, of_hidden: W_x x_t + b and W_h h_{t-1} of all gates, [gates * H].
    """

    def __init__(self, cell: Cell, trace: Trace, step: int, unit: int, layer: int) -> None:
        self.cell, self.step, self.unit = cell, step, unit
        self.size = cell.hidden_size
        self.values = {
            site.removeprefix("cell."): torch.from_numpy(array[step, layer]).double()
            for site, array in trace.sites.items()
            if site.startswith("cell.")
        }
        self.h = self.values["previous_hidden"]
        self.of_input = self.values["input"]
        self.of_hidden = product(cell.of_hidden.weight, self.h)

    def __getitem__(self, site: str) -> float:
        """The unit's value of a site, without "cell."."""
        return float(self.values[site][self.unit])

    def part(self, values: Tensor | None, gate: str) -> float:
        """The unit's number in values that are stacked by gate."""
        if values is None:
            return 0.0
        return float(values[self.cell.gate_names.index(gate) * self.size + self.unit])

    def terms(self, gate: str) -> list[float]:
        """W_h h_{t-1}, W_x x_t and b of a gate."""
        bias = self.part(bias_of(self.cell.of_input), gate)
        hidden_bias = bias_of(self.cell.of_hidden)
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
        stages = (f"{function}({joined(terms)})", f"{function}({number(total)})")
        return Equation(
            self.named(f"{LEFT.get(letter, letter)}°"), self.named(formula), stages, self[site]
        )

    def product(self, left: str, formula: str, numbers: str, site: str) -> Equation:
        """An equation of products of values that are known already."""
        return Equation(self.named(left + "°"), self.named(formula), (numbers,), self[site])


LEFT = {"C": "C~"}


def bias_of(linear: Any) -> Tensor | None:
    return None if linear.bias is None else linear.bias.detach().double()


def product(weight: Tensor, vector: Tensor) -> Tensor:
    return weight.detach().double() @ vector


def number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else str(value)


def factor(value: float) -> str:
    """A number in a product; in parentheses if negative."""
    return f"({number(value)})" if value < 0 else number(value)


def joined(terms: Sequence[float]) -> str:
    """Numbers joined by plus and minus."""
    first, *rest = terms
    return number(first) + "".join(f" {'-' if t < 0 else '+'} {number(abs(t))}" for t in rest)
