"""Readers of dataset layouts: Flickr, Karpathy, COCO, JSON, folders, drawn scenes and worlds.

Every reader takes the same five arguments:

    root      folder of the dataset
    captions  caption file relative to root, or absolute; None looks for the usual names. COCO, JSON
              and tables may have several: a list, or a glob pattern; a file's name gives its split
    images    images folder relative to root, or absolute; None looks for the usual names
    holdout   fraction of images for dev, and for test, if the data names no splits
    encoding  of the caption files

and returns a `Dataset`. It raises FileNotFoundError if a file or folder does not exist and
ValueError if a file has the wrong content; smaller errors are counted as warnings. Tables,
including Kaggle's layout, are read in `captioner.data.tables`.
"""

from __future__ import annotations

import os
import re
import shlex
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
from captioner.data.record_builder import NO_TAB, UNLISTED, RecordBuilder
from captioner.data.records import Dataset
from captioner.files import walk
from captioner.plain_data import shortened

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
) -> Dataset:
    """Read Flickr8k or Flickr30k as released: lines of `name.jpg#0<TAB>caption`.

    The lists `Flickr_8k.{train,dev,test}Images.txt` give the splits; each may be absent. Flickr30k
    has none. An image's id is its file name (Hodosh et al., JAIR 47, 2013; Young et al.,
    TACL 2, 2014).
    """
    usual = ("Flickr8k.token.txt", "results_20130124.token", "results.token")
    folders = ("", "Flickr8k_text/", "flickr30k/")
    path = find_file(root, captions, [folder + name for folder in folders for name in usual])
    builder = RecordBuilder(
        ImageFolders(root, images, FLICKR_IMAGES), holdout=holdout, encoding=encoding
    )
    for line, text in enumerate(builder.read_text(path).split("\n"), start=1):
        key, tab, caption = text.partition("\t")
        if tab:
            name, number = _split_number(builder, key)
            builder.add(name, [caption], number=number or None)
        elif text.strip():
            builder.warn(NO_TAB, f"{path.name}, line {line}")
    add_split_lists(builder, (path.parent, root))
    return builder.build(path)


