"""Evaluation folders as ``captioner evaluate`` writes them, of synthetic scores."""

import json
from pathlib import Path

import numpy

from captioner.metrics.statistics import Statistics
from captioner.runs import STATISTICS


def system(seed: int, *, n: int = 200, skill: float = 0.0, images: int = 7) -> Statistics:
    """Rows of BLEU and CIDEr-D of a system on images whose ease the argument `images` seeds."""
    ease = numpy.random.default_rng(images).normal(size=n)
    random = numpy.random.default_rng(1000 + seed)
    said = random.integers(6, 14, (n, 1)) - numpy.arange(4)  # [n, 4]
    share = 1 / (1 + numpy.exp(-(ease[:, None] + skill - 0.8 * numpy.arange(4))))
    found = random.binomial(said, share)
    closest = said[:, :1] + random.integers(-1, 2, (n, 1))
    bleu = numpy.hstack([found, said, said[:, :1], closest]).astype(float)  # [n, 10]
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
    **parts: str,
) -> Path:
    """Write an evaluation into a run folder, with config.yaml where given; returns the run."""
    folder = run / "evaluation" / f"toys-{split}" / (label or decoding)
    common = {"tok": "ptb", "case": "lower", "refs": "5", "n": str(len(statistics.images))}
    common |= {"decoding": decoding, "data": "toys", "split": split, "images": "51c9cff8"}
    common |= {"captioner": "0.1.0", **parts}
    text = "|".join(f"{name}:{value}" for name, value in common.items())
    scores = {name: float(score) for name, score in statistics.scores().items()}
    scores["distinct-2"] = diversity
    own = {"CIDEr-D": "CIDEr-D|df:references"}
    content = {
        "scores": scores,
        "signatures": {name: f"{own.get(name, name)}|{text}" for name in scores},
        "signature": text,
        "missing": {},
    }
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(content))
    statistics.save(folder / STATISTICS)
    if config is not None:
        (run / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    return run
