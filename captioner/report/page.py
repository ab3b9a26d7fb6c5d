"""One HTML page that needs nothing but itself: the template around its values, and the policy.

Jinja escapes every value; what is HTML by itself (`marked` words, charts) is Markup, made of
escaped parts. The policy in the document's head allows the page's own style and script by their
hashes, and pictures inside the page; a browser then refuses everything else, so that no caption can
run code or fetch anything, even if it were not escaped.
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


def rendered(template: str, **values: Any) -> str:
    """A page: a template of this package with its values, the style and the script of all pages."""
    style, script = (_own(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=PackageLoader("captioner", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = {"style": Markup(style), "script": Markup(script), "policy": Markup(policy)}
    return environment.get_template(template).render(**own, **values).lstrip()


def _own(name: str) -> str:
    return files("captioner.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def marked(
    words: Sequence[str], others: Iterable[Sequence[str]], *, gaps: Sequence[str] | None = None
) -> Markup:
    """Words with their longest runs that are also in one of the others marked, by length.

    Args:
        words: to be shown.
        others: each the words of a text.
        gaps: what follows each word; None is a space.

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
    """A picture inside the page.

    Attributes:
        source: its data URI.
        width: in pixels.
        height: in pixels.
    """

    source: str
    width: int
    height: int


def picture(path: str | None) -> Picture | None:
    """A picture, small and as JPEG, without what its file says beside the image.

    Args:
        path: of its file; where it is not there, or no image, there is none.
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
