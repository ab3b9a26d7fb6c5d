"""Tab completion, tested in real shells if they are installed."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from captioner import config
from captioner.cli import VERBS, main
from captioner.verbs import candidates

ROOT = Path(__file__).resolve().parents[2]


def script(shell: str, capsys: pytest.CaptureFixture) -> str:
    """The shell code, with ``captioner`` as it is run in this test."""
    assert main(["completion", shell]) == 0
    return f'captioner() {{ {sys.executable} -m captioner "$@"; }}\n{capsys.readouterr().out}'


def test_bash_completes_verbs_flags_paths_models_groups_and_values(capsys, tmp_path) -> None:
    (tmp_path / "my photos").mkdir()
    (tmp_path / "my photos" / "a.jpg").touch()
    (tmp_path / "runs" / "nic" / "checkpoints").mkdir(parents=True)
    cells = list(importlib.import_module("captioner.models.recurrence.unroll").CELLS)
    expected = {
        "captioner ": sorted(VERBS),
        "captioner caption --length-r": ["--length-rule"],
        "captioner caption --model ru": ["runs/", "runs/nic"],
        "captioner caption 'my photos/": ["my photos/a.jpg"],
        "captioner evaluate flic": ["flickr8k", "flickr8k_cn"],
        "captioner evaluate flickr8k --split ": ["dev", "test", "train"],
        "captioner compare runs/nic --split t": ["test", "train"],
        "captioner score x.csv --metrics bleu,c": ["bleu,cider", "bleu,cider-d", "bleu,clip"],
        "captioner states find x --sh": ["--share"],
        "captioner states top x --site cell.m": ["cell.memory"],
        "captioner train --multi": ["--multirun"],
        "captioner train decoder.cell=": sorted(cells),
        "captioner train -m decoder.cell=gru,ir": ["gru,irnn"],
        "captioner train decoder=tr": ["transformer"],
        "captioner train decoder=transformer decoder.fe": ["decoder.feedforward_size="],
        "captioner train resume=runs/n": ["runs/nic"],
        "captioner train data.root=my": ["my\\ photos/"],
    }
    query = script("bash", capsys) + "COMP_WORDBREAKS=$' \\t\\n\"\\'><=;|&(:'\n"
    for line in expected:
        query += (
            f'COMP_LINE="{line}" COMP_POINT={len(line)} COMP_TYPE=9 _python_argcomplete captioner\n'
            'printf "%s\\n" "${COMPREPLY[@]}" --\n'
        )
    done = subprocess.run(["bash", "-c", query], capture_output=True, text=True, cwd=tmp_path)
    answers = [sorted(part.split("\n")) for part in done.stdout.split("\n--\n")[:-1]]
    assert [[word.rstrip() for word in answer if word] for answer in answers] == list(
        expected.values()
    )


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh")
def test_zsh_accepts_it_without_compinit(capsys) -> None:
    query = script("zsh", capsys) + "print $_comps[captioner]"
    done = subprocess.run(["zsh", "-f", "-c", query], capture_output=True, text=True)
    assert done.stdout.strip() == "_python_argcomplete", done.stderr


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh")
@pytest.mark.parametrize(
    "line, expected",
    [
        ("captioner mod", [f"models:{VERBS['models']}"]),
        ("captioner models ", ["list", "export"]),
        ("captioner models export ", ["flickr8k", "flickr8k_cn", "mine/"]),
        ("captioner models export flickr8k ", ["mine/"]),
        ("captioner models export flickr8k mine ", ["decoding=", "decoding."]),
        ("captioner models --runs mine ", ["list", "export"]),
        ("captioner compare x --format ", ["text", "markdown", "json"]),
    ],
)
def test_zsh_shows_descriptions_if_there_are_any(line, expected, capsys, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    query = script("zsh", capsys) + '_describe() { print -rl -- "${(@P)2}" }\n'
    query += f"BUFFER='{line}' CURSOR={len(line)} words=(captioner)\n_python_argcomplete"
    done = subprocess.run(["zsh", "-f", "-c", query], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish")
def test_fish_accepts_it(capsys) -> None:
    assert main(["completion", "fish"]) == 0
    code = capsys.readouterr().out + "\ncomplete -c captioner"
    done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True)
    assert "__fish_captioner_complete" in done.stdout, done.stderr


def test_a_shell_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from captioner.verbs import candidates as c\n"
        "assert 'decoder.cell=gru' in c.overrides('decoder.cell=', ['train'])\n"
        "assert 'decoder.cell=' in c.overrides('decoder.', ['train', 'experiment=demo'])\n"
        "heavy = {'torch', 'numpy', 'PIL', 'nltk', 'pytorch_lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_resume_completes_only_runs_with_an_optimizer(tmp_path, monkeypatch) -> None:
    (tmp_path / "runs" / "nic" / "checkpoints").mkdir(parents=True)
    (tmp_path / "best.ckpt").touch()
    monkeypatch.chdir(tmp_path)
    assert candidates.overrides("resume=", ["train"]) == ["resume=runs/nic", "resume=runs/"]
    for name in ("flickr8k", "runs/nic", "best.ckpt"):
        assert f"resume_weights={name}" in candidates.overrides("resume_weights=", ["train"])


@pytest.mark.parametrize("option", candidates.TABLES)
def test_the_names_offered_are_those_of_the_table(option: str) -> None:
    file, _, name = candidates.TABLES[option].partition(":")
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    table = getattr(importlib.import_module(f"captioner.{module}"), name)
    assert candidates.values(option, "") == list(table)


def test_every_option_that_chooses_from_a_table_offers_its_names() -> None:
    """Each ``pick(TABLE, …, "group.key")`` and ``unknown("group.key", …)`` has its candidates."""
    options = set()
    for path in (ROOT / "captioner").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        options |= set(re.findall(r'pick\([A-Z]\w*, .*?, "([a-z_]+\.[a-z_]+)"\)', text))
        options |= set(re.findall(r'unknown\("([a-z_]+\.[a-z_]+)", ', text))
    assert options
    assert options <= {*candidates.TABLES, *candidates.KINDS}
    precisions = importlib.import_module("captioner.models.precision").TRAINER.values()
    assert {"auto", *precisions} == set(candidates.values("trainer.precision", ""))


def test_every_group_and_value_is_offered() -> None:
    composed = config.compose()
    offered = candidates.overrides("", ["train"])
    assert {f"{group}=" for group in config.groups()} <= set(offered)
    for name, value in composed.items():
        assert f"{name}." if isinstance(value, dict) else f"{name}=" in offered
    assert candidates.overrides("decoder.tie_weights=", ["train"])[0] == "decoder.tie_weights=true"
    assert {"data=", "tokenizer.", "seed="} <= set(candidates.overrides("", ["data"]))
    assert "decoder=" not in candidates.overrides("", ["data"])
    assert "objective.rewards.cider=" in candidates.overrides("tr.", ["train", "objective=scst"])


def test_options_of_a_folder_of_the_user_are_offered(tmp_path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    offered = candidates.overrides("experiment=", ["train"], str(tmp_path))
    assert {"experiment=mine", "experiment=demo"} <= set(offered)
    assert "experiment=mine" not in candidates.overrides("experiment=", ["train"])
    assert candidates.overrides("seed=", ["train", "experiment=mine"], str(tmp_path)) == ["seed=7"]


def test_a_tilde_that_the_shell_does_not_expand_is_expanded(tmp_path, monkeypatch) -> None:
    from captioner.verbs.terminal import build_parser

    monkeypatch.setenv("HOME", str(tmp_path))
    parser = build_parser("x", "", "")
    parser.add_argument("path")
    parser.add_argument("--output")
    options = parser.parse_args(
        [
            "~/a b.jpg",
            "--output=~/c",
        ]
    )
    assert (options.path, options.output) == (f"{tmp_path}/a b.jpg", f"{tmp_path}/c")
