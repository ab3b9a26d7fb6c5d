"""Reads what a report needs in addition to scores: captions, the run's configuration and its data.

The captions are required; configuration and data may be missing, and then the report gives the
reason. There may be two datasets, which are usually the same: the evaluated one has the pictures,
the one that the model was trained on has the training captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.checkpoints.places import anchored
from captioner.config import Config, make
from captioner.data.read import read_records
from captioner.data.records import Dataset
from captioner.evaluation.results import Result
from captioner.limits import CAPTIONS_BYTES
from captioner.metrics.diversity import NOVELTY
from captioner.metrics.novelty import CaptionHashes
from captioner.plain_data import parse_json, read_text
from captioner.runs import CAPTIONS

_DATA = ("pictures", "training captions")
_AGAIN = "run captioner evaluate again"
_NO_CONFIG = "the evaluation is in no run folder with a config.yaml"


@dataclass(frozen=True)
class CaptionRow:
    """One line of captions.jsonl.

    Attributes:
        image: its id.
        caption: of the model.
        references: captions by people; one or more.
    """

    image: str
    caption: str
    references: tuple[str, ...]


def read_captions(result: Result) -> list[CaptionRow]:
    """Read the captions of an evaluation, in the order of its statistics.

    Raises:
        FileNotFoundError: they are missing.
        ValueError: they are damaged, or the statistics are of other images.
    """
    path, rows = result.folder / CAPTIONS, []
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; {_AGAIN}")
    try:
        lines = read_text(path, most=CAPTIONS_BYTES).rstrip("\n").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not text in UTF-8; {_AGAIN}") from None
    for number, line in enumerate(lines, start=1):
        place = f"{path}, line {number}"
        fault = f"not an image with its caption and references; {_AGAIN}"
        row = parse_json(line, place, fault=fault)
        try:
            texts = (row["image"], row["caption"], *row["references"])
            if len(texts) < 3 or not all(isinstance(text, str) for text in texts):
                raise TypeError
        except (LookupError, TypeError):
            raise ValueError(f"{place}: {fault}") from None
        rows.append(CaptionRow(texts[0], texts[1], texts[2:]))
    if tuple(row.image for row in rows) != result.statistics.images:
        raise ValueError(f"{path}: of other images than the statistics; {_AGAIN}")
    return rows


# Configuration and data -------------------------------------------------------------------------


@dataclass(frozen=True)
class Surroundings:
    """The configuration and data of a run, as far as they exist.

    Attributes:
        config: the run's configuration; empty if it is missing.
        pictures: image id -> path of its file.
        training: the training captions.
        absent: "configuration", "pictures" or "training captions" -> why they are missing.
    """

    config: Config = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)
    training: Sequence[str] = ()
    absent: Mapping[str, str] = field(default_factory=dict)


def read_surroundings(
    result: Result, rows: Sequence[CaptionRow], *, data_root: str | None = None
) -> Surroundings:
    """Read the run's configuration and dataset, as far as they exist.

    Args:
        result: the evaluation.
        rows: its captions.
        data_root: the root of the dataset; None: that of the run's configuration.
    """
    config = result.config or {}
    trained, evaluated = (_data_group(config) for config in (result.config, result.evaluated))
    evaluated = evaluated or trained
    absent = {} if config else {"configuration": _NO_CONFIG}
    if evaluated is None:
        return Surroundings(config, absent=absent | dict.fromkeys(_DATA, _NO_CONFIG))
    dataset, reason = _read_data(evaluated, data_root)
    pictures = {record.image_id: record.image for record in dataset.records} if dataset else {}
    pictures = {row.image: pictures[row.image] for row in rows if row.image in pictures}
    if not any(Path(path).is_file() for path in pictures.values()):
        absent["pictures"] = (
            reason or f"the dataset has none of the images{_format_warnings(dataset)}"
        )
    training, reason = _training(result, trained, evaluated, dataset, reason)
    if not training:
        absent["training captions"] = reason
    return Surroundings(config, pictures, training, absent)


def _training(
    result: Result,
    trained: Config | None,
    evaluated: Config,
    dataset: Dataset | None,
    reason: str,
) -> tuple[list[str], str]:
    """The captions that the model was trained on, or the reason why they are missing.

    They are in the evaluated dataset if the configurations say so, or if its training captions have
    the hashes that novelty was computed with.
    """
    texts = _training_captions(dataset)
    novelty = result.signatures.get(NOVELTY, result.signature)
    hashed = novelty.parts.get("training", "").partition("-")[2]
    same = trained is None or anchored({"data": trained}) == anchored({"data": evaluated})
    if same or (texts and CaptionHashes.of(result.signature.tokenize(texts)).digest == hashed):
        return texts, reason or f"the dataset has none{_format_warnings(dataset)}"
    dataset, reason = _read_data(trained or {}, None)
    return _training_captions(dataset), reason or f"the dataset has none{_format_warnings(dataset)}"


def _training_captions(dataset: Dataset | None) -> list[str]:
    records = dataset.records if dataset else ()
    return [text for record in records if record.split == "train" for text in record.captions]


def _data_group(config: Config | None) -> Config | None:
    data = (config or {}).get("data")
    return data if isinstance(data, dict) else None


def _format_warnings(dataset: Dataset | None) -> str:
    """The warnings of a dataset, in brackets."""
    warnings = ", ".join(f"{w}: {n:,}" for w, n in dataset.warnings.items()) if dataset else ""
    return f" ({warnings})" if warnings else ""


def _read_data(config: Config, root: str | None) -> tuple[Dataset | None, str]:
    """A dataset, or the reason why it cannot be read."""
    data: dict[str, Any] = dict(config)
    if root is not None:
        data["root"] = root
    if data.get("format") in ("shapes", "worlds") and data.get("captions") is None:
        data["captions"] = CAPTIONS  # a named file is not drawn if it is missing
    try:
        return make(read_records, "data", data), ""
    except (ValueError, OSError, KeyError, TypeError) as error:
        return None, " ".join(str(error).split())
