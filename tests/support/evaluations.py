"""Evaluation folders as ``captioner evaluate`` writes them, of synthetic scores."""

import json
from dataclasses import replace
from pathlib import Path

import numpy

from captioner.metrics.signature import Signature, to_json
from captioner.metrics.statistics import Statistics
from captioner.runs import STATISTICS


def system(seed: int, *, n: int = 200, skill: float = 0.0, images: int = 7) -> Statistics:
    """Rows of BLEU and CIDEr-D of a system; `images` is the seed of the ease of the images."""
    ease = numpy.random.default_rng(images).normal(size=n)
    random = numpy.random.default_rng(1000 + seed)
    totals = random.integers(6, 14, (n, 1)) - numpy.arange(4)  # [n, 4]
    share = 1 / (1 + numpy.exp(-(ease[:, None] + skill - 0.8 * numpy.arange(4))))
    matched = random.binomial(totals, share)
    closest = totals[:, :1] + random.integers(-1, 2, (n, 1))
    bleu = numpy.hstack([matched, totals, totals[:, :1], closest]).astype(float)  # [n, 10]
    cider = random.gamma(4.0, 15 * numpy.exp(0.5 * ease + skill))[:, None]  # [n, 1]
    names = tuple(f"image-{index}.jpg" for index in range(n))
    return Statistics(names, {"bleu": bleu, "cider_d": cider})


def evaluation(
    run: Path,
    statistics: Statistics,
    *,
    split: str = "dev",
    decoding: str = "greedy",
    config: dict | None = None,
    label: str | None = None,
    diversity: float = 3.5,
    old: bool = False,
    own: dict[str, dict[str, str]] | None = None,
    **fields: str,
) -> Path:
    """Write an evaluation into a run folder, with config.yaml if given; returns the run.

    The signature has `fields`, and of a score what `own` says; an old one is stored as text alone.
    """
    folder = run / "evaluation" / f"toys-{split}" / (label or decoding)
    known = {"tokenization": "ptb", "case": "lower", "references_per_image": "5"}
    known |= {"decoding": decoding, "data": "toys", "split": split, "images": "51c9cff8"}
    common = Signature(**{**known, "version": "0.1.0", **fields}, count=len(statistics.images))
    scores = {name: float(score) for name, score in statistics.scores().items()}
    scores["distinct-2"] = diversity
    parts = {"CIDEr-D": {"df": "references"}, **(own or {})}
    signatures = {n: replace(common, metric=n, parts=parts.get(n, {})) for n in scores}
    content = {"scores": scores, **to_json(common, signatures), "missing": {}}
    if old:
        del content["fields"]
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(content))
    statistics.save(folder / STATISTICS)
    if config is not None:
        (run / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    return run
