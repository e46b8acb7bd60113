"""An index that `bulk/index.py` made: a folder of FAISS shards, mapped into memory, and the names of their entries."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clients.client import ClientError
from clients.index_manifest import BUILDING, MANIFEST, is_unchanged, read_manifest
from clients.retrieval_index import same_checkpoint


@dataclass(frozen=True)
class Shard:
    """A part of the index; its entries have numbers from 0."""

    index: Any  #: faiss.Index
    names: sqlite3.Connection  #: `entries`, `id` → `name`


@dataclass(frozen=True)
class FaissIndex:
    """An index that was opened. What a search reads of it is read then."""

    folder: str  #: of the pictures, or the URI of it
    probe_text: str
    probe: np.ndarray  #: float32 [E]
    shards: tuple[Shard, ...]

    @staticmethod
    def is_at(path: Path) -> bool:
        """Return whether there is one, finished or not."""
        return (path / MANIFEST).is_file() or (path / BUILDING).is_file()

    @classmethod
    def read(cls, path: Path, search: str | None = None, pictures: Path | None = None) -> FaissIndex:
        """Open an index. `search`: settings of faiss.ParameterSpace; `pictures`: where they are by now.

        Raises ClientError when it is not finished or has changed, or when FAISS is not installed or takes no such
        setting.
        """
        try:
            import faiss
        except ImportError as error:
            raise ClientError(
                f"{path} was made by bulk/index.py, and searching it needs FAISS: pip install faiss-cpu", "UNREADABLE"
            ) from error
        try:
            try:
                manifest, shards = _opened(faiss, path)
            except FileNotFoundError:  # another index may have taken its place in between
                manifest, shards = _opened(faiss, path)
            probe = np.asarray(manifest["probe"]["feature"], np.float32)
            count = sum(shard.index.ntotal for shard in shards)
            if count != manifest["vectors"] or any(shard.index.d != len(probe) for shard in shards):
                raise ValueError(f"{count} vectors where {manifest['vectors']} are expected")
            index = cls(str(pictures or manifest["input"]), manifest["probe"]["text"], probe, shards)
            index._set(faiss, manifest["search"] if search is None else search)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise ClientError(
                f"{path}: the index is damaged ({reason}): remove it and run bulk/index.py again", "UNREADABLE"
            ) from error
        return index

    def nearest(self, feature: np.ndarray, count: int) -> list[tuple[str, float]]:
        """Return the paths of the most similar entries with their similarities, best first.

        As exact as the kind of index is. Raises ClientError when the names cannot be read.
        """
        query = np.asarray(feature, np.float32)[None]
        found: list[tuple[str, float]] = []
        for shard in self.shards:
            similarities, rows = shard.index.search(query, min(count, shard.index.ntotal))
            found += zip(self._paths(shard, rows[rows >= 0].tolist()), similarities[rows >= 0].tolist(), strict=True)
        return sorted(found, key=lambda each: -each[1])[:count]

    def check_probe(self, probe: np.ndarray, path: Path) -> None:
        """Raise ClientError when the server's checkpoint is not the one that made the index."""
        if not same_checkpoint(self.probe, probe):
            raise ClientError(
                f"{path} was made by another checkpoint than the server's: embed and index the pictures anew"
            )

    def _set(self, faiss: Any, search: str) -> None:
        for shard in self.shards if search else ():
            try:
                faiss.ParameterSpace().set_index_parameters(shard.index, search)
            except RuntimeError as error:
                raise ClientError(
                    f"--search-settings {search}: this index takes no such setting (nprobe=64, for one with lists)"
                ) from error

    def _paths(self, shard: Shard, rows: list[int]) -> list[str]:
        try:
            found = [shard.names.execute("SELECT name FROM entries WHERE id = ?", (row,)).fetchone()[0] for row in rows]
        except (sqlite3.Error, TypeError) as error:
            raise ClientError(f"the names in the index are damaged ({error}): run bulk/index.py again") from error
        return [f"{self.folder.rstrip('/')}/{os.fsdecode(name)}" for name in found]


def _opened(faiss: Any, path: Path) -> tuple[dict[str, Any], tuple[Shard, ...]]:
    """Open the files of an index; they stay open when another index takes its place."""
    manifest = read_manifest(path / MANIFEST)
    if manifest is None:
        raise ClientError(f"{path}: indexing was interrupted: run bulk/index.py again", "UNREADABLE")
    return manifest, tuple(_shard(faiss, path, shard["files"]) for shard in manifest["shards"])


def _shard(faiss: Any, folder: Path, files: dict[str, Any]) -> Shard:
    """Open the two files of a shard. Raises ValueError when one of them has changed, and what FAISS raises."""
    found = {}
    for name, recorded in files.items():
        if Path(name).name != name:
            raise ValueError(f"{name} is not a file of the folder")
        if not is_unchanged(folder / name, recorded, whole=False):
            raise ValueError(f"{name} is not as it was written")
        found[Path(name).suffix] = folder / name
    index = faiss.read_index(str(found[".faiss"]), faiss.IO_FLAG_MMAP_IFC)
    names = sqlite3.connect(f"{found['.sqlite'].resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    if (last := names.execute("SELECT max(id) FROM entries").fetchone()[0]) != index.ntotal - 1:
        raise ValueError(f"{last} is the last name of {index.ntotal} vectors")
    return Shard(index, names)
