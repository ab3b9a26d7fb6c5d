"""The report of an evaluation: one page with everything behind its scores.

``report`` reads an evaluation folder (`captioner.report.sources`) and writes one HTML file that
needs no network and no other file: scores with intervals, training curves, captions with their
pictures, errors by kind (`captioner.report.errors`), scores by length, words by frequency, and
novelty (`captioner.report.novelty`). If something is missing, the page says why. The page contains
the pictures that it shows, so the license of the data applies to it.

This module computes the values of each section; their layout is in ``report.html``, ``page.css``
and ``page.js``.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from captioner import __version__, runs
from captioner.evaluation.results import read_result
from captioner.files import write_whole
from captioner.metrics.diversity import NOVELTY
from captioner.metrics.signature import Signature
from captioner.metrics.significance import ENOUGH, bootstrap, interval
from captioner.report import breakdown, curves
from captioner.report.errors import BUCKETS
from captioner.report.page import marked, picture, rendered
from captioner.report.sources import read_captions, read_surroundings
from captioner.report.view import RANKINGS, View
from captioner.runs import CAPTIONS, REPORT

MOST_LISTED = 3000
"""Captions in the list of all captions; more would make the page too large."""

SECTIONS = {
    "scores": "Scores",
    "training": "Training",
    "captions": "Captions",
    "errors": "Errors",
    "breakdown": "Lengths and words",
    "novelty": "Novelty",
    "all": "All captions",
    "configuration": "Configuration",
}

Values = dict[str, Any]


def report(
    path: str | Path,
    *,
    split: str | None = None,
    decoding: str | None = None,
    images: int = 8,
    data_root: str | None = None,
    output: str | Path | None = None,
) -> Path:
    """Write the report of an evaluation.

    Args:
        path: an evaluation folder, or a run folder, of which the newest evaluation is used.
        split: of a run, consider only evaluations of this split: "train", "dev" or "test".
        decoding: of a run, consider only evaluations with this label, such as "beam3-lp0.7".
        images: the number of captions that each part shows with pictures, 1 to 100.
        data_root: the root of the dataset; None: that of the run's configuration.
        output: the file to write; None: report.html in the evaluation folder.

    Returns:
        the file.

    Raises:
        FileNotFoundError: the folder, data_root or evaluation does not exist.
        ValueError: an option is out of range, or a file is damaged.
    """
    if not 1 <= images <= 100:
        raise ValueError(f"images={images} is not accepted; choose 1 to 100")
    if data_root is not None and not Path(os.path.expanduser(data_root)).is_dir():
        raise FileNotFoundError(f"{data_root}: no such folder; give the root of the dataset")
    result = read_result(Path(path), split=split, decoding=decoding)
    for folder in (Path(path), result.folder):
        runs.require_closed(folder)
    rows = read_captions(result)
    view = View(result, rows, read_surroundings(result, rows, data_root=data_root), images)
    return write_whole(output or result.folder / REPORT, page(view))


def page(view: View) -> str:
    """The report of an evaluation as HTML."""
    name, signature = view.result.run.resolve().name, view.result.signature
    now = datetime.now().astimezone().isoformat(" ", "minutes")
    return rendered(
        "report.html",
        title=f"{name}: {signature.data or ''} {signature.split or ''}, {view.result.label}",
        language=view.language,
        links=SECTIONS,
        about=_about(view),
        absent=_reasons(view.around.absent),
        untrained=view.around.absent.get("training captions", ""),
        unconfigured=view.around.absent.get("configuration", ""),
        scores=_scores(view),
        **_training(view),
        **_captions(view),
        errors=_errors(view),
        lengths=_lengths(view),
        frequencies=_frequencies(view),
        novelty=_novelty(view),
        listed=_all(view),
        configuration=_configuration(view.around.config),
        footer=f"Written by captioner {__version__} on {now}. The page needs no network and "
        "contains all that it shows, pictures included: check the license of the data before "
        "sharing it.",
    )


def _about(view: View) -> list[tuple[str, str]]:
    result, signature, count = view.result, view.result.signature, len(view.rows)
    images = f"{count:,} image{'' if count == 1 else 's'}"
    written = datetime.fromtimestamp((result.folder / CAPTIONS).stat().st_mtime).astimezone()
    return [
        ("Run", str(result.run)),
        ("Data", f"{signature.data or ''}, split {signature.split or ''}, {images}"),
        ("Decoding", result.decoding),
        ("Words", "characters" if view.by_character else "as PTBTokenizer splits them"),
        (
            "Evaluated",
            f"{written.isoformat(' ', 'minutes')}, by captioner {signature.version or ''}",
        ),
    ]


def _reasons(absent: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> what is missing for it."""
    reasons: dict[str, list[str]] = {}
    for name, reason in absent.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def _scores(view: View) -> Values:
    result = view.result
    resampled = bootstrap([[result.statistics]])  # metric -> [1, R]
    spans = {name: "{:.2f} to {:.2f}".format(*interval(r[0])) for name, r in resampled.items()}
    return {
        "rows": [
            (name, f"{value:.2f}", spans.get(name, "")) for name, value in result.scores.items()
        ],
        "missing": list(result.missing.items()),
        "signatures": [
            (name, _breakable(signature)) for name, signature in result.signatures.items()
        ],
        "rough": f"With fewer than {ENOUGH} images intervals are rough, and tend to be too narrow."
        if len(view.rows) < ENOUGH
        else "",
    }


