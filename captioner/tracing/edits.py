"""Edits: changes of the values inside a model, as data.

An edit names a site (``captioner.models.sites``), and which steps, layers and units of it; it gives
what the values become:

    Set("cell.forget_gate", 0.0, step=3)        forget everything at step 3
    Add("cell.memory", 2.0, units=[17])
    Zero("cell.memory", units=[17])             a lesion
    Swap("image.x0", from_image="b.jpg")        the value that another image has there
    Reset(every=4)                              h and C are zero after each four words

Step 0 reads the image as X_0, step 1 reads <start>, step 2 the first word. The same as text, for
the command line, is SITE[UNITS]@STEPS=VALUE:

    cell.forget_gate@3=0    cell.memory[17,20-23]+=2    image.x0=from:b.jpg    reset=4

What depends on an edited value is computed from it, within the step and after it. An edit that sets
a value to what it already is changes nothing, to the bit. Edited attention weights are used as they
are: they need not sum to 1.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from captioner.plain_data import read_json, shortened

MOST_NUMBERS = 100_000
"""Steps or units that a range may name; no model has as many."""


@dataclass(frozen=True)
class Edit:
    """A change of one site.

    Args:
        site: its name.
        step: the number of a step ≥ 0, or several; None: all.
        layer: the number of a layer ≥ 0; None: all. Ignored by sites without layers.
        units: an index of the last dimension, or several; None: all.

    Raises:
        ValueError: a number below 0, a value that is not finite, or a gate that is set to a value
            outside 0 to 1.
    """

    site: str
    step: int | Sequence[int] | None = field(default=None, kw_only=True)
    layer: int | None = field(default=None, kw_only=True)
    units: int | Sequence[int] | None = field(default=None, kw_only=True)

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if not isinstance(self.site, str):
            raise ValueError(
                f"site={shortened(self.site)} of an edit is not a name, such as cell.memory"
            )
        for name in ("step", "layer", "units"):
            value = getattr(self, name)
            numbers = value if isinstance(value, Sequence) else [] if value is None else [value]
            if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in numbers):
                raise ValueError(
                    f"{name}={shortened(value)} of an edit of {_named(self.site)} is not accepted; "
                    "choose whole numbers ≥ 0, or None for all"
                )

    def concerns(self, site: str, step: int, layer: int | None) -> bool:
        """Whether it changes a value."""
        at_step = self.step in (None, step) or (
            isinstance(self.step, Sequence) and step in self.step
        )
        return site == self.site and at_step and (layer is None or self.layer in (None, layer))

    def apply(self, value: Tensor, other: Tensor | None = None) -> Tensor:
        """The changed value, a new tensor.

        Args:
            value: [R, ...].
            other: of the image that it is swapped with, of the same shape.

        Raises:
            ValueError: units that the site does not have, or a value that does not fit it.
        """
        chosen = [self.units] if isinstance(self.units, int) else self.units
        if chosen and max(chosen) >= value.shape[-1]:
            raise ValueError(
                f"units={list(chosen)} of an edit of {self.site} are not accepted; it has "
                f"units 0 to {value.shape[-1] - 1}"
            )
        units: Any = slice(None) if chosen is None else list(chosen)
        changed = value.clone()
        try:
            changed[..., units] = self.become(
                value[..., units], None if other is None else other[..., units]
            )
        except RuntimeError as error:
            raise ValueError(
                f"the value of an edit of {self.site} does not fit {tuple(value.shape[1:])}: give "
                "one number, or one for each unit"
            ) from error
        return changed

    def become(self, value: Tensor, other: Tensor | None) -> Tensor:
        """What the selected units become."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold; ``from_dict`` reads it."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        plain = {n: list(v) if isinstance(v, (tuple, range)) else v for n, v in values.items()}
        return {"edit": self.kind, **{n: v for n, v in plain.items() if v is not None}}


@dataclass(frozen=True)
class Set(Edit):
    """The values become a number, or one number for each unit."""

    value: float | Sequence[float]
    kind = "set"

    def __post_init__(self) -> None:
        super().__post_init__()
        values = _finite(self.value, self.site)
        if self.site.endswith("gate") and not all(0 <= value <= 1 for value in values):
            wrong = next(value for value in values if not 0 <= value <= 1)
            raise ValueError(f"{self.site}={wrong} is not accepted; a gate is between 0 and 1")

    def become(self, value: Tensor, other: Tensor | None) -> Tensor:
        return value.new_tensor(self.value).expand_as(value)


