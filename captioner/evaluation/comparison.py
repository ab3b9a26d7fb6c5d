"""Comparison: systems against a baseline, with intervals and significance tests.

Every score has an interval; every difference from the first system has an interval, two tests, and
a verdict by a rule that is fixed in advance: a difference is significant if the deciding p,
corrected with Holm's method for all differences of the table, is below 0.05. The deciding test is
approximate randomization over images, or, if both systems have several seeds, the test over images
and seeds. If there are too few images for any difference to be significant, the verdict says so.
The equations are in ``metrics.significance``; ``docs/comparisons.md`` explains the table.
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
    randomization,
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
        interval: 95 % interval over images, for these trained models.
        p_randomised: of approximate randomization over images.
        p_bootstrap: of the paired bootstrap over images.
        interval_seeds: 95 % interval over images and seeds; None unless both sides have seeds.
        p_seeds: of the test over images and seeds; None unless both sides have seeds.
        corrected: each p by name ("randomised", "bootstrap", "deciding"), corrected by Holm.
        shown_from: the smallest difference that would be significant here; None if all resamples
            are equal, for example if all scores are 0, and if no difference could be shown.
        verdict: HIGHER, LOWER, UNDECIDED, or TOO_FEW if no difference could have been shown.
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
        score: the mean over the seeds.
        seeds: the score of each seed.
        interval: 95 % interval over images; None for a metric without rows of images.
        difference: to the baseline; None for the baseline, and for a metric without rows.
    """

    metric: str
    system: str
    score: float
    seeds: tuple[float, ...]
    interval: Interval | None
    difference: Difference | None

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds; None for a single one."""
        return stdev(self.seeds) if len(self.seeds) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """A table of systems by metrics.

    Attributes:
        systems: name to evaluation folders, the baseline first.
        signature: the fields that the baseline's signatures have in common.
        signatures: each different signature as text -> the systems that have it.
        images: the number of images that were scored.
        rows: metric by metric, each with the systems in order.
        warnings: what a reader must know before trusting the table.
        notes: what a reader may want to know.
        resamples: the number of resamples, and of swaps.
        seed: of the resamples.
    """

    systems: Mapping[str, tuple[str, ...]]
    signature: Signature
    signatures: Mapping[str, tuple[str, ...]]
    images: int
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    resamples: int
    seed: int

    @property
    def tests(self) -> int:
        """The number of differences that were tested."""
        return sum(row.difference is not None for row in self.rows)

    @property
    def baseline(self) -> str:
        """The first system."""
        return next(iter(self.systems))

    @property
    def title(self) -> str:
        """Data, split, decoding, images and references in one line."""
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
        systems: see ``results.read_systems``; for a single one there are intervals only.
        metrics: the metrics to compare, see ``metrics.table.named``; None: all. Fewer tests
            need less correction.
        resamples: of each kind, 100 or more, and enough for the correction.
        seed: of the resamples.
        anyway: compare systems even if their signatures say that they are not comparable.
        progress: called with the number of resamples since the last call, 2 * resamples in all.

    Raises:
        ValueError: signatures that are not comparable, no common images, an unknown metric, or
            too few resamples for this number of tests.
    """
    names = _metrics(systems, metrics)
    warnings = _check_signatures(systems, anyway)
    aligned = _aligned(systems, anyway)
    images = len(aligned[0][0].images)
    tested = [name for name in names if all(name in s.scores() for g in aligned for s in g)]
    tests = len(tested) * (len(systems) - 1)
    _check_resamples(resamples, tests)
    too_few = tests > 0 and images < fewest_images(tests)
    warnings += _few(images, tests) if too_few else []
    draws = {"resamples": resamples, "seed": seed, "progress": progress or (lambda _: None)}
    rows = _rows(names, systems, aligned, tests, draws)
    most = max(len(result.statistics.images) for s in systems for result in s.results)
    if images < most:
        warnings.append(f"scored on the {images} images that all systems have, of up to {most}")
        rows = [row for row in rows if row.metric in tested]  # other scores are of all images
    return Comparison(
        systems={s.name: tuple(str(result.folder) for result in s.results) for s in systems},
        signature=systems[0].results[0].signature,
        signatures=_signatures(systems),
        images=images,
        rows=tuple(_decided(rows, too_few=too_few)),
        warnings=tuple(warnings),
        notes=(*_rough(images), *_notes(systems, names, tested)),
        resamples=resamples,
        seed=seed,
    )


def _check_resamples(resamples: int, tests: int) -> None:
    least = math.ceil(2 * tests / ALPHA)  # the bootstrap's p is 2 / (R + 1) at least
    if resamples < least:
        raise ValueError(
            f"resamples={resamples} cannot show anything in {tests} tests; choose {least} or more, "
            "or fewer metrics"
        )


