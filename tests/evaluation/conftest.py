"""Evaluations to compare."""

from pathlib import Path

import pytest
from support.evaluations import evaluation, system


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Runs with one seed each: like the first, much better, much worse."""
    skills = {"first": 0.0, "like": 0.0, "better": 0.5, "worse": -0.5}
    return {
        name: evaluation(tmp_path / name, system(index, skill=skill))
        for index, (name, skill) in enumerate(skills.items())
    }


@pytest.fixture
def seeds(tmp_path: Path) -> dict[str, list[Path]]:
    """Two configurations of three seeds each, whose config.yaml differ in the cell."""
    folders: dict[str, list[Path]] = {}
    for cell, skill in (("rnn", 0.0), ("lstm", 0.5)):
        for seed in (1, 2, 3):
            run = tmp_path / f"{cell}-seed{seed}"
            config = {"seed": seed, "run_dir": str(run), "decoder": {"cell": cell, "layers": 1}}
            scored = system(10 * seed + len(cell), skill=skill + 0.02 * seed)
            folders.setdefault(cell, []).append(evaluation(run, scored, config=config))
    return folders
