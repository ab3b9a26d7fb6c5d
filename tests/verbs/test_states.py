"""captioner states: collects a table, and searches it without the model."""

import json
from pathlib import Path

import pytest

from captioner.cli import main
from captioner.inspection.states import StateTable


@pytest.fixture(scope="module")
def table(run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("states") / "made" / "states.safetensors"
    arguments = ["--split", "test", "--limit", "4", "--references", "2", "--output", str(path)]
    assert main(["states", "collect", str(run), *arguments]) == 0
    return path


def states(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    capsys.readouterr()
    assert main(["states", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_collected_table_has_the_captions_of_the_images(table, run, tmp_path, capsys) -> None:
    loaded = StateTable.load(table)
    assert len(loaded) == 8 and len(set(loaded.images)) == 4
    own = tmp_path / "own.safetensors"
    flags = ("--split", "test", "--limit", 2, "--references", 0, "--output", own, "--json")
    printed = json.loads(states(capsys, "collect", run, *flags))
    assert printed == {
        "captions": 2,
        "steps": len(StateTable.load(own).words),
        "file": str(own),
    }


def test_top_prints_words_and_places(table, capsys) -> None:
    arguments = ("top", table, "--unit", 3, "--site", "cell.memory", "--count", 2)
    printed = states(capsys, *arguments)
    title, *parts = printed.split("\n\n")
    assert title.startswith("unit 3 of cell.memory, mean ")
    assert title.splitlines()[1] == "read\tmean\trest\tsteps"
    assert [len(part.strip().splitlines()) for part in parts] == [3, 3, 3]
    found = json.loads(states(capsys, *arguments, "--json"))
    highest = StateTable.load(table).unit("cell.memory", 3).max()
    assert found["highest"][0]["value"] == pytest.approx(highest)


def test_find_prints_units_and_places(table, capsys) -> None:
    loaded = StateTable.load(table)
    phrase = loaded.reads[5][-1]
    arguments = ("find", table, "--phrase", phrase, "--caption", 5, "--threshold", 0.05, "--wider")
    printed = states(capsys, *arguments).splitlines()
    assert printed[0].startswith("caption 5: X_0 <start> ") and f"[{phrase}]" in printed[0]
    found = json.loads(states(capsys, *arguments, "--json"))
    signed = [f"{'+' if s > 0 else '-'}{u}" for u, s in zip(found["units"], found["signs"])]
    assert printed[1] == f"units that are on: {' '.join(signed)}"
    assert printed[2] == f"{len(found['matches'])} places in other captions"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["top", "TABLE", "--unit", "9999"], 1, "unit=9999 is not accepted; choose 0 to 63"),
        (["top", "TABLE", "--unit", "1", "--site", "cell.memori"], 1, "did you mean cell.memory"),
        (["top", "setup.cfg", "--unit", "1"], 1, "is not a table of states"),
        (["top", "none.safetensors", "--unit", "1"], 1, "none.safetensors: no such file"),
        (["find", "TABLE", "--phrase", "quokka"], 1, "no caption of the table has these words"),
        (["find", "TABLE", "--phrase", "a", "--threshold", "9"], 1, "no unit is on"),
        (["top", "TABLE"], 2, "top needs --unit"),
        (["find", "TABLE", "--phrase", "a", "--unit", "3"], 2, "--unit belongs to top"),
        (["top", "TABLE", "--unit", "3", "data.root=x"], 2, "top accepts no 'data.root=x'"),
        (["collect", "RUN"], 2, "collect needs --output"),
        (["collect", "RUN", "--output", "setup.cfg"], 1, "ends in .safetensors would be replaced"),
        (["collect", "RUN", "--output", "a.safetensors", "--limit", "0"], 1, "limit=0 is not"),
    ],
)
def test_mistakes_are_told_in_one_line(table, run, arguments, status, says, capsys) -> None:
    places = {"TABLE": str(table), "RUN": str(run)}
    try:
        assert main(["states", *(places.get(word, word) for word in arguments)]) == status
    except SystemExit as leaving:
        assert leaving.code == status
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
