"""Scripts in experiments/, which the suite does not run: their imports, and what they share."""

import ast
import importlib
from pathlib import Path

import pytest

from captioner.runs import COSTS, LAST, checkpoint_file

FOLDER = Path(__file__).parent.parent / "experiments"
SCRIPTS = sorted(FOLDER.glob("**/*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_imports_of_scripts_exist(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.syspath_prepend(script.parent.parent)
    monkeypatch.syspath_prepend(script.parent)
    tree = ast.parse(script.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        source = str(node.module)
        if source.split(".")[0] not in ("captioner", "paired", "runs"):
            continue
        module = importlib.import_module(source)
        for name in node.names:
            if not hasattr(module, name.name):
                importlib.import_module(f"{source}.{name.name}")


def test_a_run_is_trained_resumed_and_evaluated_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    runs = importlib.import_module("runs")
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(runs, "call", lambda *words: called.append(words))
    run = tmp_path / "run"
    runs.trained(run, ["experiment=demo", "seed=2"])
    assert called == [("train", "experiment=demo", "seed=2", f"run_dir={run}")]
    last = checkpoint_file(run, LAST)
    last.parent.mkdir(parents=True)
    last.touch()
    runs.trained(run, ["experiment=demo", "seed=2"])
    assert called[1:] == [("train", f"resume={run}")]
    (run / COSTS).write_text('{"epochs": 2, "ended": false}')  # written after every epoch
    runs.trained(run, ["experiment=demo"])
    assert called.pop() == ("train", f"resume={run}")
    (run / COSTS).write_text('{"epochs": 2, "ended": true}')
    assert runs.trained(run, ["experiment=demo"]) == run
    runs.evaluate(run, "dev", "beam3", "beam3-lp0.7")
    runs.evaluate(run, "test")
    assert called[2:] == [
        ("evaluate", str(run), "data.split=dev", "decoding=beam3"),
        ("evaluate", str(run), "data.split=test"),
    ]