def _split_number(builder: RecordBuilder, key: str) -> tuple[str, str]:
    """Split `photo #3.jpg#0` into image name and caption number, at the last # after an image name.

    Image names and numbers may contain # (Flickr8k-CN numbers its captions `a.jpg#zhc#0`), so the
    longest name of an existing image is used.
    """
    parts = key.split("#")
    if len(parts) < 3:
        return parts[0], "#".join(parts[1:])
    names = ["#".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
    name = builder.images.first_there(*(name.strip() for name in names))
    return name, key[len(name) :].lstrip("# ")


def add_split_lists(builder: RecordBuilder, folders: Sequence[Path]) -> None:
    """Add the splits of Flickr8k's lists, and all images of the images folders.

    Args:
        builder: the builder to which they are added.
        folders: searched for the lists; the first of two lists of the same name is used.
    """
    for split, name in _SPLIT_LISTS.items():
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is not None:
            for image in builder.read_text(path).split("\n"):
                if image.strip():
                    builder.add(image, [], split=split)
    for image in builder.images.names():
        builder.add(image, [])


def read_karpathy(
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
) -> Dataset:
    """Read the splits of Karpathy and Fei-Fei (CVPR 2015), `dataset_{flickr8k,...,coco}.json`.

    `restval` counts as train and `val` as dev. An image's id is `filepath/filename` for COCO and
    the file name otherwise.
    """
    path = find_file(root, captions, ("dataset.json", "dataset_*.json"))
    folders = ImageFolders(root, images, (".", *FLICKR_IMAGES))
    builder = RecordBuilder(folders, holdout=holdout, encoding=encoding)
    data = parse_json(builder.read_text(path), str(path))
    for count, entry in enumerate(entries_of(data, "images", path)):
        place = f"{path}, images[{count}]"
        name = text_of(entry, "filename", place)
        if entry.get("filepath"):
            name = folders.first_there(f"{text_of(entry, 'filepath', place)}/{name}", name)
        split = _split(entry, place)
        sentences = entries_of(entry, "sentences", place)
        for sentence in sentences:
            caption = text_of(sentence, "raw", place)
            builder.add(name, [caption], split=split, number=sentence.get("sentid"))
        if not sentences:
            builder.add(name, [], split=split)
    return builder.build(path)


def read_coco(
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
) -> Dataset:
    """Read COCO's caption annotations, `annotations/captions_{train,val,test}{2017,2014}.json`.

    All files that exist are read, and val is dev; `captions` names one or several other files. The
    name of a file gives its split: that of a single file only if it is an official name, that of
    one of several if it contains the name of a split. An image's id is `train2017/name.jpg`, or the
    file name if the caption file has another name (Lin et al., arXiv 1405.0312; Chen et al., arXiv
    1504.00325).
    """
    folders = ImageFolders(root, images, (".", "images"))
    paths = find_files(root, captions, ()) if captions is not None else _official_files(root)
    builder = RecordBuilder(folders, holdout=holdout, encoding=encoding)
    for path in paths:
        official = _COCO_NAME.fullmatch(path.name)
        split = split_of_file(path) if official or len(paths) > 1 else None
        subfolders = [official[1]] if official else [path.stem, split] if len(paths) > 1 else []
        for place, entry in coco_entries(parse_json(builder.read_text(path), str(path)), path):
            _add_entry(builder, entry, place, split, [name for name in subfolders if name])
    return builder.build(paths[0])


def _official_files(root: Path) -> list[Path]:
    """The existing caption files of one year of COCO."""
    first = find_file(root, None, _COCO_USUAL)
    year = first.stem[-4:]
    paths = (first.with_name(f"captions_{name}{year}.json") for name in ("train", "val", "test"))
    return [path for path in paths if path.is_file()]


def read_json(
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
) -> Dataset:
    """Read JSON in any of the shapes of `captioner.data.entries.json_entries`.

    An entry has the image, as a path relative to the images folder (root by default) or absolute;
    the captions, a text or a list of texts; and optionally `split`. The accepted keys are those of
    `captioner.data.entries`. Entries of the same image are joined. An image's id is its path as
    written.
    """
    usual = ("captions.jsonl", "captions.json", "*.jsonl", "*.json")
    paths = find_files(root, captions, usual)
    folders = ImageFolders(root, images, (".", "images", "Images"), absolute=True)
    builder = RecordBuilder(folders, holdout=holdout, encoding=encoding)
    captioned = False
    last: tuple[str, Entry] = ("", {})
    for path in paths:
        split = split_of_file(path) if len(paths) > 1 else None
        for place, entry in json_entries(builder.read_text(path), path):
            _add_entry(builder, entry, place, split)
            captioned, last = captioned or bool(caption_keys(entry)[0]), (place, entry)
    if last[0] and not captioned:
        raise missing("caption", "key", last[1], last[0])
    return builder.build(paths[0])


def _add_entry(
    builder: RecordBuilder,
    entry: Entry,
    place: str,
    split: str | None,
    subfolders: Sequence[str] = (),
) -> None:
    """Add the captions of an entry, whose image may be in one of the subfolders."""
    if "file_name" in entry and entry["file_name"] is None:
        builder.warn(UNLISTED, place)
        return
    key, (keys, others) = image_key(entry), caption_keys(entry)
    if key is None:
        raise missing("image", "key", entry, place)
    name = text_of(entry, key, place)
    if key == "filename" and isinstance(entry.get("filepath"), str):  # as Karpathy's
        subfolders = [entry["filepath"]]
    if subfolders:
        name = builder.images.first_there(
            *(f"{subfolder}/{name}" for subfolder in subfolders), name
        )
    if others:
        builder.warn(f"{others[0]!r} next to {keys[0]!r}, not read as a caption", place)
    split = _split(entry, place) or split
    builder.add(name, captions_of(entry, place), split=split, number=entry.get(ANNOTATION))


def read_folder(
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
) -> Dataset:
    """Read a folder of images, each with a text file of the same name, one caption per line.

    Subfolders are searched, except hidden ones. A top-level subfolder with the name of a split
    (`train/`, `val/`, ...) gives the split. `captions` names another folder with the text files at
    the same relative paths. An image's id is its path relative to the images folder.
    """
    folders = ImageFolders(root, images, (".",))
    top = folders.folders[0]
    captions = single(captions)
    text_folder = top if captions is None else root / Path(os.path.expanduser(captions))
    if not text_folder.is_dir():
        raise FileNotFoundError(
            f"data.captions={captions!r} is not a folder; data.format=folder reads text files"
        )
    builder = RecordBuilder(folders, holdout=holdout, encoding=encoding)
    image_names, texts = _walk(top, IMAGE_SUFFIXES), set(_walk(text_folder, {".txt"}))
    for name in image_names:
        text = Path(name).with_suffix(".txt").as_posix()
        lines = builder.read_text(text_folder / text).split("\n") if text in texts else []
        split = standard_split(name.split("/")[0]) if "/" in name else None
        builder.add(name, [line for line in lines if line.strip()], split=split)
    for text in sorted(texts - {Path(name).with_suffix(".txt").as_posix() for name in image_names}):
        builder.warn("text file without an image", text)
    return builder.build(text_folder)


SCENES = "captions.jsonl"
DRAWN = Path("datasets/shapes")
"""The default folder of the drawn scenes, as in data=shapes; relative to the current folder."""


def read_shapes(
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
) -> Dataset:
    """Read the drawn scenes.

    Missing scenes are drawn only in the default folder, and only if no captions are named: another
    root may be misspelled.
    """
    file = root / SCENES
    if captions is None and root == DRAWN and not file.is_file():
        from captioner.data.shapes import draw

        draw(root)
    if captions in (None, SCENES) and not file.is_file():
        raise FileNotFoundError(
            f"data.root={str(root)!r} has no {SCENES}; draw the scenes with: captioner data draw "
            + shlex.quote(f"data.root={root}")
            + "; another dataset needs its layout as well, such as data=flickr8k"
        )
    captions = captions or SCENES
    return read_json(root, captions=captions, images=images, holdout=holdout, encoding=encoding)


DRAWN_WORLDS = Path("datasets/worlds")
"""The folder of the worlds that are drawn when they are missing; relative to the current folder."""


def read_worlds(
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
) -> Dataset:
    """Read a small world (`captioner.data.worlds`), named by the last part of `root`.

    As with scenes, a missing one is drawn only in the default folder, if no captions are named.
    """
    file = root / SCENES
    if captions is None and root.parent == DRAWN_WORLDS and not file.is_file():
        from captioner.data.worlds import draw

        draw(root)
    if captions in (None, SCENES) and not file.is_file():
        raise FileNotFoundError(
            f"data.root={str(root)!r} has no {SCENES}; draw the world with: captioner data draw "
            + shlex.quote(f"data.root={root}")
            + " data=worlds"
        )
    captions = captions or SCENES
    return read_json(root, captions=captions, images=images, holdout=holdout, encoding=encoding)


def _walk(top: Path, suffixes: frozenset[str] | set[str]) -> list[str]:
    """Return the files in a folder and its subfolders that have one of the suffixes, sorted."""
    names, seen = [], set()
    for folder, below, files in walk(top, followlinks=True):
        status = os.stat(folder)
        if (here := (status.st_dev, status.st_ino)) in seen:  # a link to a parent folder
            below.clear()
            continue
        seen.add(here)
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
    """Return "train", "dev" or "test" for any usual name of a split.

    Raises:
        ValueError: it is not the name of a split; the message has the place.
    """
    if (split := standard_split(name)) is None:
        raise ValueError(
            f"{place}: split={shortened(name)} is not known; write train, dev or test "
            "(restval, training, val, valid, validation and testing are accepted too)"
        )
    return split
