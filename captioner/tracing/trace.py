"""A Trace: what a model computed for each word of a caption, as plain arrays by site.

Step 0 reads the image as X_0, step 1 reads <start>, step t reads word t - 1 and gives word t; the
last one usually gives <end>. Every array of a site has one row per step:

    trace["cell.forget_gate"]       [T + 1, L, H]       T steps after X_0, L layers, H units
    trace["attention.weights"]      [T + 1, P]          P positions; [T + 1, L, heads, P]
    trace["image.x0"]               [E]                 sites of the image have no steps

NaN where a step has no value, such as the attention of X_0. Two sites are computed from others, as
the cell does: ``cell.kept`` and ``cell.written``, the two parts of the new memory:

    LSTM    C_t = f_t * C_{t-1} + i_t * C~_t
    GRU     h_t = z_t * h_{t-1} + (1 - z_t) * n_t
    MGU     h_t = (1 - f_t) * h_{t-1} + f_t * n_t
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captioner.tracing.array_file import ArrayFile

if TYPE_CHECKING:
    import pandas

FILE = ArrayFile("captioner.trace", "a trace", 1)
Array = np.ndarray[Any, np.dtype[np.float32]]
Alternative = tuple[str, float]
"""A word and its log probability."""


@dataclass(frozen=True, eq=False)
class Trace:
    """What a model computed for each word of one caption.

    Attributes:
        text: the caption.
        reads: what each of the T + 1 steps read: "X_0" (or "image", if it enters elsewhere),
            "<start>", and the words.
        words: what each step from 1 on gave, T of them; the last is "<end>" if it was reached.
        log_probs: the log probability of each of these, [T].
        end_log_probs: the log probability of <end> at each step from 1 on, [T].
        alternatives: the most probable words at each step from 1 on, T lists.
        score: by which the caption was ranked.
        finished: whether <end> was reached.
        sites: the arrays, by site; of an ensemble those of model m as "m:site", m from 1 on.
        model: its decoder, cell and sizes, as plain data.
        decoding: the options that were not the default.
        edits: the changes, as plain data.
        unapplied: those of them whose steps the caption did not reach.
        hypotheses: the other captions of the search, best first, if they were asked for.
    """

    text: str
    reads: tuple[str, ...]
    words: tuple[str, ...]
    log_probs: tuple[float, ...]
    end_log_probs: tuple[float, ...]
    alternatives: tuple[tuple[Alternative, ...], ...]
    score: float
    finished: bool
    sites: Mapping[str, Array]
    model: Mapping[str, Any] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    edits: tuple[Mapping[str, Any], ...] = ()
    unapplied: tuple[Mapping[str, Any], ...] = ()
    hypotheses: tuple[Trace, ...] = ()

    def __getitem__(self, site: str) -> Array:
        """The array of a site.

        Raises:
            KeyError: the model does not have it; with those that it has.
        """
        if site not in self.sites:
            raise KeyError(f"{site!r} is not a site of this trace; choose {', '.join(self.sites)}")
        return self.sites[site]

    def __repr__(self) -> str:
        return f"<Trace {self.text!r}, {len(self.sites)} sites, {len(self.reads)} steps>"

    def __contains__(self, site: object) -> bool:
        return site in self.sites

    @property
    def log_prob(self) -> float:
        """The log probability of the whole caption."""
        return sum(self.log_probs)

    def as_dict(self, *, sites: bool = False) -> dict[str, Any]:
        """Return plain data that JSON can hold.

        Args:
            sites: with the arrays, as nested lists; None where a step has no value.
        """
        values: dict[str, Any] = {
            "text": self.text,
            "reads": list(self.reads),
            "words": list(self.words),
            "log_probs": list(self.log_probs),
            "end_log_probs": list(self.end_log_probs),
            "alternatives": [[list(pair) for pair in step] for step in self.alternatives],
            "score": self.score,
            "finished": self.finished,
            "model": dict(self.model),
            "decoding": dict(self.decoding),
            "edits": [dict(edit) for edit in self.edits],
            "unapplied": [dict(edit) for edit in self.unapplied],
        }
        if sites:
            values["sites"] = {name: _as_lists(array) for name, array in self.sites.items()}
        values["hypotheses"] = [other.as_dict(sites=sites) for other in self.hypotheses]
        return values

    def save(self, path: str | Path) -> Path:
        """Write the trace as one safetensors file, with its words as JSON in the header.

        Returns:
            the path.

        Raises:
            OSError: it cannot be written.
            ValueError: the file exists and is not a trace.
        """
        return FILE.write(path, self.as_dict(), _arrays(self))

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace; neither the model nor torch is needed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a trace, or one of a newer format.
        """
        values, arrays = FILE.read(path)
        with FILE.damages(path):
            trace = _from_plain(values, arrays, "")
            trace.as_dict()
            return trace

    def frame(self, sites: Sequence[str] | None = None) -> pandas.DataFrame:
        """Return a pandas table with one row per value.

        The columns are step, reads (the word), site, layer (0 for sites without layers), unit and
        value; sites of the image have step 0.

        Args:
            sites: their names; None: all.

        Raises:
            ImportError: pandas is not installed.
            KeyError: the model does not have a site.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("a table needs pandas: pip install pandas") from None
        parts = [self._rows_of(site) for site in (self.sites if sites is None else sites)]
        columns = ("step", "reads", "site", "layer", "unit", "value")
        joined = {name: np.concatenate([part[name] for part in parts]) for name in columns}
        return pandas.DataFrame(joined)

    def _rows_of(self, site: str) -> dict[str, np.ndarray]:
        array = self[site]
        name = site.rpartition(":")[2]
        array = array[None] if name.startswith("image.") else array
        array = array if _has_layers(name) else array[:, None]
        array = array.reshape(*array.shape[:2], -1)  # [steps, layers, units]
        steps, layers, units = (index.ravel() for index in np.indices(array.shape))
        reads = np.array(self.reads, dtype=object)[steps]
        sites = np.full(len(steps), site, dtype=object)
        return {
            **{"step": steps, "reads": reads, "site": sites},
            **{"layer": layers, "unit": units, "value": array.ravel()},
        }


def split_memory(sites: Mapping[str, Array], part: str) -> dict[str, Array]:
    """``kept`` and ``written`` of a cell, from its gates; nothing for a cell without gates.

    Args:
        part: "cell" or "attention_cell".
    """
    of_cell = {
        name.removeprefix(f"{part}."): array
        for name, array in sites.items()
        if name.startswith(f"{part}.")
    }
    candidate, h = of_cell.get("candidate"), of_cell.get("previous_hidden")
    f, z = of_cell.get("forget_gate"), of_cell.get("update_gate")
    if candidate is None or h is None or (f is None and z is None):
        return {}
    if f is not None and "input_gate" in of_cell:
        kept, written = f * of_cell["previous_memory"], of_cell["input_gate"] * candidate
    elif z is not None:
        kept, written = z * h, (1 - z) * candidate
    else:
        assert f is not None
        kept, written = (1 - f) * h, f * candidate
    return {f"{part}.kept": kept, f"{part}.written": written}


def _has_layers(site: str) -> bool:
    return site.partition(".")[0] in ("cell", "attention_cell", "layer", "self_attention")


def _as_lists(array: Array) -> Any:
    lists = array.astype(object)
    lists[np.isnan(array)] = None
    return lists.tolist()


def _arrays(trace: Trace, prefix: str = "") -> dict[str, Array]:
    """The arrays of a trace and of its hypotheses, which have their number as a prefix."""
    arrays = {prefix + name: np.ascontiguousarray(array) for name, array in trace.sites.items()}
    for number, other in enumerate(trace.hypotheses, start=1):
        arrays.update(_arrays(other, f"{prefix}{number}/"))
    return arrays


def _from_plain(values: dict[str, Any], arrays: Mapping[str, Array], prefix: str) -> Trace:
    own = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    hypotheses = tuple(
        _from_plain(other, own, f"{number}/")
        for number, other in enumerate(values.pop("hypotheses"), start=1)
    )
    alternatives = tuple(
        tuple((word, log_prob) for word, log_prob in step) for step in values.pop("alternatives")
    )
    lists = ("reads", "words", "log_probs", "end_log_probs", "edits", "unapplied")
    plain: dict[str, Any] = {n: tuple(v) if n in lists else v for n, v in values.items()}
    return Trace(
        **plain,
        alternatives=alternatives,
        sites={name: array for name, array in own.items() if "/" not in name},
        hypotheses=hypotheses,
    )
