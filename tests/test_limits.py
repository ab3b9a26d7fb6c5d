"""Files that are too large, too deep or too strange get one line, without much memory or time."""

import io
import json
import math
import os
import resource
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from support.evaluations import evaluation, system

from captioner import limits
from captioner.checkpoints import bundle, checkpoint
from captioner.checkpoints.inventory import inventory
from captioner.cli import main
from captioner.config import compose
from captioner.data.readers import read_folder
from captioner.evaluation.results import read_result
from captioner.files import walk
from captioner.metrics.statistics import Statistics
from captioner.models.captioning import build_decoder, build_model
from captioner.models.decoders.table import DECODERS
from captioner.plain_data import read_json
from captioner.report.sources import read_captions
from captioner.tokenizers import Vocabulary
from captioner.verbs.caption_files import find_images

pytestmark = pytest.mark.reliability("limits")

HONEST = Path(__file__).parent / "golden" / "old.ckpt"
HEX = b"X\x09\x00\x00\x00hex_codec\x86R"
"""Of a pickle: call the function below two values, which doubles the first one."""
DEEP = "[" * 400 + "]" * 400


@pytest.fixture
def little_memory() -> Iterator[None]:
    """No more than 200 MB in addition to what the process has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def changed(folder: Path, **block: Any) -> Path:
    """A run folder whose checkpoint has other values: of a group if they are a dict."""
    content = torch.load(HONEST, weights_only=True)
    captioner = content["captioner"]
    for name, values in block.items():
        in_block = name in ("tokenizer", "transform", "scores")
        place = captioner if in_block else captioner["config"]
        place[name] = {**place[name], **values} if isinstance(values, dict) else values
    return written(folder, content)


def written(folder: Path, content: Any) -> Path:
    path = folder / "run" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The line of a verb that fails."""
    assert main(list(words)) == 1
    error = capsys.readouterr().err
    assert error.startswith("captioner: error: ") and error.count("\n") == 1, error
    assert len(error) < 700 and "unexpected" not in error
    return error


PHOTO = str(Path(__file__).parents[1] / "docs" / "demo.png")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"decoder": {"hidden_size": 10**9}}, "decoder.hidden_size=1000000000"),
        ({"decoder": {"embedding_size": 10**9}}, "more than the"),
        ({"decoder": {"layers": 10**6}}, "decoder.layers=1000000 is not accepted"),
        ({"decoder": {"hidden_size": "24"}}, "decoder.hidden_size='24' is not accepted"),
        ({"decoder": {"hidden_size": 10**30}}, "whole number of 100 bits"),
        ({"decoder": {"name": ["x"]}}, "decoder.name"),
        ({"encoder": {"image_size": 10**6}}, "encoder.image_size=1000000 is not accepted"),
        ({"encoder": {"network": "x" * 10**5}}, "'network' has 100,000 characters"),
        ({"encoder": 7}, "its configuration is incomplete"),
        ({"decoding": {"max_length": 10**9}}, "max_length=1000000000"),
        ({"decoding": {"captions": 10**9}}, "captions=1000000000"),
        ({"decoding": {"beam_size": None}}, "decoding.beam_size=None is not accepted"),
        ({"transform": {"size": 200_000}}, "transform size=200000 is not accepted"),
        ({"transform": {"size": "224"}}, "transform size='224' is not accepted"),
        ({"transform": {"mean": None}}, "damaged captioner checkpoint"),
        ({"transform": {"mean": [0.5, math.nan, 0.5]}}, "give finite values"),
        ({"transform": {"std": [0.5, 0.5, math.inf]}}, "give finite values"),
        ({"transform": {"std": [math.nan, 0.5, 0.5]}}, "std above 0"),
        ({"transform": {"crop": math.nan}}, "transform crop=nan is not in (0, 1]"),
        ({"transform": {"crop": 1e-9}}, "transform crop=1e-09 is not in (0, 1], or very small"),
        ({"tokenizer": {"words": 7}}, "words, not str and int"),
        ({"tokenizer": {"words": ["<pad>", "<start>", "<end>", "<unk>", DEEP]}}, "weights and"),
        ({"scores": {"dev_bleu4": "high"}}, "the score 'dev_bleu4' is 'high', not a number"),
        ({"scores": None}, "damaged captioner checkpoint"),
        ({"data": {"root": json.loads(DEEP)}}, "nested more than 32 levels deep"),
        ({"data": {"root": b"x"}}, "calls encode, which captioner never does"),
    ],
)
def test_absurd_values_of_a_checkpoint_get_one_line(
    block, message, tmp_path, capsys, little_memory
) -> None:
    changed(tmp_path, **block)
    assert message in refused(capsys, "caption", PHOTO, "--model", str(tmp_path / "run"))


