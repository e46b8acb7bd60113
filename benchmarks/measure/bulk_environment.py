"""The environment of bulk work, seen from that of the benchmarks, which has no PyArrow of its version and no Ray."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

#: Prints some columns of a folder of parquet files, a JSON list each row.
_ROWS = """
import json, sys, pyarrow.parquet as pq
for row in pq.read_table(sys.argv[1], columns=sys.argv[2:]).to_pylist():
    print(json.dumps(list(row.values())))
"""


def add_bulk_options(parser: argparse.ArgumentParser) -> None:
    """Add the built repository, and the Python of bulk work."""
    parser.add_argument("--repository", type=Path, default=Path("build/demo"), metavar="DIR")
    parser.add_argument(
        "--bulk-python",
        type=Path,
        default=Path(sys.prefix) / "bulk" / "bin" / "python",
        metavar="FILE",
        help="of the environment of bulk work (default: %(default)s)",
    )


def check_bulk_python(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the command with a line where the environment is not there."""
    if not options.bulk_python.exists():
        parser.error(f"no {options.bulk_python}: `make bulk` makes the environment of bulk work")


def rows_of(bulk_python: Path, output: Path, *columns: str) -> list[list[Any]]:
    """Return columns of what bulk work wrote, row by row."""
    command = [bulk_python, "-c", _ROWS, output, *columns]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]
