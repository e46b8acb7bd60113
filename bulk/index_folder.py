"""The folder of an index: shards with the names of their entries, and a manifest that makes them one.

    manifest.json          what the index is made of, and the files of its shards with their digests; it appears last
    BUILD-00000.faiss      a shard, as FAISS writes it
    BUILD-00000.sqlite     its entries' names: `id`, from 0 within the shard, and `name`, the input as bytes
    building.json          the plan of a build that goes on; BUILD is its digest
    BUILD-00000.json       digests of a shard that is done, until the manifest has them

A finished index is searched while its successor is built beside it, and replaced in one step.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bulk.errors import BulkError
from bulk.location import one_line
from clients.index_manifest import BUILDING, FORMAT, MANIFEST, is_unchanged, read_manifest, record

_OURS = re.compile(r"^[0-9a-f]{12}-(\d{5}\.(faiss|sqlite|json)|trained\.faiss)$")
_SCHEMA = "CREATE TABLE entries (id INTEGER PRIMARY KEY, name BLOB NOT NULL)"


@dataclass(frozen=True)
class IndexFolder:
    """The folder, open for this process alone."""

    path: Path
    plan: dict[str, Any]
    build: str  #: digest of the plan

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, plan: dict[str, Any]) -> Iterator[IndexFolder]:
        """Make the folder, or go on in it.

        Raises BulkError when it holds anything but an index of the same corpus and weights, when another process
        writes it, or when it cannot be written.
        """
        folder = cls(path, plan, hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12])
        with contextlib.ExitStack() as resources:
            with folder.writing():
                folder._check()
                path.mkdir(parents=True, exist_ok=True)
                resources.enter_context(_locked(path))
                folder._check()  # by now another process may have begun
            yield folder

    def finished(self) -> dict[str, Any] | None:
        """Return the manifest when this very index is done and no file of it has changed.

        Raises BulkError when a file has.
        """
        manifest = _read(self.path / MANIFEST)
        if manifest is None or manifest["build"] != self.build:
            return None
        for shard in manifest["shards"]:
            for name, recorded in shard["files"].items():
                try:
                    intact = is_unchanged(self.path / name, recorded, whole=True)
                except OSError:
                    intact = False
                if not intact:
                    raise BulkError(
                        f"{self.path / name} is not as it was written: remove {self.path} and run the same command "
                        "again"
                    )
        return manifest

    def begin(self) -> bool:
        """Note the plan; return whether files of an unfinished build with another plan were removed."""
        manifest = _read(self.path / MANIFEST)
        kept = {name for shard in manifest["shards"] for name in shard["files"]} if manifest else set()
        stale = [
            entry
            for entry in self.path.iterdir()
            if entry.name not in kept
            and (_is_partial(entry.name) or (_OURS.match(entry.name) and not entry.name.startswith(self.build)))
        ]
        with self.writing():
            for entry in stale:
                entry.unlink()
            self._write_json(BUILDING, FORMAT | self.plan)
        return any(_OURS.match(entry.name) for entry in stale)

    def trained(self) -> Path:
        """Return the path of the trained index without vectors; it is there while a build goes on."""
        return self.path / f"{self.build}-trained.faiss"

    def done(self, number: int) -> dict[str, Any] | None:
        """Return what is noted of a shard when it is written and as it was, else None."""
        try:
            shard = json.loads((self.path / self._name(number, "json")).read_bytes())
            if all(is_unchanged(self.path / name, found, whole=True) for name, found in shard["files"].items()):
                return shard
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # it is written again
        return None

    @contextlib.contextmanager
    def shard(self, number: int, count: int) -> Iterator[tuple[Path, Names]]:
        """Yield where a shard's index is to be written, and what takes its names; both appear at the end."""
        names = [self._name(number, kind) for kind in ("faiss", "sqlite")]
        partial = [self.path / f".{name}.partial" for name in names]
        for path in partial:
            path.unlink(missing_ok=True)
        with Names.open(partial[1]) as entries:
            yield partial[0], entries
        files = {}
        for path, name in zip(partial, names, strict=True):
            files[name] = record(path)
            os.replace(path, self.path / name)
        self._write_json(self._name(number, "json"), {"vectors": count, "files": files})

    def finish(self, more: dict[str, Any], shards: list[dict[str, Any]]) -> dict[str, Any]:
        """Make the shards the index, in place of the one before; return its manifest."""
        manifest = FORMAT | self.plan | more | {"build": self.build, "shards": shards}
        kept = {MANIFEST, *(name for shard in shards for name in shard["files"])}
        with self.writing():
            self._write_json(MANIFEST, manifest)
            for entry in self.path.iterdir():
                if entry.name not in kept and (_OURS.match(entry.name) or entry.name == BUILDING):
                    entry.unlink()
        return manifest

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Raise BulkError for whatever the disk refuses meanwhile."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise BulkError(
                f"{self.path} cannot be written: {one_line(error)}; what is done is kept, and the same command goes on"
            ) from error

    def _name(self, number: int, kind: str) -> str:
        return f"{self.build}-{number:05}.{kind}"

    def _write_json(self, name: str, document: dict[str, Any]) -> None:
        partial = self.path / f".{name}.partial"
        with partial.open("w") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path / name)

    def _check(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise BulkError(f"{self.path} is a file, and INDEX is a folder: give another one; this file is kept")
        foreign = [
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in (MANIFEST, BUILDING, ".lock")
            and not _OURS.match(entry.name)
            and not _is_partial(entry.name)
        ]
        if foreign:
            raise BulkError(f"{self.path} holds files of others ({min(foreign)} …): give another INDEX; they are kept")
        for name in (MANIFEST, BUILDING):
            found = _read(self.path / name) or self.plan
            for key, what in (("input", "another corpus"), ("weights_sha256", "another model's features")):
                if found.get(key) != self.plan[key]:
                    raise BulkError(
                        f"{self.path} is an index of {what}: {key} {json.dumps(found.get(key))} there, "
                        f"{json.dumps(self.plan[key])} now: give another INDEX; it is kept"
                    )


class Names:
    """The names of a shard's entries, in the order in which they are added."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database, self._next = database, 0

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[Names]:
        """Make the file; it is whole at the end."""
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode = OFF")  # a file that is not whole is thrown away
            database.execute(_SCHEMA)
            yield cls(database)
            database.commit()

    def add(self, names: Iterable[str]) -> None:
        """Append names."""
        rows = [(self._next + place, os.fsencode(name)) for place, name in enumerate(names)]
        self._database.executemany("INSERT INTO entries VALUES (?, ?)", rows)
        self._next += len(rows)


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(".partial")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_manifest(path)
    except (OSError, ValueError) as error:
        raise BulkError(f"{path} cannot be read: {one_line(error)}: remove it, or give another INDEX") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes of this machine from writing; the lock ends with this process, however it does."""
    with (path / ".lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BulkError(f"{path} is being written by another process") from error
        yield
