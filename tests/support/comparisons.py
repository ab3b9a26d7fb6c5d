"""Running `captioner compare` on synthetic evaluations."""

import json
from pathlib import Path

import pytest

from captioner.cli import main
from captioner.evaluation.comparison import Comparison, compare
from captioner.evaluation.results import read_systems

QUICK = ("--resamples", "1000")


def fails(capsys: pytest.CaptureFixture, *argv: object, says: str) -> None:
    """The command ends with status 1 and one line on standard error."""
    assert main(["compare", *map(str, argv), *QUICK]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1, error
    assert says in error


def as_json(capsys: pytest.CaptureFixture, *argv: object) -> dict:
    assert main(["compare", *map(str, argv), *QUICK, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def compared(*paths: Path, **options) -> Comparison:
    systems = read_systems([str(path) for path in paths])
    return compare(systems, **{"resamples": 1000, **options})
