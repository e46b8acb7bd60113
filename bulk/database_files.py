"""The files that vector databases import, made of features a file at a time.

Milvus: https://milvus.io/docs/prepare-source-data.md and the body of `/v2/vectordb/collections/create`.
Qdrant: the bodies of `PUT /collections/NAME` and `PUT /collections/NAME/points`, https://api.qdrant.tech.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from bulk.errors import BulkError
from bulk.features import Features
from bulk.location import one_line

ROWS = {"milvus": 100_000, "qdrant": 1000}  # of a file; Qdrant takes requests of up to 32 MB
LONGEST_NAME = 4096  # bytes of `input`, as the collection of Milvus is made; Milvus itself allows 65,535
#: Name of the file that makes the collection.
COLLECTION = {"milvus": "schema.json", "qdrant": "collection.json"}


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code. Raises BulkError."""
    features = Features.open(options.features)
    output = Path(options.output).absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BulkError(f"{output} is there: give a new OUTPUT; it is kept")
    rows = options.rows_per_file or ROWS[options.to]
    scratch = output.with_name(f".{output.name}.partial")
    try:
        shutil.rmtree(scratch, ignore_errors=True)  # of an export that was interrupted
        scratch.mkdir(parents=True)
        count = _write(features, scratch, options.to, rows)
        if output.exists():
            output.rmdir()
        os.replace(scratch, output)
    except (OSError, pa.ArrowException) as error:
        raise BulkError(f"{output} cannot be written: {one_line(error)}: run the same command again") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(
        f"{features.count} vectors in {count} files, {features.skipped} rows with an error skipped: {output}",
        flush=True,
    )
    return 0


def collection(database: str, dimension: int) -> dict[str, Any]:
    """Return the body of the request that makes a collection for the files."""
    if database == "qdrant":
        return {"vectors": {"size": dimension, "distance": "Dot", "on_disk": True}}
    fields = [
        {"fieldName": "id", "dataType": "Int64", "isPrimary": True},
        {"fieldName": "input", "dataType": "VarChar", "elementTypeParams": {"max_length": str(LONGEST_NAME)}},
        {"fieldName": "feature", "dataType": "FloatVector", "elementTypeParams": {"dim": str(dimension)}},
    ]
    index = {"fieldName": "feature", "indexName": "feature", "metricType": "IP", "indexType": "AUTOINDEX"}
    return {
        "collectionName": "pictures",
        "schema": {"autoId": False, "fields": fields},
        "indexParams": [index],
    }


def _write(features: Features, folder: Path, database: str, rows: int) -> int:
    write, ending = _WRITERS[database]
    dimension, first, files = features.dimension(), 0, 0
    (folder / COLLECTION[database]).write_text(json.dumps(collection(database, dimension), indent=1) + "\n")
    with tqdm(total=features.count, unit="vector", unit_scale=True, disable=None) as bar:
        for names, vectors in _chunks(features, dimension, rows):
            for place, name in enumerate(names):
                if database == "milvus" and len(name.encode()) > LONGEST_NAME:
                    raise BulkError(f"input {first + place} has a name of more than {LONGEST_NAME} bytes: {name[:80]}…")
            write(folder / f"{files:06}.{ending}", first, names, vectors)
            first, files = first + len(names), files + 1
            bar.update(len(names))
    return files


def _chunks(features: Features, dimension: int, rows: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield inputs and features of a file after the other."""
    for start in range(0, features.count, rows):
        parts = list(features.batches(start, min(start + rows, features.count), dimension))
        yield [name for names, _ in parts for name in names], np.concatenate([vectors for _, vectors in parts])


def _write_milvus(path: Path, first: int, names: list[str], vectors: np.ndarray) -> None:
    offsets = np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32)
    table = pa.table(
        {
            "id": pa.array(np.arange(first, first + len(names), dtype=np.int64)),
            "input": pa.array(names, pa.string()),
            "feature": pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.ravel())),
        }
    )
    pq.write_table(table, path)


def _write_qdrant(path: Path, first: int, names: list[str], vectors: np.ndarray) -> None:
    points = [
        {"id": first + place, "vector": vector, "payload": {"input": name}}
        for place, (name, vector) in enumerate(zip(names, vectors.tolist(), strict=True))
    ]
    path.write_text(json.dumps({"points": points}))


_WRITERS: dict[str, tuple[Callable[[Path, int, list[str], np.ndarray], None], str]] = {
    "milvus": (_write_milvus, "parquet"),
    "qdrant": (_write_qdrant, "json"),
}
