"""A stranger's run folder: whatever its files say, nothing outside of it changes.

Every value that could have an effect elsewhere points at a folder of the test, so that an effect
would leave a mark there.
"""

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import yaml
from hypothesis import strategies
from omegaconf import OmegaConf

from captioner import runs
from captioner.checkpoints import checkpoint
from captioner.checkpoints.places import confined
from captioner.cli import main
from captioner.config import compose, override, plain, to_yaml
from captioner.evaluation.results import read_result
from captioner.runs import LAST
from captioner.training.train import train

pytestmark = pytest.mark.reliability("files decide nothing")

SECRET = "the-secret-of-this-machine"
PLANTED = "${oc.env:CAPTIONER_TEST_SECRET}"


@pytest.fixture(scope="module")
def honest(tiny, tmp_path_factory) -> Path:
    """A finished run with kept epochs and an evaluation."""
    folder = tmp_path_factory.mktemp("honest") / "run"
    train(compose([*tiny, "callbacks.keep=2", "callbacks.patience=3"]), folder)
    assert main(["evaluate", str(folder), "--metrics", "bleu,cider-d"]) == 0
    return folder


@pytest.fixture
def outside(tmp_path, monkeypatch) -> Path:
    """A folder with files that must stay as they are; the current folder is next to it."""
    place = tmp_path / "outside"
    for name in ("precious.txt", "folder/also.txt", "epoch-01.ckpt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("precious")
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("CAPTIONER_TEST_SECRET", SECRET)
    return place


@pytest.fixture
def stranger(honest, tmp_path, outside) -> Path:
    """A copy of the run in which all values that could name other files do so."""
    folder = tmp_path / "stranger"
    shutil.copytree(honest, folder)

    def mark(content: dict[str, Any]) -> None:
        config = content["captioner"]["config"]
        config["loader"]["cache_folder"] = str(outside / "cache")
        config["run_dir"] = config["resume"] = str(outside / "run")
        config["training"]["word_vectors"] = str(outside / "vectors.txt")
        config["logger"] |= {"wandb": True, "project": PLANTED}
        config["planted"] = PLANTED
        state = {"best_model_path": f"{outside}/epoch-01.ckpt", "dirpath": str(outside)}
        state |= {
            "best_k_models": {f"{outside}/folder": 0.0, f"{folder}/../outside/precious.txt": 1}
        }
        state |= dict.fromkeys(("last_model_path", "kth_value"), f"{outside}/precious.txt")
        state |= {"kth_best_model_path": f"{folder}/checkpoints/../../outside/precious.txt"}
        if "callbacks" in content:
            content["callbacks"] |= {"ModelCheckpoint": state, "BestCheckpoint": state}
            content["callbacks"] |= {"KeptEpochs": {**state, "ranks": state["best_k_models"]}}

    for file in (folder / "checkpoints").iterdir():
        changed(file, mark)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"seed": 1, "run_dir": str(outside / "run"), "planted": PLANTED}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def changed(file: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the content of a checkpoint in its place."""
    content = torch.load(file, weights_only=True)
    change(content)
    checkpoint.write(content, file)
    return file


def files(*folders: Path) -> dict[str, tuple[int, bytes | str]]:
    """Everything in folders: path -> modification time, and content or target of the link."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        content: bytes | str = "" if path.is_dir() else path.read_bytes()
        content = os.readlink(path) if path.is_symlink() else content
        found[str(path)] = path.lstat().st_mtime_ns, content
    return found


RESUME = ("trainer.max_epochs=4",)
VERBS: dict[str, tuple[str, ...]] = {
    "models": ("models", "--runs", "{parent}"),
    "caption": ("caption", "{image}", "--model", "{run}"),
    "average": ("average", "{run}"),
    "evaluate": ("evaluate", "{run}", "--metrics", "bleu"),
    "compare": ("compare", "{run}", "{honest}", "--resamples", "1000"),
    "report": ("report", "{run}"),
    "resume": ("train", "resume={run}", *RESUME),
    "show": ("train", "resume={run}", *RESUME, "--cfg", "job"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("verb", VERBS)
def test_nothing_outside_of_a_strangers_run_changes(
    verb, stranger, honest, scenes, outside, tmp_path, capfd
) -> None:
    words = {"run": stranger, "parent": stranger.parent, "honest": honest}
    words["image"] = next((scenes / "images").glob("*.png"))
    places = (outside, scenes, honest, tmp_path / "current")
    before = files(*places)
    assert main([word.format_map(words) for word in VERBS[verb]]) == 0, capfd.readouterr().err
    assert files(*places) == before
    printed = "".join(capfd.readouterr())
    texts = [path for path in stranger.rglob("*") if path.suffix in (".yaml", ".json", ".html")]
    assert not [path for path in texts if SECRET in path.read_text()]
    assert SECRET not in printed


@pytest.mark.parametrize(
    ("link", "verb"),
    [
        ("evaluation", "evaluate"),
        ("evaluation/shapes-dev/greedy/scores.json", "evaluate"),
        ("evaluation/shapes-dev/greedy/report.html", "report"),
        ("checkpoints/last.ckpt", "resume"),
        ("checkpoints/epoch-03.ckpt", "resume"),
        ("samples.jsonl", "resume"),
        ("logs/csv", "resume"),
        ("checkpoints/average.ckpt", "average"),
    ],
)
def test_nothing_is_written_through_links_that_lead_out(
    link, verb, honest, outside, tmp_path, capfd
) -> None:
    folder = tmp_path / "linked"
    shutil.copytree(honest, folder)
    place, target = folder / link, outside / "new" / Path(link).name
    if place.exists():
        target.parent.mkdir()
        shutil.move(place, target)
    place.symlink_to(target)
    before = files(outside)
    words = {"run": folder, "parent": tmp_path, "honest": honest}
    assert main([word.format_map(words) for word in VERBS[verb]]) == 1
    assert files(outside) == before
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "symbolic link that leads out of" in error or "already exists" in error


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """An error after a minute: who opens a pipe waits for the other end."""

    def fail(*unused: object) -> None:
        raise AssertionError("waits for a pipe")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make_socket(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(place))  # the length of its name is limited


SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "a pipe"),
    "socket": (make_socket, "a socket"),
    "link to a device": (lambda place: place.symlink_to("/dev/zero"), ""),
    "folder": (os.mkdir, "a folder"),
}
GREEDY = "evaluation/shapes-dev/greedy"
SPECIAL_PLACES = {
    "resume": (
        *("config.yaml", "costs.json", "samples.jsonl", "checkpoints/best.ckpt"),
        *("checkpoints/last.ckpt", "checkpoints/epoch-01.ckpt", "checkpoints/epoch-09.ckpt"),
        "logs/csv/version_0/metrics.csv",
    ),
    "report": (
        *("logs/csv/version_0/metrics.csv", "config.yaml", f"{GREEDY}/report.html"),
        *(f"{GREEDY}/{name}" for name in ("captions.jsonl", "statistics.npz", "config.yaml")),
    ),
    "compare": ("config.yaml", f"{GREEDY}/scores.json", f"{GREEDY}/statistics.npz"),
    "evaluate": ("config.yaml", "checkpoints/best.ckpt", f"{GREEDY}/sheet.png"),
    "average": ("checkpoints/epoch-01.ckpt",),
    "caption": ("checkpoints/best.ckpt",),
}


@pytest.mark.parametrize("verb", SPECIAL_PLACES)
def test_no_command_waits_for_a_pipe_or_reads_a_device(
    verb, honest, scenes, outside, tmp_path, capfd, no_waiting, record_property
) -> None:
    words = {"parent": tmp_path, "honest": honest}
    words["image"] = next((scenes / "images").glob("*.png"))
    wrong, cases = [], [(kind, place) for kind in SPECIAL for place in SPECIAL_PLACES[verb]]
    for number, (kind, name) in enumerate(cases):
        words["run"] = folder = tmp_path / f"{verb}-{number}"
        shutil.copytree(honest, folder)
        place = folder / name
        place.unlink(missing_ok=True)
        SPECIAL[kind][0](place)
        before = files(outside, honest)
        status = main([word.format_map(words) for word in VERBS[verb]])
        error = capfd.readouterr().err
        told = name in error and (SPECIAL[kind][1] in error or "has no checkpoint" in error)
        if status != 1 or error.count("\n") != 1 or not told or files(outside, honest) != before:
            wrong.append((kind, name, status, error))
    record_property("cases", len(cases))
    assert not wrong, wrong


@pytest.mark.parametrize("name", ["jobs.jsonl", "multirun.yaml"])
def test_a_sweep_writes_into_its_own_files(name, tmp_path, capsys, no_waiting) -> None:
    (tmp_path / "other").write_text("mine")
    kinds = {**SPECIAL, "link": (lambda place: place.symlink_to(tmp_path / "other"), "a symbolic")}
    for kind, (make, said) in kinds.items():
        (tmp_path / kind).mkdir()
        make(tmp_path / kind / name)
        assert main(["train", "-m", "seed=1,2", f"run_dir={tmp_path / kind}"]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"{kind}/{name}: " in error and said in error
    assert (tmp_path / "other").read_text() == "mine"


def test_links_within_a_run_and_to_it_are_followed(honest, tmp_path) -> None:
    shutil.copytree(honest, tmp_path / "moved")
    (tmp_path / "name").symlink_to(tmp_path / "moved")
    (tmp_path / "moved" / "checkpoints" / "average.ckpt").symlink_to("best.ckpt")
    (tmp_path / "moved" / "unrelated").symlink_to(tmp_path)
    runs.require_closed(tmp_path / "name")


def test_the_users_own_options_are_used(stranger, outside, capfd) -> None:
    cache = outside / "mine"
    words = ["evaluate", str(stranger), f"loader.cache_folder={cache}", "--metrics", "bleu"]
    assert main(words) == 0
    assert list(cache.glob("*/index"))
    assert "is not used" not in capfd.readouterr().err
    assert not (outside / "cache").exists()


def test_a_warning_says_what_to_give(stranger, outside) -> None:
    config = checkpoint.read(stranger).config
    with pytest.warns(UserWarning) as warned:
        result = confined(config, [])
    lines = [str(warning.message) for warning in warned]
    assert [line.partition(" of the checkpoint is not used")[0] for line in lines] == [
        f"loader.cache_folder={outside}/cache",
        "logger.wandb=True",
    ]
    assert result["loader"]["cache_folder"] is None and result["logger"]["wandb"] is False


def test_drawn_scenes_are_not_drawn_where_a_checkpoint_says(honest, outside, tmp_path, capfd):
    shutil.copytree(honest, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        changed(file, lambda c: c["captioner"]["config"]["data"].update(root=f"{outside}/shapes"))
    before = files(outside)
    for words in (["evaluate", f"{tmp_path}/run"], ["train", f"resume={tmp_path}/run", *RESUME]):
        assert main(words) == 1
        assert f"captioner data draw data.root={outside}/shapes" in capfd.readouterr().err
    assert files(outside) == before


def test_no_weights_are_downloaded_for_a_checkpoint(honest, tmp_path, capfd) -> None:
    def strip(content: dict[str, Any]) -> None:
        weights = content["state_dict"]
        kept = {name: weights[name] for name in weights if not name.startswith("model.encoder.")}
        content["state_dict"] = kept
        content["captioner"]["config"]["encoder"]["pretrained"] = True

    file = changed(Path(shutil.copy(checkpoint.find(honest, name=LAST), tmp_path)), strip)
    with pytest.raises(ValueError, match="has no weights of its encoder"):
        checkpoint.read(file)


# Text stays text --------------------------------------------------------------------------------


@hypothesis.settings(max_examples=50)
@hypothesis.given(strategies.text("${}\\a:.' ", max_size=8))
def test_a_stored_text_is_written_as_it_is(text) -> None:
    stored = {"data": {"root": text, "captions": [text]}}
    assert plain(OmegaConf.create(to_yaml(stored))) == stored


def test_the_users_own_interpolations_are_resolved(monkeypatch) -> None:
    monkeypatch.setenv("CAPTIONER_TEST_SECRET", SECRET)
    stored = {"data": {"root": "x", "images": PLANTED}}
    changed = override(stored, [f"data.root={PLANTED}"])
    assert changed == {"data": {"root": SECRET, "images": PLANTED}}


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefg", "bcdefgh")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"has an alias \(\*a\)"),
        ("a: &a [*a]", r"has an alias \(\*a\)"),
        ("a: " + "[" * 400 + "]" * 400, "nested more than 32 levels deep"),
        ("{b: " * 50 + "1" + "}" * 50, "nested more than 32 levels deep"),
        ("a: " + "x" * 2**16, "has more than 0.0625 MiB"),
        ("seed: " + "9" * 5000, "not valid YAML"),
        ("seed: 2026-99-99", "not valid YAML"),
        ("seed: " + "9" * 400, "'seed' is a whole number of 1329 bits"),
        ("seed: 2026-01-01", "'seed' is of the type date"),
        ("1: 2", "has a key that is of the type int"),
        ('root: "\\e]0;title"', "'root' has a control character"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_configuration_that_is_none_gets_one_line(honest, tmp_path, text, message) -> None:
    shutil.copytree(honest, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_result(tmp_path / "run")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_references_in_a_pickle_do_not_expand(honest, tmp_path) -> None:
    def laugh(content: dict[str, Any]) -> None:
        tree: list[Any] = ["x"] * 10
        for _ in range(20):
            tree = [tree] * 10
        content["captioner"]["config"]["laughs"] = tree

    file = changed(Path(shutil.copy(checkpoint.find(honest), tmp_path)), laugh)
    with pytest.raises(ValueError, match="more than 200,000 values"):
        checkpoint.read(file)
