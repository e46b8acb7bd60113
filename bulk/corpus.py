"""INPUT: a folder of pictures and videos, parquet files, or WebDataset shards.

An input has a name that is there when it is read, and the same in each run: the path below INPUT for a file, and
`FILE#N` for row or sample N of a parquet file or a shard. Names of users' own (a key column, `__key__`) may repeat, so
nothing depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from bulk.errors import BulkError
from bulk.location import Location

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv")
#: Endings of the files of each kind of INPUT; the first kind that a folder has files of is what it is read as.
SUFFIXES = {
    "parquet": (".parquet",),
    "shards": (".tar", ".tar.gz", ".tgz"),
    "folder": (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES),
}
FILES_PER_PART = 256  # of a folder, that one task reads


@dataclass
class Done:
    """The inputs that an earlier run has answered: a bit per row of a file, and the names of single files."""

    rows: dict[str, bytearray] = field(default_factory=dict)
    names: list[pa.Array] = field(default_factory=list)
    count: int = 0

    def add(self, names: pa.Array, kind: str) -> None:
        """Note inputs by name."""
        self.count += len(names)
        if kind == "folder":
            self.names.append(names)
            return
        for name in names.to_pylist():
            file, _, number = name.rpartition("#")
            byte, bit = divmod(int(number), 8)
            bits = self.rows.setdefault(file, bytearray())
            bits.extend(bytes(max(0, byte + 1 - len(bits))))
            bits[byte] |= 1 << bit


@dataclass(frozen=True)
class Part:
    """What one task reads: some files of a folder, or one parquet file or shard."""

    kind: str
    names: tuple[str, ...]  #: below INPUT
    sizes: tuple[int | None, ...]  #: bytes; None for what is not there
    done: bytes = b""  #: a bit per row that is answered already


@dataclass(frozen=True)
class Corpus:
    """All inputs."""

    name: str  #: of INPUT, an absolute path or a URI
    location: Location  #: the folder that names start from
    kind: str  #: of `SUFFIXES`
    names: list[str]
    sizes: list[int | None]

    @classmethod
    def open(cls, text: str) -> Corpus:
        """List INPUT. Raises BulkError when it is not there or holds nothing that is read."""
        location = Location.of(text)
        info = location.info()
        if info.type == fs.FileType.NotFound:
            raise BulkError(f"{location.name}: no such file or folder")
        if info.type == fs.FileType.File:
            folder, _, name = location.path.rpartition("/")
            kinds = [kind for kind, suffixes in SUFFIXES.items() if name.lower().endswith(suffixes)]
            if not kinds:
                raise BulkError(f"{location.name} is neither a folder, nor parquet (.parquet), nor a shard (.tar)")
            parent = Location(location.name.rpartition("/")[0], location.filesystem, folder)
            return cls(location.name, parent, kinds[0], [name], [info.size])
        files = location.files()
        for kind, suffixes in SUFFIXES.items():
            chosen = [(name, size) for name, size in files if name.lower().endswith(suffixes)]
            if chosen:
                names, sizes = zip(*chosen, strict=True)
                return cls(location.name, location, kind, list(names), list(sizes))
        raise BulkError(f"{location.name} holds no pictures, no parquet files (.parquet) and no shards (.tar)")

    def parts(self, done: Done) -> Iterator[Part]:
        """Yield what is left to read, in the order of the names."""
        if self.kind != "folder":
            for name, size in zip(self.names, self.sizes, strict=True):
                yield Part(self.kind, (name,), (size,), bytes(done.rows.get(name, b"")))
            return
        left: Iterable[int] = range(len(self.names))
        if done.names:
            known = pc.is_in(pa.array(self.names, pa.string()), value_set=pa.chunked_array(done.names).combine_chunks())
            left = pc.indices_nonzero(pc.invert(known)).to_pylist()
        left = list(left)
        for start in range(0, len(left), FILES_PER_PART):
            some = left[start : start + FILES_PER_PART]
            yield Part(self.kind, tuple(self.names[i] for i in some), tuple(self.sizes[i] for i in some))