def with_weight(folder: Path, weight: Any) -> Path:
    content = torch.load(HONEST, weights_only=True)
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = weight
    return written(folder, content)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(1).expand(10**12), "has 1,000,000,000,000 values, more than the file"),
        (torch.eye(3).to_sparse(), "is not dense and real, but torch.sparse_coo"),
        (torch.zeros(3, device="meta"), "is on meta"),
        (torch.zeros(3, dtype=torch.complex64), "of torch.complex64"),
        (torch.tensor([1.0, math.nan]), "has values that are not finite"),
        (torch.tensor([1.0, math.inf]), "has values that are not finite"),
        ("weights", "is str"),
        (None, "is NoneType"),
        (torch.zeros(5, 7), "has other weights than"),
    ],
)
def test_strange_weights_are_not_averaged(weight, message, tmp_path, capsys, little_memory) -> None:
    file, output = with_weight(tmp_path, weight), tmp_path / "mean.ckpt"
    assert message in refused(capsys, "average", str(HONEST), str(file), "--output", str(output))
    assert not output.exists()


def test_strange_states_of_an_optimizer_are_refused(tmp_path, capsys, little_memory) -> None:
    content = torch.load(HONEST, weights_only=True)
    content["optimizer_states"] = [{"state": {0: {"exp_avg": torch.zeros(1).expand(10**12)}}}]
    line = refused(capsys, "train", f"resume={written(tmp_path, content)}")
    assert "'exp_avg' has 1,000,000,000,000 values" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer_states", ["Adam"]),
        ("lr_schedulers", {"last_epoch": 3}),
        ("callbacks", {"Patience": 7}),
        ("loops", "fit_loop"),
        ("epoch", 1e300),
        ("pytorch-lightning_version", 2.5),
    ],
)
def test_strange_progress_of_a_training_is_refused(name, value, tmp_path, capsys) -> None:
    content = {**torch.load(HONEST, weights_only=True), name: value}
    line = refused(capsys, "train", f"resume={written(tmp_path, content)}")
    assert f"({name} of its training is" in line


def test_weights_that_share_memory_may_not_be_more_than_the_file(tmp_path, capsys) -> None:
    content = torch.load(HONEST, weights_only=True)
    tensor = torch.zeros(10**5)
    content["state_dict"] |= {f"model.{number}": tensor for number in range(100)}
    path = str(written(tmp_path, content))
    assert "have more values than the file" in refused(capsys, "caption", PHOTO, "--model", path)


def repacked(folder: Path, compression: int, size: int = 0, pickled: bytes = b"") -> Path:
    """The honest checkpoint with another pickle, packed in another way."""
    path = folder / "run" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(HONEST) as honest, zipfile.ZipFile(path, "w", compression) as target:
        for part in honest.infolist():
            content = honest.read(part)
            if part.filename.endswith("/data.pkl"):
                content = pickled or content + bytes(size)
            target.writestr(part.filename, content)
    return path


def append_zeros(path: Path, name: str, head: bytes = b"") -> None:
    """Append 300 MB that are compressed to 1.3 MB."""
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w", force_zip64=True) as file,
    ):
        file.write(head)
        for _ in range(300):
            file.write(bytes(2**20))


def test_a_compressed_bomb_is_not_unpacked(tmp_path, capsys, little_memory) -> None:
    path = repacked(tmp_path, zipfile.ZIP_DEFLATED, size=0)
    append_zeros(path, "archive/data/bomb")
    line = refused(capsys, "models", "--runs", str(tmp_path))
    assert "is compressed, which torch never does" in line


