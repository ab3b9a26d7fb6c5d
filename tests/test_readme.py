"""README and docs: commands parse, links and paths exist, every option is described."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from captioner.cli import VERBS
from captioner.config import checked, conf_folder

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "datasets").rglob("README.md")),
    *sorted((ROOT / "experiments").rglob("*.md")),
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "captioner" / "bundled" / "flickr8k" / "card.md",
]


def commands(page: Path) -> list[str]:
    """The captioner commands in a page's code blocks, on one line each, without comments."""
    blocks = re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.startswith("captioner ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_use_existing_names(page: Path) -> None:
    for command in commands(page):
        _, verb, *words = shlex.split(command)
        assert verb in {*VERBS, "VERB", "--help"}, command
        overrides = [word for word in words if re.match(r"[a-z_./]+=", word)]
        plugins = any(word.startswith("hydra/") for word in words)  # of the extra [sweep]
        if plugins and None in map(importlib.util.find_spec, ("optuna", "joblib", "submitit")):
            continue
        if "mine:Bigram" in command:  # the class in CONTRIBUTING.md
            continue
        if verb == "train" or (verb == "data" and words):
            checked(overrides, several="-m" in words)  # raises if a key or name does not exist
        if verb == "evaluate":
            keys = {override.partition("=")[0].split(".")[0] for override in overrides}
            assert keys <= {"data", "decoding", "loader"}, command


def without_code(page: Path) -> str:
    """The text of a page without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_to_existing_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", without_code(page)):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_paths_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    folders = "captioner|conf|datasets|docs|experiments|tests"
    for path in re.findall(rf"(?<![\w./-])((?:{folders})/[\w./-]*\w)(?![\w*{{])", text):
        drawn = path.startswith(("datasets/shapes/", "datasets/worlds/"))
        if "NAME" not in path and not drawn:
            assert (ROOT / path).exists(), path
    for module in re.findall(r"(?:from|import) (captioner[\w.]*)", text):
        importlib.import_module(module)


DIALECT = (
    r"looks? at dev",
    r"hears? ",
    r"word numbers",
    r"model in the box",
    r"parted",
    r"by lot",
    r"pass(?:es|ed)? over",
    r"(?:goes|go|went|going) on\b",
    r"st(?:ands?|ood|anding) (?:in|at|there|below|beside)\b",
    r"ledger",
    r"odd(?:ity|ities)?\b(?! views)",
)
"""What the documentation calls otherwise: validation, token ids, separated, at random, skipped."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_standard_words(page: Path) -> None:
    text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    assert re.findall("|".join(rf"\b{phrase}" for phrase in DIALECT), text) == []


def test_the_readme_is_short_and_names_the_make_targets() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"make {target}\n" in text
        assert f"make {target}\n" in script
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def document(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("experiment", "training"),
        ("objective", "training"),
        ("optimizer", "training"),
        ("schedule", "training"),
        ("tokenizer", "training"),
        ("decoding", "decoding"),
        ("decoder", "models"),
    ],
)
def test_every_option_of_a_group_is_described(group: str, name: str) -> None:
    names = [path.stem for path in sorted((conf_folder() / group).glob("*.yaml"))]
    assert [option for option in names if f"`{option}`" not in document(name)] == []
