"""Features in parquet, as `bulk/embed.py` writes them: counted, checked, and read in order a batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from bulk.errors import BulkError
from bulk.location import Location, one_line
from bulk.manifest import FORMAT, MANIFEST, read_manifest

BATCH = 16_384  # rows read at once
_COLUMNS = ["input", "error", "feature"]
_UNIT = 1e-3  # how far from 1 the length of a feature may be
_FOOTER = 64 << 10  # bytes at the end of a file, where parquet keeps its statistics


@dataclass(frozen=True)
class FeatureFile:
    """A parquet file: `count` of its `rows` have a feature, the others an error."""

    name: str
    rows: int
    count: int


@dataclass(frozen=True)
class Features:
    """The features of a folder, numbered from 0 by the names of their files and their places there."""

    location: Location
    corpus: str  #: what was embedded
    weights: Any  #: digest of the weights that made them
    files: tuple[FeatureFile, ...]
    sha256: str  #: of the names, sizes and footers of all files

    @property
    def count(self) -> int:
        return sum(file.count for file in self.files)

    @property
    def skipped(self) -> int:
        """Return the number of rows with an error."""
        return sum(file.rows for file in self.files) - self.count

    @classmethod
    def open(cls, text: str) -> Features:
        """Read the manifest and count the rows. Raises BulkError when it is no folder of features, or an empty one."""
        location = Location.of(text)
        manifest = _manifest(location)
        digest, files = hashlib.sha256(), []
        for name, size in location.files():
            if not name.endswith(".parquet"):
                continue
            path = f"{location.path}/{name}"
            try:
                with location.filesystem.open_input_file(path) as stream:
                    file = pq.ParquetFile(stream)
                    _check_schema(path, file.schema_arrow)
                    errors = file.read(columns=["error"]).column(0)
                    files.append(FeatureFile(name, len(errors), errors.null_count))
                    stream.seek(max(0, (size or 0) - _FOOTER))
                    digest.update(f"{name}\0{size}\0".encode() + stream.read(_FOOTER))
            except (OSError, pa.ArrowException) as error:
                raise BulkError(
                    f"{path} cannot be read: {one_line(error)}: remove it and run bulk/embed.py again"
                ) from error
        features = cls(location, manifest["input"], manifest["weights_sha256"], tuple(files), digest.hexdigest())
        if not features.count:
            raise BulkError(f"{location.name} holds no features: {features.skipped} rows, all with an error")
        return features

    def dimension(self) -> int:
        """Return the length of the first feature. Raises BulkError when it cannot be read."""
        file = next(file for file in self.files if file.count)
        path = f"{self.location.path}/{file.name}"
        try:
            with self.location.filesystem.open_input_file(path) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(BATCH, columns=["feature"]):
                    if len(features := batch.column("feature").drop_null()):
                        return len(features[0])
        except (OSError, pa.ArrowException) as error:
            raise BulkError(f"{path} cannot be read: {one_line(error)}") from error
        raise BulkError(f"{path} has rows with neither a feature nor an error")

    def batches(self, start: int, stop: int, dimension: int) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield inputs and features, float32 [n, dimension], of the numbers from `start` to below `stop`.

        Raises BulkError when a file has changed, or when a feature is not a unit vector of that dimension.
        """
        first = 0
        for file in self.files:
            if first + file.count > start and first < stop:
                yield from self._of_file(file, max(0, start - first), min(file.count, stop - first), dimension)
            first += file.count

    def _of_file(
        self, file: FeatureFile, start: int, stop: int, dimension: int
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        path = f"{self.location.path}/{file.name}"
        first = row = 0
        try:
            with self.location.filesystem.open_input_file(path) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(BATCH, columns=_COLUMNS):
                    kept = pc.is_null(batch.column("error"))
                    rows = row + np.flatnonzero(kept.to_numpy(zero_copy_only=False))
                    row += batch.num_rows
                    low, high = max(start - first, 0), min(stop - first, len(rows))
                    first += len(rows)
                    if low < high:
                        wanted = batch.filter(kept).slice(low, high - low)
                        features = _vectors(wanted.column("feature"), dimension, path, rows[low:high])
                        yield wanted.column("input").to_pylist(), features
        except (OSError, pa.ArrowException) as error:
            raise BulkError(f"{path} cannot be read: {one_line(error)}") from error
        if first < stop:
            raise BulkError(f"{path} has changed since it was counted: run the same command again")


def _vectors(column: pa.Array, dimension: int, path: str, rows: np.ndarray) -> np.ndarray:
    """Return a column as float32 [n, dimension]. Raises BulkError naming the first row that is no unit vector."""

    def refuse(row: int, what: str) -> None:
        raise BulkError(
            f"{path}, row {rows[row]}: {what}: an index takes the features of one checkpoint; remove the file and run "
            "bulk/embed.py again"
        )

    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    if len(wrong := np.flatnonzero(lengths != dimension)):
        found = int(lengths[wrong[0]])
        what = (
            "neither a feature nor an error" if found < 0 else f"a feature of {found} numbers, {dimension} are expected"
        )
        refuse(wrong[0], what)
    values = column.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)  # a null becomes NaN
    vectors = np.ascontiguousarray(values, np.float32).reshape(-1, dimension)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    if len(wrong := np.flatnonzero(~(np.abs(norms - 1) <= _UNIT))):
        refuse(wrong[0], f"a feature of length {norms[wrong[0]]:.3g}, 1 is expected")
    return vectors


def _manifest(location: Location) -> dict[str, Any]:
    """Return the manifest of the features. Raises BulkError when it is that of another task, or none."""
    info = location.info()
    if info.type == fs.FileType.NotFound:
        raise BulkError(f"{location.name}: no such folder: FEATURES is what bulk/embed.py wrote")
    found = read_manifest(location)
    if found is None:
        raise BulkError(f"{location.name} has no {MANIFEST}: FEATURES is the folder that bulk/embed.py wrote")
    if found.get("version") != FORMAT["version"] or not {"task", "input", "weights_sha256"} <= set(found):
        raise BulkError(f"{location.name}/{MANIFEST} is not of version {FORMAT['version']}: run bulk/embed.py anew")
    if found["task"] != "embed_image":
        raise BulkError(f"{location.name} holds answers of {found['task']}: FEATURES is what bulk/embed.py wrote")
    return found


def _check_schema(path: str, schema: pa.Schema) -> None:
    missing = [name for name in _COLUMNS if name not in schema.names]
    if missing:
        raise BulkError(f"{path} has no column {missing[0]}; it has {', '.join(schema.names)}")
    kind = schema.field("feature").type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise BulkError(f"{path}: `feature` is {kind}, a list of floats is expected")
