"""Comparison: systems against a baseline, with all that is needed to believe a difference.

Every score has an interval; every difference to the first system has an interval, two tests, and a
verdict by one rule, fixed beforehand: a difference is shown where the deciding p, corrected by Holm
over all differences of the table, is below 0.05. The deciding test is approximate randomisation
over images; where both sides have several seeds it is the test over images and seeds. Where so few
images could not have shown any difference, that is the verdict. The equations are in
``metrics.significance``, how to read the table in ``docs/comparisons.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist, stdev
from typing import Any

import numpy

from captioner.config import unknown
from captioner.evaluation.results import (
    MAY_DIFFER,
    MAY_DIFFER_INSIDE,
    REFERENCES,
    Result,
    System,
    configuration_differences,
    signature_differences,
)
from captioner.metrics.corpus import Rows
from captioner.metrics.signature import Signature
from captioner.metrics.significance import (
    ALPHA,
    ENOUGH,
    OverSeeds,
    Progress,
    average,
    bootstrap,
    bootstrap_p,
    fewest_images,
    holm,
    interval,
    randomisation,
    smallest_p,
)
from captioner.metrics.statistics import Statistics
from captioner.metrics.table import named

HIGHER, LOWER, UNDECIDED = "higher", "lower", "no difference shown"
TOO_FEW = "too few images"

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """A system's score minus the baseline's.

    Attributes:
        value: the difference of the scores.
        interval: 95 % interval over images, the trained models being as they are.
        p_randomised: of approximate randomisation over images.
        p_bootstrap: of the paired bootstrap over images.
        interval_seeds: 95 % interval over images and seeds; None unless both sides have seeds.
        p_seeds: of the test over images and seeds; None likewise.
        corrected: each p by name ("randomised", "bootstrap", "deciding"), corrected by Holm.
        shown_from: the difference from which on this table would have shown one; None where no
            resample differs from another, as where all scores are 0, and where none would be.
        verdict: HIGHER, LOWER, UNDECIDED, or TOO_FEW where no difference could have been shown.
    """

    value: float
    interval: Interval
    p_randomised: float
    p_bootstrap: float
    interval_seeds: Interval | None
    p_seeds: float | None
    corrected: Mapping[str, float]
    shown_from: float | None
    verdict: str


@dataclass(frozen=True)
class Row:
    """One metric of one system.

    Attributes:
        metric: its name.
        system: the system's name.
        score: the mean over the seeds where there are several.
        seeds: the score of each seed.
        interval: 95 % interval over images; None for a metric without rows of images.
        difference: to the baseline; None for the baseline, and without rows.
    """

    metric: str
    system: str
    score: float
    seeds: tuple[float, ...]
    interval: Interval | None
    difference: Difference | None

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds, where there are several."""
        return stdev(self.seeds) if len(self.seeds) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """A table of systems by metrics.

    Attributes:
        systems: name to the evaluation folders behind it, the baseline first.
        signature: what the baseline's signatures share.
        images: how many images all scores are of.
        rows: metric by metric, in each the systems in order.
        warnings: what a reader must know before believing the table.
        notes: what a reader may want to know.
        resamples: how many resamples and swaps were drawn.
        seed: they were drawn with.
    """

    systems: Mapping[str, tuple[str, ...]]
    signature: Signature
    images: int
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    resamples: int
    seed: int

    @property
    def tests(self) -> int:
        """How many differences were tested."""
        return sum(row.difference is not None for row in self.rows)

    @property
    def baseline(self) -> str:
        """The first system."""
        return next(iter(self.systems))

    @property
    def title(self) -> str:
        """What was scored, in a few words."""
        parts = [self.signature.data, self.signature.split, self.signature.decoding]
        refs = self.signature.references_per_image
        references = f"{refs} reference{'' if refs == '1' else 's'}"
        return ", ".join([*filter(None, parts), f"{self.images} images", references])

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        rows = [{**asdict(row), "deviation": row.deviation} for row in self.rows]
        plain = {**asdict(replace(self, rows=())), "signature": str(self.signature)}
        return {**plain, "tests": self.tests, "rows": rows}


