"""A self-contained HTML page: a template with its values, and a content security policy.

Jinja escapes every value; HTML that is made here (`marked` words, charts) is Markup with escaped
parts. The policy in the document's head allows the page's own style and script by their hashes, and
embedded pictures. Browsers refuse everything else, so no caption can run code or load anything,
even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from captioner.transforms import open_image

SIDE, QUALITY = 320, 72
"""Longest side of a picture in pixels, and its JPEG quality: about 15 kB."""


def rendered(
    template: str,
    *,
    folder: str = "report",
    styles: Sequence[str] = ("report/page.css",),
    script: str = "report/page.js",
    **values: Any,
) -> str:
    """A template with its values, style and script.

    Args:
        template: its name.
        folder: of this package that has it.
        styles: files of this package, which are joined.
        script: a file of this package.
        values: of the template.
    """
    style, code = "\n".join(map(_content, styles)), _content(script)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(code)}'; base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=PackageLoader("captioner", folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = {"style": Markup(style), "script": Markup(code), "policy": Markup(policy)}
    return environment.get_template(template).render(**own, **values).lstrip()


def _content(name: str) -> str:
    return files("captioner").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def marked(
    words: Sequence[str], others: Iterable[Sequence[str]], *, gaps: Sequence[str] | None = None
) -> Markup:
    """Mark the longest sequences of words that also occur in other texts, by their length.

    Args:
        words: of the text to show.
        others: the words of each other text.
        gaps: what follows each word; None: a space.

    Returns:
        HTML, the words escaped.
    """
    runs = {
        tuple(other[first:last])
        for other in others
        for first in range(len(other))
        for last in range(first + 1, len(other) + 1)
    }
    gaps = [" "] * len(words) if gaps is None else gaps
    pieces, place = [], 0
    while place < len(words):
        lengths = range(len(words) - place, 0, -1)
        size = next((n for n in lengths if tuple(words[place : place + n]) in runs), 0)
        last = place + max(1, size) - 1
        text = "".join(words[n] + gaps[n] for n in range(place, last)) + words[last]
        mark = Markup('<mark class="m{}">{}</mark>')
        pieces += [mark.format(min(size, 4), text) if size else text, gaps[last]]
        place = last + 1
    return Markup("").join(pieces[:-1])


@dataclass(frozen=True)
class Picture:
    """An embedded picture.

    Attributes:
        source: its data URI.
        width: in pixels.
        height: in pixels.
    """

    source: str
    width: int
    height: int


def picture(path: str | None) -> Picture | None:
    """A picture as a small JPEG without metadata.

    Args:
        path: of its file.

    Returns:
        None if the file is missing or is no image.
    """
    try:
        image = open_image(path) if path else None
    except (ValueError, OSError):
        image = None
    if image is None:
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/jpeg;base64,{data}", image.width, image.height)
