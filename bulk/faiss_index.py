"""Which FAISS index fits how many vectors, its training, and its files."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from bulk.errors import BulkError

FLAT_MOST = 1_000_000  # vectors that are compared one by one
SQ8_MOST = 10_000_000  # vectors with a byte per number; above it scanning them takes longer than 4-bit codes do
LISTS_PER_ROOT = 4  # lists of an IVF index: this times the root of the number of vectors
SCANNED_LISTS = 4096  # more lists than these are searched by a graph (HNSW), not one by one
TRAINED_PER_LIST = 50  # vectors, of a training sample
FEWEST_PER_LIST = 39  # below it FAISS warns of bad centroids
TRAINED = 100_000  # vectors, of a training sample without lists
#: Settings of a search, where an index has them: lists that are looked into, candidates of a graph, and how many times
#: the wanted number is compared again with better codes.
SEARCH = ("nprobe=128", "efSearch=128", "k_factor_rf=10")


@dataclass(frozen=True)
class Recipe:
    """A factory string and the number of vectors that it is trained on."""

    factory: str
    train: int
    search: str  #: as faiss.ParameterSpace takes it; empty where there is nothing to set


def choose(count: int, dimension: int) -> str:
    """Return the index_factory string for so many vectors."""
    if count <= FLAT_MOST:
        return "Flat"
    lists = round(LISTS_PER_ROOT * math.sqrt(count))
    coarse = f"IVF{lists}_HNSW32" if lists > SCANNED_LISTS else f"IVF{lists}"
    if count <= SQ8_MOST or dimension % 2:
        return f"{coarse},SQ8"
    return f"{coarse},PQ{dimension // 2}x4fs,Refine(SQ8)"


def plan(count: int, dimension: int, factory: str | None, train: int | None) -> Recipe:
    """Return what is built of so many vectors. Raises BulkError when FAISS or their number does not allow it."""
    factory = factory or choose(count, dimension)
    index = _made(factory, dimension)
    ivf = faiss.try_extract_index_ivf(index)
    lists = 0 if ivf is None else ivf.nlist
    if train is None:
        train = max(TRAINED_PER_LIST * lists, TRAINED)
    train = min(train, count)
    if train < FEWEST_PER_LIST * lists:
        raise BulkError(
            f"--factory {factory} trains {lists} lists on {FEWEST_PER_LIST * lists} vectors at least, and there are "
            f"{train}: give one with at most {train // FEWEST_PER_LIST} lists, or Flat"
            if train == count
            else f"--train-size {train}: {lists} lists need {FEWEST_PER_LIST * lists} vectors at least"
        )
    return Recipe(factory, 0 if index.is_trained else train, _settings(index, lists))


def train(factory: str, sample: np.ndarray) -> faiss.Index:
    """Return an empty index, trained on a sample float32 [n, E] where it has to be. Raises BulkError."""
    index = _made(factory, sample.shape[1])
    if not index.is_trained:
        with _refusing(factory):
            index.train(sample)
    return index


def add(index: faiss.Index, factory: str, vectors: np.ndarray) -> None:
    """Append vectors, float32 [n, E]. Raises BulkError when this kind of index takes none, or no more."""
    with _refusing(factory):
        index.add(vectors)


def write(index: faiss.Index, path: Path) -> None:
    """Write an index and wait for the disk. Raises OSError; FAISS itself would not tell of a full disk at the end."""
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> faiss.Index:
    """Read an index into memory. Raises RuntimeError when it is damaged."""
    return faiss.read_index(str(path))


def _made(factory: str, dimension: int) -> faiss.Index:
    with _refusing(factory):
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)


@contextlib.contextmanager
def _refusing(factory: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # "Error in FUNCTION at FILE:LINE: what was wrong"
        reason = " ".join(str(error).rpartition(": ")[2].split()) or type(error).__name__
        raise BulkError(
            f"FAISS refuses --factory {factory}: {reason}: give a string of index_factory for unit vectors and "
            "inner products, to which vectors can be added"
        ) from error


def _settings(index: faiss.Index, lists: int) -> str:
    """Return those settings of a search that an index knows."""
    known = []
    for setting in SEARCH:
        name, _, value = setting.partition("=")
        if name == "nprobe":
            setting = f"nprobe={min(int(value), lists)}"
        with contextlib.suppress(RuntimeError):
            faiss.ParameterSpace().set_index_parameters(index, setting)
            known.append(setting)
    return ",".join(known)
