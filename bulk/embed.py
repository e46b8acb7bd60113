"""Embed every picture of a corpus without a server: unit vectors whose products are similarities.

python bulk/embed.py photos features
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bulk import command

_EXAMPLE = """\
  python bulk/embed.py photos features

A row per input: `input`, `key`, `feature` (float32, length 1: dot products are similarities), and `error` where there
is none."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = command.Parser("Embed every picture of a corpus.", _EXAMPLE)
    command.add_corpus(parser)
    options = parser.parse_args(arguments)
    tasks, run = command.load("bulk.tasks"), command.load("bulk.run")
    return run.run(options, tasks.Task.embed())


if __name__ == "__main__":
    command.run(main)
