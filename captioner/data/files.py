"""Where the files of a data set lie: its caption file by name or custom, its images by folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

# what open_image can read; other files beside the images are none of the reader's business
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def require_root(root: Path) -> None:
    """Raise FileNotFoundError, with what to set, unless the root of the data set is a folder."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"data.root={str(root)!r} is not a folder: set data.root=... to where the data set lies"
        )


def find_file(root: Path, given: str | None, usual: Sequence[str]) -> Path:
    """Find the caption file of a data set.

    Args:
        root: folder of the data set.
        given: its path relative to root, or absolute; None looks for the usual names.
        usual: names or glob patterns below root, the most usual first.

    Raises:
        FileNotFoundError: there is none.
        ValueError: several files fit the same pattern.
    """
    require_root(root)
    if given is not None:
        path = root / Path(given).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"data.captions={given!r} is not there: looked for {path}; "
                "give a path relative to data.root, or an absolute one"
            )
        return path
    for pattern in usual:
        found = [path for path in sorted(root.glob(pattern)) if path.is_file()]
        found = [path for path in found if not path.name.startswith(".")]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"{root} holds {names}: choose one with data.captions=...")
        if found:
            return found[0]
    raise FileNotFoundError(
        f"no caption file in {root}: looked for {', '.join(usual)}; "
        "set data.captions=... to its name, or data.root=... to another folder"
    )


class ImageFolders:
    """The folders in which a data set's images may lie.

    Args:
        root: folder of the data set.
        given: the images folder relative to root, or absolute; None looks for the usual names.
        usual: names below root, the most usual first.
        absolute: let captions name images by absolute paths, which the official releases never do.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(
        self, root: Path, given: str | None, usual: Sequence[str], *, absolute: bool = False
    ) -> None:
        require_root(root)
        names = usual if given is None else (str(Path(given).expanduser()),)
        self.folders = [root / name for name in names if (root / name).is_dir()]
        self._absolute = absolute
        if not self.folders:
            fault = f"no images folder in {root}" if given is None else f"data.images={given!r}"
            raise FileNotFoundError(
                f"{fault}: looked for {', '.join(str(root / name) for name in names)}; "
                "set data.images=... to the folder with the images"
            )

    def allows(self, name: str) -> bool:
        """Tell whether a name stays below the images folder, or may be absolute."""
        if os.path.isabs(name) or name.startswith("/"):
            return self._absolute
        return name.split("/", 1)[0] != ".."

    def locate(self, name: str) -> str | None:
        """Return the path of the image with this name, or None where there is none."""
        if self.allows(name):
            for folder in self.folders:
                path = os.path.join(folder, name)
                if os.path.isfile(path):
                    return path
        return None

    def first_there(self, *names: str) -> str:
        """Return the first of several names under which there is an image, else the first name."""
        return next((name for name in names if self.locate(name)), names[0])

    def names(self) -> Iterator[str]:
        """Name the image files directly inside the folders, sorted."""
        for folder in self.folders:
            for name in sorted(os.listdir(folder)):
                if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                    yield name
