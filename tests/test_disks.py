"""A full or failing disk: one line, exit status 1, and what was there before is whole."""

import errno
import itertools
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.moments import Training, differences, filling_disk, final_state

from captioner.checkpoints import checkpoint
from captioner.cli import main
from captioner.data.datamodule import CaptionDataModule
from captioner.data.feature_store import require_room
from captioner.files import append, write_whole
from captioner.metrics import java
from captioner.runs import CAPTIONS, evaluation_folder
from captioner.training.disk_space import require_space
from captioner.training.isolation import isolated
from captioner.training.loggers import build_loggers
from captioner.training.module import LitCaptioner

pytestmark = pytest.mark.reliability("disks")

LEARNED = (
    "encoder=efficientnet_lite0",
    "encoder.network=efficientnet_lite0",
    "encoder.pretrained=true",
    "encoder.image_size=64",
    "callbacks.ema=0.9",
    "callbacks.keep=2",
    "callbacks.samples=2",
    "callbacks.save_every=4",
    "callbacks.progress=false",
)
"""A training that has everything in its run folder; its model can be exported."""


class Place:
    """A folder with a run, photographs and the outputs of all commands, which fail in it."""

    def __init__(self, folder: Path, tiny: tuple[str, ...]) -> None:
        self.root, self.log = folder / "work", folder / "log"
        self.run, self.out = self.root / "run", self.root / "out"
        self.out.mkdir(parents=True)
        data = next(Path(line[10:]) for line in tiny if line.startswith("data.root="))
        self.photo = str(sorted((data / "images").glob("test*"))[0])
        self.captions = str(data / "captions.jsonl")
        os.environ["CAPTIONER_CACHE"] = str(self.root / "cache")
        self.start = ["train", *tiny, *LEARNED, f"run_dir={self.run}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny) -> Iterator[Place]:
    before = os.environ["CAPTIONER_CACHE"]
    place = Place(tmp_path_factory.mktemp("disks"), tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(java.shutil, "which", lambda name: None)  # METEOR takes a second
        assert main(place.start) == 0
        yield place
    os.environ["CAPTIONER_CACHE"] = before


def faults(status: int, log: Path) -> list[str]:
    """What is wrong with the end of a command whose disk was full: nothing, or a line."""
    said = log.read_text(encoding="utf-8", errors="replace")
    errors = [line for line in said.splitlines() if line.startswith("captioner: error: ")]
    good = len(errors) == 1 and "no space left on device" in errors[0] and "Traceback" not in said
    return [] if good and status == 1 else [f"exit status {status}: {said[-900:]}"]


PARTS = 3
"""The writes are tested in parts, so that several processes can share them."""


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Iterator[Training]:
    before = os.environ["CAPTIONER_CACHE"]
    yield Training(tmp_path_factory.mktemp("training"))
    os.environ["CAPTIONER_CACHE"] = before


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_a_training_on_a_full_disk_loses_nothing(training, record_property, part: int) -> None:
    """At each of its writes; with space again it completes to the bit."""
    moments, bad = range(len(training.moments))[part::PARTS], []
    with filling_disk(training.root, training.log) as run:
        for moment in moments:
            training.clear()
            status, names = run(training.start, moment)
            lines = faults(status, training.log) + training.problems()[:3]
            bad += [f"{moment}, before {names[moment]}: {line}" for line in lines]
    record_property("cases", len(moments))
    assert len(training.moments) > 65 and not bad, "\n".join(bad)


COMMANDS: dict[str, Callable[[Place], list[str]]] = {
    "evaluate": lambda p: ["evaluate", str(p.run), "data.split=test"],
    "report": lambda p: ["report", str(p.run), "--split", "test"],
    "caption": lambda p: [
        *("caption", p.photo, "--model", str(p.run), "--output", f"{p.out}/captions.txt"),
    ],
    "inspect page": lambda p: [
        *("inspect", p.photo, "--model", str(p.run), "--output", f"{p.out}/page.html"),
    ],
    "inspect trace": lambda p: [
        *("inspect", p.photo, "--model", str(p.run), "--save", f"{p.out}/trace.safetensors"),
    ],
    "states": lambda p: [
        *("states", "collect", str(p.run), "--split", "test"),
        *("--output", f"{p.out}/states.safetensors"),
    ],
    "average": lambda p: ["average", str(p.run), "--output", f"{p.out}/average.ckpt"],
    "export": lambda p: ["models", "export", str(p.run), f"{p.out}/exported"],
    "score": lambda p: [
        "score",
        str(evaluation_folder(p.run, data="shapes", split="test", decoding="greedy") / CAPTIONS),
        *(p.captions, "--subset", "--output", f"{p.out}/scores.json", "--format", "json"),
        *("--statistics", f"{p.out}/statistics"),
    ],
    "compare": lambda p: [
        *("compare", str(p.run), f"{p.out}/statistics", "--anyway"),
        *("--output", f"{p.out}/table.md", "--format", "markdown"),
    ],
}


NEEDED = {"report": ["evaluate"], "score": ["evaluate"], "compare": ["evaluate", "score"]}
"""The commands whose results a command reads."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("caption", "average") else pytest.mark.slow)
        for name in COMMANDS
    ],
)
def test_a_command_on_a_full_disk_leaves_what_was_there(place, record_property, name: str) -> None:
    arguments = COMMANDS[name](place)
    for needed in NEEDED.get(name, []):
        assert main(COMMANDS[needed](place)) == 0
    new = name in ("average", "export")  # they replace nothing
    before = {} if new else contents(place, arguments)
    bad = []
    with filling_disk(place.root, place.log) as run:
        for moment in itertools.count():
            status, names = run(arguments, moment)
            if len(names) <= moment:  # it does not need the disk
                break
            after = contents(place)
            lost = [f"{path} is gone or not whole" for path in before if path not in after]
            bad += [f"{moment}: {line}" for line in faults(status, place.log) + lost]
    assert status == 0, place.log.read_text()
    record_property("cases", moment)
    assert moment and not bad, "\n".join(bad)


def contents(place: Place, arguments: list[str] | None = None) -> dict[str, bytes]:
    if arguments is not None:
        assert main(arguments) == 0
    files = (path for path in place.root.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


# Before a training starts -----------------------------------------------------------------------


def free_bytes(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free))


def test_a_training_says_what_its_checkpoints_and_features_take(tiny, tmp_path, capfd) -> None:
    """At least what they take in the end, and at most three times as much."""
    more = ("callbacks.keep=2", "callbacks.ema=0.9", f"loader.cache_folder={tmp_path}/cache")
    assert main(["train", *tiny, *more, f"run_dir={tmp_path}/run"]) == 0
    said = "".join(capfd.readouterr())
    promised = re.search(r"disk: the checkpoints take up to ([\d.]+) MB, [\d.]+ GB are free", said)
    assert promised
    taken = sum(path.stat().st_size for path in (tmp_path / "run/checkpoints").iterdir()) / 1e6
    assert taken < float(promised[1]) < 3 * taken


@pytest.mark.parametrize("keep", [0, 1])
def test_a_run_whose_files_do_not_fit_twice_is_not_resumed(
    run, tmp_path, monkeypatch, capsys, keep: int
) -> None:
    """Beside last.ckpt, which stays mapped, there are a new one and the one that replaces it."""
    copy = shutil.copytree(run, tmp_path / "run")
    before = {path: path.read_bytes() for path in copy.rglob("*.ckpt")}
    needed = 2 * (copy / "checkpoints/last.ckpt").stat().st_size
    needed += keep * (copy / "checkpoints/best.ckpt").stat().st_size
    free_bytes(monkeypatch, needed - 1)
    resume = ["train", f"resume={copy}", "trainer.max_epochs=16", f"callbacks.keep={keep}"]
    assert main(resume) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    advice = ["or move the run folder to another disk"]
    advice += ["move the run folder to another disk, or lower callbacks.keep"]
    assert f"run_dir={copy}: the checkpoints need up to " in error and error.endswith(advice[keep])
    assert {path: path.read_bytes() for path in copy.rglob("*.ckpt")} == before
    free_bytes(monkeypatch, round(1.05 * needed))
    assert main(resume) == 0


def test_the_cache_says_what_it_will_take(tmp_path, caplog) -> None:
    with caplog.at_level("INFO", "captioner"):
        require_room(tmp_path, count=1000, width=25_000)
        require_room(tmp_path, count=30, width=25_000)  # less than a megabyte
    assert len(caplog.messages) == 1
    says = rf"the features of 1000 images take 25.0 MB in {tmp_path}, [\d.,]+ [MG]B are free"
    assert re.fullmatch(says, caplog.messages[0])


def test_a_disk_that_cannot_hold_the_checkpoints_is_refused_at_once(
    tiny, tmp_path, monkeypatch, capsys
) -> None:
    free_bytes(monkeypatch, 700_000)
    assert main(["train", *tiny, f"run_dir={tmp_path}/run", "callbacks.keep=3"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    says = (
        r"captioner: error: run_dir=\S+/run: the checkpoints need up to [\d.]+ MB, but 0.7 MB are"
    )
    assert re.match(says, error)
    assert error.endswith("free some space, choose another run_dir, or lower callbacks.keep")
    assert not (tmp_path / "run").exists()


def test_features_leave_room_for_the_checkpoints(tmp_path, monkeypatch) -> None:
    """Each would fit alone."""
    free_bytes(monkeypatch, 120_000)
    require_room(tmp_path, count=10, width=10_000, reserved=20_000)
    says = (
        rf"^the features of 10 images need 0.1 MB in {tmp_path}, and the checkpoints 0.0 MB, but "
        r"0.1 MB are free; .*loader.cache_folder.*loader.cache=false"
    )
    with pytest.raises(ValueError, match=says):
        require_room(tmp_path, count=10, width=10_000, reserved=20_001)


@pytest.mark.parametrize("same", [True, False])
def test_room_is_reserved_on_the_same_disk(tiny, tmp_path, disk, monkeypatch, same: bool) -> None:
    cache = tmp_path / "cache" if same else disk("size=9m")
    reserved, original = [], CaptionDataModule.setup

    def watch(self: CaptionDataModule, stage: str) -> None:
        reserved.append(self.reserved)
        original(self, stage)

    monkeypatch.setattr(CaptionDataModule, "setup", watch)
    arguments = ["train", *tiny, f"run_dir={tmp_path}/run", f"loader.cache_folder={cache}/below"]
    assert main(arguments) == 0
    assert (reserved[0] > 10_000) is same


# Real disks --------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command here")
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("callbacks.keep=2", "callbacks.ema=0.9"),
        ("optimizer.amsgrad=true",),
        ("optimizer=sgd",),
        ("loader.cache=false", "training.unfreeze_at=1"),
    ],
)
def test_the_checkpoints_take_what_a_training_has_said(
    tiny, tmp_path, disk, monkeypatch, more: tuple[str, ...]
) -> None:
    """A new training and a resumed one; measured when each checkpoint is complete."""
    place, original, free, said = disk("size=99m"), checkpoint._save, list[int](), list[int]()

    def save(content, file) -> None:
        original(content, file)
        file.flush()
        free.append(shutil.disk_usage(place).free)

    def say(run, *arguments, **options) -> int:
        free[:] = [shutil.disk_usage(place).free]
        said.append(require_space(run, *arguments, **options))
        return said[-1]

    monkeypatch.setattr(checkpoint, "_save", save)
    monkeypatch.setattr("captioner.training.train.require_space", say)
    cache = f"loader.cache_folder={tmp_path}/cache"
    arguments = ["train", *tiny, *more, cache, f"run_dir={place}/run", "callbacks.save_every=2"]
    resume = ["train", f"resume={place}/run", cache, "trainer.max_epochs=6"]
    for command in (arguments, resume):
        assert main(command) == 0
        taken = free[0] - min(free)
        assert 0.9 * said[-1] < taken < said[-1]
    assert len(said) == 2


def test_a_disk_that_fills_up_during_a_training(tiny, disk, monkeypatch, capsys) -> None:
    """The run resumes when there is space again."""
    place = disk("size=24m")
    original, filler = LitCaptioner.training_step, place / "filler"

    def fill(self, batch, batch_index):
        if self.global_step == 7:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(2**16)):
                    pass
        return original(self, batch, batch_index)

    arguments = ["train", *tiny, f"run_dir={place}/run", "callbacks.save_every=2"]
    with monkeypatch.context() as patch:
        patch.setattr(LitCaptioner, "training_step", fill)
        assert main(arguments) == 1
    errors = capsys.readouterr().err.splitlines()
    errors = [line for line in errors if "error" in line]
    assert len(errors) == 1 and "no space left on device; free some space" in errors[0]
    filler.unlink()
    assert main(["train", f"resume={place}/run"]) == 0
    assert main([*arguments, f"run_dir={place}/whole"]) == 0
    resumed, whole = (final_state(place / name) for name in ("run", "whole"))
    assert not differences(whole["last.ckpt"]["state_dict"], resumed["last.ckpt"]["state_dict"])
    assert (whole["log"], whole["samples"]) == (resumed["log"], resumed["samples"])


def test_a_log_of_tensorboard_on_a_full_disk_prints_nothing(disk, monkeypatch) -> None:
    """Its thread fails, and the next write raises the error, which ends the training."""
    pytest.importorskip("tensorboard")
    place, printed = disk("size=64k"), list[object]()
    monkeypatch.setattr(threading, "excepthook", printed.append)
    with isolated():
        (logger,) = build_loggers(place / "run", print, csv=False)
        (place / "filler").write_bytes(bytes(2**16 - 3 * 2**12))
        with pytest.raises(OSError, match="No space left"):
            for step in range(100):
                logger.experiment.add_text("caption", "a " * 1000, step)
                logger.experiment.flush()
    assert not printed


def test_a_disk_that_is_read_only(tiny, run, disk, capsys) -> None:
    place = disk("size=64m")
    copy = shutil.copytree(run, place / "run")
    write_whole(place / "photo.png", Path(next((run_data(tiny) / "images").iterdir())).read_bytes())
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    photo = str(place / "photo.png")
    commands = (
        ["train", *tiny, f"run_dir={place}/new"],
        ["train", f"resume={copy}", "trainer.max_epochs=16"],
        ["evaluate", str(copy)],
        ["caption", photo, "--model", str(copy), "--output", f"{place}/captions.txt"],
        ["inspect", photo, "--model", str(copy), "--output", f"{place}/page.html"],
        ["average", *[str(copy / "checkpoints" / n) for n in ("best.ckpt", "last.ckpt")]],
        ["data", "draw", f"data.root={place}/shapes"],
    )
    bad = []
    for arguments in commands:
        capsys.readouterr()
        status, error = main(arguments), capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("captioner: error: ")]
        if status != 1 or len(lines) != 1 or "read-only file system" not in lines[0]:
            bad.append((arguments, status, error))
    assert not bad
    assert main(["caption", photo, "--model", str(copy)]) == 0  # reading needs no writing


def run_data(tiny: tuple[str, ...]) -> Path:
    return next(Path(line.removeprefix("data.root=")) for line in tiny if "data.root=" in line)


@pytest.mark.parametrize("folder", ["absent", "read-only"])
def test_a_folder_for_temporary_files_that_cannot_be_used(
    tiny, disk, tmp_path, monkeypatch, folder: str
) -> None:
    """TMPDIR: training and checking data need no temporary files there."""
    place = disk("size=1m") if folder == "read-only" else tmp_path / folder
    if folder == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    live = ("loader.cache=false", "loader.workers=1", "trainer.max_epochs=1")
    assert main(["train", *tiny, *live, f"run_dir={tmp_path}/run"]) == 0
    assert main(["data", "check", f"data.root={run_data(tiny)}"]) == 0


def test_a_file_is_appended_to_completely_or_not_at_all(disk) -> None:
    file = disk("size=64k") / "lines"
    append(file, "first\n")
    with pytest.raises(OSError) as error:
        append(file, "x" * 100_000)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(file))
    assert file.read_text() == "first\n"