def test_too_much_plain_data_is_not_unpickled(tmp_path, capsys) -> None:
    repacked(tmp_path, zipfile.ZIP_STORED, size=limits.PICKLE_BYTES)
    line = refused(capsys, "models", "--runs", str(tmp_path))
    assert "has 8 MiB of plain data; at most 8 MiB are accepted" in line


@pytest.mark.parametrize(
    ("pickled", "name"),
    [
        (b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x70\x85R.", "bytearray"),
        (b"\x80\x02" + b"c_codecs\nencode\n" * 30 + b"X\x01\x00\x00\x00x" + HEX * 30, "encode"),
    ],
)
def test_no_memory_is_filled_by_a_pickle(pickled, name, tmp_path, capsys, little_memory) -> None:
    repacked(tmp_path, zipfile.ZIP_STORED, pickled=pickled)
    line = refused(capsys, "models", "--runs", str(tmp_path))
    assert f"calls {name}, which captioner never does" in line


def test_parts_that_overlap_are_refused(tmp_path, capsys) -> None:
    path = repacked(tmp_path, zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
        archive.filelist += [largest] * 3
        archive._didModify = True
    assert "its parts have" in refused(capsys, "models", "--runs", str(tmp_path))


# JSON and compressed arrays ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEEP, "nested more than 32 levels deep"),
        ("[" * 100_000, "nested more than 32 levels deep"),
        ("9" * 5000, "damaged"),
        ("[1,", "damaged"),
        ("\udce9", "damaged"),
    ],
)
def test_strange_json_gets_one_line(text, message, tmp_path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=message) as error:
        read_json(path, fault="damaged")
    assert "\n" not in str(error.value)


def test_files_without_an_end_are_not_read(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ValueError, match="not a file that can be read to its end"):
            read_json(tmp_path / name, fault="damaged")
    (tmp_path / "large").write_bytes(b"[" * 11)
    with pytest.raises(ValueError, match="has more than"):
        read_json(tmp_path / "large", fault="damaged", most=10)


@pytest.mark.parametrize(
    "content",
    [
        {"scores": {"BLEU-4": 10**400}},
        {"scores": {"BLEU-4": "high"}},
        {"scores": {"BLEU-4": 1}, "fields": {"common": {"options": 7}, "metrics": {}}},
        {"scores": {"BLEU-4": 1}, "fields": {"common": {"data": {}}, "metrics": {}}},
        {"scores": {"BLEU-4": 1}, "fields": json.loads(DEEP)},
        [],
    ],
)
def test_strange_scores_get_one_line(content, tmp_path) -> None:
    run = evaluation(tmp_path / "run", system(1, n=3))
    folder = run / "evaluation" / "toys-dev" / "greedy"
    before = json.loads((folder / "scores.json").read_text())
    content = {**before, **content} if isinstance(content, dict) else content
    (folder / "scores.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"scores\.json: (damaged|nested)") as error:
        read_result(run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["run/config.yaml", "run/evaluation/toys-dev/greedy/config.yaml"])
def test_a_nested_configuration_gets_one_line(place, tmp_path) -> None:
    run = evaluation(tmp_path / "run", system(1, n=3))
    (tmp_path / place).write_text(DEEP)
    with pytest.raises(ValueError, match=r"config\.yaml: nested more than 32 levels deep"):
        read_result(run)


@pytest.mark.parametrize("row", [DEEP, '{"image": "a", "caption": ' + DEEP + "}", "7", "[]"])
def test_strange_captions_get_one_line(row, tmp_path) -> None:
    result = read_result(evaluation(tmp_path / "run", system(1, n=3)))
    (result.folder / "captions.jsonl").write_text(row)
    with pytest.raises(ValueError, match=r"captions\.jsonl, line 1: n(ested|ot an image)") as error:
        read_captions(result)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEEP, "expected an object like"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 400 + "1" + "}" * 400, "no caption"),
        (f'[{{"image": "a", "caption": {DEEP}}}]', "captions must be texts"),
        ("9" * 5000, "has more than 4,300 digits"),
    ],
)
def test_strange_captions_of_a_user_get_one_line(text, message, tmp_path, capsys) -> None:
    (tmp_path / "captions.json").write_text(text)
    assert message in refused(capsys, "score", str(tmp_path / "captions.json"))


