"""Search among 10,000 pictures: the index, the words' way through the server, and re-ranking, each by itself.

    python -m benchmarks.parts.retrieval_search [--preset base|quick] [--result FILE]

The features of the 10,000 are random unit vectors: how long a search takes does not depend on what they say. The
pictures of the shortlist are real files, new ones in each round, so that no re-ranking is answered from the cache;
re-ranking a shortlist that was seen before is timed beside it. The bare product over the same features is the baseline
of the index.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.figures import goal, summary
from benchmarks.measure.pictures import picture
from benchmarks.parts import part
from benchmarks.parts.tasks import TEXTS, of_all_tasks
from benchmarks.workspace import Workspace, say
from clients.client import AsyncClient, Client
from clients.concurrent_requests import DEFAULT_CONCURRENCY
from clients.retrieval_index import PROBE, Index, IndexWriter, Picture
from clients.retrieve import Result, reranked
from mplug.server.command import TritonServer

PICTURES = 10_000
SHORTLIST = 32
SEARCHES = 200  # of the index alone
ROUNDS = {"base": 3, "quick": 3}  # of re-ranking
#: The goal, seconds: without re-ranking, and be it with the words' feature.
MOST_SECONDS = 0.05


def measure(workspace: Workspace) -> dict[str, Any]:
    """Measure the seconds of every step; return `results` and goals."""
    workspace = of_all_tasks(workspace)
    rounds = ROUNDS[workspace.preset.name]
    with tempfile.TemporaryDirectory() as scratch, TritonServer(workspace.repository) as server:
        folder = Path(scratch)
        with Client(server.grpc_url, timeout=600.0) as client:
            probe = client.embed_text(PROBE)
            index, features = write_index(folder / "index", probe)
            size = (folder / "index").stat().st_size
            alone = index_alone(index, features)
            reading = _times(lambda _: Index.read(folder / "index"), 5)
            words = [f"{text} {number}" for number in range(4) for text in TEXTS]  # none of them is in the cache
            client.embed_text("warm up")
            embedding = _times(lambda number: client.embed_text(words[number]), len(words) // 2)
            say("the words' feature and the search, as one")
            whole = _times(
                lambda number: index.nearest(client.embed_text(words[len(words) // 2 + number]), SHORTLIST),
                len(words) // 2,
            )
        ranking = asyncio.run(_reranking(server.grpc_url, folder, rounds))
    results = {
        "pictures": PICTURES,
        "dimension": int(features.shape[1]),
        "shortlist": SHORTLIST,
        "index_bytes": size,
        "read_index": summary(reading),
        **{name: summary(times) for name, times in alone.items()},
        "embed_words": summary(embedding),
        "search": summary(whole),
        **{name: summary(times) for name, times in ranking.items()},
    }
    goals = [
        goal(
            f"{what} among {PICTURES:,} pictures, ms",
            f"below {MOST_SECONDS * 1000:.0f}",
            median * 1000,
            median < MOST_SECONDS,
        )
        for what, median in (
            ("search", statistics.median(alone["index"])),
            ("words to shortlist", statistics.median(whole)),
        )
    ]
    return {"results": results, "goals": goals}


def write_index(path: Path, probe: np.ndarray) -> tuple[Index, np.ndarray]:
    """Write an index of random features, read it again, and return it with the features, float32 [n, E]."""
    random = np.random.default_rng(0)
    features = random.normal(size=(PICTURES, len(probe))).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    names = [f"{number:05}.jpg" for number in range(PICTURES)]
    writer = IndexWriter(path, path.parent, probe)
    for name, feature in zip(names, features, strict=True):
        writer.add(Picture(name, 0, 0), feature)
    index = writer.finish(names)
    writer.close()
    return index, features


def index_alone(index: Index, features: np.ndarray) -> dict[str, list[float]]:
    """Time searches in the index and in NumPy, alternating. Raises RuntimeError if their results differ."""
    random = np.random.default_rng(1)
    queries = random.normal(size=(SEARCHES, features.shape[1])).astype(np.float32)

    def by_numpy(query: np.ndarray) -> np.ndarray:
        similarities = features @ query
        best = np.argpartition(-similarities, SHORTLIST)[:SHORTLIST]
        return best[np.argsort(-similarities[best])]

    for query in queries[:5]:  # warm up, and a check
        found = [int(Path(path).stem) for path, _ in index.nearest(query, SHORTLIST)]
        if found != by_numpy(query).tolist():
            raise RuntimeError("the index and NumPy find different pictures")
    taken: dict[str, list[float]] = {"index": [], "numpy": []}
    for query in queries:
        for name, search in (("index", lambda each: index.nearest(each, SHORTLIST)), ("numpy", by_numpy)):
            began = time.perf_counter()
            search(query)
            taken[name].append(time.perf_counter() - began)
    return taken


async def _reranking(url: str, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Time re-ranking a shortlist: of new pictures, and of the same ones with other words."""
    taken: dict[str, list[float]] = {"rerank_new": [], "rerank_seen": []}
    async with AsyncClient(url, timeout=600.0) as client:
        for number in range(rounds + 1):
            shortlist = []
            for place in range(SHORTLIST):
                path = folder / f"{number}-{place}.jpg"
                path.write_bytes(picture(number * SHORTLIST + place))
                shortlist.append(Result(str(path), 0.0))
            for name, words in (("rerank_new", TEXTS[0]), ("rerank_seen", TEXTS[1])):
                began = time.perf_counter()
                found, failures = await reranked(client, words, shortlist, DEFAULT_CONCURRENCY)
                seconds = time.perf_counter() - began
                if failures or len(found) != SHORTLIST:
                    raise RuntimeError(f"{len(failures)} pictures were not ranked: {failures[:1]}")
                if number:  # the first warms up
                    taken[name].append(seconds)
            say(
                f"re-ranking {SHORTLIST} pictures, {number} of {rounds}: "
                f"{ {name: round(times[-1], 3) for name, times in taken.items() if times} }"
            )
    return taken


def _times(ask: Callable[[int], object], count: int) -> list[float]:
    times = []
    for number in range(count):
        began = time.perf_counter()
        ask(number)
        times.append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    sys.exit(
        part.main(
            "retrieval_search", measure, __doc__, repository_of=lambda workspace: of_all_tasks(workspace).prepare()
        )
    )
