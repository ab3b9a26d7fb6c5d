"""Significance: intervals and tests for scores, and for differences of two scores.

A corpus score is a function s(m) of the mean row m of the images (``statistics``). Resampling
images is therefore reweighting their rows: with weights [R, n], one matrix product scores R
resamples.

    bootstrap       w_r ~ multinomial(n, 1/n)          s_r = s(w_r rows / n)
    interval        the percentiles of s_r; of a difference, with the same w_r for both systems
    p (bootstrap)   2 min(#{d_r <= 0} + 1, #{d_r >= 0} + 1) / (R + 1)
    p (randomized)  (#{|d_r| >= |d|} + 1) / (R + 1), d_r the difference after the two systems have
                    swapped each image's rows with probability 1/2

No p is 0: the observed difference counts as one of the R + 1. Both tests are paired by image.

For n images there are 2^n swaps, and two of them, swapping nothing and swapping everything, give
the observed difference: p (randomized) is at least 2 / 2^n, however many swaps are drawn (Phipson &
Smyth 2010). Three images cannot show anything: 0.25.

Intervals are percentiles, not BCa. They are consistent with the bootstrap's p and need no
acceleration constant, which the kink of BLEU's brevity penalty makes unstable. With a hundred
images or more they have their nominal coverage (``tests/metrics/test_significance.py``).

Training seeds are a second source of variance, and too few to resample: for S seeds the bootstrap
has (S - 1)/S of the variance, and 3 seeds have no 2.5 % percentile. They enter by their variance,
with Student's t, as in a model of crossed random effects:

    V = V_images + sum_g s_g^2 / S_g        nu = V^2 / sum_g ((s_g^2 / S_g)^2 / (S_g - 1))
    interval = d -+ t(nu) sqrt(V)

s_g is the standard deviation of a group's scores over its S_g seeds, V_images the bootstrap's
variance of the difference of the groups' mean scores, nu Satterthwaite's degrees of freedom (there
are so many images that their degrees of freedom are ignored). The interaction of seeds and images
is in both terms, so V is slightly too large rather than too small.

Efron & Tibshirani, "An Introduction to the Bootstrap", 1993. Koehn, "Statistical Significance Tests
for Machine Translation Evaluation", EMNLP 2004. Noreen, "Computer-Intensive Methods for Testing
Hypotheses", 1989. Phipson & Smyth, "Permutation P-values Should Never Be Zero", 2010. Riezler &
Maxwell, "On Some Pitfalls in Automatic Evaluation and Significance Testing for MT", 2005. Holm, "A
Simple Sequentially Rejective Multiple Test Procedure", 1979. Satterthwaite, "An Approximate
Distribution of Estimates of Variance Components", 1946. Owen, "The Pigeonhole Bootstrap", 2007, on
why images and seeds must both vary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy

from captioner.metrics.corpus import Rows
from captioner.metrics.statistics import Statistics
from captioner.metrics.table import FAMILIES

ALPHA = 0.05
LEVEL = 1 - ALPHA
"""Nominal coverage of an interval; a difference is shown if p < ALPHA."""

FEWEST = 100
"""The smallest number of resamples for a percentile."""

ENOUGH = 100
"""The number of images from which percentile intervals have about their nominal coverage."""

_CHUNK = 2**20  # numbers of a block of weights: 8 MB
_NODES, _WEIGHTS = numpy.polynomial.legendre.leggauss(64)
_TIE = 1e-9  # smaller differences of scores (0 to 100) are rounding errors

Progress = Callable[[int], None]
"""Called with the number of resamples since the last call."""


def _silent(_: int) -> None: ...


# Resampling -----------------------------------------------------------------------------------


def bootstrap(
    groups: Sequence[Sequence[Statistics]],
    *,
    resamples: int = 10_000,
    seed: int = 1,
    progress: Progress = _silent,
) -> dict[str, Rows]:
    """Score resamples of the images, which are the same for all systems.

    Args:
        groups: the systems to compare, each with one or more seeds; all of the same images in the
            same order.
        resamples: R, `FEWEST` or more.
        seed: of the random generator.
        progress: called after every block.

    Returns:
        metric -> the groups' scores [G, R], the mean over the seeds of each group; metrics that all
        systems have.

    Raises:
        ValueError: systems of different images, or too few resamples.
    """
    images = _common_images([system for group in groups for system in group])
    blocks: list[dict[str, Rows]] = []
    for weights in _weights(len(images), _enough(resamples), seed):  # [C, n]
        blocks.append(_stacked([_mean_score(group, weights) for group in groups]))
        progress(len(weights))
    return {name: numpy.concatenate([b[name] for b in blocks], axis=1) for name in blocks[0]}


def randomization(
    first: Statistics,
    others: Sequence[Statistics],
    *,
    resamples: int = 10_000,
    seed: int = 1,
    progress: Progress = _silent,
) -> dict[str, Rows]:
    """Test systems against the first one by approximate randomization.

    Under the null hypothesis an image's rows could equally have come from the other system.

    Args:
        first: the baseline.
        others: of the same images in the same order.
        resamples: R, `FEWEST` or more.
        seed: of the random generator.
        progress: called after every block.

    Returns:
        metric -> two-sided p [G], from 1 / (R + 1) to 1; metrics that all systems have.

    Raises:
        ValueError: systems of different images, or too few resamples.
    """
    images = _common_images([first, *others])
    none = numpy.zeros((1, len(images)))
    observed = _swapped(first, others, none)  # metric -> [G, 1]
    beyond = {name: numpy.zeros(len(others)) for name in observed}
    for swaps in _swaps(len(images), _enough(resamples), seed):  # [C, n]
        for name, differences in _swapped(first, others, swaps).items():
            beyond[name] += (abs(differences) >= abs(observed[name]) - _TIE).sum(axis=1)
        progress(len(swaps))
    return {name: (count + 1) / (resamples + 1) for name, count in beyond.items()}


def average(seeds: Sequence[Statistics]) -> Statistics:
    """The mean row of each image over several seeds of one configuration."""
    families = [f for f in seeds[0].rows if all(f in statistics.rows for statistics in seeds)]
    rows = {f: numpy.mean([statistics.rows[f] for statistics in seeds], axis=0) for f in families}
    return Statistics(seeds[0].images, rows)


def _mean_score(seeds: Sequence[Statistics], weights: Rows) -> dict[str, Rows]:
    scores = _stacked([statistics.scores(weights) for statistics in seeds])  # metric -> [S, C]
    return {name: values.mean(axis=0) for name, values in scores.items()}


def _stacked(scores: Sequence[dict[str, Rows]]) -> dict[str, Rows]:
    names = [name for name in scores[0] if all(name in values for values in scores)]
    return {name: numpy.stack([values[name] for values in scores]) for name in names}


def _swapped(first: Statistics, others: Sequence[Statistics], swaps: Rows) -> dict[str, Rows]:
    """Differences, others minus first [G, C], after swapping images by swaps [C, n] of 0 and 1."""
    results: list[dict[str, Rows]] = []
    unswapped = 1.0 - swaps
    for other in others:
        differences: dict[str, Rows] = {}
        for family in (f for f in first.rows if f in other.rows):
            a, b = first.rows[family], other.rows[family]  # [n, k]
            # Sums of products that are not negative, so that a count of 0 stays exactly 0.
            before = FAMILIES[family]((unswapped @ a + swaps @ b) / len(a))
            after = FAMILIES[family]((unswapped @ b + swaps @ a) / len(a))
            differences.update({name: after[name] - before[name] for name in after})
        results.append(differences)
    return _stacked(results)


def _weights(images: int, resamples: int, seed: int) -> Iterator[Rows]:
    """How often each image is drawn, in blocks [C, n]."""
    random = _generator(seed)
    for block in _blocks(images, resamples):
        drawn = random.integers(images, size=(block, images))
        drawn += images * numpy.arange(block)[:, None]
        counts = numpy.bincount(drawn.ravel(), minlength=block * images)
        yield counts.reshape(block, images).astype(numpy.float64)


def _swaps(images: int, resamples: int, seed: int) -> Iterator[Rows]:
    """Whether each image is swapped, in blocks [C, n] of 0 and 1."""
    random = _generator(seed)
    for block in _blocks(images, resamples):
        yield random.integers(2, size=(block, images), dtype=numpy.int8).astype(numpy.float64)


def _generator(seed: int) -> numpy.random.Generator:
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; choose 0 or more")
    return numpy.random.default_rng(seed)


def _blocks(images: int, resamples: int) -> Iterator[int]:
    most = max(1, _CHUNK // images)
    for start in range(0, resamples, most):
        yield min(most, resamples - start)


def _common_images(systems: Sequence[Statistics]) -> tuple[str, ...]:
    images = systems[0].images
    if any(system.images != images for system in systems):
        raise ValueError(
            "the systems have different images, or the same in another order; align them"
        )
    return images


def _enough(resamples: int) -> int:
    if resamples < FEWEST:
        raise ValueError(f"resamples={resamples} is too few; choose {FEWEST} or more")
    return resamples


# Intervals and p ------------------------------------------------------------------------------


def interval(resampled: Rows, *, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of resampled scores [R]."""
    low, high = numpy.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_p(differences: Rows) -> float:
    """The two-sided p of resampled differences [R]; below 1 - level if `interval` excludes 0."""
    below = int((differences <= _TIE).sum())
    above = int((differences >= -_TIE).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1))


