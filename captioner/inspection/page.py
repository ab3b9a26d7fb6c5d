"""One self-contained HTML page about one trace: the photograph, the words, and every gate.

The page needs no network. Its arrays are embedded as bytes, q / 127 of the largest absolute value
of a site, so that a page of a model with 512 units has some 100 kB.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from captioner import __version__
from captioner.api import Captioner
from captioner.files import write_whole
from captioner.images import Picture as AnyImage
from captioner.images import open_image
from captioner.inspection.attribution import DEFAULT, Attribution, attribute, readings
from captioner.inspection.tables import GATES, summary_headings, summary_row
from captioner.report.page import Picture, rendered
from captioner.report.view import detect_language
from captioner.tracing.edits import AnyEdit
from captioner.tracing.trace import Array, Trace

GATE_TITLES = {
    "cell.forget_gate": ("f", "forget gate: what to keep of C"),
    "cell.input_gate": ("i", "input gate: what to write"),
    "cell.reset_gate": ("r", "reset gate: what the candidate reads of h"),
    "cell.update_gate": ("z", "update gate: what to keep of h"),
    "cell.candidate": ("C~", "candidate: what could be written"),
    "cell.output_gate": ("o", "output gate: what to output"),
    "cell.memory": ("C", "memory"),
    "cell.hidden": ("h", "output"),
    "layer.hidden": ("x", "output of a layer"),
}
PARTS = ("cell.kept", "cell.written")


def write_page(
    captioner: Captioner,
    trace: Trace,
    image: AnyImage,
    path: str | Path,
    *,
    edits: Sequence[AnyEdit] = (),
) -> Path:
    """Write the page.

    Args:
        captioner: one model, for its crop of the photograph.
        trace: of that model.
        image: that was traced.
        path: of the file.
        edits: with which the trace was made. Without them, the page of an edited trace does not
            show what each word depends on.

    Returns:
        the path.

    Raises:
        ValueError: a trace of an ensemble.
        OSError: the file cannot be written.
    """
    if any(":" in site for site in trace.sites):
        raise ValueError("an ensemble has no page; load one model")
    maps = None if "attention.weights" in trace else _maps(captioner, trace, image, edits)
    return write_whole(path, page(trace, cropped(captioner, image), maps))


def page(trace: Trace, picture: Picture | None, maps: Sequence[Attribution] | None = None) -> str:
    """The HTML of a trace.

    Args:
        trace: of one model.
        picture: the photograph as the model sees it.
        maps: what each word depends on, for a decoder without attention; None: nothing is shown.
    """
    arrows = ["h", "C"] if "cell.memory" in trace else ["h"]
    recurrent = "cell.hidden" in trace
    values = {**_data(trace, arrows), "attribution": _contributions(maps)}
    return rendered(
        "inspect.html",
        folder="inspection",
        styles=("report/page.css", "inspection/inspect.css"),
        script="inspection/inspect.js",
        language=detect_language(trace.text) or "en",
        text=trace.text,
        about=_about(trace),
        picture=picture,
        arrows=_arrows_text(trace, arrows) if recurrent else _TRANSFORMER,
        parts=_parts(trace),
        units=values["units"],
        layers=values["layers"],
        sorted_by="C" if "memory" in values["sorted_by"] else "output",
        headings=["step", "reads", "gives", "p", *summary_headings(trace)],
        numbers=[0, *range(3, 4 + len(summary_headings(trace)))],
        rows=_rows(trace),
        source=f"captioner {__version__}: captioner inspect --output",
        data=script_json(values),
    )


def cropped(captioner: Captioner, image: AnyImage, side: int = 448) -> Picture:
    """The photograph as the first encoder sees it, as a square JPEG without metadata."""
    transform = captioner.encoders[0].transform
    pixels = transform.center_crop(open_image(image))
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS).save(
        file, "JPEG", quality=80, optimize=True
    )
    data = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/jpeg;base64,{data}", side, side)


def _about(trace: Trace) -> list[tuple[str, str]]:
    decoder, cell = trace.model.get("decoder", ""), trace.model.get("cell")
    rows = [("decoder", f"{decoder} with {cell}" if cell else str(decoder))]
    words = len(trace.log_probs) - trace.finished
    ended = "and <end>" if trace.finished else "; <end> was not reached"
    rows.append(("caption", f"log p = {trace.log_prob:.2f} of {words} words {ended}"))
    edits = "; ".join(
        ", ".join(f"{key} {value}" for key, value in edit.items()) for edit in trace.edits
    )
    return [*rows, *([("changed by", edits)] if edits else [])]


_TRANSFORMER = (
    "A Transformer has no recurrent state: each step reads all words before it through attention. "
    "The arrow stands for these words."
)


def _arrows_text(trace: Trace, arrows: list[str]) -> str:
    image = (
        "The image is the first input, X_0"
        if trace.reads[0] == "X_0"
        else "The image gives the first state, and each step looks at it again"
        if "attention.weights" in trace
        else "The image is there before the first word"
    )
    passed = (
        "Two arrows join the steps of an LSTM: h, the output, and C, the memory."
        if len(arrows) > 1
        else "One arrow joins the steps: h."
    )
    return f"{image}; then each step reads the word that the step before gave. {passed}"


def _parts(trace: Trace) -> dict[str, str] | None:
    if PARTS[0] not in trace:
        return None
    name = "C" if "cell.memory" in trace else "h"
    gates = {True: ("f * C before", "i * C~"), False: ("the part of h before", "the candidate")}
    kept, written = gates[name == "C"]
    return {
        "title": f"What each step keeps and writes of {name}",
        "text": f"{name} is the sum of two parts, whose lengths are shown: kept, {kept} (first "
        f"bar), and written, {written} (second bar).",
    }


def _rows(trace: Trace) -> list[list[str]]:
    rows = []
    for step, read in enumerate(trace.reads):
        word, p = "", ""
        if step:
            word = trace.words[step - 1]
            p = f"{100 * math.exp(trace.log_probs[step - 1]):.1f} %"
        rows.append([str(step), read, word, p, *summary_row(trace, step)])
    return rows


# The data of the script ---------------------------------------------------------------------------


def _data(trace: Trace, arrows: list[str]) -> dict[str, Any]:
    shown = [site for site in GATE_TITLES if site in trace]
    sorted_by = next(s for s in ("cell.memory", "cell.hidden", "layer.hidden") if s in trace)
    return {
        "reads": trace.reads,
        "words": trace.words,
        "log_probs": _rounded(trace.log_probs),
        "end_log_probs": _rounded(trace.end_log_probs),
        "alternatives": [[[w, round(p, 4)] for w, p in step] for step in trace.alternatives],
        "cell": trace.model.get("cell", trace.model.get("decoder", "cell")),
        "layers": trace[sorted_by].shape[1],
        "units": trace[sorted_by].shape[2],
        "arrows": arrows,
        "sorted_by": sorted_by,
        "gates": [[site, *_title(site, trace)] for site in shown],
        "sites": {site: _bytes(trace[site], gate=site in GATES) for site in shown},
        "lengths": _lengths(trace),
        "attention": _attention(trace),
    }


def _lengths(trace: Trace) -> list[list[list[float]]]:
    """The lengths of the two parts of the memory, [L, T + 1, 2]; 0 where there are none."""
    if PARTS[0] not in trace:
        return []
    lengths = np.stack([np.linalg.norm(trace[part], axis=2) for part in PARTS], axis=2)
    values: list[list[list[float]]] = np.nan_to_num(lengths).transpose(1, 0, 2).round(3).tolist()
    return values


def _title(site: str, trace: Trace) -> tuple[str, str]:
    letter, meaning = GATE_TITLES[site]
    if site == "cell.candidate" and "cell.memory" not in trace:
        letter = "n"
    if site == "cell.hidden":
        return "h", "output o * tanh(C)" if "cell.memory" in trace else "state and output"
    return letter, meaning


def _bytes(array: Array, *, gate: bool) -> dict[str, Any]:
    """An array [steps, L, H] as signed bytes."""
    steps = [step for step in range(len(array)) if not np.isnan(array[step]).any()]
    first = steps[0] if steps else len(array)
    largest = 1.0 if gate else float(np.nanmax(np.abs(array), initial=1e-6))
    scaled = np.nan_to_num(array / largest * 127).round().clip(-127, 127).astype(np.int8)
    encoded = base64.b64encode(scaled.tobytes()).decode()
    return {"scale": round(largest, 5), "first": first, "bytes": encoded}


def _attention(trace: Trace) -> dict[str, Any] | None:
    if "attention.weights" not in trace:
        return None
    weights = trace["attention.weights"]
    if weights.ndim == 4:  # [T + 1, L, heads, P]: the last layer, the mean over its heads
        weights = weights[:, -1].mean(axis=1)
    positions = weights.shape[1]
    side = math.isqrt(positions)
    if side * side != positions and math.isqrt(positions - 1) ** 2 != positions - 1:
        return None
    side = side if side * side == positions else math.isqrt(positions - 1)
    gate = trace["attention.gate"][:, 0] if "attention.gate" in trace else None
    return {
        "side": side,
        "weights": [_rounded(row) for row in np.nan_to_num(weights)],
        "gate": None if gate is None else _rounded(np.nan_to_num(gate)),
    }


def _maps(
    captioner: Captioner, trace: Trace, image: AnyImage, edits: Sequence[AnyEdit]
) -> list[Attribution] | None:
    """What each word depends on; None if nothing can be attributed."""
    try:
        questions = readings(captioner, image, trace, edits=edits)
    except ValueError:  # unknown edits, or the pooled feature is not the mean of the grid
        return None
    return [attribute(one, DEFAULT, captioner.tokenizer.vocabulary) for one in questions]


def _contributions(maps: Sequence[Attribution] | None) -> dict[str, Any] | None:
    """The maps of the words as rows of the script; None if positions are not a square."""
    side = math.isqrt(len(maps[0].map)) if maps else 0
    if not maps or side * side != len(maps[0].map):
        return None
    return {
        "side": side,
        "method": maps[0].method.replace("-", " "),
        "maps": [_rounded(one.map) for one in maps],
        "words": [float(round(one.words.sum(), 2)) for one in maps],
    }


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 5) for value in values]


def script_json(values: Any) -> Markup:
    """JSON for a script element: no text can end the element or begin a comment in it."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)
