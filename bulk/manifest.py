"""The manifest beside the parquet files of a run: what its rows were made of and with."""

from __future__ import annotations

MANIFEST = "_mplug.json"
FORMAT = {"format": "mplug-bulk", "version": 1}