def holm(values: Sequence[float]) -> list[float]:
    """Correct the p of several tests, to bound the probability of any false positive by alpha.

    The i-th smallest of m values is multiplied by m - i + 1, and is at least the one before.

    Args:
        values: p of each test.

    Returns:
        corrected p in the same order, at most 1.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected


def smallest_p(images: int) -> float:
    """The smallest possible p of approximate randomization over this many images."""
    return min(1.0, 2.0 ** (1 - images))


def fewest_images(tests: int, *, alpha: float = ALPHA) -> int:
    """The smallest number of images with which one of several corrected tests can be below alpha.

    The smallest of m p corrected by Holm is m times as large, so m 2 / 2^n < alpha.
    """
    return math.floor(1 + math.log2(tests / alpha)) + 1


@dataclass(frozen=True)
class OverSeeds:
    """The difference of two groups of seeds, with variance over images and seeds.

    Attributes:
        difference: of the mean scores.
        error: its standard error, sqrt(V).
        freedom: nu, the degrees of freedom.
    """

    difference: float
    error: float
    freedom: float

    @classmethod
    def of(cls, resampled: Rows, *seeds: Sequence[float]) -> OverSeeds:
        """From resampled differences [R] and the scores of the seeds of both groups.

        Args:
            resampled: mean score of the second group minus that of the first.
            seeds: for each of the two groups the scores of its seeds; two or more.
        """
        parts = [float(numpy.var(scores, ddof=1)) / len(scores) for scores in seeds]
        variance = float(numpy.var(resampled)) + sum(parts)
        spent = sum(part**2 / (len(scores) - 1) for part, scores in zip(parts, seeds))
        freedom = variance**2 / spent if spent > 0 else math.inf
        difference = float(numpy.mean(seeds[1]) - numpy.mean(seeds[0]))
        return cls(difference, math.sqrt(variance), freedom)

    def interval(self, *, level: float = LEVEL) -> tuple[float, float]:
        """The interval of the difference of the configurations."""
        half = self.half_width(level=level)
        return self.difference - half, self.difference + half

    def half_width(self, *, level: float = LEVEL) -> float:
        """Half the interval's width."""
        return student_quantile((1 + level) / 2, self.freedom) * self.error

    def p(self) -> float:
        """The two-sided p of no difference."""
        if self.error == 0.0:
            return 1.0 if abs(self.difference) < _TIE else 0.0
        return 1.0 - student_within(abs(self.difference) / self.error, self.freedom)


def student_within(t: float, freedom: float) -> float:
    """P(|T| < t) of Student's t with any number of degrees of freedom >= 1.

    With t = sqrt(nu) tan(x) its density becomes proportional to cos(x)^(nu - 1), which
    Gauss-Legendre quadrature integrates to full precision.
    """
    if math.isinf(freedom):
        return math.erf(t / math.sqrt(2))
    end = math.atan(min(t, 1e9) / math.sqrt(freedom))
    end = min(end, 12 / math.sqrt(freedom))  # beyond it the density is below exp(-72)
    area = end / 2 * float(_WEIGHTS @ numpy.cos(end / 2 * (_NODES + 1)) ** (freedom - 1))
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    return min(1.0, 2 * math.exp(log_scale) / math.sqrt(math.pi) * area)


def student_quantile(probability: float, freedom: float) -> float:
    """The quantile t of a probability in [0.5, 1); math.inf degrees are the normal distribution."""
    low, high = 0.0, 1.0
    while student_within(high, freedom) < 2 * probability - 1:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        below = student_within(middle, freedom) < 2 * probability - 1
        low, high = (middle, high) if below else (low, middle)
    return high
