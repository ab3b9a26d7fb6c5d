"""A report of one evaluation: a page that shows what the scores are made of.

``report`` reads an evaluation folder (`captioner.report.sources`) and writes one HTML file that
needs no network and no other file: scores with intervals, training curves, captions with their
pictures, errors by kind (`captioner.report.errors`), scores by length, words by frequency, and
how much of it is in the training captions (`captioner.report.novelty`). What is missing is
said in its place. The page carries the pictures that it shows: of data under a licence it may be
kept, but not published.

Here are the values of each section; how they look is in ``report.html``, ``page.css`` and
``page.js``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from captioner import __version__
from captioner.evaluation.results import read_result
from captioner.files import write_whole
from captioner.metrics.diversity import NOVELTY
from captioner.metrics.signature import Signature
from captioner.metrics.significance import ENOUGH, bootstrap, interval
from captioner.report import breakdown, curves
from captioner.report.errors import BUCKETS
from captioner.report.page import marked, picture, rendered
from captioner.report.sources import look_around, read_captions
from captioner.report.view import RANKINGS, View
from captioner.runs import CAPTIONS, REPORT

MOST_LISTED = 3000
"""Captions in the list of all; more would make the page heavy."""

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
        path: an evaluation folder, or a run folder, of whose evaluations the newest is taken.
        split: of a run, only evaluations of this split: "train", "dev" or "test".
        decoding: of a run, only evaluations with this label, such as "beam3-lp0.7".
        images: how many captions each part shows with pictures, 1 to 100.
        data_root: where the data set lies, if not where the run's configuration says.
        output: the file to write; None is report.html in the evaluation folder.

    Returns:
        the file.

    Raises:
        FileNotFoundError: no such folder, or no such evaluation in it.
        ValueError: an option out of range, or a damaged file.
    """
    if not 1 <= images <= 100:
        raise ValueError(f"images={images} is not accepted; choose 1 to 100")
    result = read_result(Path(path), split=split, decoding=decoding)
    said = read_captions(result)
    view = View(result, said, look_around(result, said, data_root=data_root), images)
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
        footer=f"Written by captioner {__version__} on {now}. The page needs no network and holds "
        "all that it shows, pictures included: mind the licence of the data before passing it on.",
    )


def _about(view: View) -> list[tuple[str, str]]:
    result, signature, count = view.result, view.result.signature, len(view.said)
    images = f"{count:,} image{'' if count == 1 else 's'}"
    written = datetime.fromtimestamp((result.folder / CAPTIONS).stat().st_mtime).astimezone()
    return [
        ("Run", str(result.run)),
        ("Data", f"{signature.data or ''}, split {signature.split or ''}, {images}"),
        ("Decoding", result.decoding),
        ("Words", "characters" if view.by_character else "as PTBTokenizer cuts them"),
        (
            "Evaluated",
            f"{written.isoformat(' ', 'minutes')}, by captioner {signature.version or ''}",
        ),
    ]


