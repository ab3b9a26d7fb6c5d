"""Files of named arrays: safetensors, with the other values as JSON in its header.

Reading one needs neither a model nor torch, and executes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captioner import __version__
from captioner.files import write_whole
from captioner.plain_data import parse_json, require_format

Arrays = dict[str, np.ndarray]
VERSION = "captioner.version"
"""In the header: the version of captioner that wrote the file."""


@dataclass(frozen=True)
class ArrayFile:
    """One kind of file.

    Args:
        key: of the JSON in the header.
        name: of the kind, for messages: "a trace".
        format: its number; files with another one are refused.
    """

    key: str
    name: str
    format: int

    def write(
        self, path: str | Path, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> Path:
        """Write a file, or replace one of the same kind.

        Args:
            values: plain data that JSON can hold.
            arrays: by name.

        Raises:
            OSError: it cannot be written.
            ValueError: the file exists and is of another kind.
        """
        from safetensors.numpy import save

        if Path(path).is_file():
            self.read(path)
        header = {self.key: json.dumps({"format": self.format, **values}), VERSION: __version__}
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return write_whole(path, save(whole, metadata=header))

    def read(self, path: str | Path) -> tuple[dict[str, Any], Arrays]:
        """Read a file: the values and the arrays that were written.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is of another kind, damaged, or of a newer format.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
        except SafetensorError as error:
            raise ValueError(f"{path} is not {self.name}: {error}") from None
        if self.key not in metadata:
            raise ValueError(f"{path} is a safetensors file, but not {self.name}")
        fault = f"not {self.name}: its header is damaged"
        values = parse_json(metadata[self.key], str(path), fault=fault)
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {fault}")
        written_by, found = metadata.get(VERSION), values.pop("format", None)
        require_format(path, self.name, found=found, written_by=written_by, reads=self.format)
        return values, arrays

    @contextmanager
    def damages(self, path: str | Path) -> Iterator[None]:
        """Raise ValueError for errors of building an object from the values of a file."""
        try:
            yield
        except (TypeError, LookupError, AttributeError, ValueError):
            raise ValueError(f"{path} is not {self.name}: its header is damaged") from None
