"""The benchmark for a GPU, as a dry run on the CPU of the parts that need no encoder."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "experiments" / "benchmarks"
CPU = torch.device("cpu")
PARTS = (
    *("recurrences are right", "recurrence", "step", "attention", "whole training", "decoding"),
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.syspath_prepend(FOLDER / "gpu")
    module = importlib.import_module("run")
    monkeypatch.setattr(module, "PARTS", {name: module.PARTS[name] for name in PARTS})
    return module


def test_every_part_has_rows_and_every_check_is_met(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, left_out = run.run_parts(run.QUICK, CPU)
    assert not left_out
    assert {row["part"] for row in rows} == set(PARTS)
    assert all(row["met"] for row in rows if "most" in row)
    text = run.format_result({"device": "no GPU", "torch": "2"}, rows, ["decoding: no time left"])
    assert "| B=8, tf32, plain / nn.LSTM packed |" in text
    assert text.endswith("left out: decoding: no time left")
    assert "≤ 0.35" not in text  # a dry run has no goals


def test_parts_that_fail_or_have_no_time_are_named(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*unused: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(run.PARTS, "recurrence", fail)
    monkeypatch.setattr(run, "PARTS", {"recurrence": run.PARTS["recurrence"]})
    rows, left_out = run.run_parts(run.QUICK, CPU)
    assert (rows, left_out) == ([], ["recurrence: RuntimeError: out of memory"])
    assert run.run_parts(run.QUICK, CPU, -1.0)[1] == ["recurrence: no time left"]


def test_the_lengths_are_those_of_flickr8k(run: Any) -> None:
    workload = importlib.import_module("workload")
    assert sum(workload.HISTOGRAM.values()) == 30_000
    lengths = workload.draw_lengths(5000, more=2)
    mean = sum(n * count for n, count in workload.HISTOGRAM.items()) / 30_000
    assert abs(float(lengths.float().mean()) - mean - 2) < 0.2
