"""The costs of a training: memory, time and parameters."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from captioner.config import compose
from captioner.runs import CONFIG, COSTS, LAST, checkpoint_file, has_ended
from captioner.training.module import LitCaptioner
from captioner.training.train import train

STATUS = Path("/proc/self/status")


@pytest.mark.skipif(
    not STATUS.exists() or "RssAnon" not in STATUS.read_text(),
    reason="without RssAnon mapped files are counted too",
)
def test_memory_is_that_of_the_process_and_not_of_mapped_files(tmp_path) -> None:
    program = f"""
import torch
from captioner.training.costs import memory
before = memory()
held = torch.ones(2**25)  # 128 MiB
print(memory() - before)
del held
open({str(tmp_path / "values")!r}, "wb").write(bytes(2**27))
before = memory()
mapped = torch.from_file({str(tmp_path / "values")!r}, size=2**25)
assert mapped.sum() == 0
print(memory() - before)
"""  # a process of its own: this process may still hold memory that it has freed
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    held, mapped = (float(number) / 2**20 for number in output)
    assert 100 < held < 200
    assert mapped < 50


def test_costs_are_written_to_a_file(run) -> None:
    spent = json.loads((run / "costs.json").read_text())
    assert spent["epochs"] == 15
    assert 0 < spent["minutes"] < 30
    assert 0.05 < spent["peak_memory_gib"] < 16
    assert 0 < spent["learned_parameters"] < spent["all_parameters"]
    assert spent["threads"] == torch.get_num_threads()
    assert spent["ended"] and has_ended(run)


def test_an_interrupted_training_has_not_ended(tiny, tmp_path, monkeypatch) -> None:
    """Nor has one that was killed after an epoch; one that stopped early has."""
    original = LitCaptioner.training_step

    def interrupt(self: LitCaptioner, batch: Any, index: int) -> Any:
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return original(self, batch, index)

    config = compose([*tiny, "trainer.max_epochs=3", "callbacks.patience=1", "optimizer.lr=0"])
    with monkeypatch.context() as patch:
        patch.setattr(LitCaptioner, "training_step", interrupt)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / COSTS).read_text())["epochs"] == 1
    assert not has_ended(tmp_path / "run")
    train(config, tmp_path / "run", resume=checkpoint_file(tmp_path / "run", LAST))
    assert json.loads((tmp_path / "run" / COSTS).read_text())["epochs"] == 2
    assert has_ended(tmp_path / "run")


@pytest.mark.parametrize(
    ("costs", "ended"),
    [
        ('{"epochs": 3}', True),
        ('{"epochs": 2}', False),
        ('{"epochs": 2, "ended": true}', True),  # by patience
        ('{"epochs": 3, "ended": false}', False),  # resumed with more epochs
        ('{"epochs": "3"}', False),
        ("[]", False),
        ("", False),
    ],
)
def test_older_and_damaged_costs(tmp_path, costs: str, ended: bool) -> None:
    (tmp_path / COSTS).write_text(costs)
    (tmp_path / CONFIG).write_text("trainer: {max_epochs: 3}")
    assert has_ended(tmp_path) is ended
