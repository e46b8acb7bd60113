"""OUTPUT: a folder of parquet files and the manifest that says of what; the files themselves say what is done.

A file appears under its name when it is whole, in one step, and holds the names of its inputs. So whatever dies, each
input is in one file or in none, and the next run reads from the files what is left. Files that a run which was taken
for dead adds later are found by the run's number in their names and removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from ray.data import Datasink

from bulk.corpus import Done
from bulk.errors import BulkError
from bulk.location import Location, one_line
from bulk.manifest import FORMAT, MANIFEST, read_manifest

_FILE = re.compile(r"^([0-9a-f]{8})-\d{6,}\.parquet$")


class ParquetFiles(Datasink):
    """Writes one file per write task; a task that Ray repeats writes the same file again."""

    def __init__(self, location: Location, run: str, schema: pa.Schema, rows_per_file: int) -> None:
        self._filesystem, self._folder = location.filesystem, location.path
        self._is_local, self._run = location.is_local, run
        self._schema, self._rows_per_file = schema, rows_per_file

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_file

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> tuple[int, int]:
        """Write a file; return the number of its rows and of those with an error."""
        tables = [block.cast(self._schema) for block in blocks if block.num_rows]
        if not tables:
            return 0, 0
        table = pa.concat_tables(tables)
        name = f"{self._run}-{ctx.task_idx:06}.parquet"
        target = f"{self._folder}/{name}"
        # An object store shows a file once it is closed; a local one is written beside its place and renamed.
        written = f"{self._folder}/.{name}.{secrets.token_hex(4)}" if self._is_local else target
        try:
            pq.write_table(table, written, filesystem=self._filesystem, compression="zstd")
            if self._is_local:
                os.replace(written, target)
        except BaseException:
            with contextlib.suppress(OSError):
                self._filesystem.delete_file(written)
            raise
        return table.num_rows, table.num_rows - table.column("error").null_count


@dataclass
class Output:
    """The folder, open for this process alone."""

    location: Location
    run: str  #: of this run, in the names of its files
    kept: set[str]  #: files of earlier runs

    @classmethod
    @contextlib.contextmanager
    def open(cls, text: str, manifest: dict[str, Any]) -> Iterator[Output]:
        """Make the folder, or check that it holds the results of an equal run.

        Raises BulkError when it holds anything else, when another process writes it, or when it cannot be written.
        """
        location = Location.of(text)
        manifest = FORMAT | manifest
        with contextlib.ExitStack() as resources:
            try:
                _check(location, manifest)
                location.filesystem.create_dir(location.path, recursive=True)
                if location.is_local:
                    resources.enter_context(_locked(location))
                if not _names(location):
                    _write_manifest(location, manifest)
                _check(location, manifest)  # by now another process may have begun
                output = cls(location, secrets.token_hex(4), set())
                output.remove_torn()
                output.kept = {name for name in _names(location) if _FILE.match(name)}
            except (OSError, pa.ArrowException) as error:
                raise BulkError(f"{location.name} cannot be written: {one_line(error)}") from error
            yield output

    def done(self, kind: str) -> Done:
        """Return the inputs that the files hold."""
        done = Done()
        for name in sorted(self.kept):
            done.add(self._column(name, "input"), kind)
        return done

    def failed(self) -> int:
        """Return the number of rows with an error, of all files."""
        return sum(
            len(column) - column.null_count
            for name in sorted(self._files())
            if (column := self._column(name, "error")) is not None
        )

    def forget_failures(self) -> None:
        """Remove the files that hold a row with an error: their inputs count as not answered."""
        for name in sorted(self.kept):
            column = self._column(name, "error")
            if column.null_count < len(column):
                self.location.filesystem.delete_file(f"{self.location.path}/{name}")
                self.kept.remove(name)

    def rows(self) -> int:
        """Return the number of rows, by the footers of the files."""
        return sum(self.rows_of(name) for name in self._files())

    def rows_of(self, name: str) -> int:
        """Return the number of rows of a file."""
        with self.location.filesystem.open_input_file(f"{self.location.path}/{name}") as file:
            return pq.read_metadata(file).num_rows

    def new_files(self) -> list[str]:
        """Return the files that this run has written."""
        return [name for name in self._files() if name.startswith(self.run)]

    def remove_strays(self) -> int:
        """Remove what a run that was taken for dead has added since; this run has answered the same inputs."""
        strays = [name for name in self._files() if name not in self.kept and not name.startswith(self.run)]
        for name in strays:
            self.location.filesystem.delete_file(f"{self.location.path}/{name}")
        return len(strays)

    def remove_torn(self) -> None:
        """Remove what a writer that was killed had not finished."""
        selector = fs.FileSelector(self.location.path)
        for info in self.location.filesystem.get_file_info(selector):
            if info.base_name.startswith(".") and ".parquet." in info.base_name:
                self.location.filesystem.delete_file(info.path)

    def _files(self) -> list[str]:
        return [name for name in _names(self.location) if _FILE.match(name)]

    def _column(self, name: str, column: str) -> pa.Array:
        path = f"{self.location.path}/{name}"
        try:
            with self.location.filesystem.open_input_file(path) as file:
                return pq.read_table(file, columns=[column]).column(0).combine_chunks()
        except (OSError, pa.ArrowException) as error:
            raise BulkError(
                f"{path} cannot be read: {one_line(error)}: remove it, and its inputs are answered again"
            ) from error


def _check(location: Location, manifest: dict[str, Any]) -> None:
    """Raise BulkError unless the folder is empty, not there, or one of an equal run."""
    info = location.info()
    if info.type == fs.FileType.NotFound:
        return
    if info.type == fs.FileType.File:
        raise BulkError(f"{location.name} is a file, and OUTPUT is a folder: give another one; this file is kept")
    names = _names(location)
    if not names:
        return
    found = read_manifest(location)
    if found is None:
        raise BulkError(
            f"{location.name} holds {len(names)} files that bulk work did not write ({names[0]} …): give another "
            "OUTPUT; they are kept"
        )
    for name in dict.fromkeys([*manifest, *found]):
        if found.get(name) != manifest.get(name):
            raise BulkError(
                f"{location.name} holds other results: {name} {_shown(found.get(name))} there, "
                f"{_shown(manifest.get(name))} now: give another OUTPUT; they are kept"
            )
    foreign = [name for name in names if name != MANIFEST and not _FILE.match(name)]
    if foreign:
        raise BulkError(f"{location.name} holds a file that bulk work did not write: move {foreign[0]} away")


def _shown(value: object) -> str:
    return "nothing" if value is None else json.dumps(value)


def _names(location: Location) -> list[str]:
    """Return the names in the folder, without what is hidden."""
    infos = location.filesystem.get_file_info(fs.FileSelector(location.path, allow_not_found=True))
    return sorted(info.base_name for info in infos if not info.base_name.startswith("."))


def _write_manifest(location: Location, manifest: dict[str, Any]) -> None:
    path = f"{location.path}/{MANIFEST}"
    written = f"{location.path}/.{MANIFEST}" if location.is_local else path
    with location.filesystem.open_output_stream(written) as file:
        file.write(json.dumps(manifest, indent=1).encode() + b"\n")
    if location.is_local:
        os.replace(written, path)


@contextlib.contextmanager
def _locked(location: Location) -> Iterator[None]:
    """Keep other processes of this machine from writing; the lock ends with this process, however it does."""
    with open(f"{location.path}/.lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BulkError(f"{location.name} is being written by another process") from error
        yield
