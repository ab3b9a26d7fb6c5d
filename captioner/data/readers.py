"""From the files of a data set to records: Flickr, Karpathy, COCO, JSON, folders, drawn scenes.

Every reader takes the same five arguments:

    root      folder of the data set
    captions  caption file relative to root, or absolute; None looks for the usual names
    images    images folder relative to root, or absolute; None looks for the usual names
    holdout   share of images for dev, and for test, where the data names no splits
    encoding  of the caption files

and returns a `Reading`. It raises FileNotFoundError where a file or folder is missing and
ValueError where a file is not what it should be; what is only odd, it counts. Tables, Kaggle's
layout among them, are read in `captioner.data.tables`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captioner.data.files import IMAGE_SUFFIXES, ImageFolders, find_file
from captioner.data.ledger import Ledger, standard_split
from captioner.data.records import Reading

# "Flicker8k" is how the release spells it
FLICKR_IMAGES = (
    "Flicker8k_Dataset",
    "Flickr8k_Dataset/Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "flickr30k-images",
    "flickr30k_images/flickr30k_images",
    "flickr30k_images",
    "Images",
    "images",
)
_SPLIT_LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
_COCO_USUAL = tuple(
    f"{folder}captions_{split}{year}.json"
    for year in (2017, 2014)
    for folder in ("annotations/", "")
    for split in ("train", "val")
)
_COCO_NAME = re.compile(r"captions_((train|val|test)\w*)\.json")


def read_flickr(
    root: Path, *, captions: str | None, images: str | None, holdout: float, encoding: str
) -> Reading:
    """Read Flickr8k or Flickr30k as released: lines of `name.jpg#0<TAB>caption`.

    The lists `Flickr_8k.{train,dev,test}Images.txt` give the splits; each may be absent. Flickr30k
    comes without. An image's id is its file name (Hodosh et al., JAIR 47, 2013; Young et al.,
    TACL 2, 2014).
    """
    usual = ("Flickr8k.token.txt", "results_20130124.token", "results.token")
    folders = ("", "Flickr8k_text/", "flickr30k/")
    path = find_file(root, captions, [folder + name for folder in folders for name in usual])
    ledger = Ledger(ImageFolders(root, images, FLICKR_IMAGES), holdout=holdout, encoding=encoding)
    for line, text in enumerate(ledger.read(path).split("\n"), start=1):
        key, tab, caption = text.partition("\t")
        name, _, number = key.partition("#")
        if tab:
            ledger.enter(name, [caption], number=number or None)
        elif text.strip():
            ledger.note("line without a tab", f"{path.name}, line {line}")
    enter_split_lists(ledger, (path.parent, root))
    return ledger.close(path)


def enter_split_lists(ledger: Ledger, folders: Sequence[Path]) -> None:
    """Enter the splits that Flickr8k's lists name, and every image that lies there uncaptioned.

    Args:
        ledger: takes them.
        folders: where the lists may lie, the first list of a name counts.
    """
    for split, name in _SPLIT_LISTS.items():
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is not None:
            for image in ledger.read(path).split("\n"):
                if image.strip():
                    ledger.enter(image, [], split=split)
    for image in ledger.images.names():
        ledger.enter(image, [])


def read_karpathy(
    root: Path, *, captions: str | None, images: str | None, holdout: float, encoding: str
) -> Reading:
    """Read the splits of Karpathy and Fei-Fei (CVPR 2015), `dataset_{flickr8k,...,coco}.json`.

    `restval` counts as train and `val` as dev. An image's id is `filepath/filename` for COCO and
    the file name otherwise.
    """
    path = find_file(root, captions, ("dataset.json", "dataset_*.json"))
    folders = ImageFolders(root, images, (".", *FLICKR_IMAGES))
    ledger = Ledger(folders, holdout=holdout, encoding=encoding)
    data = _parse(ledger.read(path), path)
    for count, entry in enumerate(_entries(data, "images", path)):
        place = f"{path}, images[{count}]"
        name = _text(entry, "filename", place)
        if entry.get("filepath"):
            name = folders.first_there(f"{_text(entry, 'filepath', place)}/{name}", name)
        split = _split(entry, place)
        sentences = _entries(entry, "sentences", place)
        for sentence in sentences:
            caption = _text(sentence, "raw", place)
            ledger.enter(name, [caption], split=split, number=sentence.get("sentid"))
        if not sentences:
            ledger.enter(name, [], split=split)
    return ledger.close(path)


def read_coco(
    root: Path, *, captions: str | None, images: str | None, holdout: float, encoding: str
) -> Reading:
    """Read COCO's caption annotations, `annotations/captions_{train,val}{2017,2014}.json`.

    Training and validation files are read together and val is dev; `captions` names a single file.
    A file of another name brings no split. An image's id is `train2017/name.jpg`, or the file name
    in a file of another name (Lin et al., arXiv 1405.0312; Chen et al., arXiv 1504.00325).
    """
    folders = ImageFolders(root, images, (".", "images"))
    if captions is not None:
        paths = [find_file(root, captions, ())]
    else:
        first = find_file(root, None, _COCO_USUAL)
        second = first.with_name(first.name.replace("train", "val"))
        paths = [first, second] if second != first and second.is_file() else [first]
    ledger = Ledger(folders, holdout=holdout, encoding=encoding)
    for path in paths:
        _enter_coco(ledger, path)
    return ledger.close(paths[0])


def _enter_coco(ledger: Ledger, path: Path) -> None:
    data = _parse(ledger.read(path), path)
    official = _COCO_NAME.fullmatch(path.name)
    split = standard_split(official[2]) if official else None
    names: dict[str, str] = {}
    for count, entry in enumerate(_entries(data, "images", path)):
        name = _text(entry, "file_name", f"{path}, images[{count}]")
        if official:
            name = ledger.images.first_there(f"{official[1]}/{name}", name)
        names[str(entry.get("id"))] = name
    captions: dict[str, list[tuple[Any, str]]] = {key: [] for key in names}
    for count, entry in enumerate(_entries(data, "annotations", path)):
        place = f"{path}, annotations[{count}]"
        key = str(entry.get("image_id"))
        if key in captions:
            captions[key].append((entry.get("id"), _text(entry, "caption", place)))
        else:
            ledger.note("caption of an image_id that the file does not list", place)
    for key, name in names.items():
        for number, caption in captions[key]:
            ledger.enter(name, [caption], split=split, number=number)
        if not captions[key]:
            ledger.enter(name, [], split=split)


def read_json(
    root: Path, *, captions: str | None, images: str | None, holdout: float, encoding: str
) -> Reading:
    """Read a JSON list, or one JSON object a line, of images with their captions.

    Each object holds `image`, a path below the images folder (root by default) or an absolute one;
    `caption` or `captions`, a text or a list of texts; and perhaps `split`. Objects with the same
    image are joined. An image's id is its path as written.
    """
    usual = ("captions.jsonl", "captions.json", "*.jsonl", "*.json")
    path = find_file(root, captions, usual)
    folders = ImageFolders(root, images, (".", "images", "Images"), absolute=True)
    ledger = Ledger(folders, holdout=holdout, encoding=encoding)
    for place, entry in _objects(ledger.read(path), path):
        texts: list[Any] = []
        for key in ("caption", "captions"):
            value = entry.get(key, [])
            texts += value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) or text is None for text in texts):
            raise ValueError(f"{place}: captions must be texts, got {str(texts)[:60]}")
        name, split = _text(entry, "image", place), _split(entry, place)
        ledger.enter(name, [text or "" for text in texts], split=split)
    return ledger.close(path)


def read_folder(
    root: Path, *, captions: str | None, images: str | None, holdout: float, encoding: str
) -> Reading:
    """Read a folder of images, each beside a text file of the same name, one caption a line.

    Subfolders are searched too, hidden ones are not. A first folder named as a split (`train/`,
    `val/`, ...) gives the split. `captions` names another folder that holds the text files in the
    same arrangement. An image's id is its path below the images folder.
    """
    folders = ImageFolders(root, images, (".",))
    top = folders.folders[0]
    beside = top if captions is None else root / Path(captions).expanduser()
    if not beside.is_dir():
        raise FileNotFoundError(
            f"data.captions={captions!r} is not a folder: for format folder it holds the text files"
        )
    ledger = Ledger(folders, holdout=holdout, encoding=encoding)
    found, texts = _walk(top, IMAGE_SUFFIXES), set(_walk(beside, {".txt"}))
    for name in found:
        text = Path(name).with_suffix(".txt").as_posix()
        lines = ledger.read(beside / text).split("\n") if text in texts else []
        split = standard_split(name.split("/")[0]) if "/" in name else None
        ledger.enter(name, [line for line in lines if line.strip()], split=split)
    for text in sorted(texts - {Path(name).with_suffix(".txt").as_posix() for name in found}):
        ledger.note("text file without an image", text)
    return ledger.close(beside)


def read_shapes(
    root: Path, *, captions: str | None, images: str | None, holdout: float, encoding: str
) -> Reading:
    """Read the drawn scenes, and draw them first where `root/captions.jsonl` is not there yet."""
    if captions is None:
        captions = "captions.jsonl"
        if not (root / captions).is_file():
            from captioner.data.shapes import draw

            draw(root)
    return read_json(root, captions=captions, images=images, holdout=holdout, encoding=encoding)


def _walk(top: Path, suffixes: frozenset[str] | set[str]) -> list[str]:
    """Return the files below a folder with one of the suffixes, sorted, without hidden ones."""
    names, seen = [], set()
    for folder, below, files in os.walk(top, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder above
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith(".")]
        for name in files:
            if Path(name).suffix.lower() in suffixes and not name.startswith("."):
                names.append(Path(folder, name).relative_to(top).as_posix())
    return sorted(names)


def _parse(text: str, path: Path, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {line - 1 + error.lineno}: not valid JSON ({error.msg}); "
            "the file may be cut off: fetch or write it again"
        ) from None
    except RecursionError:
        raise ValueError(f"{path}: JSON nested too deeply for a caption file") from None


def _objects(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each object of a JSON list or of JSON lines, and where it stands."""
    if text.lstrip().startswith("["):
        data = _parse(text, path)
        numbered = ((f"{path}, entry {count}", entry) for count, entry in enumerate(data, start=1))
    else:
        lines = ((count, line) for count, line in enumerate(text.split("\n"), 1) if line.strip())
        numbered = ((f"{path}, line {count}", _parse(line, path, count)) for count, line in lines)
    for place, entry in numbered:
        if not isinstance(entry, dict):
            raise ValueError(
                f'{place}: expected an object like {{"image": "a.jpg", "captions": ["a dog"]}}, '
                f"got {str(entry)[:60]}"
            )
        yield place, entry


def _entries(data: Any, key: str, place: Path | str) -> list[dict[str, Any]]:
    entries = data.get(key) if isinstance(data, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"{place}: {key!r} must be a list of objects; is this file of another data.format?"
        )
    return entries


def _text(entry: dict[str, Any], key: str, place: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{place}: {key!r} must be a text, got {str(value)[:60]}")
    return value


def _split(entry: dict[str, Any], place: str) -> str | None:
    if entry.get("split") in (None, ""):
        return None
    return require_split(_text(entry, "split", place), place)


def require_split(name: str, place: str) -> str:
    """Return the split that a name means.

    Raises:
        ValueError: it means none; the message names the place.
    """
    if (split := standard_split(name)) is None:
        raise ValueError(
            f"{place}: split={name!r} is not known; write train, dev or test "
            "(restval, training, val, valid, validation, testing are understood too)"
        )
    return split
