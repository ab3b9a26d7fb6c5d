"""The equations of a cell with the numbers of one step and one unit, as the textbook writes them.

    f_3  = σ(W_f [h_2, x_3] + b_f) = σ(0.3121 - 0.1204 + 1.0310) = σ(1.2227) = 0.7725

The three numbers are W_h h_{t-1}, W_x x_t and b, summed over all units. x_t is the word, or X_0 at
step 0; where a decoder adds more to the input of the cell (the context of an attention, the image
at every step), that is in the second number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from captioner.inspection.cell_equations import WRITERS
from captioner.inspection.terms import Equation, Unit, joined, number
from captioner.models.decoders.decoder import Decoder
from captioner.models.recurrence.unroll import Recurrence
from captioner.tracing.trace import Trace


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
    write = WRITERS.get(type(cell))
    if write is None:
        raise ValueError(f"the equations of {type(cell).__name__} are not known")
    return write(Unit(cell, trace, step, unit, layer))


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
            (joined([of_hidden, bias]),),
            logit,
        ),
        Equation(
            f"p_{step}({word})",
            f"exp(l_{step}({word})) / Σ exp(l_{step})",
            (f"exp({number(logit)}) / exp({number(total)})",),
            math.exp(logit - total),
        ),
    ]
