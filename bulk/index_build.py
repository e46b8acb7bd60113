"""A FAISS index of features: checked as a whole, trained on a sample, and built a shard at a time.

In memory are the training sample, and after it one shard.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from tqdm import tqdm

from bulk import faiss_index
from bulk.errors import BulkError
from bulk.faiss_index import Recipe
from bulk.features import Features
from bulk.index_folder import IndexFolder
from mplug.pipeline import BUILD_INFO, Pipeline, RepositoryError

#: Embedded with every index: the server that searches it must give the same feature.
PROBE = "a dog"  # short: what a checkpoint takes of a text is limited


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code. Raises BulkError."""
    if re.match(r"^[A-Za-z][A-Za-z0-9+.-]+://", options.index):
        raise BulkError(f"{options.index}: INDEX is a folder of this machine, whose shards are mapped into memory")
    probe = _probe(Path(options.repository).absolute(), features := Features.open(options.features))
    faiss.omp_set_num_threads(options.threads or os.cpu_count() or 1)
    recipe = faiss_index.plan(features.count, len(probe), options.factory, options.train_size)
    manifest = build(features, Path(options.index).absolute(), probe, recipe, options.rows_per_shard)
    total = sum(recorded["bytes"] for shard in manifest["shards"] for recorded in shard["files"].values())
    print(
        f"{features.count} vectors in {len(manifest['shards'])} shards, {features.skipped} rows with an error skipped, "
        f"{recipe.factory}, {total / features.count:.0f} bytes a vector with its name: {options.index}",
        flush=True,
    )
    return 0


def build(features: Features, path: Path, probe: np.ndarray, recipe: Recipe, rows_per_shard: int) -> dict[str, Any]:
    """Build an index in a folder, or finish it; return its manifest. Raises BulkError."""
    plan = {
        "input": features.corpus,
        "weights_sha256": features.weights,
        "features_sha256": features.sha256,
        "dimension": len(probe),
        "metric": "inner product",
        "factory": recipe.factory,
        "search": recipe.search,
        "train": recipe.train,
        "vectors": features.count,
        "skipped": features.skipped,
        "rows_per_shard": rows_per_shard,
    }
    with IndexFolder.open(path, plan) as folder:
        if (manifest := folder.finished()) is not None:
            print("the index is complete, and its files are as they were written", flush=True)
            return manifest
        if folder.begin():
            print("files of a build with other features or options were removed", flush=True)
        trained = _trained(features, folder, recipe, len(probe))
        shards, starts = [], range(0, features.count, rows_per_shard)
        with tqdm(total=features.count, desc="add", unit="vector", unit_scale=True, disable=None) as bar:
            for number, start in enumerate(starts):
                stop = min(start + rows_per_shard, features.count)
                if (shard := folder.done(number)) is None:
                    _build_shard(features, folder, trained, recipe.factory, number, (start, stop), bar)
                    shard = folder.done(number)
                else:
                    bar.update(stop - start)
                shards.append(shard)
        more = {"probe": {"text": PROBE, "feature": probe.tolist()}, "faiss": faiss.__version__}
        return folder.finish(more, shards)


def _trained(features: Features, folder: IndexFolder, recipe: Recipe, dimension: int) -> Path:
    """Check every feature, train on a sample of them, and return the file of the empty index."""
    path = folder.trained()
    if path.exists():
        return path
    rows = np.sort(np.random.default_rng(0).choice(features.count, recipe.train, replace=False))
    sample = np.empty((recipe.train, dimension), np.float32)
    first = taken = 0
    with tqdm(total=features.count, desc="check", unit="vector", unit_scale=True, disable=None) as bar:
        for _, vectors in features.batches(0, features.count, dimension):
            wanted = rows[taken : np.searchsorted(rows, first + len(vectors))] - first
            sample[taken : taken + len(wanted)] = vectors[wanted]
            first, taken = first + len(vectors), taken + len(wanted)
            bar.update(len(vectors))
    if recipe.train:
        print(f"training {recipe.factory} on {recipe.train} vectors", flush=True)
    index = faiss_index.train(recipe.factory, sample)
    partial = path.with_name(f".{path.name}.partial")
    with folder.writing():
        faiss_index.write(index, partial)
        os.replace(partial, path)
    return path


def _build_shard(
    features: Features,
    folder: IndexFolder,
    trained: Path,
    factory: str,
    number: int,
    rows: tuple[int, int],
    bar: tqdm,
) -> None:
    try:
        index = faiss_index.read(trained)
    except RuntimeError as error:
        raise BulkError(f"{trained} is damaged: remove it and run the same command again") from error
    with folder.writing(), folder.shard(number, rows[1] - rows[0]) as (path, names):
        for inputs, vectors in features.batches(*rows, index.d):
            faiss_index.add(index, factory, vectors)
            names.add(inputs)
            bar.update(len(vectors))
        faiss_index.write(index, path)


def _probe(repository: Path, features: Features) -> np.ndarray:
    """Return the repository's feature of PROBE, float32 [E]. Raises BulkError when it did not make the features."""
    try:
        with Pipeline.open(repository) as pipeline:
            info = json.loads((repository / BUILD_INFO).read_text())
            weights = info.get("weights_sha256", info.get("checkpoints"))
            if weights != features.weights:
                raise BulkError(
                    f"{features.location.name} holds features of another model than {repository}: weights "
                    f"{json.dumps(features.weights)} there, {json.dumps(weights)} here: give its --repository"
                )
            return np.asarray(pipeline.infer("embed_text", {"TEXT": [PROBE.encode()]})["FEATURE"], np.float32)
    except RepositoryError as error:
        raise BulkError(str(error)) from error
