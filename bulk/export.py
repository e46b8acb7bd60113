"""Write features as Milvus and Qdrant import them, for corpora that have outgrown an index of files.

python bulk/export.py features for-milvus --to milvus
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bulk import command

_EXAMPLE = """\
  python bulk/export.py features for-milvus --to milvus
  python bulk/export.py features for-qdrant --to qdrant

milvus: parquet files with the columns `id` (int64), `input` and `feature` (list of float32), and schema.json, the body
of a request that makes the collection.
qdrant: files of JSON, each the body of a request `PUT /collections/NAME/points`, and collection.json, the body of
`PUT /collections/NAME`.

`id` is the number that the vector has in an index of bulk/index.py, counted over all shards."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = command.Parser("Write features for a vector database.", _EXAMPLE)
    parser.add_argument("features", metavar="FEATURES", help="what bulk/embed.py wrote; a path or a URI")
    parser.add_argument("output", metavar="OUTPUT", help="folder of the files, on this machine; a new one")
    parser.add_argument("--to", choices=["milvus", "qdrant"], required=True, help="the database")
    parser.add_argument(
        "--rows-per-file", type=command.positive, metavar="N", help="default: 100,000 for milvus, 1,000 for qdrant"
    )
    options = parser.parse_args(arguments)
    return command.load("bulk.database_files", with_ray=False).run(options)


if __name__ == "__main__":
    command.run(main)
