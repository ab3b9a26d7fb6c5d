"""The check of the interface of a reader of a data layout; part of ``captioner.testing``."""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from captioner.data.read import Reader
from captioner.data.records import SPLITS, Dataset

_DEFAULTS = {"captions": None, "images": None, "holdout": 0.1, "encoding": "utf-8"}


def check_data_layout(reader: Reader, folder: str | Path, **options: Any) -> Dataset:
    """Check a function against the interface of ``captioner.data.read.Reader``.

    It takes the five arguments of a reader and returns a Dataset: its images exist and have unique
    ids, its captions are stripped single lines, its splits have standard names, and the same call
    returns the same. Captions of a missing image are skipped with a warning; a dataset without
    images, a missing folder and a wrong holdout raise errors.

    Args:
        reader: the function.
        folder: a small dataset in its layout, of at least two images; it is copied, not changed.
        options: the other arguments of the reader (captions, images, holdout, encoding), if the
            defaults None, None, 0.1 and "utf-8" do not fit.

    Returns:
        the dataset, for checks of your own.

    Raises:
        AssertionError: one of these does not hold.
        TypeError: the reader is no function, or an option is not one of the four.
        FileNotFoundError: there is no such folder.
    """
    _require_arguments(reader, folder, options)
    name = getattr(reader, "__name__", repr(reader))

    def require(fulfilled: bool, demand: str) -> None:
        if not fulfilled:
            raise AssertionError(f"{name}: {demand}")

    given = {**_DEFAULTS, **options}
    try:
        inspect.signature(reader).bind(Path(folder), **given)
    except TypeError:
        require(False, "must take the arguments root, captions, images, holdout, encoding")
    dataset = reader(Path(folder), **given)
    _check_dataset(dataset, require)
    require(
        reader(Path(folder), **given) == dataset, "returns a different dataset at the second call"
    )
    _check_refusals(reader, Path(folder), given, require)
    with tempfile.TemporaryDirectory() as temporary:
        _check_missing_images(reader, Path(folder), Path(temporary) / "copy", given, require)
    return dataset


_Require = Callable[[bool, str], None]


def _check_dataset(dataset: Dataset, require: _Require) -> None:
    require(isinstance(dataset, Dataset), "must return a captioner.data.records.Dataset")
    ids = Counter(record.image_id for record in dataset.records)
    for record in dataset.records:
        require(Path(record.image).is_file(), f"image {record.image}: no such file")
        require(ids[record.image_id] == 1, f"image_id {record.image_id!r} occurs twice")
        require(record.split in SPLITS, f"split {record.split!r} is not one of {', '.join(SPLITS)}")
        require(isinstance(record.captions, tuple), "captions must be a tuple")
        for text in record.captions:
            require(text.strip() == text != "", f"caption {text!r} is blank or not stripped")
            require(len(text.splitlines()) == 1, f"caption {text!r} has several lines")
    require(
        all(count > 0 for count in dataset.warnings.values()),
        "must not count warnings that do not occur",
    )
    for warning in dataset.places:
        require(warning in dataset.warnings, f"has places of {warning!r}, but no such warning")


def _require_arguments(reader: object, folder: str | Path, options: dict[str, Any]) -> None:
    if not callable(reader):
        raise TypeError(f"check_data_layout: expected a function, got {reader!r}")
    for option in options:
        if option not in _DEFAULTS:
            accepted = ", ".join(_DEFAULTS)
            raise TypeError(f"check_data_layout has no option {option!r}; accepted are {accepted}")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; name the folder of a small dataset")


def _check_refusals(reader: Reader, folder: Path, given: dict[str, Any], require: _Require) -> None:
    """Call a reader with values that it must not accept."""
    values = {**given, "holdout": 0.7}
    _require_error(
        ValueError, reader, folder, values, "holdout=0.7 (allowed: 0 ≤ holdout < 0.5)", require
    )
    values = {**given, "encoding": "no-such-encoding"}
    _require_error(ValueError, reader, folder, values, "encoding='no-such-encoding'", require)
    _require_error(
        FileNotFoundError, reader, folder / "no such folder", given, "a missing folder", require
    )


def _check_missing_images(
    reader: Reader, folder: Path, copied: Path, given: dict[str, Any], require: _Require
) -> None:
    """Read a copy of the dataset without one of its images, and then without any image."""
    shutil.copytree(folder, copied)
    before = reader(copied, **given)
    first, *others = before.records
    Path(first.image).unlink()
    after = reader(copied, **given)
    ids = {record.image_id for record in after.records}
    require(ids == {record.image_id for record in others}, "does not skip a missing image")
    more = sum(after.warnings.values()) > sum(before.warnings.values())
    require(more, "skips the captions of a missing image without a warning")
    for record in others:
        Path(record.image).unlink()
    _require_error(ValueError, reader, copied, given, "a dataset without images", require)


def _require_error(
    expected: type[Exception],
    reader: Reader,
    root: Path,
    given: dict[str, Any],
    what: str,
    require: _Require,
) -> None:
    demand = f"a reader must raise {expected.__name__}"
    try:
        reader(root, **given)
    except expected:
        return
    except Exception as error:
        require(False, f"{what} raises {type(error).__name__}: {error}; {demand}")
    require(False, f"accepts {what}; {demand}")
