"""Sites: the values inside a step of a decoder that can be observed and changed, by name.

A decoder and a cell take a function ``observe`` and call it with each such value:

    f = observe("forget_gate", torch.sigmoid(...))

What it returns is used instead, so that one mechanism records values (it returns what it is given),
changes them (it returns something else) and collects gradients (it keeps what it is given). Names
are the same in all cells and decoders; ``SITES`` says what each is. The order of calls is that of
the computation: what depends on a value is computed after it was observed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

SITES = {
    "image.x0": "X_0, the projected feature of the image, [E]",
    "image.vector": "the projected feature of an image that is not X_0, [W]",
    "image.values": "what attention attends to: the projected positions of the grid, [P, H]",
    "cell.previous_hidden": "h_{t-1} as the step reads it, [L, H]",
    "cell.previous_memory": "C_{t-1} as the step reads it, [L, H]",
    "cell.input": "W_x x_t + b of all gates, stacked; the context too, [L, gates * H]",
    "cell.forget_gate": "f_t: what to keep of the memory, [L, H], in (0, 1)",
    "cell.input_gate": "i_t: what to write, [L, H], in (0, 1)",
    "cell.reset_gate": "r_t: what the candidate reads of h_{t-1}, [L, H], in (0, 1)",
    "cell.update_gate": "z_t: what to keep of h_{t-1}, [L, H], in (0, 1)",
    "cell.candidate": "C~_t, or n_t of a GRU: what could be written, [L, H], in (-1, 1)",
    "cell.output_gate": "o_t: what to output, [L, H], in (0, 1)",
    "cell.memory": "C_t, [L, H]",
    "cell.hidden": "h_t, [L, H]",
    "attention.weights": "the attention over positions, [P], or [L, heads, P]; a sentinel is last",
    "attention.sentinel": "the sentinel s_t, [H]",
    "attention.context": "the weighted mean of the values, [H]",
    "attention.gate": "β_t: how much of the context is used, [1], in (0, 1)",
    "self_attention.weights": "the attention over the words so far, [L, heads, t]",
    "layer.hidden": "x after each layer of a Transformer, [L, H]",
    "output.hidden": "the input of the output layer, [W]",
    "output.logits": "the logits of the next word, [V]",
}
"""Every site of the decoders in the table, with its shape for one hypothesis.

``attention_cell.*`` are those of the first of two recurrences, which computes the query of the
attention.
"""


class Observe(Protocol):
    """Is shown the value of a site, rows first, and returns the value that is used instead."""

    def __call__(self, site: str, value: Tensor, layer: int | None = None) -> Tensor:
        """Observe a value.

        Args:
            site: its name.
            value: [R, ...], one row per hypothesis; [B, ...] of ``image.*``.
            layer: of which of L layers it is; None: of a site that is not one of layers.
        """


def unobserved(site: str, value: Tensor, layer: int | None = None) -> Tensor:
    """Return the value: nothing is observed."""
    return value


def within(observe: Observe, part: str, layer: int | None = None) -> Observe:
    """Observe the values of a part: "forget_gate" becomes "cell.forget_gate", in a layer."""
    if observe is unobserved:
        return unobserved

    def observe_part(site: str, value: Tensor, layer: int | None = layer) -> Tensor:
        return observe(f"{part}.{site}", value, layer)

    return observe_part


def takes_observer(function: Callable[..., Any]) -> bool:
    """Whether a function has an argument ``observe``; a user's own may have none."""
    return "observe" in inspect.signature(function).parameters