def _breakable(signature: Signature) -> Markup:
    """A signature whose lines break between its entries, and not in a name such as ROUGE-L."""
    return Markup("|<wbr>").join(str(signature).split("|"))


# Training ---------------------------------------------------------------------------------------

CHARTS = {
    ("Loss over training", "loss per word"): {
        "train_loss": "training loss",
        "dev_loss": "dev loss",
        "dev_loss_shuffled": "dev loss with the wrong image",
    },
    ("Reward over training", "reward"): {"train_reward": "mean reward of the samples"},
    ("Dev scores over training", "score"): {
        "dev_bleu4": "dev BLEU-4",
        "dev_cider": "dev CIDEr-D",
    },
}
"""Title and unit -> columns of the training log to draw -> their names in the legend."""


def _training(view: View) -> Values:
    log = curves.read_log(view.result.run)
    if "train_reward" in log:
        log.pop("train_loss", None)  # it is the loss of the policy gradient, not a cross-entropy
    unused = "train_loss" if "train_reward" in log else "train_reward"  # by this training
    labels = {name: label for lines in CHARTS.values() for name, label in lines.items()}
    lacking = [f"{labels[n]} ({n})" for n in labels if n not in log and n != unused]
    charts, validations = [], {}
    for (title, unit), lines in CHARTS.items():
        series = {label: log[name] for name, label in lines.items() if name in log}
        validations.update({n: dict(p) for n, p in series.items() if n.startswith("dev")})
        if series:
            drawing, legend = curves.line_chart(series, title=title), curves.legend(list(series))
            charts.append({"title": title, "unit": unit, "drawing": drawing, "legend": legend})
    return {"charts": charts, "validations": _validations(validations), "lacking": lacking}


def _validations(series: Mapping[str, Mapping[float, float]]) -> Values:
    """The values of every validation."""
    rows = [
        [
            f"{step:,.0f}",
            *(f"{points[step]:.3f}" if step in points else "" for points in series.values()),
        ]
        for step in sorted({step for points in series.values() for step in points})
    ]
    return {"head": ["step", *series], "rows": rows, "numbers": range(len(series) + 1)}


# Captions ---------------------------------------------------------------------------------------


def _card(view: View, index: int, note: str = "") -> Values:
    """One image with its caption, references, scores and nearest training caption."""
    words, references, row = view.captions[index], view.references[index], view.rows[index]
    return {
        "image": row.image,
        "picture": view.picture(index, picture),
        "caption": marked(words, references, gaps=view.gaps(row.caption, words)),
        "problem": note,
        "references": [
            marked(reference, [words], gaps=view.gaps(text, reference))
            for reference, text in zip(references, row.references)
        ],
        "nearest": _nearest(view, words),
        "meta": _meta(view, index),
    }


def _nearest(view: View, words: Sequence[str]) -> tuple[str, str] | None:
    """How similar the nearest training caption is, and its text; None without a similar one."""
    if view.training is None:
        return None
    nearest = view.training.nearest(words)
    if not nearest.similarity:
        return None
    equal = nearest.similarity == 1
    similarity = "the same words" if equal else f"{nearest.similarity:.2f}"
    return similarity, view.space.join(nearest.words)


def _meta(view: View, index: int) -> str:
    scores = [f"{name} {values[index]:.1f}" for name, values in view.image_scores.items()]
    return " · ".join([*scores, view.rows[index].image])


def _captions(view: View) -> Values:
    count = len(view.captions)
    parts = {
        "Drawn at random": sorted(random.Random(0).sample(range(count), min(view.images, count)))
    }
    if view.ranking:
        parts[f"Best by {view.ranking}"] = view.order[: view.images]
        parts[f"Worst by {view.ranking}"] = view.order[::-1][: view.images]
    return {
        "captions": [(name, [_card(view, i) for i in images]) for name, images in parts.items()],
        "unranked": ""
        if view.ranking
        else f"There is no ranking: none of {', '.join(RANKINGS.values())} was computed.",
    }