def _few(images: int, tests: int) -> list[str]:
    """The warning for a test over images that cannot show any difference."""
    least = smallest_p(images)
    return [
        f"{images} images are too few to show any difference, however large: the test over images "
        f"cannot give a p below {least:.2g}, and {tests} tests need one of {ALPHA / tests:.2g}; "
        f"evaluate {fewest_images(tests)} images or more"
    ]


def _rough(images: int) -> list[str]:
    """The note if there are too few images for the nominal coverage of the intervals."""
    note = f"intervals over fewer than {ENOUGH} images are rough, and tend to be too narrow"
    return [note] if images < ENOUGH else []


# One metric -----------------------------------------------------------------------------------


def _rows(
    names: Sequence[str],
    systems: Sequence[System],
    aligned: Sequence[Sequence[Statistics]],
    tests: int,
    draws: Mapping[str, Any],
) -> list[Row]:
    """The rows of all metrics, with differences that are not yet corrected."""
    scores = bootstrap(aligned, **draws)  # metric -> [G, R]
    means = [average(group) for group in aligned]
    swapped = randomization(means[0], means[1:], **draws) if tests else {}  # metric -> [G - 1]
    rows: list[Row] = []
    for name in names:
        scored = _scored(name, systems, aligned, scores.get(name))
        if name in swapped:
            scored = _compared(scored, scores[name], swapped[name], tests)
        rows += scored
    return rows


def _scored(
    name: str,
    systems: Sequence[System],
    aligned: Sequence[Sequence[Statistics]],
    scores: Rows | None,
) -> list[Row]:
    """The rows of a metric without differences; `scores` are resampled [G, R]."""
    rows: list[Row] = []
    for index, (system, group) in enumerate(zip(systems, aligned)):
        if scores is not None:
            seeds = tuple(float(statistics.scores()[name]) for statistics in group)
        else:
            seeds = tuple(r.scores[name] for r in system.results if name in r.scores)
        if len(seeds) == len(group):
            spread = None if scores is None else interval(scores[index])
            rows.append(Row(name, system.name, sum(seeds) / len(seeds), seeds, spread, None))
    return rows


def _compared(rows: Sequence[Row], scores: Rows, swapped: Rows, tests: int) -> list[Row]:
    """The rows of a metric with differences to the first; `scores` [G, R], `swapped` p [G - 1]."""
    return [rows[0]] + [
        replace(row, difference=_difference(rows[0], row, scores[index] - scores[0], p, tests))
        for index, (row, p) in enumerate(zip(rows[1:], swapped.tolist()), start=1)
    ]


def _difference(first: Row, other: Row, resampled: Rows, p: float, tests: int) -> Difference:
    """A difference before correction, from resampled differences [R] and p of randomization."""
    strictest = 1 - ALPHA / tests  # what Holm requires of the smallest p
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
    """The rows with verdicts, and with each kind of p corrected over the whole table."""
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
        decided = [replace(d, verdict=TOO_FEW, shown_from=None) for d in decided]
    verdicts = iter(decided)
    return [replace(r, difference=next(verdicts)) if r.difference else r for r in rows]


def _verdict(value: float, p: float) -> str:
    if p >= ALPHA:
        return UNDECIDED
    return HIGHER if value > 0 else LOWER


# What may be compared -------------------------------------------------------------------------


Entries = Mapping[str, tuple[str, str]]
"""Entry of two signatures -> its different values."""


def _check_signatures(systems: Sequence[System], anyway: bool) -> list[str]:
    """Warnings about systems that differ; raises if they are not comparable."""
    warnings: list[str] = []
    first = systems[0].results[0]
    differences: list[tuple[str, Entries]] = []  # of each result, with the name of its system
    for system in systems:
        for result in system.results:
            entries = signature_differences(first, result)
            differences.append((system.name, entries))
            _refuse(first, result, entries, MAY_DIFFER, anyway)
            inside = signature_differences(system.results[0], result)
            _refuse(system.results[0], result, inside, MAY_DIFFER_INSIDE, anyway)
        if options := configuration_differences(system.results):
            warnings.append(f"{system.name} groups runs that differ in {', '.join(options)}")
    _check_references([result for system in systems for result in system.results], anyway)
    return warnings + _difference_warnings(differences)


def _signatures(systems: Sequence[System]) -> dict[str, tuple[str, ...]]:
    """Each different signature as text -> the names of the systems that have it."""
    names: dict[str, dict[str, None]] = {}
    for system in systems:
        for result in system.results:
            names.setdefault(str(result.signature), {})[system.name] = None
    return {signature: tuple(systems) for signature, systems in names.items()}


