"""The table of metrics, which documentation, help and completion must agree with."""

import re
from collections import Counter
from pathlib import Path

import numpy
import pytest

from captioner.cli import main
from captioner.metrics.scores import score
from captioner.metrics.table import FAMILIES, METRICS
from captioner.verbs import candidates

EXTERNAL = ("meteor", "spice", "clip")
"""Metrics that need programs or weights which may be missing here."""

DOCS = Path(__file__).resolve().parents[2] / "docs" / "scores.md"


def test_every_metric_has_a_row_in_the_documentation() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == ["metrics", *METRICS]  # the heading comes first


def test_names_of_scores_and_of_rows_are_given_once() -> None:
    scores = Counter(score for metric in METRICS.values() for score in metric.scores)
    families = Counter(name for metric in METRICS.values() for name in metric.families)
    assert {*scores.values()} == {*families.values()} == {1}


@pytest.mark.parametrize("name", METRICS)
def test_rows_give_scores_of_their_own_metric(name: str) -> None:
    means = numpy.ones((2, 23))  # as many columns as the widest rows have
    for family in METRICS[name].families.values():
        scores = family(means)
        assert scores.keys() <= set(METRICS[name].scores)
        assert all(values.shape == (2,) for values in scores.values())


@pytest.mark.parametrize("name", [name for name in METRICS if name not in EXTERNAL])
def test_a_metric_returns_the_scores_listed_in_the_table(name: str) -> None:
    arguments = {"several": [["a dog", "a cat"]] * 2, "training": ["x"]}
    scores = score(["a dog", "a cat"], [["a dog"], ["a cow"]], metrics=[name], **arguments)
    assert list(scores.values) == list(METRICS[name].scores)
    assert scores.statistics.rows.keys() == METRICS[name].families.keys() <= FAMILIES.keys()
    for score_name, value in scores.statistics.scores().items():
        assert value == pytest.approx(scores.values[score_name])


def test_help_and_completion_name_every_metric(capsys: pytest.CaptureFixture) -> None:
    for verb in ("score", "evaluate"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert f"of {', '.join(METRICS)}," in " ".join(capsys.readouterr().out.split())
    assert candidates.values("--metrics", "") == list(METRICS)