def compare(
    systems: Sequence[System],
    *,
    metrics: Sequence[str] | None = None,
    resamples: int = 10_000,
    seed: int = 1,
    anyway: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Compare systems with the first of them.

    Args:
        systems: see ``systems.read_systems``; with one there are intervals and no differences.
        metrics: which to compare, see ``metrics.named``; all by default; fewer tests are corrected
            less.
        resamples: of each kind, 100 or more, and enough for the correction.
        seed: of the resamples.
        anyway: compare systems whose signatures say that they cannot be compared.
        progress: told how many of the 2 * resamples have been done.

    Raises:
        ValueError: signatures that do not go together, no common images, an unknown metric, or
            too few resamples for so many tests.
    """
    tell = progress or (lambda _: None)
    names = _metrics(systems, metrics)
    warnings = _checked(systems, anyway)
    aligned = _aligned(systems, anyway)
    images = len(aligned[0][0].images)
    most = max(len(one.statistics.images) for system in systems for one in system.results)
    tested = [name for name in names if all(name in s.scores() for g in aligned for s in g)]
    tests = len(tested) * (len(systems) - 1)
    _enough(resamples, tests)
    scores = bootstrap(aligned, resamples=resamples, seed=seed, progress=tell)
    means = [average(group) for group in aligned]
    swapped: dict[str, Rows] = {}
    too_few = tests > 0 and images < fewest_images(tests)
    warnings += _few(images, tests) if too_few else []
    if tests:
        swapped = randomisation(means[0], means[1:], resamples=resamples, seed=seed, progress=tell)
    rows: list[Row] = []
    for name in names:
        found = _scored(name, systems, aligned, scores.get(name))
        if name in swapped:
            found = _compared(found, scores[name], swapped[name], tests)
        rows += found
    if images < most:
        warnings.append(f"scored on the {images} images that all have, of up to {most}")
        rows = [row for row in rows if row.metric in tested]  # others are of all images
    return Comparison(
        systems={one.name: tuple(str(r.folder) for r in one.results) for one in systems},
        signature=systems[0].results[0].signature,
        images=images,
        rows=tuple(_decided(rows, too_few=too_few)),
        warnings=tuple(warnings),
        notes=(*_rough(images), *_notes(systems, names, tested)),
        resamples=resamples,
        seed=seed,
    )


def _enough(resamples: int, tests: int) -> None:
    least = math.ceil(2 * tests / ALPHA)  # the bootstrap's p is 2 / (R + 1) at least
    if resamples < least:
        raise ValueError(
            f"resamples={resamples} cannot show anything in {tests} tests; choose {least} or more, "
            "or fewer metrics"
        )


def _few(images: int, tests: int) -> list[str]:
    """What is said where the test over images cannot show anything."""
    least = smallest_p(images)
    return [
        f"{images} images are too few to show any difference, however large: the test over images "
        f"cannot find a p below {least:.2g}, and {tests} tests need one of {ALPHA / tests:.2g}; "
        f"evaluate {fewest_images(tests)} images or more"
    ]


def _rough(images: int) -> list[str]:
    """What is said of intervals where percentiles of few images fall short."""
    few = f"intervals over fewer than {ENOUGH} images are rough, and rather too narrow"
    return [few] if images < ENOUGH else []


# One metric -----------------------------------------------------------------------------------


def _scored(
    name: str,
    systems: Sequence[System],
    aligned: Sequence[Sequence[Statistics]],
    scores: Rows | None,
) -> list[Row]:
    """The rows of a metric without differences; scores are resampled ones [G, R]."""
    rows: list[Row] = []
    for index, (system, group) in enumerate(zip(systems, aligned)):
        if scores is not None:
            seeds = tuple(float(one.scores()[name]) for one in group)
        else:
            seeds = tuple(r.scores[name] for r in system.results if name in r.scores)
        if len(seeds) == len(group):
            known = None if scores is None else interval(scores[index])
            rows.append(Row(name, system.name, sum(seeds) / len(seeds), seeds, known, None))
    return rows


def _compared(rows: Sequence[Row], scores: Rows, swapped: Rows, tests: int) -> list[Row]:
    """The rows of a metric with differences to the first; scores [G, R], swapped p [G - 1]."""
    return [rows[0]] + [
        replace(row, difference=_difference(rows[0], row, scores[index] - scores[0], p, tests))
        for index, (row, p) in enumerate(zip(rows[1:], swapped.tolist()), start=1)
    ]


def _difference(first: Row, other: Row, resampled: Rows, p: float, tests: int) -> Difference:
    """A difference before correction, from resampled ones [R] and p of randomisation."""
    strictest = 1 - ALPHA / tests  # what Holm asks of the smallest p
    over_seeds = None
    shown_from = NormalDist().inv_cdf((1 + strictest) / 2) * float(numpy.std(resampled))
    if len(first.seeds) > 1 and len(other.seeds) > 1:
        over_seeds = OverSeeds.of(resampled, first.seeds, other.seeds)
        shown_from = over_seeds.half_width(level=strictest)
    return Difference(
        value=other.score - first.score,
        interval=interval(resampled),
        p_randomised=p,
        p_bootstrap=bootstrap_p(resampled),
        interval_seeds=over_seeds.interval() if over_seeds else None,
        p_seeds=max(over_seeds.p(), 1 / (len(resampled) + 1)) if over_seeds else None,
        corrected={},
        shown_from=shown_from or None,
        verdict=UNDECIDED,
    )


def _decided(rows: Sequence[Row], *, too_few: bool) -> list[Row]:
    """The rows with each kind of p corrected over the whole table, and verdicts."""
    differences = [row.difference for row in rows if row.difference is not None]
    corrected = {
        "randomised": holm([d.p_randomised for d in differences]),
        "bootstrap": holm([d.p_bootstrap for d in differences]),
        "deciding": holm([d.p_randomised if d.p_seeds is None else d.p_seeds for d in differences]),
    }
    decided = [
        replace(d, corrected=dict(zip(corrected, values)), verdict=_verdict(d.value, values[-1]))
        for d, *values in zip(differences, *corrected.values())
    ]
    if too_few:
        decided = [replace(one, verdict=TOO_FEW, shown_from=None) for one in decided]
    verdicts = iter(decided)
    return [replace(r, difference=next(verdicts)) if r.difference else r for r in rows]


def _verdict(value: float, p: float) -> str:
    if p >= ALPHA:
        return UNDECIDED
    return HIGHER if value > 0 else LOWER


# What goes together ---------------------------------------------------------------------------


def _checked(systems: Sequence[System], anyway: bool) -> list[str]:
    """What must be said of systems that differ; raises where they must not be compared."""
    warnings: list[str] = []
    first = systems[0].results[0]
    found: list[tuple[str, dict[str, tuple[str, str]]]] = []
    for system in systems:
        for result in system.results:
            found.append((system.name, signature_differences(first, result)))
            _refuse(first, result, found[-1][1], MAY_DIFFER, anyway)
            inside = signature_differences(system.results[0], result)
            _refuse(system.results[0], result, inside, MAY_DIFFER_INSIDE, anyway)
        if unlike := configuration_differences(system.results):
            warnings.append(f"{system.name} puts together runs that differ in {', '.join(unlike)}")
    _same_references([result for system in systems for result in system.results], anyway)
    usual = {part: pair[0] for _, parts in found for part, pair in parts.items()}
    for part, value in usual.items():
        names: dict[str, dict[str, None]] = {}  # value -> systems, in order
        for name, parts in found:
            names.setdefault(parts.get(part, ("", value))[1] or "none", {})[name] = None
        said = "; ".join(f"{value}: {', '.join(systems)}" for value, systems in names.items())
        warnings.append(f"{part} differs ({said}): a difference may come from it, not the model")
    return warnings


def _same_references(results: Sequence[Result], anyway: bool) -> None:
    """Raise where two results know their references and these differ, whatever the first knows."""
    known = [one for one in results if one.references]
    for one in known[1:]:
        if one.references != known[0].references:
            found = {REFERENCES: (known[0].references, one.references)}
            _refuse(known[0], one, found, (), anyway)


def _refuse(
    first: Result,
    other: Result,
    found: Mapping[str, tuple[str, str]],
    allowed: Sequence[str],
    anyway: bool,
) -> None:
    parts = {part: values for part, values in found.items() if part not in allowed}
    if parts and not anyway:
        said = ", ".join(f"{p} {a or 'none'} and {b or 'none'}" for p, (a, b) in parts.items())
        hint = next((f"--{name}, " for name in ("split", "decoding") if name in parts), "")
        raise ValueError(
            f"{first.folder} and {other.folder} cannot be compared: {said}; choose others with "
            f"{hint or 'captioner evaluate, '}or compare them --anyway"
        )


def _aligned(systems: Sequence[System], anyway: bool) -> list[list[Statistics]]:
    """Everyone's statistics of the same images, in the first one's order."""
    first = systems[0].results[0]
    common = set(first.statistics.images)
    for result in (one for system in systems for one in system.results):
        if not anyway and set(result.statistics.images) != set(first.statistics.images):
            raise ValueError(
                f"{first.folder} and {result.folder} are not of the same images, so nothing can be "
                "paired; evaluate them on one split, or compare what they share with --anyway"
            )
        common &= set(result.statistics.images)
    if len(common) < 2:
        raise ValueError(f"{len(common)} images are common to all; a comparison needs two or more")
    images = tuple(image for image in first.statistics.images if image in common)
    return [[_chosen(one.statistics, images) for one in system.results] for system in systems]


def _chosen(statistics: Statistics, images: tuple[str, ...]) -> Statistics:
    index = {image: position for position, image in enumerate(statistics.images)}
    order = [index[image] for image in images]
    return Statistics(images, {name: rows[order] for name, rows in statistics.rows.items()})


def _metrics(systems: Sequence[System], chosen: Sequence[str] | None) -> list[str]:
    """The metrics to show: of the first system, then what others have besides."""
    every = [name for s in systems for result in s.results for name in result.scores]
    names = list(dict.fromkeys(every))
    if chosen is None:
        return names
    found: list[str] = []
    for one in map(str.strip, chosen):
        own = [name for name in names if name in _meant(one)]
        if not own:
            raise unknown("metrics", one, names)
        found += own
    return [name for name in names if name in found]


def _meant(name: str) -> list[str]:
    """The scores that a name means: it may also be one that another version computed."""
    try:
        return [name, *(score for scores in named([name]).values() for score in scores)]
    except ValueError:
        return [name]


def _notes(systems: Sequence[System], names: Sequence[str], tested: Sequence[str]) -> list[str]:
    notes = []
    for system in systems:
        if system.several:
            runs = ", ".join(f"{r.run.name} (seed {r.seed})" for r in system.results)
            alike = "" if configuration_differences(system.results) else ", alike but for the seed"
            notes.append(f"{system.name} puts together {runs}{alike}")
    if not all(system.several for system in systems):
        notes.append(
            "where a system is one training run, all is said of that model, not of its "
            "configuration; train it with several seeds to say more"
        )
    untested = [name for name in names if name not in tested]
    if untested:
        has = "has no interval: it is" if len(untested) == 1 else "have no intervals: they are"
        notes.append(f"{', '.join(untested)} {has} of all captions together, or a system lacks it")
    results = [result for system in systems for result in system.results]
    older = list(dict.fromkeys(one.run.name for one in results if not one.references))
    if older and len(results) > 1:
        notes.append(
            f"that the references are the same could not be checked: the signature of "
            f"{', '.join(older)} is older and holds none of them; run captioner evaluate again"
        )
    everywhere = set.intersection(*(set(result.missing) for result in results))
    for result in results:
        reasons = ((m, why) for m, why in result.missing.items() if m not in everywhere)
        notes += [f"{result.run.name} has no {m}: {why}" for m, why in reasons]
    return list(dict.fromkeys(notes))
