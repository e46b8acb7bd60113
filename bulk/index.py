"""Make an index of features, for `clients/retrieve.py search`: a FAISS index in shards, as large as the disk.

python bulk/index.py features photos.index
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bulk import command

_EXAMPLE = """\
  python bulk/embed.py photos features
  python bulk/index.py features photos.index
  python clients/retrieve.py search photos.index "a dog on a beach"

Up to 1 M vectors the index compares them all (Flat), up to 10 M it keeps a byte per number in lists (IVF, SQ8), above
4-bit codes that are compared again with bytes (PQ fast-scan, Refine). An interrupted build goes on; a finished one is
checked, or replaced when there are more features."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = command.Parser("Make a FAISS index of features.", _EXAMPLE)
    parser.add_argument("features", metavar="FEATURES", help="what bulk/embed.py wrote; a path or a URI")
    parser.add_argument("index", metavar="INDEX", help="folder of the index, on this machine")
    parser.add_argument(
        "--repository",
        default="build/demo",
        metavar="DIR",
        help="what embedded them; the index remembers one of its features; default: %(default)s",
    )
    parser.add_argument(
        "--factory", metavar="STRING", help="of FAISS's index_factory; default: by the number of vectors"
    )
    parser.add_argument(
        "--rows-per-shard",
        type=command.positive,
        default=5_000_000,
        metavar="N",
        help="a shard is built in memory; default: %(default)s",
    )
    parser.add_argument(
        "--train-size", type=command.positive, metavar="N", help="vectors to train on; default: 50 per list, or 100,000"
    )
    parser.add_argument("--threads", type=command.positive, metavar="N", help="default: one per core")
    options = parser.parse_args(arguments)
    return command.load("bulk.index_build", with_ray=False).run(options)


if __name__ == "__main__":
    command.run(main)