def _errors(view: View) -> Values:
    total = len(view.captions)
    none = sum(not _titles(view, index) for index in range(total))
    buckets = [_bucket(view, name) for name in BUCKETS]
    return {"total": f"{total:,}", "none": f"{none:,}", "buckets": buckets}


def _bucket(view: View, name: str) -> Values:
    bucket, errors = BUCKETS[name], view.errors[name]
    wrong = sorted(errors.notes)
    sample = sorted(random.Random(0).sample(wrong, min(view.images, len(wrong))))
    fraction = len(errors.notes) / errors.judged if errors.judged else 0.0
    return {
        "name": name,
        "title": bucket.title,
        "count": f"{len(errors.notes):,}",
        "judged": f"{errors.judged:,}",
        "fraction": fraction,
        "percentage": f"{100 * fraction:.1f} %" if errors.judged else "not judged",
        "found_by": "word lists" if bucket.heuristic else "exact",
        "definition": bucket.definition,
        "doubts": bucket.doubts,
        "cards": [_card(view, index, errors.notes[index]) for index in sample],
    }


def _titles(view: View, index: int) -> list[str]:
    return [BUCKETS[name].title for name, kind in view.errors.items() if index in kind.notes]


def _all(view: View) -> Values:
    listed = (view.order or list(range(len(view.captions))))[:MOST_LISTED]
    order = f"from the best by {view.ranking} to the worst" if view.ranking else "in order"
    rest = len(view.captions) - len(listed)
    return {
        "summary": f"{len(listed):,} captions, {order}"
        + (f"; {rest:,} more are not listed" if rest else ""),
        "entries": [
            {
                "caption": view.rows[index].caption,
                "meta": _meta(view, index),
                "errors": ", ".join(_titles(view, index)),
            }
            for index in listed
        ],
    }


# Numbers ----------------------------------------------------------------------------------------


def _lengths(view: View) -> list[Values]:
    lengths = {
        "words of the caption": [float(len(words)) for words in view.captions],
        "words of the references (mean)": [
            sum(map(len, texts)) / len(texts) for texts in view.references
        ],
    }
    return [_by_length(view, name, values) for name, values in lengths.items()]


def _by_length(view: View, name: str, lengths: Sequence[float]) -> Values:
    bins = breakdown.by_length(lengths, view.image_scores)
    ranked = [part.values.get(view.ranking or "", 0.0) for part in bins]
    top = max(ranked, default=0.0) or 1.0
    rows = [
        [
            part.label,
            f"{part.count:,}",
            *(f"{n:.1f}" for n in part.values.values()),
            {"bar": value / top},
        ]
        for part, value in zip(bins, ranked)
    ]
    head = [name, "images", *view.image_scores, ""]
    title = "Mean scores of images" if view.image_scores else "Images"
    return {"head": head, "rows": rows, "title": title, "numbers": range(1, len(head) - 1)}


def _frequencies(view: View) -> list[list[Any]]:
    if view.training is None:
        return []
    bins = breakdown.by_frequency(view.captions, view.references, view.training.counts)
    recalls = [(part, part.values["recall"]) for part in bins]
    return [
        [part.label, f"{part.count:,}", f"{100 * recall:.1f} %", {"bar": recall}]
        for part, recall in recalls
    ]


def _novelty(view: View) -> list[tuple[str, str]]:
    """Numbers of new captions and words; empty if no hashes of training captions are known."""
    total, new = len(view.captions), _new(view)
    if new is None:
        return []
    rows = [
        (
            "captions that are in the training captions word for word",
            _with_percentage(total - new, total),
        ),
        ("captions that are new", _with_percentage(new, total)),
        ("different captions", _with_percentage(len(set(map(tuple, view.captions))), total)),
        ("different words used", f"{len({w for words in view.captions for w in words}):,}"),
    ]
    if view.training is not None:
        near = [view.training.nearest(words).similarity for words in view.captions]
        rows += [
            ("different words of the training captions", f"{len(view.training.counts):,}"),
            ("mean similarity to the nearest training caption", f"{sum(near) / total:.2f}"),
        ]
    return rows


def _new(view: View) -> int | None:
    """How many captions the model was not trained on, by its own hashes or by the dataset."""
    if NOVELTY in view.result.scores:
        return round(view.result.scores[NOVELTY] / 100 * len(view.captions))
    if view.training is None:
        return None
    return sum(words not in view.training for words in view.captions)


def _with_percentage(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / total:.1f} %)"


def _configuration(config: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Group -> its options with their values; an option without a group is its own group."""
    groups = {
        group: values if isinstance(values, dict) else {group: values}
        for group, values in config.items()
    }
    return {
        str(group): [
            (str(n), json.dumps(v, ensure_ascii=False, default=str)) for n, v in values.items()
        ]
        for group, values in groups.items()
    }
