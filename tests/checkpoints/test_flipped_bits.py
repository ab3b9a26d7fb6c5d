"""A single flipped bit of a file is refused in one line, or makes no difference."""

import copy
import gzip
import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import captioner
from captioner.checkpoints import bundle, checkpoint, export
from captioner.cli import main
from captioner.runs import LAST
from captioner.training.saving import WholeFiles

pytestmark = pytest.mark.reliability("damaged files")

GOLDEN = Path(__file__).parents[1] / "golden"
OLD = GOLDEN / "old.ckpt"
CURRENT = GOLDEN / "versions" / captioner.__version__ / "last.ckpt.gz"
COUNT = 200


def equal(a: Any, b: Any) -> bool:
    """Whether two values are equal to the bit, with all tensors in them."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        a, b = a.contiguous(), b.contiguous()
        same = (a.dtype, a.shape) == (b.dtype, b.shape)
        return same and torch.equal(
            a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
        )
    if isinstance(a, dict):
        return set(a) == set(b) and all(equal(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)


def content(read: checkpoint.Checkpoint) -> dict[str, Any]:
    """All that a checkpoint gives, as plain data and tensors."""
    values = {field.name: getattr(read, field.name) for field in fields(read)}
    for name in ("tokenizer", "transform"):
        values[name] = values[name].as_dict()
    for name in ("training", "own"):
        values[name] = values[name] and values[name].hashes.tolist()
    return values


def places_in_tensors(data: bytes, rng: random.Random) -> Iterator[int]:
    """Places anywhere; most are in the values of tensors."""
    yield from (rng.randrange(len(data)) for _ in range(COUNT))


def places_in_structure(data: bytes, rng: random.Random) -> Iterator[int]:
    """Places in the headers of the parts, in the list at the end, and in the pickle."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        headers = [part.header_offset for part in archive.infolist()]
        pickled = next(p for p in archive.infolist() if p.filename.endswith("/data.pkl"))
    for _ in range(COUNT // 4):
        yield rng.choice(headers) + rng.randrange(64)
        yield rng.randrange(archive.start_dir, len(data))
        yield from (pickled.header_offset + rng.randrange(pickled.file_size) for _ in range(2))


def wrong(path: Path, places: Callable[..., Iterator[int]], read: Callable[[], Any]) -> list[str]:
    """Flip a bit at each place, and list the places after which another value is read.

    Args:
        path: of the file, which is restored.
        places: where to flip.
        read: reads the file; its value is compared, or its error.
    """
    data, expected, faults = path.read_bytes(), read(), []
    rng = random.Random(0)
    for place in places(data, rng):
        bit = rng.randrange(8)
        changed = bytearray(data)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        try:
            if not equal(read(), expected):
                faults.append(f"bit {bit} of byte {place}: another value")
        except ValueError as error:
            if "\n" in str(error) or str(path.parent) not in str(error):
                faults.append(f"bit {bit} of byte {place}: {error}")
    path.write_bytes(data)
    return faults


ANYWHERE = [places_in_tensors, places_in_structure]


@pytest.mark.parametrize("places", ANYWHERE)
def test_of_a_checkpoint(places, tmp_path, record_property) -> None:
    record_property("cases", COUNT)
    path = Path(shutil.copy(OLD, tmp_path / "best.ckpt"))
    assert wrong(path, places, lambda: content(checkpoint.read(path))) == []


@pytest.mark.slow
@pytest.mark.parametrize("places", ANYWHERE)
def test_of_the_last_checkpoint_from_which_a_run_resumes(places, tmp_path, record_property) -> None:
    record_property("cases", COUNT)
    path = tmp_path / LAST
    path.write_bytes(gzip.decompress(CURRENT.read_bytes()))
    assert wrong(path, places, lambda: content(checkpoint.read(path))) == []


def test_a_run_is_not_resumed_from_a_damaged_checkpoint(run, tmp_path, capsys) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = checkpoint.find(tmp_path / "run", name=LAST)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert main(["train", f"resume={tmp_path / 'run'}", "trainer.max_epochs=99"]) == 1
    error = capsys.readouterr().err
    assert "damaged (the checksum of" in error and error.count("\n") == 1
    assert path.read_bytes() == data


def test_of_the_plain_data_alone(tmp_path, record_property) -> None:
    """As ``captioner models`` reads it."""
    record_property("cases", COUNT)
    path = Path(shutil.copy(OLD, tmp_path / "best.ckpt"))
    assert wrong(path, places_in_structure, lambda: checkpoint.read_block(path)) == []


@pytest.mark.parametrize("name", [bundle.MODEL, bundle.WEIGHTS, bundle.TRAINING])
def test_of_a_bundle(name, run, tmp_path, record_property) -> None:
    record_property("cases", COUNT)
    folder = export.export_bundle(run, tmp_path / "tiny")
    read = lambda: content(checkpoint.read(folder))  # noqa: E731
    assert wrong(folder / name, places_in_tensors, read) == []


def test_of_the_model_json_of_a_bundled_model(tmp_path, record_property) -> None:
    record_property("cases", COUNT)
    path = Path(shutil.copy(bundle.default() / bundle.MODEL, tmp_path))
    # A key may have another name: without its checksum, model.json is read as by earlier versions.
    known = {*bundle.read_model(tmp_path)} - {"checksum"}

    def read() -> dict[str, Any]:
        model = bundle.read_model(tmp_path)
        return {name: model.get(name) for name in known}

    assert wrong(path, places_in_tensors, read) == []


def test_a_model_does_not_change_with_its_file(run, tmp_path) -> None:
    """The file is mapped into memory only while it is read."""
    path = Path(shutil.copy(checkpoint.find(run, name=LAST), tmp_path))
    loaded, resumed = captioner.load(path), WholeFiles().load_checkpoint(path)
    weights = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    kept, known = copy.deepcopy(resumed), loaded.training.hashes.copy()
    path.write_bytes(bytes(path.stat().st_size))
    assert equal(dict(loaded.model.state_dict()), weights) and equal(resumed, kept)
    assert (loaded.training.hashes == known).all()


def test_files_without_checksums_are_read_as_before(run, tmp_path) -> None:
    """Earlier versions wrote bundles without them."""
    folder = export.export_bundle(run, tmp_path / "tiny")
    expected = content(checkpoint.read(folder))
    model = json.loads((folder / bundle.MODEL).read_text())
    del model["checksum"], model["training_sha256"]
    (folder / bundle.MODEL).write_text(json.dumps(model, indent=1))
    assert equal(content(checkpoint.read(folder)), expected)


def test_the_parts_of_a_checkpoint_have_checksums(run) -> None:
    with zipfile.ZipFile(checkpoint.find(run)) as archive:
        assert archive.testzip() is None
        assert all(part.CRC for part in archive.infolist() if part.file_size)
