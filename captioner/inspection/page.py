"""One HTML page that needs nothing but itself: pieces, and the document around them.

Whatever comes from data passes through ``escape``; pieces are named after what they make and return
HTML. The policy in the document's head allows the page's own style and script by their hashes, and
pictures inside the page; a browser then refuses everything else, so that no caption can run code or
fetch anything, even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files

from PIL import Image

from captioner.data.transforms import open_image

SIDE, QUALITY = 320, 72
"""Longest side of a picture in pixels, and its JPEG quality: about 15 kB."""


def document(title: str, header: str, sections: Mapping[str, tuple[str, str]], footer: str) -> str:
    """A whole page.

    Args:
        title: of the page, as text.
        header: HTML above the sections.
        sections: id -> its title, as text, and its HTML.
        footer: HTML below.
    """
    style, script = (_own(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    links = "".join(
        f'<a href="#{escape(name)}">{escape(text)}</a>' for name, (text, _) in sections.items()
    )
    body = "".join(
        f'<section id="{escape(name)}"><h2>{escape(text)}</h2>{content}</section>\n'
        for name, (text, content) in sections.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header>{header}</header>\n<nav aria-label="Sections"><div><p class="links">{links}</p>'
        '<input id="find" type="search" placeholder="filter captions" hidden '
        'aria-label="Show only captions with these words"><span id="found" role="status"></span>'
        f"</div></nav>\n<main>\n{body}</main>\n<footer>{footer}</footer>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _own(name: str) -> str:
    return files("captioner.inspection").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph of text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def facts(entries: Mapping[str, str]) -> str:
    """Names with their values, as text."""
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries.items())
    return f'<dl class="facts">{"".join(rows)}</dl>'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, title: str, numbers: Sequence[int] = ()
) -> str:
    """A table whose first column names the rows.

    Args:
        head: of the columns, as text.
        rows: cells as HTML.
        title: what it shows, as text.
        numbers: the columns that are set to the right.
    """
    kinds = [' class="number"' if index in numbers else "" for index in range(len(head))]
    top = "".join(
        f'<th scope="col"{kind}>{escape(text)}</th>' if text else "<td></td>"
        for kind, text in zip(kinds, head)
    )
    body = "".join(
        f'<tr><th scope="row">{first}</th>'
        + "".join(f"<td{k}>{cell}</td>" for k, cell in zip(kinds[1:], rest))
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(title)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def folded(summary: str, content: str) -> str:
    """Content that is shown when its summary (as HTML) is opened."""
    return f"<details><summary>{summary}</summary>{content}</details>"


def bar(share: float) -> str:
    """A bar of a length from 0 to 1; the number stands beside it, so a reader aloud skips it."""
    width = 100 * min(1.0, max(0.0, share))
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{width:.1f}" height="10"/></svg>'
    )


def marked(words: Sequence[str], others: Iterable[Sequence[str]], *, space: str = " ") -> str:
    """Words with their longest runs that also stand in one of the others marked, by length.

    Args:
        words: to be shown.
        others: each the words of a text.
        space: what stands between words.
    """
    runs = {
        tuple(other[first:last])
        for other in others
        for first in range(len(other))
        for last in range(first + 1, len(other) + 1)
    }
    pieces, place = [], 0
    while place < len(words):
        lengths = range(len(words) - place, 0, -1)
        size = next((n for n in lengths if tuple(words[place : place + n]) in runs), 0)
        text = escape(space.join(words[place : place + max(1, size)]))
        pieces.append(f'<mark class="m{min(size, 4)}">{text}</mark>' if size else text)
        place += max(1, size)
    return space.join(pieces)


def picture(path: str | None, *, alt: str) -> str:
    """A picture inside the page, small and as JPEG, without what its file says beside the image.

    Args:
        path: of its file; where it is not there, or no image, nothing is shown.
        alt: what it shows, as text.
    """
    try:
        image = open_image(path) if path else None
    except (ValueError, OSError):
        image = None
    if image is None:
        return ""
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{image.width}" height="{image.height}" '
        f'loading="lazy" alt="{escape(alt)}">'
    )
