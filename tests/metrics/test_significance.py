"""Intervals and tests on synthetic data: coverage, false positives, power, exact values."""

import itertools
import math

import numpy
import pytest
from scipy import stats

from captioner.metrics.bleu import from_bleu_rows
from captioner.metrics.significance import (
    OverSeeds,
    average,
    bootstrap,
    bootstrap_p,
    holm,
    interval,
    randomization,
    student_quantile,
    student_within,
)
from captioner.metrics.statistics import Statistics

REPEATS = 1000
RESAMPLES = 400


def corpus(
    random: numpy.random.Generator,
    ease: numpy.ndarray,
    *,
    skill: float = 0.0,
    fewer_words: int = 0,
) -> Statistics:
    """Rows of BLEU and CIDEr of a system, for images of given ease [n]."""
    totals = random.integers(6, 14, (len(ease), 1)) - fewer_words - numpy.arange(4)  # [n, 4]
    share = 1 / (1 + numpy.exp(-(ease[:, None] + skill - 0.8 * numpy.arange(4))))
    matched = random.binomial(totals, share)
    closest = numpy.maximum(4, totals[:, :1] + random.integers(-1, 3, (len(ease), 1)))
    bleu = numpy.hstack([matched, totals, totals[:, :1], closest]).astype(float)  # [n, 10]
    cider = random.gamma(2.0, 20 * numpy.exp(0.5 * ease + skill))[:, None]  # [n, 1], skewed
    return Statistics(tuple(map(str, range(len(ease)))), {"bleu": bleu, "cider_d": cider})


def pair(seed: int, n: int = 120, skill: float = 0.0) -> tuple[Statistics, Statistics]:
    """Two systems on the same images; the second is better by `skill`."""
    random = numpy.random.default_rng(seed)
    ease = random.normal(size=n)
    return corpus(random, ease), corpus(random, ease, skill=skill)


# Intervals ------------------------------------------------------------------------------------


def test_intervals_have_their_nominal_coverage() -> None:
    random = numpy.random.default_rng(0)
    truth = corpus(random, random.normal(size=400_000), fewer_words=1).scores()
    covered = dict.fromkeys(("BLEU-1", "BLEU-4", "CIDEr-D"), 0)
    for repeat in range(REPEATS):
        sample = corpus(random, random.normal(size=250), fewer_words=1)
        scores = bootstrap([[sample]], resamples=RESAMPLES, seed=repeat)
        for name in covered:
            low, high = interval(scores[name][0])
            covered[name] += low <= truth[name] <= high
    for name, count in covered.items():
        assert 0.93 <= count / REPEATS <= 0.97, (name, count / REPEATS)


def test_interval_of_a_mean_equals_the_normal_interval() -> None:
    rows = numpy.random.default_rng(3).normal(50.0, 8.0, (700, 1))
    resampled = bootstrap([[Statistics(tuple(map(str, range(700))), {"cider": rows})]])["CIDEr"][0]
    error = rows.std() / math.sqrt(700)
    assert resampled.std() == pytest.approx(error, rel=0.03)
    expected = rows.mean() + numpy.array([-1.96, 1.96]) * error
    assert interval(resampled) == pytest.approx(expected, abs=0.06 * error)


def test_percentile_intervals_are_close_to_bca() -> None:
    random = numpy.random.default_rng(17)
    system = corpus(random, random.normal(size=500))
    rows = system.rows["bleu"]

    def bleu4(*columns: numpy.ndarray, axis: int) -> numpy.ndarray:
        means = numpy.stack([column.mean(axis=axis) for column in columns], axis=-1)
        return from_bleu_rows(means)["BLEU-4"]

    exact = stats.bootstrap(
        list(rows.T),
        bleu4,
        paired=True,
        n_resamples=3000,
        batch=500,
        rng=5,
    )
    assert exact.standard_error > 0.5
    ours = interval(bootstrap([[system]])["BLEU-4"][0])
    theirs = (exact.confidence_interval.low, exact.confidence_interval.high)
    assert ours == pytest.approx(theirs, abs=0.2 * exact.standard_error)


def test_a_resample_is_scored_like_its_images() -> None:
    system, _ = pair(5, n=7)
    scores = bootstrap([[system]], resamples=100, seed=9)["BLEU-2"][0]
    drawn = numpy.random.default_rng(9).integers(7, size=(100, 7))
    expected = from_bleu_rows(system.rows["bleu"][drawn].mean(axis=1))["BLEU-2"]
    assert scores == pytest.approx(expected)


