"""One number for each site of a step: means of gates, lengths of vectors, spread of attention."""

from __future__ import annotations

import numpy as np

from captioner.tracing.trace import Array, Trace

GATES = (
    *("cell.forget_gate", "cell.input_gate", "cell.output_gate"),
    *("cell.reset_gate", "cell.update_gate"),
)
COLUMNS = {
    "f": "cell.forget_gate",
    "i": "cell.input_gate",
    "o": "cell.output_gate",
    "r": "cell.reset_gate",
    "z": "cell.update_gate",
    "|kept|": "cell.kept",
    "|written|": "cell.written",
    "|h|": "cell.hidden",
    "β": "attention.gate",
    "positions": "attention.weights",
}
"""Heading -> site: the mean of a gate over the units of the last layer; the length of a vector; of
attention, how many positions it uses: exp of the entropy of its mean over layers and heads."""


def summary_headings(trace: Trace) -> list[str]:
    """The headings of the columns that a trace has."""
    return [heading for heading, site in COLUMNS.items() if site in trace]


def summary_row(trace: Trace, step: int) -> list[str]:
    """The cells of a step; empty where a site has no value."""
    headings = summary_headings(trace)
    return [_summary(heading, trace[COLUMNS[heading]][step]) for heading in headings]


def _summary(heading: str, values: Array) -> str:
    if np.isnan(values).any():
        return ""
    if heading == "positions":
        weights = values.reshape(-1, values.shape[-1]).mean(0) + 1e-12
        return f"{np.exp(-(weights * np.log(weights)).sum()):.1f}"
    last = values[-1] if values.ndim > 1 else values
    return f"{np.linalg.norm(last) if heading.startswith('|') else last.mean():.2f}"
