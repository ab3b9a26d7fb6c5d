"""Files of every version load for ever, and those of a newer format are refused with its version.

``tests/golden/versions/`` has a folder for each release, and for two dates before the first one at
which files were different: the options of a training were one group, and scores had signatures in
text only. ``tests/golden/write_files.py`` wrote each with the code of its time.
"""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import captioner
from captioner.checkpoints import bundle, checkpoint
from captioner.cli import main
from captioner.evaluation.results import read_result
from captioner.inspection.states import StateTable
from captioner.runs import CHECKPOINTS, LAST, SCORES
from captioner.tracing.array_file import ArrayFile
from captioner.tracing.trace import Trace

pytestmark = pytest.mark.reliability("versions")
GOLDEN = Path(__file__).parent / "golden" / "versions"
VERSIONS = sorted(folder.name for folder in GOLDEN.iterdir())
PHOTO = "photo.png"


@pytest.fixture(params=VERSIONS)
def old(request) -> Path:
    """The folder of one version."""
    return GOLDEN / request.param


def expected(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))


def unpacked(folder: Path, target: Path) -> Path:
    """The checkpoint of a version, in a run folder."""
    file = target / "run" / CHECKPOINTS / LAST
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.decompress((folder / "last.ckpt.gz").read_bytes()))
    return file


def require_caption(model: Path, folder: Path, known: list[Any]) -> None:
    caption = captioner.load(model).caption(str(folder / PHOTO), beam_size=2, min_length=4)
    assert caption.text == known[0]
    assert caption.log_prob == pytest.approx(known[1], rel=1e-4)


def test_this_version_is_among_them() -> None:
    assert captioner.__version__ in VERSIONS
    assert all(path.stat().st_size <= 100_000 for path in GOLDEN.rglob("*"))


def test_a_checkpoint_gives_its_captions_and_resumes(old, tmp_path, scenes) -> None:
    file = unpacked(old, tmp_path)
    require_caption(file, old, expected(old)["checkpoint"])
    step = checkpoint.read(file).lightning["global_step"]
    more = [f"data.root={scenes}", "trainer.max_epochs=21"]
    assert main(["train", f"resume={tmp_path / 'run'}", *more]) == 0
    assert checkpoint.read(file).lightning["global_step"] == step + 6


def test_a_bundled_model_gives_its_captions(old) -> None:
    require_caption(old / "bundle", old, expected(old)["bundle"])


def test_an_evaluation_has_its_scores_and_can_be_compared(old, tmp_path, capsys) -> None:
    result = read_result(old / "evaluation")
    assert result.scores == expected(old)["scores"]
    assert result.signature.data == "shapes" and result.signature.version == "0.1.0"
    shutil.copytree(old / "evaluation", tmp_path / "other")
    both = [str(old / "evaluation"), str(tmp_path / "other")]
    assert main(["compare", *both, "--resamples", "1000", "--format", "json"]) == 0
    captions = str(old / "evaluation" / "captions.jsonl")
    capsys.readouterr()
    assert main(["score", captions, "--metrics", "bleu,cider-d,rouge-l", "--format", "json"]) == 0
    again = json.loads(capsys.readouterr().out)["scores"]
    assert again == pytest.approx(expected(old)["scores"])


@pytest.mark.parametrize("version", [name for name in VERSIONS if not name.startswith("2026")])
def test_a_trace_and_a_table_of_states_have_their_values(version: str) -> None:
    folder = GOLDEN / version
    trace, states = (
        Trace.load(folder / "trace.safetensors"),
        StateTable.load(folder / "states.safetensors"),
    )
    text, log_prob, size = expected(folder)["trace"]
    assert (trace.text, trace.log_prob) == (text, log_prob)
    assert float(abs(trace["cell.hidden"]).sum()) == size
    text, size = expected(folder)["states"]
    assert states.text(0) == text
    assert float(abs(states.values("cell.hidden", 0)).sum()) == size


def newer_checkpoint(folder: Path) -> Path:
    file = unpacked(GOLDEN / captioner.__version__, folder)
    content = torch.load(file, weights_only=True)
    content["captioner"] |= {"format": 2, "version": "9.8.7"}
    checkpoint.write(content, file)
    return file


def newer_json(name: str) -> Path:
    content = json.loads(Path(name).read_text(encoding="utf-8"))
    Path(name).write_text(json.dumps({**content, "format": 2, "version": "9.8.7"}))
    return Path(name).parent


READERS = {
    "a checkpoint": lambda folder: captioner.load(newer_checkpoint(folder)),
    "a bundled model": lambda folder: captioner.load(newer_json(f"{folder}/bundle/{bundle.MODEL}")),
    "an evaluation": lambda folder: read_result(newer_json(f"{folder}/evaluation/{SCORES}")),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_newer_format_is_refused_with_the_version_that_it_needs(kind: str, tmp_path) -> None:
    shutil.copytree(GOLDEN / captioner.__version__, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"of format 2, written by captioner 9\.8\.7") as raised:
        READERS[kind](tmp_path)
    assert "\n" not in str(raised.value) and "upgrade" in str(raised.value)


@pytest.mark.parametrize(("kind", "read"), [("trace", Trace.load), ("states", StateTable.load)])
def test_a_newer_file_of_arrays_is_refused_with_the_version_that_it_needs(
    kind: str, read, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("captioner.tracing.array_file.__version__", "9.8.7")
    file = ArrayFile(f"captioner.{kind}", kind, 2).write(
        tmp_path / "newer", {}, {"x": numpy.zeros(2)}
    )
    with pytest.raises(ValueError, match=r"of format 2, written by captioner 9\.8\.7.*upgrade"):
        read(file)


@pytest.mark.parametrize("number", [0, -1, "2", None, True, [2], 1.0])
def test_what_is_not_a_number_of_a_format_is_damage(number: Any, tmp_path) -> None:
    file = unpacked(GOLDEN / captioner.__version__, tmp_path)
    content = torch.load(file, weights_only=True)
    content["captioner"]["format"] = number
    checkpoint.write(content, file)
    with pytest.raises(ValueError, match="damaged checkpoint"):
        captioner.load(file)
