"""A report of one evaluation: a page that shows what the scores are made of.

``report`` reads an evaluation folder (`captioner.inspection.results`) and writes one HTML file that
needs no network and no other file: scores with intervals, training curves, captions with their
pictures, errors by kind (`captioner.inspection.errors`), scores by length, words by frequency, and
how much of it stands in the training captions (`captioner.inspection.novelty`). What is missing is
said in its place. The page carries the pictures that it shows: of data under a licence it may be
kept, but not published.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from captioner import __version__
from captioner.data.records import write_whole
from captioner.inspection import breakdown, curves
from captioner.inspection.errors import BUCKETS
from captioner.inspection.page import (
    bar,
    document,
    facts,
    folded,
    marked,
    paragraph,
    picture,
    table,
)
from captioner.inspection.results import CAPTIONS, look_around, read_captions
from captioner.inspection.view import RANKINGS, View
from captioner.metrics.significance import bootstrap, interval
from captioner.systems import read_result

FILE = "report.html"
MOST_LISTED = 3000
"""Captions in the list of all; more would make the page heavy."""


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
    return write_whole(output or result.folder / FILE, page(view))


# The page ---------------------------------------------------------------------------------------


def page(view: View) -> str:
    """The report of an evaluation as HTML."""
    name = view.result.run.resolve().name
    title = f"{name}: {view.part('data')} {view.part('split')}, {view.result.label}"
    sections = {
        "scores": ("Scores", _scores(view)),
        "training": ("Training", _training(view)),
        "captions": ("Captions", _captions(view)),
        "errors": ("Errors", _errors(view)),
        "breakdown": ("Lengths and words", _breakdown(view)),
        "novelty": ("Novelty", _novelty(view)),
        "all": ("All captions", _all(view)),
        "configuration": ("Configuration", _configuration(view)),
    }
    now = datetime.now().astimezone().isoformat(" ", "minutes")
    footer = paragraph(
        f"Written by captioner {__version__} on {now}. The page needs no network and holds all "
        "that it shows, pictures included: mind the licence of the data before passing it on."
    )
    return document(title, _header(view, title), sections, footer)


def _header(view: View, title: str) -> str:
    result = view.result
    written = datetime.fromtimestamp((result.folder / CAPTIONS).stat().st_mtime).astimezone()
    entries = {
        "Run": str(result.run),
        "Data": f"{view.part('data')}, split {view.part('split')}, {len(view.said):,} images",
        "Decoding": result.decoding,
        "Words": "characters (Chinese)" if view.chinese else "as PTBTokenizer cuts them",
        "Evaluated": f"{written.isoformat(' ', 'minutes')}, by captioner {view.part('captioner')}",
    }
    shown = "".join(
        f'<p class="note">No {escape(what)}: {escape(why)}.</p>'
        for what, why in view.around.absent.items()
    )
    return f"<h1>{escape(title)}</h1>{facts(entries)}{shown}"


def _scores(view: View) -> str:
    result = view.result
    resampled = bootstrap([[result.statistics]])  # metric -> [1, R]
    spans = {name: "{:.2f} to {:.2f}".format(*interval(r[0])) for name, r in resampled.items()}
    rows = [
        [escape(name), f"{score:.2f}", spans.get(name, "")] for name, score in result.scores.items()
    ]
    rows += [
        [escape(name), "", escape(f"not computed: {why}")] for name, why in result.missing.items()
    ]
    signatures = "".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(text)}</code></dd>"
        for name, text in result.signatures.items()
    )
    return (
        paragraph(
            "The interval is a bootstrap over the images: how far the score would move with other "
            "images of the same kind, not with another training."
        )
        + table(
            ["metric", "score", "95 % interval"], rows, title="Scores of the split.", numbers=[1]
        )
        + folded("Signatures: what the scores depend on", f'<dl class="facts">{signatures}</dl>')
    )


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


def _training(view: View) -> str:
    log = curves.read_log(view.result.run)
    if "train_reward" in log:
        log.pop("train_loss", None)  # of a policy gradient, which is no loss of words
    shown = [
        ({called: log[name] for name, called in lines.items() if name in log}, title, unit)
        for (title, unit), lines in CHARTS.items()
    ]
    if not any(series for series, _, _ in shown):
        return paragraph("The run has no CSV log (logs/csv/), so there are no curves.", kind="note")
    charts = "".join(_chart(*one) for one in shown)
    dev = {name: points for series, _, _ in shown for name, points in series.items()}
    return (
        paragraph(
            "The dev losses are teacher-forced and without label smoothing, which the training "
            "loss includes; the scores are of freely decoded captions. The wrong image is the "
            "neighbour's: the wider the gap, the more the captions depend on the picture."
        )
        + f'<div class="charts">{charts}</div>'
        + folded("The numbers", _looks({n: p for n, p in dev.items() if n.startswith("dev")}))
    )


def _chart(series: dict[str, curves.Points], title: str, unit: str) -> str:
    if not series:
        return ""
    drawn = curves.line_chart(series, title=title, unit=unit)
    return f"<figure>{drawn}{curves.legend(list(series))}</figure>"


def _looks(series: dict[str, curves.Points]) -> str:
    """The values of every look at dev."""
    columns = [dict(points) for points in series.values()]
    rows = [
        [f"{step:,.0f}", *(f"{one[step]:.3f}" if step in one else "" for one in columns)]
        for step in sorted({step for one in columns for step in one})
    ]
    head = ["step", *series]
    return table(head, rows, title="Every look at dev.", numbers=range(len(head)))


# Captions ---------------------------------------------------------------------------------------


def _card(view: View, index: int, note: str = "") -> str:
    """One image with its caption, references, scores and nearest training caption."""
    said = view.said[index]
    words, references = view.captions[index], view.references[index]
    shown = marked(words, references, space=view.space) or "(no words)"
    others = "".join(
        f"<li>{marked(reference, [words], space=view.space)}</li>" for reference in references
    )
    meta = [f"{name} {scores[index]:.1f}" for name, scores in view.image_scores.items()]
    meta += [said.image]
    nearest = ""
    if view.training is not None:
        found = view.training.nearest(words)
        text = view.space.join(found.words)
        new = "in training word for word" if found.similarity == 1 else f"{found.similarity:.2f}"
        nearest = f'<p class="meta">nearest training caption ({new}): {escape(text)}</p>'
    problem = f'<p class="wrong">{escape(note)}</p>' if note else ""
    image = picture(view.around.pictures.get(said.image), alt=f"Image {said.image}")
    return (
        f'<li class="card">{image}<div><p class="said">{shown}</p>{problem}<ul>{others}</ul>'
        f'{nearest}<p class="meta">{escape(" · ".join(meta))}</p></div></li>'
    )


def _cards(view: View, indices: Sequence[int]) -> str:
    return f'<ul class="cards">{"".join(_card(view, index) for index in indices)}</ul>'


def _captions(view: View) -> str:
    explained = paragraph(
        "Marked are the longest runs of words that caption and references share, darker for "
        "longer; in a reference those that the caption has."
    )
    chance = random.Random(0).sample(
        range(len(view.captions)), min(view.images, len(view.captions))
    )
    parts = [("Drawn by lot", sorted(chance))]
    if view.ranking:
        best, worst = view.order[: view.images], view.order[::-1][: view.images]
        parts += [(f"Best by {view.ranking}", best), (f"Worst by {view.ranking}", worst)]
    else:
        explained += paragraph(
            f"There is no best or worst: none of {', '.join(RANKINGS.values())} was computed.",
            kind="note",
        )
    return explained + "".join(f"<h3>{escape(t)}</h3>{_cards(view, some)}" for t, some in parts)


def _errors(view: View) -> str:
    total = len(view.captions)
    none = sum(not _titles(view, index) for index in range(total))
    return (
        paragraph(
            "Captions are compared with the references by their words; the picture is not looked "
            "at. Buckets marked “word lists” are heuristics: they know some hundred everyday words "
            "and no grammar, so they overlook much and are sometimes wrong. Each says below what "
            "it counts and where it is likely to fail. A caption may stand in several."
        )
        + table(
            ["error", "captions", "could be judged", "share of these", "", "found by"],
            [_error_row(view, name) for name in BUCKETS],
            title=f"Errors in {total:,} captions; {none:,} have none of them.",
            numbers=[1, 2, 3],
        )
        + "".join(_bucket(view, name) for name in BUCKETS)
    )


def _error_row(view: View, name: str) -> list[str]:
    bucket, errors = BUCKETS[name], view.errors[name]
    share = len(errors.notes) / errors.judged if errors.judged else 0.0
    return [
        f'<a href="#{name}">{escape(bucket.title)}</a>',
        f"{len(errors.notes):,}",
        f"{errors.judged:,}",
        f"{100 * share:.1f} %" if errors.judged else "not judged",
        bar(share),
        f'<span class="tag">{"word lists" if bucket.heuristic else "exact"}</span>',
    ]


def _bucket(view: View, name: str) -> str:
    bucket, errors = BUCKETS[name], view.errors[name]
    words = paragraph(bucket.definition)
    if bucket.doubts:
        words += paragraph(bucket.doubts, kind="note")
    some = sorted(errors.notes)
    some = sorted(random.Random(0).sample(some, min(view.images, len(some))))
    cards = "".join(_card(view, index, errors.notes[index]) for index in some)
    shown = f'<ul class="cards">{cards}</ul>' if cards else paragraph("None.", kind="note")
    title = f'<h3 id="{name}">{escape(bucket.title)}</h3> {len(errors.notes):,}'
    return folded(title, words + shown)


# Numbers ----------------------------------------------------------------------------------------


def _breakdown(view: View) -> str:
    lengths = {
        "words of the caption": [float(len(words)) for words in view.captions],
        "words of the references (mean)": [
            sum(map(len, texts)) / len(texts) for texts in view.references
        ],
    }
    content = ""
    for name, found in lengths.items():
        bins = breakdown.by_length(found, view.image_scores)
        top = max([one.values.get(view.ranking or "", 0.0) for one in bins], default=0.0) or 1.0
        rows = [
            [
                one.label,
                f"{one.count:,}",
                *(f"{value:.1f}" for value in one.values.values()),
                bar(one.values.get(view.ranking or "", 0.0) / top),
            ]
            for one in bins
        ]
        head = [name, "images", *view.image_scores, ""]
        title = "Mean scores of images." if view.image_scores else "Images."
        content += table(head, rows, title=title, numbers=range(1, len(head) - 1))
    return content + _frequencies(view)


def _frequencies(view: View) -> str:
    if view.training is None:
        reason = view.around.absent.get("training captions", "")
        return paragraph(f"Words by training frequency are not shown: {reason}.", kind="note")
    bins = breakdown.by_frequency(view.captions, view.references, view.training.counts)
    rows = [
        [
            one.label,
            f"{one.count:,}",
            f"{100 * one.values['recall']:.1f} %",
            bar(one.values["recall"]),
        ]
        for one in bins
    ]
    return table(
        ["times in training", "words asked for", "said", ""],
        rows,
        title="Words that half of an image's references use, or more: how many of them the caption "
        "says, by how often the training captions say them.",
        numbers=[1, 2],
    )


def _novelty(view: View) -> str:
    if view.training is None:
        reason = view.around.absent.get("training captions", "")
        return paragraph(f"Nothing to compare with: {reason}.", kind="note")
    total = len(view.captions)
    known = sum(view.training.holds(words) for words in view.captions)
    distinct = len(set(map(tuple, view.captions)))
    near = [view.training.nearest(words).similarity for words in view.captions]
    used = len({word for words in view.captions for word in words})
    rows = [
        ["captions that stand in the training captions word for word", _share(known, total)],
        ["captions that are new", _share(total - known, total)],
        ["different captions", _share(distinct, total)],
        ["mean similarity to the nearest training caption", f"{sum(near) / total:.2f}"],
        ["different words used", f"{used:,}"],
        ["different words of the training captions", f"{len(view.training.counts):,}"],
    ]
    return paragraph(
        "The nearest training caption is the one that shares most pairs of neighbouring words: "
        "twice the shared pairs over the pairs of both (1: the same caption)."
    ) + table(["of the captions", ""], rows, title=f"{total:,} captions.", numbers=[1])


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / total:.1f} %)"


def _all(view: View) -> str:
    listed = (view.order or list(range(len(view.captions))))[:MOST_LISTED]
    scores = view.image_scores.get(view.ranking or "", [])
    body = "".join(
        f'<tr class="entry"><th scope="row"><code>{escape(view.said[i].image)}</code></th>'
        f'<td class="wide">{escape(view.said[i].caption)}</td>'
        + (f'<td class="number">{scores[i]:.1f}</td>' if scores else "")
        + f"<td>{escape(', '.join(_titles(view, i)))}</td></tr>"
        for i in listed
    )
    head = f'<th scope="col" class="number">{escape(view.ranking or "")}</th>' if scores else ""
    ordered = f"from the best by {view.ranking} to the worst" if scores else "in order"
    left = len(view.captions) - len(listed)
    what = f"{len(listed):,} captions, {ordered}" + (f"; {left:,} more are not listed" * bool(left))
    return folded(
        escape(what),
        f'<div class="scroll"><table><caption>{escape(what)}</caption><thead><tr>'
        f'<th scope="col">image</th><th scope="col">caption</th>{head}'
        f'<th scope="col">errors</th></tr></thead><tbody>{body}</tbody></table></div>',
    )


def _titles(view: View, index: int) -> list[str]:
    return [BUCKETS[name].title for name, one in view.errors.items() if index in one.notes]


def _configuration(view: View) -> str:
    if not view.around.config:
        return paragraph(view.around.absent.get("configuration", ""), kind="note")
    groups = ""
    for group, values in view.around.config.items():
        entries = values if isinstance(values, dict) else {group: values}
        rows = [
            [escape(str(name)), f"<code>{escape(json.dumps(value, ensure_ascii=False))}</code>"]
            for name, value in entries.items()
        ]
        groups += table(["option", "value"], rows, title=str(group))
    return folded("What the run was trained with", groups)
