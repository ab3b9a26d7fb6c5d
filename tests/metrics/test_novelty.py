"""Nearest training captions, curves and breakdowns, compared with simple computations."""

import random
import xml.etree.ElementTree as tree
from itertools import pairwise
from pathlib import Path

import pytest

from captioner.report.breakdown import by_frequency, by_length
from captioner.report.curves import line_chart, read_log, ticks
from captioner.report.novelty import TrainingCaptions


def dice(a: list[str], b: list[str]) -> float:
    """The definition of the similarity."""
    pairs = [set(zip(["^", *words], [*words, "$"])) for words in (a, b)]
    return 2 * len(pairs[0] & pairs[1]) / (len(pairs[0]) + len(pairs[1]))


def test_nearest_caption_equals_that_of_a_full_search() -> None:
    chance = random.Random(3)
    captions = [[chance.choice("abcde") for _ in range(chance.randint(1, 7))] for _ in range(60)]
    training = TrainingCaptions(captions)
    for _ in range(40):
        words = [chance.choice("abcdef") for _ in range(chance.randint(1, 7))]
        nearest = training.nearest(words)
        assert nearest.similarity == pytest.approx(
            max(dice(words, caption) for caption in captions)
        )
        if nearest.words:
            assert dice(words, list(nearest.words)) == pytest.approx(nearest.similarity)
        assert (nearest.similarity == 1) >= (words in training)


def test_word_counts_and_similarity_0_without_common_pairs() -> None:
    training = TrainingCaptions([["a", "dog"], ["a", "dog"], ["a", "cat"]])
    assert training.counts == {"a": 3, "dog": 2, "cat": 1}
    assert len(training.captions) == 2
    assert ["a", "cat"] in training
    assert training.nearest(["birds"]).similarity == 0


def test_length_ranges_contain_every_image() -> None:
    lengths = [1, 2, 2, 3, 3, 3, 9, 9.4, 12]
    scores = {"CIDEr-D": [float(n) for n in range(9)]}
    bins = by_length(lengths, scores, most=3)
    assert [(part.low, part.high, part.count) for part in bins] == [
        (1, 2, 3),
        (3, 8, 3),
        (9, 12, 3),
    ]
    assert [part.values["CIDEr-D"] for part in bins] == [1, 4, 7]
    assert [part.count for part in by_length([5.0] * 4, {})] == [4]


def test_recall_is_of_the_words_that_references_agree_on() -> None:
    references = [[["a", "dog", "runs"], ["a", "dog"], ["the", "dog"], ["one", "pet"]]]
    bins = by_frequency([["a", "cat"]], references, {"a": 100, "dog": 6})
    assert [(part.label, part.count, part.values["recall"]) for part in bins] == [
        ("5 to 19", 1, 0.0),
        ("100 to 999", 1, 1.0),
    ]


# Curves ---------------------------------------------------------------------------------------


def test_a_log_of_several_files_is_read_in_order(tmp_path: Path) -> None:
    for version, text in enumerate(
        (
            "dev_loss,step,train_loss\n,0,3.5\n2.5,9,\n",
            "dev_loss,step,train_loss\n2.0,19,nan\nx,,\n",
        )
    ):
        folder = tmp_path / "logs" / "csv" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)
    assert read_log(tmp_path) == {"train_loss": [(0, 3.5)], "dev_loss": [(9, 2.5), (19, 2.0)]}
    assert read_log(tmp_path / "nowhere") == {}


def test_a_chart_is_valid_and_inside_its_frame() -> None:
    chart = line_chart({"a": [(0, 1.5), (90, 8.25)], "<b>": [(40, 3)]}, title="<i>")
    root = tree.fromstring(chart)
    lines = root.findall("polyline")
    assert [line.get("class") for line in lines] == ["c0", "c1"]
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in lines[0].get("points", "").split())
    assert 0 < x0 < x1 < 480
    assert 260 > y0 > y1 > 0
    assert root.get("aria-label") == "<i>"


@pytest.mark.parametrize("last, labels", [(0, ["0", "1"]), (1, ["0", "1"]), (3, list("0123"))])
def test_ticks_of_a_short_chart_are_distinct_integers(last: int, labels: list[str]) -> None:
    root = tree.fromstring(line_chart({"a": [(last, 1.5)]}, title="t"))
    texts = [element.text for element in root.findall("text") if element.get("y") == "238.0"]
    assert texts == labels


@pytest.mark.parametrize("low, high", [(0, 1), (0.2, 0.9), (3, 3), (0, 0), (-2, 7.3), (60.1, 62)])
def test_ticks_are_even_and_span_the_range(low: float, high: float) -> None:
    values = ticks(low, high)
    assert values[0] <= low <= high <= values[-1]
    steps = {round(b - a, 9) for a, b in pairwise(values)}
    assert len(steps) == 1
    assert 2 <= len(values) <= 8
