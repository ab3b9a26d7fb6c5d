"""Files of named arrays: safetensors, with the other values as JSON in its header.

Reading one needs neither a model nor torch, and executes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captioner.files import write_whole
from captioner.plain_data import parse_json

Arrays = dict[str, np.ndarray]


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
        header = {self.key: json.dumps({"format": self.format, **values})}
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return write_whole(path, save(whole, metadata=header))

    def read(self, path: str | Path) -> tuple[dict[str, Any], Arrays]:
        """Read a file: the values and the arrays that were written.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is of another kind, or of a newer format.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            with safe_open(path, framework="numpy") as file:
                header = (file.metadata() or {}).get(self.key)
                arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
        except SafetensorError as error:
            raise ValueError(f"{path} is not {self.name}: {error}") from None
        if header is None:
            raise ValueError(f"{path} is a safetensors file, but not {self.name}")
        values = parse_json(header, str(path), fault=f"not {self.name}: its header is damaged")
        if not isinstance(values, dict) or values.pop("format", None) != self.format:
            raise ValueError(f"{path} is {self.name} of a newer format; upgrade captioner")
        return values, arrays