def test_hashes_that_pretend_to_be_many_are_refused(tmp_path, little_memory) -> None:
    shutil.copytree(bundle.HOME / bundle.DEFAULT, tmp_path / "model")
    with open(tmp_path / "model" / bundle.TRAINING, "wb") as file:
        shape = {"descr": "<u8", "fortran_order": False, "shape": (10**12,)}
        numpy.lib.format.write_array_header_1_0(file, shape)
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.read(tmp_path / "model")


def test_compressed_statistics_are_bounded(tmp_path, little_memory) -> None:
    path, header = tmp_path / "statistics.npz", io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (300 * 2**17, 1)}
    numpy.lib.format.write_array_header_1_0(header, shape)
    append_zeros(path, "bleu.npy", header.getvalue())
    with pytest.raises(ValueError, match="not the statistics of a score"):
        Statistics.load(path)


@pytest.mark.parametrize("value", ["high", None, [], 10**400, DEEP])
def test_models_lists_the_others(value, tmp_path) -> None:
    path = changed(tmp_path, scores={"dev_cider": value})
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    shutil.copy(HONEST, tmp_path / "other" / "checkpoints" / "best.ckpt")
    entries, broken = inventory(tmp_path)
    assert str(tmp_path / "other") in [entry.name for entry in entries]
    assert len(broken) == 1 and all(str(path) in line for line in broken)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEEP, "nested more than 32"),
        ('{"format": 1, "config": ' + DEEP + "}", "nested more than 32"),
        ('{"format": 1, "config": 3}', "damaged"),
        ("[]", "not a model"),
    ],
)
def test_a_strange_model_json_gets_one_line(text, message, tmp_path) -> None:
    shutil.copytree(bundle.HOME / bundle.DEFAULT, tmp_path / "model")
    (tmp_path / "model" / bundle.MODEL).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.read(tmp_path / "model")
    assert "\n" not in str(error.value)


# Vocabularies, models and folders ---------------------------------------------------------------


def test_a_vocabulary_is_bounded_where_it_is_built(monkeypatch) -> None:
    monkeypatch.setattr("captioner.tokenizers.WORDS", 5)
    with pytest.raises(ValueError, match=r"has 6 tokens; at most 5 .*raise tokenizer\.min_count"):
        Vocabulary.build([["a", "b"]], min_count=1)


def test_a_model_is_bounded_where_it_is_built() -> None:
    encoder = {"library": "pixels", "network": "gray", "image_size": 4}
    decoder = {"name": "show_tell", "hidden_size": 40_000, "embedding_size": 8}
    with pytest.raises(ValueError, match=r"decoder\.hidden_size=40000, .*choose smaller sizes"):
        build_model(encoder, decoder, vocabulary_size=9)


@pytest.mark.parametrize("name", list(DECODERS))
def test_no_size_of_a_decoder_fills_the_memory(name, little_memory, record_property) -> None:
    options = compose([f"decoder={name}"])["decoder"]
    sizes = [key for key, value in options.items() if type(value) is int]
    record_property("cases", 3 * len(sizes))
    accepted = []
    for key in sizes:
        for size in (10**9, 0, -1):
            changed = {**options, key: size}
            try:
                build_decoder(changed, vocabulary_size=50, feature_size=16, elements=10**7)
                accepted.append(f"decoder.{key}={size}")
            except ValueError as error:
                assert f"decoder.{key}={size}" in str(error)
    assert accepted == []


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """1,500 folders, one in the other, with an image and its caption in the last one."""
    here = os.getcwd()
    os.chdir(tmp_path)
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    Image.new("RGB", (8, 9)).save("last.png")
    Path("last.txt").write_text("a black image")
    yield tmp_path / "d"
    os.remove("last.png")
    os.remove("last.txt")
    for _ in range(1500):
        os.chdir("..")
        os.rmdir("d")
    os.chdir(here)


@pytest.mark.slow
def test_folders_of_any_depth_are_searched(deep) -> None:
    options = {"captions": None, "images": None, "holdout": 0.1, "encoding": "utf-8"}
    assert sum(1 for _ in walk(deep)) == 1500
    assert [Path(path).name for path in find_images([str(deep)])] == ["last.png"]
    assert [record.captions for record in read_folder(deep, **options).records] == [
        ("a black image",)
    ]
