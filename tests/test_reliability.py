"""The page about reliability: its promises have tests, and its table is counted correctly."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.battery import BEGIN, END, GROUPS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def group_of(file: str, test: str) -> str | None:
    """The group in the decorators of a test, or of its whole file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    marks: list[ast.AST] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == test:
            marks += node.decorator_list
        elif isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node.targets):
            marks.append(node.value)
    found = re.search(r"reliability\('(.+?)'\)", " ".join(map(ast.unparse, marks)))
    return found and found[1]


def test_every_promise_names_tests_of_its_group() -> None:
    parts = re.split(r"^\*\*(.+)\*\*$", PAGE.partition("## Promises")[2], flags=re.M)
    promises = dict(zip(parts[1::2], parts[2::2]))
    assert {name.lower() for name in promises} == set(GROUPS) & {name.lower() for name in promises}
    wrong = []
    for group, text in promises.items():
        for promise in re.split(r"^- ", text.strip(), flags=re.M)[1:]:
            tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promise)
            groups = {group_of(*test) if (ROOT / test[0]).is_file() else None for test in tests}
            if groups != {group.lower()}:
                wrong.append(f"{group}: {' '.join(promise.split())}: {groups}")
    assert not wrong, "\n".join(wrong)
    assert len(NAMED) > 20


EXAMPLE = """
import pytest
from hypothesis import given, strategies

@pytest.mark.reliability("limits")
@pytest.mark.parametrize("number", range(3))
def test_one(number): assert number != 1

@pytest.mark.reliability("limits")
def test_loop(record_property): record_property("cases", 7)

@pytest.mark.reliability("fuzzing")
@pytest.mark.slow
def test_slow(): pass

@pytest.mark.reliability("properties")
@given(strategies.integers())
def test_property(number): pass

@pytest.mark.reliability("disks")
@pytest.mark.xfail(reason="explained here")
def test_expected(): assert False

@pytest.mark.reliability("disks")
@pytest.mark.skip(reason="not on this machine")
def test_skipped(): pass

def test_outside(): pass
"""


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_cases_are_counted_with_any_number_of_workers(workers: str, tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(EXAMPLE)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    (tmp_path / "conftest.py").write_text(
        "import sys, os\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from support.battery import Battery\n"
        "def pytest_addoption(parser): parser.addoption('--reliability-page', type=Path)\n"
        "def pytest_configure(config): config.pluginmanager.register(Battery())\n"
    )
    options = ["-q", "-m", "reliability", "-n", workers, "--reliability-page", str(page)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    text = page.read_text()
    rows = dict(re.findall(r"^\| ([\w ]+) \| ([\d,]+ \| [\d,]+) \|", text, flags=re.M))
    assert {group: row for group, row in rows.items() if row != "0 | 0"} == {
        "limits": "10 | 9",
        "fuzzing": "1 | 1",
        "properties": "100 | 100",
        "disks": "1 | 0",
        "all": "112 | 110",
    }
    assert "test_expected: explained here" in text and "test_skipped: Skipped: not on" in text
    assert text.startswith(f"before\n{BEGIN}\n| group") and text.endswith(f"{END}\nafter\n")
    assert "old" not in text and "`make battery` at commit" in text
