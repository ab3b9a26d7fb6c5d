"""The costs of a training: memory, time and parameters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
