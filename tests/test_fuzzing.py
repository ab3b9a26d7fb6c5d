"""Every parser reads mutated files: each gives a result, or one line that says what is wrong.

The mutations have a seed, so a failure can be repeated; the message of a failure has the number of
the case. ``make test`` runs 30 cases of each parser, ``make battery`` as many as fit into a minute.
"""

import contextlib
import gzip
import hashlib
import io
import json
import random
import resource
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.layouts import WRITERS
from support.mutations import mutate, mutate_tree

import captioner
from captioner.checkpoints import bundle, checkpoint
from captioner.data.feature_store import FeatureStore
from captioner.data.read import read_records
from captioner.evaluation.results import read_result
from captioner.evaluation.score_files import matched, read_rows
from captioner.inspection.states import StateTable
from captioner.plain_data import read_json
from captioner.tokenizers import restore_tokenizer
from captioner.tracing import edits
from captioner.tracing.trace import Trace
from captioner.training import word_vectors

pytestmark = pytest.mark.reliability("fuzzing")
GOLDEN = Path(__file__).parent / "golden" / "versions" / captioner.__version__
SECONDS, HANGS, MEMORY = 60, 60, 2**30
"""Seconds for a parser in the battery, and after which a case hangs; bytes that it may take."""
ONE_PARSER = ("data.format=kaggle", "data.format=table")
"""The names of one parser, which share its seconds: ``captioner.data.tables._add_rows`` reads both
files, one delimited by commas, one by tabs."""

Mutate = Callable[[random.Random], bytes]


@dataclass(frozen=True)
class Parser:
    """What is fuzzed.

    Attributes:
        file: in the folder that `prepare` makes.
        prepare: makes the files of a case, all of them valid.
        read: reads the folder.
        plain: the file is JSON, whose values are mutated as well as its bytes.
    """

    file: str
    prepare: Callable[[Path], None]
    read: Callable[[Path], Any]
    plain: bool = False


def golden(*names: str) -> Callable[[Path], None]:
    """Copies files of tests/golden."""

    def prepare(folder: Path) -> None:
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(GOLDEN / name, target)

    return prepare


def in_evaluation(name: str) -> Parser:
    names = [f"evaluation/{one.name}" for one in (GOLDEN / "evaluation").iterdir()]
    plain = name.endswith("scores.json")
    return Parser(
        f"evaluation/{name}",
        golden(*names),
        lambda folder: read_result(folder / "evaluation"),
        plain,
    )


BUNDLE = tuple(f"bundle/{name}" for name in (bundle.MODEL, bundle.WEIGHTS, bundle.TRAINING))


def without_checksum(folder: Path) -> None:
    """Let mutations of model.json be read: with its checksum, nearly all are refused at once."""
    golden(*BUNDLE)(folder)
    content = json.loads((folder / BUNDLE[0]).read_text(encoding="utf-8"))
    del content["checksum"]
    (folder / BUNDLE[0]).write_text(json.dumps(content), encoding="utf-8")


def read_weights(folder: Path) -> Any:
    """Read the weights of a bundle whose checksum is that of the mutated file."""
    data = (folder / "bundle" / bundle.WEIGHTS).read_bytes()
    return bundle.read_weights(folder / "bundle", {"sha256": hashlib.sha256(data).hexdigest()})


def unpacked(folder: Path) -> None:
    data = gzip.decompress((GOLDEN / "last.ckpt.gz").read_bytes())
    (folder / "last.ckpt").write_bytes(data)


EDITS = [
    {"edit": "set", "site": "cell.forget_gate", "value": 0.0, "step": 3, "units": [1, 2]},
    {"edit": "add", "site": "cell.memory", "value": [2.0], "layer": 0},
    {"edit": "zero", "site": "cell.memory", "step": [1, 2]},
    {"edit": "swap", "site": "image.x0", "from_image": "b.jpg"},
    {"edit": "reset", "every": 4},
]
TEXT_OF_EDITS = "cell.forget_gate@3=0 cell.memory[17,20-23]+=2 image.x0=from:b.jpg reset=4"
VECTORS = "".join(f"{word} 0.5 -1 2e-3\n" for word in "a purple boat . background".split())


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8") and None


@cache
def tokenizer() -> Any:
    return restore_tokenizer(json.loads((GOLDEN / BUNDLE[0]).read_text())["tokenizer"])


def read_edits(folder: Path) -> Any:
    return edits.read(folder / "edits.json")


def read_edit_texts(folder: Path) -> Any:
    text = (folder / "edits.txt").read_bytes().decode("utf-8", "surrogateescape")
    return [edits.parse(one) for one in text.split(" ")]


def read_tokenizer(folder: Path) -> Any:
    data = read_json(folder / "words.json", fault="damaged")
    restored = restore_tokenizer(data)
    return restored.decode(restored.encode("a purple boat"))


def write_cache(folder: Path) -> None:
    from captioner.models.features import Features

    store = FeatureStore(folder, 3, 0)
    values = Features(torch.ones(5, 3), None)
    store.append([([bytes([number]) * 16 for number in range(5)], values)])


def read_cache(folder: Path) -> Any:
    return FeatureStore(folder, 3, 0).rows()


