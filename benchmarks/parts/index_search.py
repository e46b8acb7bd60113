"""Indexes of bulk/index.py beside the exact search: recall, CPU time of a search, bytes, and the memory of building.

    python -m benchmarks.parts.index_search [--vectors N …] [--width E] [--searches N] [--page docs/retrieval.md]

The vectors are synthetic: 20,000 topics of 40 intrinsic dimensions with noise, as features of pictures are (vectors
that are spread evenly have no neighbours that an index could find). Queries are further members of the same topics.
They are written as parquet, as bulk/embed.py writes features, and indexed and searched by the code of the two
commands, on one thread. Times are of the process's own CPU. About 2.5 KB of disk a vector.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.page import write_section
from bulk import faiss_index, index_build
from bulk.features import Features
from bulk.manifest import FORMAT, MANIFEST
from clients.faiss_index import FaissIndex

CHUNK = 100_000  # vectors that are drawn at once, and the rows of a parquet file
TOP = 10
PROBES = (8, 32, 128)


class Source:
    """Unit vectors of topics, the same for every chunk number."""

    def __init__(self, width: int, topics: int = 20_000, inner: int = 40) -> None:
        random = np.random.default_rng(0)
        self._centres = random.standard_normal((topics, inner), dtype=np.float32)
        self._lift = random.standard_normal((inner, width), dtype=np.float32) / np.sqrt(inner, dtype=np.float32)

    def draw(self, count: int, number: int) -> np.ndarray:
        """Return vectors, float32 [count, E]."""
        random = np.random.default_rng([1, number])
        topics = self._centres[random.integers(len(self._centres), size=count)]
        inner = topics + 0.6 * random.standard_normal(topics.shape, dtype=np.float32)
        found = inner @ self._lift
        found += 0.15 * random.standard_normal(found.shape, dtype=np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found


def main() -> None:
    """Measure, print a table, and write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, nargs="+", default=[1_000_000], metavar="N")
    parser.add_argument("--width", type=int, default=256, metavar="E", help="as mPLUG's features; default: 256")
    parser.add_argument("--searches", type=int, default=200, metavar="N", help="default: 200")
    parser.add_argument(
        "--factories", nargs="+", metavar="STRING", help="default: those that bulk/index.py chooses from"
    )
    parser.add_argument("--rows-per-shard", type=int, default=5_000_000, metavar="N")
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="for features and indexes; default: a temporary one"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="page whose section `index` gets the table")
    options = parser.parse_args()
    rows = []
    for count in options.vectors:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            rows += measure(Path(scratch), count, options)
    table = _table(rows)
    print(table)
    if options.page is not None:
        write_section(options.page, "index", table)


def measure(folder: Path, count: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every kind of index of so many vectors."""
    source = Source(options.width)
    queries = source.draw(options.searches, 10**6)
    truth = write_features(folder / "features", source, count, queries)
    lists = round(faiss_index.LISTS_PER_ROOT * np.sqrt(count))
    coarse = f"IVF{lists}_HNSW32" if lists > faiss_index.SCANNED_LISTS else f"IVF{lists}"
    factories = ("Flat", f"{coarse},SQ8", f"{coarse},PQ{options.width // 2}x4fs,Refine(SQ8)")
    rows = []
    for number, factory in enumerate(options.factories or factories):
        path = folder / f"index-{number}"
        # In a process of its own, whose peak is that of building.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            arguments = (folder / "features", path, factory, options.rows_per_shard, options.width)
            built = pool.apply(build, arguments)
        for probes in PROBES if "IVF" in factory else (None,):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                searched = pool.apply(search, (path, queries, truth, probes))
            rows.append({"vectors": count, "factory": factory, "nprobe": probes, **built, **searched})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def write_features(folder: Path, source: Source, count: int, queries: np.ndarray) -> np.ndarray:
    """Write features as bulk/embed.py does; return the numbers of each query's nearest by the exact search."""
    folder.mkdir()
    (folder / MANIFEST).write_text(
        json.dumps(FORMAT | {"task": "embed_image", "input": "/photos", "weights_sha256": "none"})
    )
    heap = faiss.ResultHeap(len(queries), TOP, keep_max=True)
    for number, start in enumerate(range(0, count, CHUNK)):
        vectors = source.draw(min(CHUNK, count - start), number)
        similarities, rows = faiss.knn(queries, vectors, TOP, metric=faiss.METRIC_INNER_PRODUCT)
        heap.add_result(similarities, rows + start)
        names = pa.array([f"{start + row:010}.jpg" for row in range(len(vectors))])
        features = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        table = pa.table({"input": names, "error": pa.nulls(len(vectors), pa.string()), "feature": features})
        pq.write_table(table, folder / f"{number:06}.parquet", compression="none", use_dictionary=False)
    heap.finalize()
    return heap.I


def build(features: Path, path: Path, factory: str, rows_per_shard: int, width: int) -> dict[str, Any]:
    """Build an index; return seconds, bytes and the process's peak of memory."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    found = Features.open(str(features))
    recipe = faiss_index.plan(found.count, width, factory, None)
    manifest = index_build.build(found, path, np.eye(1, width, dtype=np.float32)[0], recipe, rows_per_shard)
    after = resource.getrusage(resource.RUSAGE_SELF)
    size = {"faiss": 0, "sqlite": 0}
    for shard in manifest["shards"]:
        for name, recorded in shard["files"].items():
            size[name.rpartition(".")[2]] += recorded["bytes"]
    return {
        "shards": len(manifest["shards"]),
        "bytes": size["faiss"] / found.count,
        "name_bytes": size["sqlite"] / found.count,
        "build_cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "build_s": time.monotonic() - began,
        "peak_gb": after.ru_maxrss / 1e6,
        "imports_gb": before.ru_maxrss / 1e6,
    }


def search(path: Path, queries: np.ndarray, truth: np.ndarray, probes: int | None) -> dict[str, Any]:
    """Search on one thread as clients/retrieve.py does; return recall and times."""
    faiss.omp_set_num_threads(1)
    began = time.perf_counter()
    manifest = json.loads((path / "manifest.json").read_text())
    settings = manifest["search"]
    if probes is not None:
        settings = ",".join(
            f"nprobe={probes}" if setting.startswith("nprobe=") else setting for setting in settings.split(",")
        )
    index = FaissIndex.read(path, settings)
    opened = time.perf_counter() - began
    for query in queries:  # what is mapped is in memory after this
        index.nearest(query, TOP)
    right, own, wall = 0, [], []
    for query, expected in zip(queries, truth, strict=True):
        began, cpu = time.perf_counter(), time.thread_time()
        found = index.nearest(query, TOP)
        own.append(time.thread_time() - cpu)
        wall.append(time.perf_counter() - began)
        right += len({int(Path(name).stem) for name, _ in found} & set(expected.tolist()))
    return {
        "recall": right / truth.size,
        "cpu_ms": 1000 * float(np.mean(own)),
        "p50_ms": 1000 * float(np.median(wall)),
        "open_ms": 1000 * opened,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| vectors | index | nprobe | recall@10 | CPU ms | bytes a vector | opened in | CPU s to build | peak GB |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = (
            f"{row['vectors']:,}",
            f"`{row['factory']}`",
            row["nprobe"] or "",
            f"{row['recall']:.3f}",
            f"{row['cpu_ms']:.2f}",
            f"{row['bytes']:.0f}",
            f"{row['open_ms']:.0f} ms",
            f"{row['build_cpu_s']:.0f}",
            f"{row['peak_gb']:.2f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
