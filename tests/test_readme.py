"""README and docs against the project: commands parse, links lead somewhere, it stays short."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from captioner.cli import VERBS
from captioner.config import checked, options

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "datasets").rglob("README.md")),
    *sorted((ROOT / "experiments").rglob("README.md")),
]


def commands(page: Path) -> list[str]:
    """The captioner lines of a page's code blocks, continued lines joined, comments cut."""
    blocks = re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.startswith("captioner ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_what_exists(page: Path) -> None:
    for command in commands(page):
        _, verb, *words = shlex.split(command)
        assert verb in {*VERBS, "VERB", "--help"}, command
        overrides = [word for word in words if re.match(r"[a-z_./]+=", word)]
        plugins = any(word.startswith("hydra/") for word in words)  # of the extra [sweep]
        if plugins and importlib.util.find_spec("optuna") is None:
            continue
        if verb == "train" or (verb == "data" and words):
            checked(overrides, several="-m" in words)  # raises where a key or name is not there
        if verb == "evaluate":
            keys = {one.partition("=")[0].split(".")[0] for one in overrides}
            assert keys <= {"data", "decoding", "loader"}, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_the_readme_is_short_and_says_what_make_does() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"make {target}\n" in text
        assert f"make {target}\n" in script
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_experiment_is_mentioned() -> None:
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    for name in options("experiment"):
        assert f"`{name}`" in text


@pytest.mark.parametrize("group", ["decoding", "decoder", "training", "tokenizer"])
def test_every_option_of_a_group_is_mentioned(group: str) -> None:
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert [name for name in options(group) if f"`{name}`" not in text] == []
