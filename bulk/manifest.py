"""The manifest beside the parquet files of a run: what its rows were made of and with."""

from __future__ import annotations

import json
from typing import Any

from bulk.location import Location

MANIFEST = "_mplug.json"
FORMAT = {"format": "mplug-bulk", "version": 1}


def read_manifest(location: Location) -> dict[str, Any] | None:
    """Return the manifest in a folder, of any version; None where there is none of ours."""
    try:
        with location.filesystem.open_input_file(f"{location.path}/{MANIFEST}") as file:
            found = json.loads(file.read())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT["format"] else None