def _reasons(absent: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> what is not there for it."""
    found: dict[str, list[str]] = {}
    for what, why in absent.items():
        found.setdefault(why, []).append(what)
    return found


def _scores(view: View) -> Values:
    result = view.result
    resampled = bootstrap([[result.statistics]])  # metric -> [1, R]
    spans = {name: "{:.2f} to {:.2f}".format(*interval(r[0])) for name, r in resampled.items()}
    few = len(view.said)
    return {
        "rows": [(name, f"{one:.2f}", spans.get(name, "")) for name, one in result.scores.items()],
        "missing": list(result.missing.items()),
        "signatures": [(name, _breakable(one)) for name, one in result.signatures.items()],
        "rough": f"{few} images are few: take the intervals for rough, and rather too narrow; "
        f"below {ENOUGH} images percentiles fall short."
        if few < ENOUGH
        else "",
    }


def _breakable(signature: Signature) -> Markup:
    """A signature whose lines break between its entries, and not in a name such as ROUGE-L."""
    return Markup("|<wbr>").join(str(signature).split("|"))


# Training ---------------------------------------------------------------------------------------

CHARTS = {
    ("Loss over training", "loss a word"): {
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
"""Title and unit -> the columns of the training log that are drawn, and what they are called."""


def _training(view: View) -> Values:
    log = curves.read_log(view.result.run)
    if "train_reward" in log:
        log.pop("train_loss", None)  # of a policy gradient, which is no loss of words
    other = "train_loss" if "train_reward" in log else "train_reward"  # which it has no need of
    every = {name: called for lines in CHARTS.values() for name, called in lines.items()}
    lacking = [f"{every[n]} ({n})" for n in every if n not in log and n != other]
    charts, validations = [], {}
    for (title, unit), lines in CHARTS.items():
        series = {called: log[name] for name, called in lines.items() if name in log}
        validations.update({n: dict(p) for n, p in series.items() if n.startswith("dev")})
        if series:
            drawing, legend = curves.line_chart(series, title=title), curves.legend(list(series))
            charts.append({"title": title, "unit": unit, "drawing": drawing, "legend": legend})
    return {"charts": charts, "validations": _validations(validations), "lacking": lacking}


def _validations(series: Mapping[str, Mapping[float, float]]) -> Values:
    """The values of every validation."""
    rows = [
        [f"{step:,.0f}", *(f"{one[step]:.3f}" if step in one else "" for one in series.values())]
        for step in sorted({step for one in series.values() for step in one})
    ]
    return {"head": ["step", *series], "rows": rows, "numbers": range(len(series) + 1)}


# Captions ---------------------------------------------------------------------------------------


def _card(view: View, index: int, note: str = "") -> Values:
    """One image with its caption, references, scores and nearest training caption."""
    words, references, said = view.captions[index], view.references[index], view.said[index]
    nearest = None
    if view.training is not None:
        found = view.training.nearest(words)
        new = "in training word for word" if found.similarity == 1 else f"{found.similarity:.2f}"
        nearest = (new, view.space.join(found.words))
    return {
        "image": said.image,
        "picture": view.picture(index, picture),
        "said": marked(words, references, gaps=view.gaps(said.caption, words)),
        "problem": note,
        "references": [
            marked(one, [words], gaps=view.gaps(text, one))
            for one, text in zip(references, said.references)
        ],
        "nearest": nearest,
        "meta": _meta(view, index),
    }


def _meta(view: View, index: int) -> str:
    scores = [f"{name} {found[index]:.1f}" for name, found in view.image_scores.items()]
    return " · ".join([*scores, view.said[index].image])


def _captions(view: View) -> Values:
    count = len(view.captions)
    parts = {
        "Drawn at random": sorted(random.Random(0).sample(range(count), min(view.images, count)))
    }
    if view.ranking:
        parts[f"Best by {view.ranking}"] = view.order[: view.images]
        parts[f"Worst by {view.ranking}"] = view.order[::-1][: view.images]
    return {
        "captions": [(name, [_card(view, one) for one in some]) for name, some in parts.items()],
        "unranked": ""
        if view.ranking
        else f"There is no best or worst: none of {', '.join(RANKINGS.values())} was computed.",
    }


def _errors(view: View) -> Values:
    total = len(view.captions)
    none = sum(not _titles(view, index) for index in range(total))
    buckets = [_bucket(view, name) for name in BUCKETS]
    return {"total": f"{total:,}", "none": f"{none:,}", "buckets": buckets}


def _bucket(view: View, name: str) -> Values:
    bucket, errors = BUCKETS[name], view.errors[name]
    some = sorted(errors.notes)
    some = sorted(random.Random(0).sample(some, min(view.images, len(some))))
    share = len(errors.notes) / errors.judged if errors.judged else 0.0
    return {
        "name": name,
        "title": bucket.title,
        "count": f"{len(errors.notes):,}",
        "judged": f"{errors.judged:,}",
        "share": share,
        "share_text": f"{100 * share:.1f} %" if errors.judged else "not judged",
        "found_by": "word lists" if bucket.heuristic else "exact",
        "definition": bucket.definition,
        "doubts": bucket.doubts,
        "cards": [_card(view, index, errors.notes[index]) for index in some],
    }


def _titles(view: View, index: int) -> list[str]:
    return [BUCKETS[name].title for name, one in view.errors.items() if index in one.notes]


def _all(view: View) -> Values:
    shown = (view.order or list(range(len(view.captions))))[:MOST_LISTED]
    ordered = f"from the best by {view.ranking} to the worst" if view.ranking else "in order"
    left = len(view.captions) - len(shown)
    return {
        "summary": f"{len(shown):,} captions, {ordered}"
        + (f"; {left:,} more are not listed" if left else ""),
        "entries": [
            {
                "caption": view.said[index].caption,
                "meta": _meta(view, index),
                "errors": ", ".join(_titles(view, index)),
            }
            for index in shown
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
    return [_by_length(view, name, found) for name, found in lengths.items()]


def _by_length(view: View, name: str, lengths: Sequence[float]) -> Values:
    bins = breakdown.by_length(lengths, view.image_scores)
    ranked = [one.values.get(view.ranking or "", 0.0) for one in bins]
    top = max(ranked, default=0.0) or 1.0
    rows = [
        [
            one.label,
            f"{one.count:,}",
            *(f"{n:.1f}" for n in one.values.values()),
            {"bar": value / top},
        ]
        for one, value in zip(bins, ranked)
    ]
    head = [name, "images", *view.image_scores, ""]
    title = "Mean scores of images." if view.image_scores else "Images."
    return {"head": head, "rows": rows, "title": title, "numbers": range(1, len(head) - 1)}


def _frequencies(view: View) -> list[list[Any]]:
    if view.training is None:
        return []
    bins = breakdown.by_frequency(view.captions, view.references, view.training.counts)
    shares = [(one, one.values["recall"]) for one in bins]
    return [
        [one.label, f"{one.count:,}", f"{100 * share:.1f} %", {"bar": share}]
        for one, share in shares
    ]


def _novelty(view: View) -> list[tuple[str, str]]:
    """What is new; empty where neither training captions nor their hashes are known."""
    total, new = len(view.captions), _new(view)
    if new is None:
        return []
    rows = [
        ("captions that are in the training captions word for word", _share(total - new, total)),
        ("captions that are new", _share(new, total)),
        ("different captions", _share(len(set(map(tuple, view.captions))), total)),
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
    """How many captions the model was not trained on: by its own hashes, else by the data set."""
    if NOVELTY in view.result.scores:
        return round(view.result.scores[NOVELTY] / 100 * len(view.captions))
    if view.training is None:
        return None
    return sum(not view.training.holds(words) for words in view.captions)


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / total:.1f} %)"


def _configuration(config: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Group -> its options with their values; an option of no group stands under its own name."""
    groups = {
        group: one if isinstance(one, dict) else {group: one} for group, one in config.items()
    }
    return {
        str(group): [
            (str(n), json.dumps(v, ensure_ascii=False, default=str)) for n, v in one.items()
        ]
        for group, one in groups.items()
    }
