"""What a training cost."""

import json
from pathlib import Path

import pytest
import torch

from captioner.costs import memory

STATUS = Path("/proc/self/status")


@pytest.mark.skipif(
    not STATUS.exists() or "RssAnon" not in STATUS.read_text(), reason="elsewhere all pages count"
)
def test_memory_is_that_of_the_process_and_not_of_mapped_files(tmp_path) -> None:
    before = memory()
    held = torch.ones(2**25)  # 128 MiB
    assert 100 * 2**20 < memory() - before < 200 * 2**20
    del held
    file = tmp_path / "values"
    file.write_bytes(bytes(2**27))
    before = memory()
    mapped = torch.from_file(str(file), size=2**25)
    assert mapped.sum() == 0
    assert memory() - before < 50 * 2**20


def test_every_epoch_leaves_what_was_spent(run) -> None:
    spent = json.loads((run / "costs.json").read_text())
    assert spent["epochs"] == 15
    assert 0 < spent["minutes"] < 30
    assert 0.05 < spent["peak_memory_gib"] < 16
    assert 0 < spent["learned_parameters"] < spent["all_parameters"]
    assert spent["threads"] == torch.get_num_threads()
