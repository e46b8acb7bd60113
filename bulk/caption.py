"""Caption a corpus without a server, on this machine or on a Ray cluster.

python bulk/caption.py photos captions
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bulk import command

_EXAMPLE = """\
  python bulk/caption.py photos captions
  python bulk/caption.py s3://corpus/shards s3://corpus/captions --address head:6379 --workers 64

A row per input: `input` (its name below INPUT; FILE#N in parquet and shards), `key`, `caption`, `score`, and `error`
where there is none. However a run ends, the same command goes on where it stopped. Exit code 0 when every input has a
row, also one with an error; else 1."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = command.Parser("Caption a corpus: a folder, parquet files or WebDataset shards.", _EXAMPLE)
    command.add_corpus(parser)
    parser.add_argument("--prompt", help="the beginning of every caption")
    command.add_search(parser)
    options = parser.parse_args(arguments)
    tasks, run = command.load("bulk.tasks"), command.load("bulk.run")
    return run.run(options, tasks.Task.caption(command.search_options(options), options.prompt))


if __name__ == "__main__":
    command.run(main)