@dataclass(frozen=True)
class Add(Edit):
    """A number is added, or one number for each unit."""

    value: float | Sequence[float]
    kind = "add"

    def __post_init__(self) -> None:
        super().__post_init__()
        _finite(self.value, self.site)

    def become(self, value: Tensor, other: Tensor | None) -> Tensor:
        return value + value.new_tensor(self.value)


def _finite(value: Any, site: str) -> list[float]:
    """The numbers of a value, each of which must be finite."""
    plain = value.tolist() if hasattr(value, "tolist") else value  # of numpy or torch
    numbers = list(plain) if isinstance(plain, (list, tuple)) else [plain]
    if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
        raise ValueError(
            f"value={shortened(value)} of an edit of {_named(site)} is not accepted; give a finite "
            "number, or one for each unit"
        )
    return numbers


@dataclass(frozen=True)
class Zero(Edit):
    """The values become 0."""

    kind = "zero"

    def become(self, value: Tensor, other: Tensor | None) -> Tensor:
        return torch.zeros_like(value)


@dataclass(frozen=True)
class Swap(Edit):
    """The values become those of another image, which reads the same words.

    Args:
        from_image: whatever ``Captioner.trace`` accepts as an image; or Features, one row.
    """

    from_image: Any
    kind = "swap"

    def become(self, value: Tensor, other: Tensor | None) -> Tensor:
        assert other is not None
        return other

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "from_image": str(self.from_image)}


@dataclass(frozen=True)
class Reset:
    """The recurrent state becomes zero after each so many words.

    Args:
        every: how many words are read between two resets, 1 or more. X_0 is not a word: the first
            reset is before word every + 1, <start> being word 1.

    Raises:
        ValueError: below 1.
    """

    every: int
    kind: ClassVar[str] = "reset"
    site: ClassVar[str] = "cell.previous_hidden"

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(
                f"Reset(every={shortened(self.every)}) is not accepted; choose 1 or more"
            )

    def concerns(self, site: str, step: int, layer: int | None) -> bool:
        """Whether it changes a value: of h_{t-1} or C_{t-1} at the right steps."""
        return ".previous_" in site and step > 1 and (step - 1) % self.every == 0

    def apply(self, value: Tensor, other: Tensor | None = None) -> Tensor:
        """Zeros."""
        return torch.zeros_like(value)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return {"edit": self.kind, "every": self.every}


AnyEdit = Edit | Reset

EDITS: dict[str, type[Any]] = {kind.kind: kind for kind in (Set, Add, Zero, Swap, Reset)}
"""Every kind of edit by its name in JSON."""


def from_dict(values: Mapping[str, Any]) -> AnyEdit:
    """Read an edit from plain data.

    Raises:
        ValueError: an unknown kind, or an argument that it does not have.
    """
    arguments = dict(values)
    name = arguments.pop("edit", None)
    if not isinstance(name, str) or name not in EDITS:
        raise ValueError(f"edit={shortened(name)} is not known; choose {', '.join(EDITS)}")
    try:
        return EDITS[name](**arguments)
    except TypeError:
        names = ", ".join(f.name for f in fields(EDITS[name]))
        given = shortened(dict(values))
        raise ValueError(f"edit {given} is not accepted; {name} has {names}") from None


def read(path: Path) -> list[AnyEdit]:
    """Read the edits in a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a list of edits.
    """
    values = read_json(path, fault=f"is not JSON; write a list of edits, such as {EXAMPLE}")
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError(f"{path} is not a list of edits, such as {EXAMPLE}")
    try:
        return [from_dict(value) for value in values]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def as_text(values: Mapping[str, Any]) -> str:
    """The plain data of an edit as ``parse`` reads it."""
    if values["edit"] == Reset.kind:
        return f"reset={values['every']}"
    places = {name: values.get(name) for name in ("units", "layer", "step")}
    listed = {
        name: ",".join(map(str, place)) if isinstance(place, (list, tuple)) else str(place)
        for name, place in places.items()
        if place is not None
    }
    place = values["site"] + (f"[{listed['units']}]" if "units" in listed else "")
    place += f"/{listed['layer']}" if "layer" in listed else ""
    place += f"@{listed['step']}" if "step" in listed else ""
    if values["edit"] == Swap.kind:
        return f"{place}=from:{values['from_image']}"
    value = values.get("value", 0)
    numbers = ",".join(f"{n:g}" for n in (value if isinstance(value, Sequence) else [value]))
    return f"{place}{'+=' if values['edit'] == Add.kind else '='}{numbers}"


