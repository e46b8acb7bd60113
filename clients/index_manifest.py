"""The manifest of an index folder, and the digests by which its files are recognised.

`bulk/index.py` writes it and `clients/retrieve.py` reads it; this module needs nothing but Python.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

MANIFEST = "manifest.json"
BUILDING = "building.json"  # the plan of an index that is not finished
FORMAT = {"format": "mplug-index", "version": 1}
_BLOCK = 64 << 10
_BLOCKS = 16  # of a file, spread evenly: they are compared whenever an index is opened
_CHUNK = 1 << 20


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Read a manifest, or the plan of a build; return None where there is no such file.

    Raises ValueError when the file is not a manifest of this version, and OSError.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    if not isinstance(document, dict) or document.get("format") != FORMAT["format"]:
        raise ValueError(f"{path} is not the manifest of an index")
    if document.get("version") != FORMAT["version"]:
        raise ValueError(f"{path} has version {document.get('version')}, and {FORMAT['version']} is read here")
    return document


def record(path: Path) -> dict[str, Any]:
    """Return a file's size in bytes, its SHA-256, and the SHA-256 of blocks of it. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        return {"bytes": file.tell(), "sha256": digest.hexdigest(), "blocks_sha256": _blocks_sha256(file)}


def is_unchanged(path: Path, recorded: dict[str, Any], *, whole: bool) -> bool:
    """Return whether a file is as it was recorded: by its size and some blocks, or by all of it. Raises OSError."""
    if whole:
        return record(path) == recorded
    with path.open("rb") as file:
        return (
            os.fstat(file.fileno()).st_size == recorded["bytes"] and _blocks_sha256(file) == recorded["blocks_sha256"]
        )


def _blocks_sha256(file: BinaryIO) -> str:
    size = os.fstat(file.fileno()).st_size
    last = max(0, size - _BLOCK)
    digest = hashlib.sha256(str(size).encode())
    for place in sorted({last * number // (_BLOCKS - 1) for number in range(_BLOCKS)}):
        file.seek(place)
        digest.update(file.read(_BLOCK))
    return digest.hexdigest()
