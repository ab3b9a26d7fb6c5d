"""Overrides as typed: values that Hydra's grammar refuses are quoted, others are unchanged."""

import subprocess
from pathlib import Path

import pytest

from captioner import config
from captioner.overrides import as_hydra_reads, parse, shell_word

VALUES = [
    # typed, the value
    ("data.root=photos", "photos"),
    ("data.root=My Data (1)", "My Data (1)"),
    ("data.root='My Data (1)'", "My Data (1)"),
    ("data.root=数据/图片", "数据/图片"),
    ("data.root=/home/josé/x", "/home/josé/x"),
    ("data.root=it's #3", "it's #3"),
    ('data.root=a "b"', 'a "b"'),
    ("data.root=a;b&c|d<e>", "a;b&c|d<e>"),
    ("data.root=C:\\photos", "C:\\photos"),
    ("data.root=~/x", str(Path.home() / "x")),
    ('data.root="~/x"', str(Path.home() / "x")),
    ("data.root=x~", "x~"),
    ("data.root=~nobody-of-this-name/x", "~nobody-of-this-name/x"),
    ("data.root=2024", "2024"),
    ("data.root=1e5", "1e5"),
    ("data.root=true", "true"),
    ("data.root=null", None),
    ("data.captions=null", None),
    ("data.captions=[数据/a.json,b (1).json]", ["数据/a.json", "b (1).json"]),
    ("resume=runs/sw/0_seed=1", "runs/sw/0_seed=1"),
    ('resume="runs/sw/0_seed=1"', "runs/sw/0_seed=1"),
    ("resume=runs/sw/0_seed\\=1", "runs/sw/0_seed=1"),
    ("resume=runs/sw/3_decoder.cell=gru,seed=1", "runs/sw/3_decoder.cell=gru,seed=1"),
    ("resume_weights=5", "5"),
    ("run_dir=runs/a=b (c), d", "runs/a=b (c), d"),
    ("run_dir=runs/${seed}", "runs/${seed}"),
    ("decoding.prefix=it's", "it's"),
    ("decoding.prefix=", ""),
    ("decoding.banned_words=[dog,'red ball']", ["dog", "red ball"]),
    ("decoding.banned_words=[don't,'red, ball',x y]", ["don't", "red, ball", "x y"]),
    ("objective.rewards={cider:1.0,bleu4:0.5}", {"cider": 1.0, "bleu4": 0.5}),
    ("optimizer.lr=1e-3", 0.001),
    ("seed=7", 7),
    ("loader.cache=false", False),
    ("optimizer.lr=float(1)", 1.0),
    ("decoder.cell=None", "None"),
    ("+user.file=~/a b", str(Path.home() / "a b")),
]


@pytest.mark.parametrize(("typed", "value"), VALUES)
def test_a_value_is_parsed_as_typed(typed: str, value: object) -> None:
    (change,) = parse([typed])
    assert change.value() == value
    assert type(change.value()) is type(value)
    again = as_hydra_reads(str(change.input_line))  # values are not quoted twice
    assert parse([again])[0].value() == value


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("seed=1,2", [1, 2]),
        ("decoder.cell=rnn,gru", ["rnn", "gru"]),
        ("data.root=josé,My Data (1)", ["josé", "My Data (1)"]),
        ("resume_weights=runs/a,runs/b", ["runs/a", "runs/b"]),
        ("decoding.prefix='a, b',it's", ["a, b", "it's"]),
        ("decoder.cell=choice(rnn,josé)", ["rnn", "josé"]),
        ("seed=range(1,4)", ["1", "2", "3"]),
    ],
)
def test_a_sweep_is_parsed_as_a_sweep(typed: str, values: list) -> None:
    (change,) = parse([typed], several=True)
    assert change.is_sweep_override()
    elements = change.value().list if change.is_choice_sweep() else change.sweep_string_iterator()
    assert [getattr(element, "text", element) for element in elements] == values


def test_an_existing_path_is_used_as_typed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "[x]", "0_cell=gru,seed=1", "2024", "choice(a,b)"):
        (tmp_path / name).mkdir()
        assert parse([f"data.root={name}"], several=True)[0].value() == name


@pytest.mark.parametrize("typed", ["a b=c", "decoder.cell", "x={a: José}", "x=[1,[2,José]]"])
def test_an_invalid_override_says_how_to_quote(typed: str) -> None:
    with pytest.raises(ValueError, match="is not an override; write key=value.*in quotes") as error:
        parse([typed])
    assert "\n" not in str(error.value)


def test_several_values_are_for_multirun(tmp_path) -> None:
    for typed in ("decoder.cell=rnn,gru", "seed=range(1,3)", "decoder=glob(*)"):
        with pytest.raises(ValueError, match="several values are for train -m"):
            config.compose([typed])


def test_odd_paths_reach_the_configuration(tmp_path) -> None:
    root = tmp_path / "数据 (1) it's=#,~"
    assert config.compose([f"data.root={root}"])["data"]["root"] == str(root)
    trained = config.compose()
    changed = config.override(trained, [f"data.root={root}", "decoding.prefix=a, b (c)"])
    assert changed["data"]["root"] == str(root)
    assert changed["decoding"]["prefix"] == "a, b (c)"


@pytest.mark.parametrize(
    "name", ["a b", "图-[x]", "a,b=c", "it's $HOME {x}", "(1) \\ #2", "-x", "~y"]
)
def test_an_advised_override_can_be_pasted_into_a_shell(tmp_path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    command = f"printf %s {shell_word('resume', folder)}"
    typed = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    [change] = parse([typed])
    assert change.value() == str(folder)


def test_plain_words_are_not_quoted() -> None:
    assert shell_word("resume", "/runs/a-1") == "resume=/runs/a-1"