def test_results_depend_on_the_seed_but_not_on_blocks(monkeypatch) -> None:
    first, second = pair(6, n=50)
    scores = bootstrap([[first], [second]], resamples=301)["BLEU-4"]
    swapped = randomization(first, [second], resamples=301)["BLEU-4"]
    done: list[int] = []
    monkeypatch.setattr("captioner.metrics.significance._CHUNK", 50 * 40)
    parts = bootstrap([[first], [second]], resamples=301, progress=done.append)["BLEU-4"]
    assert numpy.array_equal(scores, parts)
    assert done == [40] * 7 + [21]
    assert numpy.array_equal(randomization(first, [second], resamples=301)["BLEU-4"], swapped)
    other_seed = bootstrap([[first], [second]], resamples=301, seed=2)["BLEU-4"]
    assert not numpy.array_equal(scores, other_seed)


# Tests ----------------------------------------------------------------------------------------


def rejections(skill: float, *, repeats: int = REPEATS) -> dict[tuple[str, str], float]:
    """How often p < 0.05, for each test and metric."""
    counts: dict[tuple[str, str], float] = {}
    for repeat in range(repeats):
        first, second = pair(1000 + repeat, skill=skill)
        scores = bootstrap([[first], [second]], resamples=RESAMPLES, seed=repeat)
        swapped = randomization(first, [second], resamples=RESAMPLES, seed=repeat)
        for name in ("BLEU-1", "BLEU-4", "CIDEr-D"):
            both = {"bootstrap": bootstrap_p(scores[name][1] - scores[name][0])}
            both["randomised"] = swapped[name][0]
            for test, p in both.items():
                counts[name, test] = counts.get((name, test), 0) + (p < 0.05) / repeats
    return counts


def test_false_positives_have_the_nominal_rate() -> None:
    for test, rate in rejections(0.0).items():
        assert 0.03 <= rate <= 0.07, (test, rate)


def test_true_differences_are_detected() -> None:
    for test, rate in rejections(0.4, repeats=60).items():
        assert rate >= 0.9, (test, rate)


def test_randomization_agrees_with_all_swaps() -> None:
    first, second = pair(11, n=9, skill=0.4)
    p_values = randomization(first, [second], resamples=20_000)
    observed = {n: second.scores()[n] - first.scores()[n] for n in ("BLEU-1", "CIDEr-D")}
    for name, family in (("BLEU-1", "bleu"), ("CIDEr-D", "cider_d")):
        beyond = 0
        for swaps in itertools.product((False, True), repeat=9):
            mask = numpy.array(swaps)[:, None]
            a, b = first.rows[family], second.rows[family]
            mixed = Statistics(first.images, {family: numpy.where(mask, b, a)}).scores()
            two = Statistics(first.images, {family: numpy.where(mask, a, b)}).scores()
            beyond += abs(two[name] - mixed[name]) >= abs(observed[name]) - 1e-9
        assert p_values[name][0] == pytest.approx(beyond / 2**9, abs=0.012)


def test_p_is_never_0_and_is_1_for_equal_systems() -> None:
    first, _ = pair(12, n=40)
    far = Statistics(first.images, {f: rows * [[3.0]] for f, rows in first.rows.items()})
    swapped = randomization(first, [first, far], resamples=500)["CIDEr-D"]
    assert swapped.tolist() == [1.0, 1 / 501]
    scores = bootstrap([[first], [first], [far]], resamples=500)["CIDEr-D"]
    assert bootstrap_p(scores[1] - scores[0]) == 1.0
    assert bootstrap_p(scores[2] - scores[0]) == 2 / 501


def test_bootstrap_p_agrees_with_the_interval() -> None:
    for seed in range(80):
        first, second = pair(seed, n=40, skill=0.25)
        scores = bootstrap([[first], [second]], resamples=999)["CIDEr-D"]
        low, high = interval(scores[1] - scores[0])
        p = bootstrap_p(scores[1] - scores[0])
        if abs(p - 0.05) > 0.004:
            assert (p < 0.05) == (low > 0 or high < 0)


def test_invalid_arguments_are_refused() -> None:
    first, second = pair(13, n=5)
    renamed = Statistics(tuple("vwxyz"), second.rows)
    with pytest.raises(ValueError, match="have different images"):
        bootstrap([[first], [renamed]])
    with pytest.raises(ValueError, match="have different images"):
        randomization(first, [renamed])
    with pytest.raises(ValueError, match="resamples=99"):
        bootstrap([[first]], resamples=99)


