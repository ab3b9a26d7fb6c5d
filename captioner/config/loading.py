"""The location of the YAML files, and Hydra's loader for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.overrides import Override, quote

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader


def conf_folder() -> Path:
    """The folder of the YAML files: in the package (wheel), or next to the package (clone).

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/config.yaml in or next to {package}: install captioner again")


def groups(config_dir: str | Path | None = None) -> list[str]:
    """The names of the groups, as Hydra finds them in ``conf/`` and in `config_dir`, sorted."""
    with hydra_loader() as loader:
        return find_groups(loader, search_path(config_dir))


def options(group: str, config_dir: str | Path | None = None) -> list[str]:
    """The names of the options of a group, as Hydra finds them, sorted."""
    with hydra_loader() as loader:
        return find_options(loader, group, search_path(config_dir))


@contextmanager
def hydra_loader() -> Iterator[ConfigLoader]:
    """Hydra's loader for ``conf/``; it also works while a Hydra application runs."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), "captioner", version_base="1.3"):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = running


def find_groups(loader: ConfigLoader, search: list[str]) -> list[str]:
    """The names of the groups, for a `search` as returned by `search_path`."""
    from hydra.core.object_type import ObjectType

    names = loader.get_group_options("", ObjectType.GROUP, *_primary(search))
    return sorted(set(names) - {"hydra"})


def find_options(loader: ConfigLoader, group: str, search: list[str]) -> list[str]:
    """The names of the YAML files of a group, for a `search` as returned by `search_path`.

    They do not include options that an earlier override has added to Hydra's store (a class of the
    user, an optimizer of torch).
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.object_type import ObjectType

    names = loader.get_group_options(group, ObjectType.CONFIG, *_primary(search))
    stored = {name.removesuffix(".yaml") for name in ConfigStore.instance().repo.get(group, {})}
    return sorted(set(names) - stored)


def _primary(search: list[str]) -> tuple[Any, ...]:
    """The config from which Hydra reads the search path; empty for ``conf/`` alone."""
    return ("config", search) if search else ()


def search_path(config_dir: str | Path | None, changes: Sequence[Override] = ()) -> list[str]:
    """The override that makes Hydra search a folder and the places in ``hydra.searchpath``.

    Args:
        config_dir: a folder with the user's own options.
        changes: overrides; only those of ``hydra.searchpath`` are used.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    places = []
    for change in changes:
        if change.key_or_group == "hydra.searchpath":
            places += [str(place) for place in change.value()]
    if config_dir is not None:
        folder = Path(os.path.expanduser(config_dir)).absolute()
        if not folder.is_dir():
            raise FileNotFoundError(f"--config-dir={config_dir}: no such folder")
        places.append(f"file://{folder}")
    return [f"hydra.searchpath=[{','.join(map(quote, places))}]"] if places else []
