"""Run folders: each belongs to one training, and failed starts leave nothing."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from captioner import runs
from captioner.runs import Taken, claimed


def elsewhere(folder: Path) -> "subprocess.Popen[str]":
    """Another process that claims a folder until its standard input ends."""
    code = (
        "import sys; from captioner.runs import claimed\n"
        "with claimed(__import__('pathlib').Path(sys.argv[1])) as claim:\n"
        "    print(claim.folder.name, flush=True); sys.stdin.read(); claim.keep = True\n"
    )
    arguments = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder.parent
    )


@pytest.mark.reliability("processes")
def test_a_folder_claimed_by_another_process_is_refused_until_it_ends(tmp_path) -> None:
    folder = tmp_path / "run"
    with elsewhere(folder) as process:
        assert process.stdout.readline() == "run\n"
        with pytest.raises(Taken, match="another training uses this folder"), claimed(folder):
            pass
        with pytest.raises(Taken, match="another training uses"), claimed(folder, resumes=True):
            pass
        assert (folder / "checkpoints").is_dir()
        process.kill()
    with claimed(folder) as claim:  # started and killed before it had a checkpoint
        claim.keep = True
    assert sorted(os.listdir(folder)) == ["checkpoints"]


@pytest.mark.reliability("processes")
def test_two_trainings_in_the_same_second_get_two_folders(tmp_path) -> None:
    date = tmp_path / "2026-11-28_05-47-20"
    with elsewhere(date) as process:
        assert process.stdout.readline() == f"{date.name}\n"
        with claimed(date) as second, claimed(date) as third:
            assert second.folder.name == f"{date.name}_2"
            assert third.folder.name == f"{date.name}_3"
            second.keep = third.keep = True
        process.communicate()
    with claimed(date) as fourth:  # their folders have no checkpoint, but they have ended
        assert fourth.folder == date


@pytest.mark.reliability("processes")
def test_without_locks_the_checkpoint_folder_is_the_claim(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runs, "_locked", lambda folder: None)
    with claimed(tmp_path / "run") as claim:
        with pytest.raises(Taken, match="another training uses"), claimed(tmp_path / "run"):
            pass
        claim.keep = True


def test_a_folder_with_a_checkpoint_is_resumed_or_refused(tmp_path) -> None:
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.write_bytes(b"weights")
    with pytest.raises(Taken, match="already has a run: resume="), claimed(tmp_path / "run"):
        pass
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "run", resumes=True):
        raise KeyboardInterrupt
    assert last.read_bytes() == b"weights"


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_the_advice_about_a_taken_folder_can_be_pasted(tmp_path, name: str) -> None:
    folder = tmp_path / "a b 图-[x]"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / name).write_bytes(b"weights")
    with pytest.raises(Taken) as raised, claimed(folder):
        pass
    key = "resume" if name == "last.ckpt" else "resume_weights"
    assert f"'{key}={folder}'" in str(raised.value)


@pytest.mark.reliability("interrupted")
def test_a_failed_start_leaves_nothing(tmp_path) -> None:
    with pytest.raises(ValueError), claimed(tmp_path / "new" / "deep" / "run") as claim:
        (claim.folder / "config.yaml").write_text("seed: 1\n")
        (claim.folder / "logs" / "csv").mkdir(parents=True)
        raise ValueError
    assert os.listdir(tmp_path) == []


@pytest.mark.reliability("interrupted")
def test_files_from_before_a_failed_start_are_kept(tmp_path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine").write_text("precious")
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(ValueError), claimed(tmp_path) as claim:
        (claim.folder / "config.yaml").write_text("seed: 1\n")
        (claim.folder / "plan.txt").write_text("written meanwhile")
        raise ValueError
    assert sorted(os.listdir(tmp_path)) == ["logs", "notes.txt", "plan.txt"]
    assert (tmp_path / "logs" / "mine").read_text() == "precious"


@pytest.mark.reliability("interrupted")
def test_a_failure_after_training_keeps_the_folder(tmp_path) -> None:
    with pytest.raises(ValueError), claimed(tmp_path / "run") as claim:
        (claim.folder / "config.yaml").write_text("seed: 1\n")
        claim.keep = True
        raise ValueError
    assert (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.reliability("processes")
def test_other_processes_of_one_training_share_the_claim(tmp_path, monkeypatch) -> None:
    with claimed(tmp_path / "2026-11-28_05-47-20") as first:
        assert os.environ[runs.VARIABLE] == str(first.folder)
        with monkeypatch.context() as patch:
            patch.setenv("LOCAL_RANK", "1")
            with (
                pytest.raises(ValueError),
                claimed(tmp_path / "2026-11-28_05-47-21") as second,
            ):
                assert second.folder == first.folder
                raise ValueError
        assert first.folder.is_dir()  # a process must not remove the folder of another
        first.keep = True
    assert runs.VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("file", FileExistsError),
        ("file/below", NotADirectoryError),
        ("x" * 300, OSError),
        ("new/" + "x" * 300, OSError),
    ],
)
def test_a_folder_that_cannot_be_made_is_named(tmp_path, name: str, kind: type) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(kind) as error, claimed(tmp_path / name):
        pass
    assert error.value.filename == f"run_dir={tmp_path / name}"
    assert os.listdir(tmp_path) == ["file"]


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with claimed(Path("~/runs/x")) as claim:
        assert claim.folder == tmp_path / "runs" / "x"


OTHER_FILES = {
    ("config/loading.py", "config.yaml"): "of conf/",
    ("data/readers.py", "captions.jsonl"): "of a dataset",
    ("data/shapes.py", "captions.jsonl"): "of a dataset",
    ("data/worlds.py", "captions.jsonl"): "of a dataset",
    ("models/encoders/downloads.py", "checkpoints"): "of torch.hub",
    ("report/report.py", "report.html"): "the template",
}
"""Files of the same name that are in no run folder, by the module that names them."""


def names_in(module: Path) -> set[str]:
    """The strings of a module that are a file name, and the parts of those that are a path."""
    nodes = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    texts = (node.value for node in nodes if isinstance(node, ast.Constant))
    return {
        part
        for text in texts
        if isinstance(text, str) and " " not in text
        for part in text.split("/")
    }


def test_no_other_module_knows_a_file_name_in_a_run_folder() -> None:
    constants = {name: value for name, value in vars(runs).items() if name.isupper()}
    del constants["VARIABLE"]
    names = {value for value in constants.values() if isinstance(value, str)}
    assert {"best.ckpt", "scores.json", "multirun.yaml", "logs"} <= names
    package = Path(runs.__file__).parent
    known = {
        (str(module.relative_to(package)), name)
        for module in package.rglob("*.py")
        for name in names & names_in(module)
    }
    own = {("runs.py", name) for name in names}
    assert known - own == set(OTHER_FILES)


def test_files_of_a_run_are_at_their_documented_places(tmp_path) -> None:
    run = tmp_path / "run"
    folder = runs.evaluation_folder(run, data="shapes", split="dev", decoding="beam3")
    for file in (runs.checkpoint_file(run), runs.epoch_file(run, 7), folder / runs.SCORES):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    assert (run / "checkpoints" / "epoch-07.ckpt").is_file()
    assert runs.find_checkpoint(run) == run / "checkpoints" / "best.ckpt"
    assert runs.find_checkpoint(run / "checkpoints") == run / "checkpoints" / "best.ckpt"
    assert runs.find_checkpoint(run, runs.LAST) is None
    assert runs.checkpoint_run(runs.epoch_files(run)[0]) == run
    assert runs.find_runs(tmp_path) == [run]
    assert runs.evaluation_run(folder) == run
    assert runs.evaluations(run) == runs.evaluations(run, "beam3") == [folder]
    assert runs.evaluations(run, "greedy") == []
    assert runs.find_evaluation(run, split="dev") == folder
    with pytest.raises(FileNotFoundError, match="has only shapes-dev/beam3.*nic --split test"):
        runs.find_evaluation(run, split="test", name="nic")
