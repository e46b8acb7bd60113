"""Search results as one HTML file: thumbnails inside, nothing fetched, nothing run."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clients.client import ClientError
from clients.client.images import as_shown
from clients.outputs import check_output, replacing

THUMBNAIL = 320  # pixels of the longer side

#: How every page of ours begins.
_MARK = "<!doctype html>\n<!-- search results, by mPLUG's clients/retrieve.py -->\n"

_PAGE = f"""\
{_MARK}"""
_PAGE += """\
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 16px/1.4 system-ui, sans-serif; color: #222; background: #f6f6f4; margin: 2rem auto; max-width: 72rem;
       padding: 0 1rem }}
h1 {{ font-size: 1.4rem; font-weight: 600; overflow-wrap: anywhere }}
h1 img {{ display: block; max-width: 160px; max-height: 160px; margin-top: .5rem }}
ol {{ list-style: none; padding: 0; display: grid; gap: 1rem;
     grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)) }}
li {{ background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: .75rem; overflow-wrap: anywhere }}
li img {{ display: block; width: 100%; height: 160px; object-fit: contain; background: #eee; margin-bottom: .5rem }}
.missing {{ height: 160px; background: #eee; color: #777; display: grid; place-items: center; margin-bottom: .5rem }}
.score {{ color: #555; font-size: .85rem; font-variant-numeric: tabular-nums }}
</style>
</head>
<body>
<h1>{heading}</h1>
<ol>
{results}
</ol>
</body>
</html>
"""


@dataclass(frozen=True)
class Shown:
    """One result: what it is called, the picture that stands for it, if one does, and its scores in words."""

    name: str
    scores: str
    picture: str | None = None


def write(path: Path, query: str, results: Iterable[Shown], query_picture: str | None = None) -> None:
    """Write the page. Raises ClientError when it cannot be written; a picture that cannot be read is shown as such."""
    heading = html.escape(query) + (_image(query_picture) if query_picture is not None else "")
    page = _PAGE.format(title=html.escape(query), heading=heading, results="\n".join(map(_item, results)))
    with replacing(path) as file:
        file.write(page.encode("utf-8", errors="replace"))


def check(path: Path) -> None:
    """Raise ClientError unless the page may be written there: a file that is not a page of ours is kept."""
    check_output(path, lambda old: old.read_bytes().startswith(_MARK.encode()))


def _item(result: Shown) -> str:
    picture = "" if result.picture is None else _image(result.picture)
    name, scores = html.escape(result.name), html.escape(result.scores)
    return f'<li>{picture}<div>{name}</div><div class="score">{scores}</div></li>'


def _image(path: str) -> str:
    try:
        thumbnail = as_shown(path)
    except ClientError:
        return '<div class="missing">cannot be read</div>'
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(path)}" src="data:image/jpeg;base64,{data}">'
