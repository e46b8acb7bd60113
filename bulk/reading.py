"""Parts of a corpus → rows with the encoded picture, the question and what was wrong with it, as Arrow tables.

A reader never fails: an input that cannot be read becomes a row with a `problem`, and a file that breaks off becomes
one such row at the place where it does. Sizes are judged before anything is read into memory.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from bulk.corpus import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Part
from bulk.errors import BulkError
from bulk.location import one_line
from mplug.inputs.images import MAX_IMAGE_BYTES
from mplug.inputs.video import MAX_VIDEO_BYTES

SCHEMA = pa.schema(
    [
        ("input", pa.string()),
        ("key", pa.string()),
        ("image", pa.binary()),
        ("video", pa.binary()),
        ("question", pa.string()),
        ("problem", pa.string()),
    ]
)
ROWS_PER_TABLE = 64
BYTES_PER_TABLE = 4 << 20
PARQUET_ROWS = 32  # read at once
#: Columns of a parquet file that are taken for the picture, the first that is there.
PICTURE_COLUMNS = (
    "image",
    "picture",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "bytes",
    "content",
    "image_path",
    "path",
    "file_name",
)
_BASE64 = 4 / 3  # a picture may be sent as a data URI
_URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_ERRORS = (OSError, pa.ArrowException, tarfile.TarError, EOFError, ValueError)


@dataclass(frozen=True)
class Columns:
    """Where the parts of an input stand: columns of a parquet file, endings of a shard's members."""

    picture: str | None = None  #: None: the first of `PICTURE_COLUMNS`, or the member that is a picture
    question: str | None = None
    key: str | None = None


@dataclass
class Row:
    """One input as it was read."""

    input: str
    key: str | None = None
    image: bytes | None = None
    video: bytes | None = None
    question: str | None = None
    problem: str | None = None


def read_part(filesystem: fs.FileSystem, folder: str, part: Part, columns: Columns) -> Iterator[pa.Table]:
    """Yield the rows of a part that are not done yet, as tables of `SCHEMA` of a few MiB at most."""
    rows = _READERS[part.kind](filesystem, folder, part, columns)
    waiting: list[Row] = []
    size = 0
    for row in rows:
        waiting.append(row)
        size += len(row.image or b"") + len(row.video or b"")
        if len(waiting) >= ROWS_PER_TABLE or size >= BYTES_PER_TABLE:
            yield pa.Table.from_pylist([vars(each) for each in waiting], schema=SCHEMA)
            waiting, size = [], 0
    yield pa.Table.from_pylist([vars(each) for each in waiting], schema=SCHEMA)


def _folder(filesystem: fs.FileSystem, folder: str, part: Part, columns: Columns) -> Iterator[Row]:
    for name, size in zip(part.names, part.sizes, strict=True):
        row = Row(name)
        _put_file(row, filesystem, posixpath.join(folder, name), size)
        yield row


def _put_file(row: Row, filesystem: fs.FileSystem, path: str, size: int | None) -> None:
    """Read a file into `image` or `video`, or say why not in `problem`."""
    kind = "video" if path.lower().endswith(VIDEO_SUFFIXES) else "image"
    row.problem = _too_large(kind, size)
    if row.problem is None:
        try:
            with filesystem.open_input_file(path) as file:
                setattr(row, kind, file.read())
        except _ERRORS as error:
            row.problem = f"cannot be read: {_reason(error)}"


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return one_line(error)


def _too_large(kind: str, size: int | None) -> str | None:
    most = int((MAX_VIDEO_BYTES if kind == "video" else MAX_IMAGE_BYTES) * _BASE64) + 64
    if size is None or size <= most:
        return None
    return f"{kind.upper()} has {size:,} bytes, more than the {most:,} that are read: send a smaller file"


# -------------------------------------------------------------------------------------------- parquet


def _parquet(filesystem: fs.FileSystem, folder: str, part: Part, columns: Columns) -> Iterator[Row]:
    name, number = part.names[0], 0
    path = posixpath.join(folder, name)
    try:
        with pq.ParquetFile(filesystem.open_input_file(path)) as file:
            picture, wanted = _picture_column(file.schema_arrow, columns)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=wanted):
                values = {column: batch.column(column) for column in batch.schema.names}
                for at in range(batch.num_rows):
                    if not _is_done(part.done, number):
                        cells = {column: array[at].as_py() for column, array in values.items()}
                        yield _parquet_row(f"{name}#{number}", cells, picture, columns, filesystem, path)
                    number += 1
    except _ERRORS as error:
        if not _is_done(part.done, number):
            yield _broken_off(name, number, error)


def check_parquet(filesystem: fs.FileSystem, path: str, columns: Columns) -> int:
    """Return the number of rows that a parquet file gives, by its footer; one that cannot be read gives one, with why.

    Raises BulkError when it lacks a column.
    """
    try:
        with filesystem.open_input_file(path) as file:
            footer = pq.read_metadata(file)
    except _ERRORS:
        return 1
    try:
        _picture_column(footer.schema.to_arrow_schema(), columns)
    except ValueError as error:
        raise BulkError(f"{path} {error}") from None
    return footer.num_rows


