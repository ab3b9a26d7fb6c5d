"""What a report needs beside the scores (`captioner.systems`): what was said, and of which data.

The captions are needed; the run's configuration and the data set may be gone, and then a reason
stands in their place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.config import Config, make
from captioner.data import Reading, read_records
from captioner.systems import Result

CAPTIONS = "captions.jsonl"
_DATA = ("pictures", "training captions")
_AGAIN = "run captioner evaluate again"


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
    if not isinstance(config.get("data"), dict):
        reason = "the evaluation lies in no run folder with a config.yaml"
        return Surroundings(absent=dict.fromkeys(("configuration", *_DATA), reason))
    try:
        reading = _read_data(config, data_root)
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        return Surroundings(config, absent=dict.fromkeys(_DATA, reason))
    odd = ", ".join(f"{what}: {count:,}" for what, count in reading.oddities.items())
    odd = f" ({odd})" if odd else ""
    wanted, absent = {one.image for one in said}, {}
    pictures = {one.image_id: one.image for one in reading.records if one.image_id in wanted}
    if not any(Path(path).is_file() for path in pictures.values()):
        absent["pictures"] = f"the data set has none of the images{odd}"
    training = [t for one in reading.records if one.split == "train" for t in one.captions]
    if not training:
        absent["training captions"] = f"the data set has none{odd}"
    return Surroundings(config, pictures, training, absent)


def _read_data(config: Config, root: str | None) -> Reading:
    data: dict[str, Any] = dict(config["data"])
    if root is not None:
        data["root"] = root
    if data.get("format") == "shapes" and data.get("captions") is None:
        data["captions"] = CAPTIONS  # named, it is not drawn where it is missing
    return make(read_records, "data", data)
