"""From the files of a data set to records: Flickr, Karpathy, COCO, JSON, folders, drawn scenes.

Every reader takes the same five arguments:

    root      folder of the data set
    captions  caption file relative to root, or absolute; None looks for the usual names. COCO, JSON
              and tables may have several: a list, or a glob pattern; a file's name gives its split
    images    images folder relative to root, or absolute; None looks for the usual names
    holdout   share of images for dev, and for test, where the data names no splits
    encoding  of the caption files

and returns a `Reading`. It raises FileNotFoundError where a file or folder is missing and
ValueError where a file is not what it should be; what is only odd, it counts. Tables, Kaggle's
layout among them, are read in `captioner.data.tables`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from captioner.data.entries import (
    ANNOTATION,
    Entry,
    caption_keys,
    captions_of,
    coco_entries,
    entries_of,
    image_key,
    json_entries,
    missing,
    parse_json,
    text_of,
)
from captioner.data.layout import (
    IMAGE_SUFFIXES,
    ImageFolders,
    find_file,
    find_files,
    single,
    split_of_file,
    standard_split,
)
from captioner.data.ledger import NO_TAB, UNLISTED, Ledger
from captioner.data.records import Reading

Captions = str | Sequence[str] | None

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
    for split in ("train", "val", "test")
)
_COCO_NAME = re.compile(r"captions_((train|val|test)\w*)\.json")


def read_flickr(
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
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
        if tab:
            name, number = _numbered(ledger, key)
            ledger.enter(name, [caption], number=number or None)
        elif text.strip():
            ledger.note(NO_TAB, f"{path.name}, line {line}")
    enter_split_lists(ledger, (path.parent, root))
    return ledger.close(path)


def _numbered(ledger: Ledger, key: str) -> tuple[str, str]:
    """Cut `photo #3.jpg#0` into name and number: before the last # of a name that is there.

    The last, since names hold # too; and of a name that is there, since Flickr8k-CN numbers its
    captions by `a.jpg#zhc#0`.
    """
    parts = key.split("#")
    if len(parts) < 3:
        return parts[0], "#".join(parts[1:])
    names = ["#".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
    name = ledger.images.first_there(*(name.strip() for name in names))
    return name, key[len(name) :].lstrip("# ")


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
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
) -> Reading:
    """Read the splits of Karpathy and Fei-Fei (CVPR 2015), `dataset_{flickr8k,...,coco}.json`.

    `restval` counts as train and `val` as dev. An image's id is `filepath/filename` for COCO and
    the file name otherwise.
    """
    path = find_file(root, captions, ("dataset.json", "dataset_*.json"))
    folders = ImageFolders(root, images, (".", *FLICKR_IMAGES))
    ledger = Ledger(folders, holdout=holdout, encoding=encoding)
    data = parse_json(ledger.read(path), str(path))
    for count, entry in enumerate(entries_of(data, "images", path)):
        place = f"{path}, images[{count}]"
        name = text_of(entry, "filename", place)
        if entry.get("filepath"):
            name = folders.first_there(f"{text_of(entry, 'filepath', place)}/{name}", name)
        split = _split(entry, place)
        sentences = entries_of(entry, "sentences", place)
        for sentence in sentences:
            caption = text_of(sentence, "raw", place)
            ledger.enter(name, [caption], split=split, number=sentence.get("sentid"))
        if not sentences:
            ledger.enter(name, [], split=split)
    return ledger.close(path)


def read_coco(
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
) -> Reading:
    """Read COCO's caption annotations, `annotations/captions_{train,val,test}{2017,2014}.json`.

    The files that are there are read together, and val is dev; `captions` names others, one or
    several. A file's name gives its split: of a single file only if it is an official name, of
    several if it holds the name of a split. An image's id is `train2017/name.jpg`, or the file
    name in a file of another name (Lin et al., arXiv 1405.0312; Chen et al., arXiv 1504.00325).
    """
    folders = ImageFolders(root, images, (".", "images"))
    paths = find_files(root, captions, ()) if captions is not None else _official(root)
    ledger = Ledger(folders, holdout=holdout, encoding=encoding)
    for path in paths:
        official = _COCO_NAME.fullmatch(path.name)
        split = split_of_file(path) if official or len(paths) > 1 else None
        folders_of = [official[1]] if official else [path.stem, split] if len(paths) > 1 else []
        for place, entry in coco_entries(parse_json(ledger.read(path), str(path)), path):
            _enter(ledger, entry, place, split, [one for one in folders_of if one])
    return ledger.close(paths[0])


def _official(root: Path) -> list[Path]:
    """The files that COCO released for one year, as far as they are there."""
    first = find_file(root, None, _COCO_USUAL)
    year = first.stem[-4:]
    paths = (first.with_name(f"captions_{name}{year}.json") for name in ("train", "val", "test"))
    return [path for path in paths if path.is_file()]


def read_json(
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
) -> Reading:
    """Read JSON of any usual shape: see `captioner.data.entries.json_entries`.

    An entry holds the image, a path below the images folder (root by default) or an absolute one;
    captions, a text or a list of texts; and perhaps `split`. The keys are those of
    `captioner.data.entries`. Entries with the same image are joined. An image's id is its path as
    written.
    """
    usual = ("captions.jsonl", "captions.json", "*.jsonl", "*.json")
    paths = find_files(root, captions, usual)
    folders = ImageFolders(root, images, (".", "images", "Images"), absolute=True)
    ledger = Ledger(folders, holdout=holdout, encoding=encoding)
    captioned = False
    last: tuple[str, Entry] = ("", {})
    for path in paths:
        split = split_of_file(path) if len(paths) > 1 else None
        for place, entry in json_entries(ledger.read(path), path):
            _enter(ledger, entry, place, split)
            captioned, last = captioned or bool(caption_keys(entry)[0]), (place, entry)
    if last[0] and not captioned:
        raise missing("caption", "key", last[1], last[0])
    return ledger.close(paths[0])


def _enter(
    ledger: Ledger, entry: Entry, place: str, split: str | None, subfolders: Sequence[str] = ()
) -> None:
    """Enter what an entry says; its image may lie in one of the subfolders."""
    if "file_name" in entry and entry["file_name"] is None:
        ledger.note(UNLISTED, place)
        return
    key, (keys, others) = image_key(entry), caption_keys(entry)
    if key is None:
        raise missing("image", "key", entry, place)
    name = text_of(entry, key, place)
    if key == "filename" and isinstance(entry.get("filepath"), str):  # as Karpathy's
        subfolders = [entry["filepath"]]
    if subfolders:
        name = ledger.images.first_there(*(f"{one}/{name}" for one in subfolders), name)
    if others:
        ledger.note(f"{others[0]!r} beside {keys[0]!r}, not read as a caption", place)
    split = _split(entry, place) or split
    ledger.enter(name, captions_of(entry, place), split=split, number=entry.get(ANNOTATION))


def read_folder(
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
) -> Reading:
    """Read a folder of images, each beside a text file of the same name, one caption a line.

    Subfolders are searched too, hidden ones are not. A first folder named as a split (`train/`,
    `val/`, ...) gives the split. `captions` names another folder that holds the text files in the
    same arrangement. An image's id is its path below the images folder.
    """
    folders = ImageFolders(root, images, (".",))
    top = folders.folders[0]
    captions = single(captions)
    beside = top if captions is None else root / Path(os.path.expanduser(captions))
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
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
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


def _split(entry: Entry, place: str) -> str | None:
    if entry.get("split") in (None, ""):
        return None
    return require_split(text_of(entry, "split", place), place)


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
