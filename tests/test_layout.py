"""The layout: packages import only downwards, and some verbs do not load torch."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.evaluations import evaluation, system

ROOT = Path(__file__).resolve().parents[1] / "captioner"

LEVELS = (
    ("cli", "__main__"),
    ("verbs",),
    ("doctor",),
    ("report", "inspection", "evaluation"),
    ("api", "training"),
    ("tracing",),
    ("generation", "testing"),
    ("checkpoints", "data"),
    ("models",),
    ("tokenizers",),
    ("decoding", "metrics"),
    ("images", "transforms"),
    ("runs", "files", "config", "overrides", "parts", "progress", "process")
    + ("old_names", "torch_optimizers", "plain_data", "limits"),
)
"""The packages and single modules of captioner, from the top: each imports those below it, and of
its own level those from which no import leads back."""

LEVEL = {room: number for number, level in enumerate(LEVELS) for room in level}

Import = tuple[str, str, str]
"""The importing room, the imported one, and where: file and line."""


def room_of(module: str) -> str | None:
    """The package or module in captioner; None for other packages."""
    name, *below = module.split(".")
    return below[0] if name == "captioner" and below else None


def imports() -> Iterator[Import]:
    """Every import of one package by another, also in functions; imports for types are ignored."""
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).with_suffix("").parts[0]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in statements(tree):
            for module in modules(node):
                room = room_of(module)
                if room not in (None, own):
                    yield own, str(room), f"{path.relative_to(ROOT)}:{node.lineno}"


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements below a node, except those under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from (statement for branch in child.orelse for statement in statements(branch))
        else:
            yield from statements(child)


def modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that a statement may import; a name of captioner itself is no module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.module == "captioner":
        return [f"captioner.{alias.name}" for alias in node.names if alias.name in LEVEL]
    return [node.module or ""]


def test_every_room_has_its_level() -> None:
    rooms = {path.stem for path in ROOT.glob("*.py")} | {
        path.parent.name for path in ROOT.glob("*/__init__.py")
    }
    assert rooms - {"__init__", "bundled"} <= LEVEL.keys()


def test_imports_point_downwards() -> None:
    upwards = [
        f"{place}: {own} imports {imported}"
        for own, imported, place in imports()
        if own != "__init__" and LEVEL[imported] < LEVEL[own]
    ]
    assert not upwards, "\n".join(upwards)


def test_no_rooms_import_one_another_in_a_circle() -> None:
    below: dict[str, set[str]] = {}
    for own, imported, _ in imports():
        below.setdefault(own, set()).add(imported)
    reached = {room: set(rooms) for room, rooms in below.items()}
    for middle in LEVEL:  # Warshall's algorithm for the transitive closure
        for rooms in reached.values():
            if middle in rooms:
                rooms |= reached.get(middle, set())
    assert not sorted(room for room in LEVEL if room in reached.get(room, ()))


def test_the_package_itself_imports_little() -> None:
    """`import captioner` must be fast; models are loaded with the first call."""
    assert {imported for own, imported, _ in imports() if own == "__init__"} <= {"process", "api"}


NEEDS_NO_TORCH = {
    "help": ["--help"],
    "score": ["score", "captions.jsonl", "--metrics", "bleu,cider-d"],
    "compare": ["compare", "run", "--resamples", "1000"],
}


@pytest.mark.parametrize("verb", NEEDS_NO_TORCH)
def test_verbs_without_models_import_no_torch(verb: str, tmp_path: Path) -> None:
    row = {"image": "1", "caption": "a dog runs", "references": ["a dog is running"]}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row))
    evaluation(tmp_path / "run", system(1, n=10))
    code = (
        "import sys\nfrom captioner.cli import main\n"
        "try: status = main(sys.argv[1:])\nexcept SystemExit as leaving: status = leaving.code\n"
        "assert status == 0, status\n"
        "assert not {'torch', 'torchvision', 'pytorch_lightning'} & {*sys.modules}"
    )
    command = [sys.executable, "-c", code, *NEEDS_NO_TORCH[verb]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