def _difference_warnings(differences: Sequence[tuple[str, Entries]]) -> list[str]:
    """For each entry in which a result differs from the first, which system has which value."""
    warnings = []
    of_first = {name: pair[0] for _, entries in differences for name, pair in entries.items()}
    for name, value in of_first.items():
        systems: dict[str, dict[str, None]] = {}  # value -> systems, in order
        for system, entries in differences:
            systems.setdefault(entries.get(name, ("", value))[1] or "none", {})[system] = None
        values = "; ".join(f"{value}: {', '.join(names)}" for value, names in systems.items())
        warnings.append(f"{name} differs ({values}): a difference may come from it, not the model")
    return warnings


def _check_references(results: Sequence[Result], anyway: bool) -> None:
    """Raise if two results have different references, even if the first has no hash of them."""
    known = [result for result in results if result.references]
    for result in known[1:]:
        if result.references != known[0].references:
            entries = {REFERENCES: (known[0].references, result.references)}
            _refuse(known[0], result, entries, (), anyway)


def _refuse(
    first: Result, other: Result, entries: Entries, allowed: Sequence[str], anyway: bool
) -> None:
    different = {name: values for name, values in entries.items() if name not in allowed}
    if different and not anyway:
        values = ", ".join(
            f"{n} {a or 'none'} and {b or 'none'}" for n, (a, b) in different.items()
        )
        hint = next((f"--{name}, " for name in ("split", "decoding") if name in different), "")
        raise ValueError(
            f"{first.folder} and {other.folder} cannot be compared: {values}; choose others with "
            f"{hint or 'captioner evaluate, '}or compare them --anyway"
        )


def _aligned(systems: Sequence[System], anyway: bool) -> list[list[Statistics]]:
    """The statistics of all results on the same images, in the order of the first result."""
    first = systems[0].results[0]
    common = set(first.statistics.images)
    for result in (result for system in systems for result in system.results):
        if not anyway and set(result.statistics.images) != set(first.statistics.images):
            raise ValueError(
                f"{first.folder} and {result.folder} are not of the same images, so they cannot be "
                "paired; evaluate them on one split, or compare their common images with --anyway"
            )
        common &= set(result.statistics.images)
    if len(common) < 2:
        raise ValueError(f"{len(common)} images are common to all; a comparison needs two or more")
    images = tuple(image for image in first.statistics.images if image in common)
    return [[_select(result.statistics, images) for result in system.results] for system in systems]


def _select(statistics: Statistics, images: tuple[str, ...]) -> Statistics:
    index = {image: position for position, image in enumerate(statistics.images)}
    order = [index[image] for image in images]
    return Statistics(images, {name: rows[order] for name, rows in statistics.rows.items()})


def _metrics(systems: Sequence[System], requested: Sequence[str] | None) -> list[str]:
    """The metrics to show: those of the first system, then those that only others have."""
    computed = (name for s in systems for result in s.results for name in result.scores)
    names = list(dict.fromkeys(computed))
    if requested is None:
        return names
    wanted: list[str] = []
    for request in map(str.strip, requested):
        matching = [name for name in names if name in _scores_named(request)]
        if not matching:
            raise unknown("metrics", request, names)
        wanted += matching
    return [name for name in names if name in wanted]


def _scores_named(name: str) -> list[str]:
    """The scores that a name means; it may also be a score of another version."""
    try:
        return [name, *(score for scores in named([name]).values() for score in scores)]
    except ValueError:
        return [name]


def _notes(systems: Sequence[System], names: Sequence[str], tested: Sequence[str]) -> list[str]:
    notes = []
    for system in systems:
        if system.several:
            runs = ", ".join(f"{r.run.name} (seed {r.seed})" for r in system.results)
            differs = configuration_differences(system.results)
            alike = "" if differs else ", equal except for the seed"
            notes.append(f"{system.name} groups {runs}{alike}")
    if not all(system.several for system in systems):
        notes.append(
            "a result of a single training run is valid for that model, not for its configuration; "
            "train several seeds to compare configurations"
        )
    untested = [name for name in names if name not in tested]
    if untested:
        notes.append(
            f"no interval for {', '.join(untested)}: computed from all captions together, or not "
            "in all systems"
        )
    return list(dict.fromkeys([*notes, *_result_notes(systems)]))


def _result_notes(systems: Sequence[System]) -> list[str]:
    """Notes on references that could not be checked, and on scores that are missing."""
    notes = []
    results = [result for system in systems for result in system.results]
    older = list(dict.fromkeys(result.run.name for result in results if not result.references))
    if older and len(results) > 1:
        notes.append(
            f"whether the references are the same could not be checked: the signature of "
            f"{', '.join(older)} is older and has no hash of them; run captioner evaluate again"
        )
    everywhere = set.intersection(*(set(result.missing) for result in results))
    for result in results:
        reasons = ((m, reason) for m, reason in result.missing.items() if m not in everywhere)
        notes += [f"{result.run.name} has no {m}: {reason}" for m, reason in reasons]
    return notes
