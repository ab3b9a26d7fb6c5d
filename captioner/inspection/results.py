"""An evaluation folder read back: what was said, what it scores, and the data it was said of.

What ``captioner evaluate`` wrote is needed; the run's configuration, its logs and the data set may
be gone, and then a reason stands in their place. Only JSON, YAML and plain arrays are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.config import Config, make
from captioner.data import Reading, read_records
from captioner.metrics.statistics import FILE as STATISTICS
from captioner.metrics.statistics import Statistics

CAPTIONS, SCORES, EVALUATIONS = "captions.jsonl", "scores.json", "evaluation"
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


@dataclass(frozen=True)
class Result:
    """An evaluation.

    Attributes:
        folder: where it lies.
        said: one entry an image.
        scores: name to score.
        signatures: name to signature.
        missing: metric to the reason why it has no score.
        parts: the common signature's parts, such as "split" and "decoding".
        statistics: one row an image; None where the file is absent.
    """

    folder: Path
    said: Sequence[Said]
    scores: Mapping[str, float]
    signatures: Mapping[str, str]
    missing: Mapping[str, str]
    parts: Mapping[str, str]
    statistics: Statistics | None

    @property
    def run(self) -> Path | None:
        """The run folder that the evaluation lies in, if it lies in one."""
        parents = self.folder.resolve().parents
        return parents[2] if len(parents) > 2 and parents[1].name == EVALUATIONS else None


def find_evaluation(
    path: str | Path, *, split: str | None = None, decoding: str | None = None
) -> Path:
    """The evaluation folder that is meant.

    Args:
        path: an evaluation folder, or a run folder, of whose evaluations the newest is taken.
        split: of a run, only evaluations of this split.
        decoding: of a run, only evaluations with this decoding label, such as "beam3-lp0.7".

    Raises:
        FileNotFoundError: nothing is there, or no such evaluation.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; give a run or evaluation folder")
    if (path / CAPTIONS).is_file():
        return path
    every = [one.parent for one in path.glob(f"{EVALUATIONS}/*/*/{CAPTIONS}")]
    if not every:
        raise FileNotFoundError(f"{path}: holds no evaluation; run captioner evaluate {path} first")
    chosen = [
        folder
        for folder in every
        if (split is None or folder.parent.name.endswith(f"-{split}"))
        and (decoding is None or folder.name == decoding)
    ]
    if not chosen:
        wanted = [f"split={split!r}"] * (split is not None)
        wanted += [f"decoding={decoding!r}"] * (decoding is not None)
        there = ", ".join(sorted(f"{folder.parent.name}/{folder.name}" for folder in every))
        raise FileNotFoundError(
            f"{path}: no evaluation with {' and '.join(wanted)}; choose among {there}"
        )
    return max(chosen, key=lambda folder: ((folder / CAPTIONS).stat().st_mtime, folder))


def read_result(folder: Path) -> Result:
    """Read an evaluation folder.

    Raises:
        FileNotFoundError: captions or scores are not there.
        ValueError: a file is damaged, or the files do not belong together.
    """
    said = _read_captions(folder / CAPTIONS)
    path = folder / SCORES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores = {str(name): float(value) for name, value in content["scores"].items()}
        signatures = {str(name): str(text) for name, text in content["signatures"].items()}
        missing = {str(name): str(text) for name, text in content.get("missing", {}).items()}
        parts = dict(one.split(":", 1) for one in content["signature"].split("|") if ":" in one)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not the scores of an evaluation, or damaged; {_AGAIN}") from None
    statistics = None
    if (folder / STATISTICS).is_file():
        statistics = Statistics.load(folder / STATISTICS)
        if statistics.images != tuple(one.image for one in said):
            raise ValueError(f"{folder}: {STATISTICS} and {CAPTIONS} differ in images; {_AGAIN}")
    return Result(folder, said, scores, signatures, missing, parts, statistics)


def _read_captions(path: Path) -> list[Said]:
    said = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
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
    if not said:
        raise ValueError(f"{path}: holds no captions; {_AGAIN}")
    return said


# What surrounds it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surroundings:
    """What a run's folder and data add to an evaluation, as far as they are there.

    Attributes:
        config: the run's configuration; empty where it is gone.
        pictures: image id -> path of its file.
        training: the training captions.
        absent: what is not there -> the reason: "config", "pictures", "training".
    """

    config: Config = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)
    training: Sequence[str] = ()
    absent: Mapping[str, str] = field(default_factory=dict)


def look_around(result: Result, *, data_root: str | None = None) -> Surroundings:
    """Read the run's configuration and data set, where they are there.

    Args:
        result: the evaluation.
        data_root: where the data set lies, if not where the run's configuration says.
    """
    try:
        config = _read_config(result.run)
    except (ValueError, OSError) as error:
        reason = str(error)
        return Surroundings(absent=dict.fromkeys(("config", "pictures", "training"), reason))
    try:
        reading = _read_data(config, data_root)
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        return Surroundings(config, absent=dict.fromkeys(("pictures", "training"), reason))
    absent = {}
    odd = ", ".join(f"{what}: {count:,}" for what, count in reading.oddities.items())
    odd = f" ({odd})" if odd else ""
    pictures = {record.image_id: record.image for record in reading.records}
    wanted = {one.image for one in result.said}
    pictures = {image: path for image, path in pictures.items() if image in wanted}
    if not any(Path(path).is_file() for path in pictures.values()):
        absent["pictures"] = f"the data set has none of the images{odd}"
        pictures = {}
    training = [t for one in reading.records if one.split == "train" for t in one.captions]
    if not training:
        absent["training"] = f"the data set has no training captions{odd}"
    return Surroundings(config, pictures, training, absent)


def _read_config(run: Path | None) -> Config:
    from omegaconf import OmegaConf
    from yaml import YAMLError

    if run is None:
        raise FileNotFoundError("the evaluation does not lie in a run folder")
    path = run / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    try:
        # Interpolations stay as they stand: one could ask for a variable of the environment.
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, UnicodeDecodeError):
        raise ValueError(f"{path} is not YAML") from None
    if not isinstance(content, dict) or not isinstance(content.get("data"), dict):
        raise ValueError(f"{path} is not the configuration of a run")
    return {str(name): value for name, value in content.items()}


def _read_data(config: Config, root: str | None) -> Reading:
    data: dict[str, Any] = dict(config["data"])
    if root is not None:
        data["root"] = root
    if data.get("format") == "shapes" and data.get("captions") is None:
        data["captions"] = CAPTIONS  # named, it is not drawn where it is missing
    return make(read_records, "data", data)
