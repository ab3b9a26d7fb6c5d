"""What a report needs beside the scores of `captioner.evaluation.results`: captions and data.

The captions are needed; the run's configuration and the data set may be gone, and then a reason
stands in their place. Two data sets matter: the one that was evaluated has the pictures, the one
that the model was trained on has its training captions; they are mostly the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.checkpoints.places import anchored
from captioner.config import Config, make
from captioner.data.read import read_records
from captioner.data.records import Dataset
from captioner.evaluation.results import Result
from captioner.metrics.diversity import NOVELTY
from captioner.metrics.novelty import CaptionHashes
from captioner.metrics.tokenize import TOKENIZE
from captioner.runs import CAPTIONS

_DATA = ("pictures", "training captions")
_AGAIN = "run captioner evaluate again"
_NO_CONFIG = "the evaluation is in no run folder with a config.yaml"


@dataclass(frozen=True)
class Said:
    """One image and what was said of it.

    Attributes:
        image: its id.
        caption: of the model.
        references: by people; one or more.
    """

    image: str
    caption: str
    references: tuple[str, ...]


def read_captions(result: Result) -> list[Said]:
    """Read the captions of an evaluation, in the order of its statistics.

    Raises:
        FileNotFoundError: they are not there.
        ValueError: they are damaged, or not of the images that the statistics are of.
    """
    path, said = result.folder / CAPTIONS, []
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is not there; {_AGAIN}")
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text in UTF-8; {_AGAIN}") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            texts = (row["image"], row["caption"], *row["references"])
            if len(texts) < 3 or not all(isinstance(text, str) for text in texts):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number}: not an image with its caption and references; {_AGAIN}"
            ) from None
        said.append(Said(texts[0], texts[1], texts[2:]))
    if tuple(one.image for one in said) != result.statistics.images:
        raise ValueError(f"{path}: not of the images of the statistics; {_AGAIN}")
    return said


# What surrounds it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surroundings:
    """What a run's folder and data add to an evaluation, as far as they are there.

    Attributes:
        config: the run's configuration; empty where it is gone.
        pictures: image id -> path of its file.
        training: the training captions.
        absent: what is not there -> the reason: "configuration", "pictures", "training captions".
    """

    config: Config = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)
    training: Sequence[str] = ()
    absent: Mapping[str, str] = field(default_factory=dict)


def look_around(
    result: Result, said: Sequence[Said], *, data_root: str | None = None
) -> Surroundings:
    """Read the run's configuration and data set, where they are there.

    Args:
        result: the evaluation.
        said: its captions.
        data_root: where the data set lies, if not where the run's configuration says.
    """
    config = result.config or {}
    trained, evaluated = (_data_of(one) for one in (result.config, result.evaluated))
    evaluated = evaluated or trained
    absent = {} if config else {"configuration": _NO_CONFIG}
    if evaluated is None:
        return Surroundings(config, absent=absent | dict.fromkeys(_DATA, _NO_CONFIG))
    dataset, reason = _read_data(evaluated, data_root)
    pictures = {one.image_id: one.image for one in dataset.records} if dataset else {}
    pictures = {one.image: pictures[one.image] for one in said if one.image in pictures}
    if not any(Path(path).is_file() for path in pictures.values()):
        absent["pictures"] = reason or f"the data set has none of the images{_odd(dataset)}"
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
    """The captions that the model was trained on, or why they are not there.

    The data set that was evaluated has them where the configurations say so, or where its captions
    are those whose hashes novelty was computed by.
    """
    texts = _captions_of(dataset)
    tokenize = "character" if result.signature.tokenization == "character" else "ptb"
    novelty = result.signatures.get(NOVELTY, result.signature)
    hashed = novelty.parts.get("training", "").partition("-")[2]
    same = trained is None or anchored({"data": trained}) == anchored({"data": evaluated})
    if same or (texts and CaptionHashes.of(TOKENIZE[tokenize](texts)).digest == hashed):
        return texts, reason or f"the data set has none{_odd(dataset)}"
    dataset, reason = _read_data(trained or {}, None)
    return _captions_of(dataset), reason or f"the data set has none{_odd(dataset)}"


def _captions_of(dataset: Dataset | None) -> list[str]:
    records = dataset.records if dataset else ()
    return [text for one in records if one.split == "train" for text in one.captions]


def _data_of(config: Config | None) -> Config | None:
    data = (config or {}).get("data")
    return data if isinstance(data, dict) else None


def _odd(dataset: Dataset | None) -> str:
    """What a data set warned of, in brackets."""
    odd = ", ".join(f"{w}: {n:,}" for w, n in dataset.warnings.items()) if dataset else ""
    return f" ({odd})" if odd else ""


def _read_data(config: Config, root: str | None) -> tuple[Dataset | None, str]:
    """A data set, or the reason why it cannot be read."""
    data: dict[str, Any] = dict(config)
    if root is not None:
        data["root"] = root
    if data.get("format") == "shapes" and data.get("captions") is None:
        data["captions"] = CAPTIONS  # named, it is not drawn where it is missing
    try:
        return make(read_records, "data", data), ""
    except (ValueError, OSError, KeyError, TypeError) as error:
        return None, " ".join(str(error).split())
