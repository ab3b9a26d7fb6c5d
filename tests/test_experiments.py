"""The imports of scripts in experiments/, which the suite does not run, exist."""

import ast
import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted(Path(__file__).parent.parent.glob("experiments/*/*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_imports_of_scripts_exist(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(script.parent)
    tree = ast.parse(script.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        source = str(node.module)
        if source.split(".")[0] not in ("captioner", "paired"):
            continue
        module = importlib.import_module(source)
        for name in node.names:
            if not hasattr(module, name.name):
                importlib.import_module(f"{source}.{name.name}")