PARSERS: dict[str, Parser] = {
    "model.json": Parser(
        BUNDLE[0], without_checksum, lambda folder: checkpoint.read(folder / "bundle"), True
    ),
    "model.safetensors": Parser(BUNDLE[1], golden(*BUNDLE), read_weights),
    "training.npy": Parser(
        BUNDLE[2], golden(*BUNDLE), lambda folder: bundle.read_training(folder / "bundle", {})
    ),
    "last.ckpt": Parser(
        "last.ckpt", unpacked, lambda folder: checkpoint.read(folder / "last.ckpt")
    ),
    "scores.json": in_evaluation("scores.json"),
    "statistics.npz": in_evaluation("statistics.npz"),
    "config.yaml": in_evaluation("config.yaml"),
    "captions.jsonl": Parser(
        "evaluation/captions.jsonl",
        golden("evaluation/captions.jsonl"),
        lambda folder: matched(folder / "evaluation/captions.jsonl", None),
    ),
    "captions.csv": Parser(
        "a.csv",
        written("a.csv", 'image,caption,reference 1,reference 2\n1,"a ""b"", c",d,e\n2,a,b,\n'),
        lambda folder: read_rows(folder / "a.csv"),
    ),
    "trace": Parser(
        "trace.safetensors",
        golden("trace.safetensors"),
        lambda folder: Trace.load(folder / "trace.safetensors").as_dict(sites=True),
    ),
    "states": Parser(
        "states.safetensors",
        golden("states.safetensors"),
        lambda folder: StateTable.load(folder / "states.safetensors").text(0),
    ),
    "edits.json": Parser(
        "edits.json",
        written("edits.json", json.dumps(EDITS)),
        read_edits,
        True,
    ),
    "edits": Parser("edits.txt", written("edits.txt", TEXT_OF_EDITS), read_edit_texts),
    "vocabulary": Parser(
        "words.json",
        lambda folder: written("words.json", json.dumps(tokenizer().as_dict()))(folder),
        read_tokenizer,
        True,
    ),
    "word vectors": Parser(
        "vectors.txt",
        written("vectors.txt", VECTORS),
        lambda folder: word_vectors.read(folder / "vectors.txt", tokenizer().vocabulary, width=3),
    ),
    "feature cache": Parser("index", write_cache, read_cache),
}
LAYOUTS = {
    "flickr": "Flickr8k.token.txt",
    "kaggle": "captions.txt",
    "karpathy": "dataset_mine.json",
    "coco": "annotations/captions_train2017.json",
    "table": "captions.tsv",
    "json": "captions.jsonl",
    "folder": "0.txt",
}
for layout, name in LAYOUTS.items():
    PARSERS[f"data.format={layout}"] = Parser(
        name,
        WRITERS[layout],
        lambda folder, layout=layout: read_records(format=layout, root=str(folder)),
        layout in ("karpathy", "coco"),
    )


class Hang(BaseException):
    """A case took longer than HANGS seconds."""


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """Raise Hang in a case that never ends."""

    def stop(*unused: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fault_of(read: Callable[[], Any]) -> str | None:
    """What is wrong with the answer to a file: another exception than ours, or more than a line."""
    try:
        with alarm(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            read()
    except (ValueError, OSError) as error:
        own = type(error) is ValueError or type(error).__module__.startswith("captioner")
        own = own or isinstance(error, OSError)
        text = str(error)
        if own and text.strip() and "\n" not in text and len(text) < 4000:
            return None
        return f"{type(error).__module__}.{type(error).__name__}: {text[:300]!r}"
    except (Exception, Hang) as error:
        return f"{type(error).__module__}.{type(error).__name__}: {str(error)[:300]!r}"
    return None


def cases(parser: Parser, seed: bytes, name: str) -> Iterator[bytes]:
    """Mutations of a file, without end."""
    tree = json.loads(seed) if parser.plain else None
    for number in range(10**9):
        source = random.Random(f"{name} {number}")
        if parser.plain and number % 2:
            yield json.dumps(mutate_tree(source, tree)).encode("utf-8", "surrogatepass")
        else:
            yield mutate(source, seed)


def fuzz(name: str, folder: Path, limit: Callable[[int], bool]) -> int:
    """Read mutated files until the limit; the number of cases."""
    parser, faults, number = PARSERS[name], {}, 0
    parser.prepare(folder)
    place = folder / parser.file
    seed = place.read_bytes()
    parser.read(folder)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, data in enumerate(cases(parser, seed, name)):
        if limit(number):
            break
        place.write_bytes(data)
        fault = fault_of(partial(parser.read, folder))
        if fault is not None:
            faults.setdefault(fault, number)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    assert not faults, "\n".join(f"case {number}: {fault}" for fault, number in faults.items())
    assert grown < MEMORY
    return number


@pytest.mark.parametrize("name", PARSERS)
def test_a_mutated_file_is_read_or_refused_in_one_line(name, tmp_path, record_property) -> None:
    record_property("cases", fuzz(name, tmp_path, lambda number: number == 30))


@pytest.mark.slow
@pytest.mark.minute
@pytest.mark.parametrize("name", PARSERS)
def test_many_mutated_files_are_read_or_refused_in_one_line(
    name, tmp_path, record_property
) -> None:
    end = time.monotonic() + (SECONDS / len(ONE_PARSER) if name in ONE_PARSER else SECONDS)
    record_property("cases", fuzz(name, tmp_path, lambda number: time.monotonic() > end))