# Several tests --------------------------------------------------------------------------------


def test_holm_equals_values_computed_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2, 0.9, 0.6]) == pytest.approx([0.6, 1.0, 1.0])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_bounds_the_family_wise_error() -> None:
    random = numpy.random.default_rng(8)
    shared = random.normal(size=(4000, 1))
    normal = 0.6 * shared + 0.8 * random.normal(size=(4000, 6))  # dependent, all null
    values = 2 * stats.norm.sf(abs(normal))
    assert (values < 0.05).any(axis=1).mean() > 0.15
    wrong = numpy.mean([min(holm(row)) < 0.05 for row in values.tolist()])
    assert 0.02 < wrong < 0.055


# Seeds ----------------------------------------------------------------------------------------


def seeds_of(
    random: numpy.random.Generator, images: numpy.ndarray, count: int, centre: float
) -> list[Statistics]:
    """Trained models of a configuration: images [n], seeds and their interaction all vary."""
    names = tuple(map(str, range(len(images))))
    rows = images + centre + random.normal(0, 1.0, (count, 1))
    rows = rows + random.normal(0, 4.0, (count, len(images)))  # [S, n]
    return [Statistics(names, {"cider_d": scores[:, None]}) for scores in rows]


def test_interval_over_seeds_has_nominal_coverage_and_that_over_images_has_not() -> None:
    random = numpy.random.default_rng(21)
    covered = {"seeds": 0, "images": 0, "resampled seeds": 0}
    for repeat in range(REPEATS):
        images = random.normal(50, 20, 100)
        first, second = (seeds_of(random, images, 3, centre) for centre in (0.0, 1.5))
        resampled = bootstrap(
            [[system] for system in first + second], resamples=RESAMPLES, seed=repeat
        )
        scores = resampled["CIDEr-D"]  # [6, R]
        differences = scores[3:].mean(axis=0) - scores[:3].mean(axis=0)
        known = [
            [float(system.scores()["CIDEr-D"]) for system in group] for group in (first, second)
        ]
        drawn = random.integers(3, size=(2, 3, RESAMPLES))
        nested = numpy.take_along_axis(scores[3:], drawn[1], axis=0).mean(
            axis=0
        ) - numpy.take_along_axis(scores[:3], drawn[0], axis=0).mean(axis=0)
        for name, (low, high) in {
            "seeds": OverSeeds.of(differences, *known).interval(),
            "images": interval(differences),
            "resampled seeds": interval(nested),
        }.items():
            covered[name] += low <= 1.5 <= high
    rates = {name: count / REPEATS for name, count in covered.items()}
    assert 0.925 <= rates["seeds"] <= 0.985, rates
    assert rates["images"] < 0.75, rates
    assert rates["resampled seeds"] < 0.92, rates


def test_over_seeds_equals_welch_if_images_do_not_vary() -> None:
    first, second = [19.0, 20.0, 20.5], [21.0, 21.2, 22.9, 21.7]
    result = OverSeeds.of(numpy.full(500, 1.8), first, second)
    welch = stats.ttest_ind(second, first, equal_var=False)
    assert result.p() == pytest.approx(welch.pvalue, abs=1e-9)
    assert result.freedom == pytest.approx(welch.df)
    expected = welch.confidence_interval(0.95)
    assert result.interval() == pytest.approx((expected.low, expected.high))


def test_student_equals_scipy() -> None:
    for freedom in (1.0, 2.0, 3.7, 30.0, 1e4, math.inf):
        for t in (0.0, 0.4, 2.776, 12.7):
            expected = 1 - 2 * stats.t.sf(t, freedom)
            assert student_within(t, freedom) == pytest.approx(expected, abs=1e-9)
        for probability in (0.6, 0.975, 0.9995):
            expected = stats.t.ppf(probability, freedom)
            assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-6)


def test_average_is_the_mean_row_of_each_image() -> None:
    first, second = pair(14, n=6)
    mean = average([first, second])
    assert mean.rows["bleu"] == pytest.approx((first.rows["bleu"] + second.rows["bleu"]) / 2)
    only = Statistics(first.images, {"cider_d": first.rows["cider_d"]})
    assert set(average([first, only]).rows) == {"cider_d"}