_TEXT = re.compile(
    r"(?P<site>[a-z_0-9]+\.[a-z_0-9]+)(?:\[(?P<units>[\d,-]+)\])?(?:/(?P<layer>\d+))?"
    r"(?:@(?P<step>[\d,-]+))?(?P<plus>\+?)=(?P<value>.+)"
)
EXAMPLE = '[{"edit": "set", "site": "cell.forget_gate", "value": 0, "step": 3}]'
FORM = (
    "SITE[UNITS]/LAYER@STEPS=VALUE, such as cell.forget_gate@3=0, cell.memory[17]+=2, "
    "cell.hidden=from:b.jpg or reset=4"
)


def parse(text: str) -> AnyEdit:
    """Read an edit from the text of the command line.

    Raises:
        ValueError: it does not have that form.
    """
    if text.startswith("reset="):
        every = text.removeprefix("reset=")
        if not _is_number(every):
            raise ValueError(
                f"--edit {_named(text)}: {shortened(every)} is not a number of words; write reset=4"
            )
        return Reset(every=int(every))
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"--edit {_named(text)}: write {FORM}")
    selected: dict[str, Any] = {
        "step": _numbers(match["step"]),
        "units": _numbers(match["units"]),
        "layer": (_numbers(match["layer"]) or [None])[0],
    }
    value = match["value"]
    if value.startswith("from:"):
        return Swap(match["site"], value.removeprefix("from:"), **selected)
    try:
        numbers = [float(number) for number in value.split(",")]
    except ValueError:
        raise ValueError(
            f"--edit {_named(text)}: {shortened(value)} is not a number; write {FORM}"
        ) from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"--edit {_named(text)}: {shortened(value)} is not accepted; give a finite number"
        )
    kind = Add if match["plus"] else Set
    return kind(match["site"], numbers if len(numbers) > 1 else numbers[0], **selected)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    """Read "3", "1,4" and "2-5"; None of None."""
    if text is None:
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not _is_number(first) or (dash and not _is_number(last)):
            raise ValueError(f"{shortened(text)} is not a list of numbers; write 3, 1,4 or 2-5")
        if dash and int(last) < int(first):
            raise ValueError(
                f"{shortened(text)} has no number; write the smaller one first, {last}-{first}"
            )
        if int(last or first) - int(first) >= MOST_NUMBERS:
            raise ValueError(
                f"{part!r} has more than {MOST_NUMBERS:,} numbers; write a shorter range"
            )
        numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(numbers)


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= 9


def _named(text: str) -> str:
    return text if len(text) <= 200 and text.isprintable() else shortened(text, 200)


def require_edits(edits: object) -> None:
    """Raise for what is not a sequence of edits.

    Raises:
        ValueError: with what was given.
    """
    if isinstance(edits, (str, bytes)) or not isinstance(edits, Sequence):
        raise ValueError(f"edits={edits!r} is not a list; give a list such as [Set(...)]")
    for edit in edits:
        if not isinstance(edit, (Edit, Reset)):
            raise ValueError(
                f"{edit!r} is not an edit; give Set, Add, Zero, Swap or Reset, or read a text with "
                "captioner.tracing.edits.parse"
            )


def check_sites(edits: Sequence[AnyEdit], known: Mapping[str, int]) -> None:
    """Raise for a site or a layer that the model does not have.

    Args:
        known: how many layers each site has, by its name; 0 for none.

    Raises:
        ValueError: with the sites that it has.
    """
    for edit in edits:
        if edit.site.endswith((".kept", ".written")):
            raise ValueError(
                f"{edit.site} follows from the gates and is read only; edit cell.memory or a gate"
            )
        if edit.site not in known:
            if isinstance(edit, Reset):
                raise ValueError("Reset needs a recurrent decoder; this one has no h")
            near = difflib.get_close_matches(edit.site, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            names = ", ".join(sorted(known))
            raise ValueError(f"{edit.site!r} is not a site of this model; choose {names}{hint}")
        layer, layers = getattr(edit, "layer", None), known[edit.site]
        if layer is not None and 0 < layers <= layer:
            raise ValueError(
                f"layer={layer} of an edit of {edit.site} is not accepted; it has layers 0 to "
                f"{layers - 1}"
            )