def _picture_column(schema: pa.Schema, columns: Columns) -> tuple[str, list[str]]:
    """Return the column of pictures and all columns to read."""
    asked = [name for name in (columns.picture, columns.question, columns.key) if name is not None]
    for name in asked:
        if name not in schema.names:
            raise ValueError(f"has no column {name!r}; it has {', '.join(schema.names)}")
    picture = columns.picture or next((name for name in PICTURE_COLUMNS if name in schema.names), None)
    if picture is None:
        raise ValueError(
            f"has no column of pictures ({', '.join(PICTURE_COLUMNS)}); it has {', '.join(schema.names)}: "
            "name one with --picture-column"
        )
    return picture, list(dict.fromkeys([picture, *asked]))


def _parquet_row(
    name: str, cells: dict[str, Any], picture: str, columns: Columns, filesystem: fs.FileSystem, path: str
) -> Row:
    row = Row(name)
    if columns.key is not None and cells[columns.key] is not None:
        row.key = str(cells[columns.key])
    if columns.question is not None and cells[columns.question] is not None:
        row.question = str(cells[columns.question])
    value = cells[picture]
    if isinstance(value, dict):  # as the library `datasets` writes pictures: {"bytes": …, "path": …}
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        kind = "video" if value[4:8] == b"ftyp" or value[:4] == b"\x1aE\xdf\xa3" else "image"  # MP4; WebM, Matroska
        row.problem = _too_large(kind, len(value))
        if row.problem is None:
            setattr(row, kind, value)
    elif isinstance(value, str):
        if _URL.match(value):
            row.problem = f"the column {picture} holds a URL, and nothing is downloaded: {value[:200]}"
        else:
            _put_file(row, filesystem, *_sized(filesystem, posixpath.join(posixpath.dirname(path), value)))
    else:
        row.problem = f"the column {picture} holds no picture" + ("" if value is None else f": {type(value).__name__}")
    return row


def _sized(filesystem: fs.FileSystem, path: str) -> tuple[str, int | None]:
    """Return a path with the size of the file."""
    try:
        return path, filesystem.get_file_info(path).size
    except _ERRORS:
        return path, None


# --------------------------------------------------------------------------------------------- shards


class _Member(tarfile.TarInfo):
    """A member's header. `tarfile` takes a damaged one, and a file that just ends, for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # the block of zeros that ends an archive
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset:,}") from error


def _shard(filesystem: fs.FileSystem, folder: str, part: Part, columns: Columns) -> Iterator[Row]:
    """Yield the samples of a shard: members in a row whose names agree up to the first dot, as WebDataset has them."""
    name, number = part.names[0], 0
    row: Row | None = None
    try:
        with (
            filesystem.open_input_stream(posixpath.join(folder, name), compression=None) as stream,
            tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as shard,
        ):
            for member in shard:
                base = posixpath.basename(member.name)
                if not member.isfile() or base.startswith((".", "_")):
                    continue
                stem, _, suffix = base.partition(".")
                key = posixpath.join(posixpath.dirname(member.name), stem)
                if row is None or key != row.key:
                    if row is not None:
                        if not _is_done(part.done, number):
                            yield _whole(row)
                        number += 1
                    row = Row(f"{name}#{number}", key)
                if not _is_done(part.done, number):
                    _put_member(row, shard, member, suffix.lower(), columns)
            if row is not None and not _is_done(part.done, number):
                yield _whole(row)
    except _ERRORS as error:
        if row is not None and (row.image is not None or row.video is not None or _is_done(part.done, number)):
            if not _is_done(part.done, number):
                yield row  # its picture is whole; what follows is not
            number += 1
        if not _is_done(part.done, number):
            yield _broken_off(name, number, error)


def _put_member(row: Row, shard: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, columns: Columns) -> None:
    if suffix == columns.question:
        row.question = shard.extractfile(member).read(1 << 20).decode("utf-8", "replace").strip()
        return
    is_video = f".{suffix}".endswith(VIDEO_SUFFIXES)
    is_picture = suffix == columns.picture or (
        columns.picture is None and (is_video or f".{suffix}".endswith(IMAGE_SUFFIXES))
    )
    if not is_picture or row.image is not None or row.video is not None:
        return
    kind = "video" if is_video else "image"
    row.problem = _too_large(kind, member.size)
    if row.problem is None:
        setattr(row, kind, shard.extractfile(member).read())


def _whole(row: Row) -> Row:
    if row.image is None and row.video is None and row.problem is None:
        row.problem = f"the sample {row.key} holds no picture"
    return row


def _broken_off(name: str, number: int, error: BaseException) -> Row:
    return Row(f"{name}#{number}", problem=f"{name} cannot be read beyond {number} inputs: {_reason(error)}")


def _is_done(done: bytes, number: int) -> bool:
    return number // 8 < len(done) and bool(done[number // 8] >> number % 8 & 1)


_READERS = {"folder": _folder, "parquet": _parquet, "shards": _shard}
