"""Pictures and captions in WebDataset shards, as img2dataset writes them: read in place, none held in memory.

    shards = Shards(find_shards(Path("laion/train")))
    ShardStream(shards, 64, seed=0, rank=3, world=16).batch(100)

A shard is an uncompressed tar. Members whose names agree up to the first dot are one sample: a picture (`.jpg`, `.png`,
`.webp`, …) and its caption (`.txt`, or `caption` in `.json`). What is kept of a data set is the number of samples of
each shard, and of the few shards in use where each sample lies. Any batch can therefore be read without those before
it, by any number of processes; readers that go through a shard from its beginning, as the webdataset package does,
cannot continue in the middle with another number of processes.
"""

from __future__ import annotations

import json
import sys
import tarfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import NamedTuple

from builders.data import sources
from builders.data.readers.records import CaptionRecord, DatasetError, EncodedPicture
from builders.data.streams import seed_of

PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
MIXED = 16  #: shards among which samples are shuffled at a time
END = 2 * tarfile.BLOCKSIZE  # zero bytes that end a tar


class Extent(NamedTuple):
    """Where a member lies in its shard, in bytes."""

    name: str
    offset: int
    size: int


class Sample(NamedTuple):
    """Where a picture and its caption lie; the caption in a `.txt` or a `.json`."""

    key: str
    picture: Extent
    caption: Extent


@dataclass(frozen=True)
class Shard:
    """A tar file and the number of its samples, those without a picture or a caption not counted."""

    path: Path
    count: int


def find_shards(folder: Path) -> list[Shard]:
    """Return the shards of a folder, by name.

    img2dataset's `00000_stats.json` says how many samples lie in `00000.tar`; other shards are read through once, their
    headers alone. Samples without a picture or a caption are reported on standard error. Raises DatasetError naming a
    shard that is cut off, compressed or empty, and a folder without any.
    """
    if not folder.is_dir():
        raise DatasetError(f"--images {folder}: no such folder; WebDataset shards (*.tar) are looked for in it")
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        packed = next(iter(sorted(folder.glob("*.tar.*")) + sorted(folder.glob("*.tgz"))), None)
        if packed is not None:
            raise DatasetError(f"{packed}: a compressed tar cannot be read from the middle; unpack it to a plain .tar")
        raise DatasetError(f"{folder}: holds no WebDataset shards (*.tar)")
    return [Shard(path, _count(path)) for path in paths]


def _count(path: Path) -> int:
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - END))
        if size % tarfile.BLOCKSIZE or stream.read() != bytes(END):
            raise DatasetError(f"{path}: not a whole tar (no end mark); it is cut off, or compressed")
    stats = path.with_name(f"{path.stem}_stats.json")
    if stats.is_file():
        try:
            count = json.loads(stats.read_text())["successes"]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{stats}: does not say the number of `successes`: {error!r}") from None
    else:
        count = len(read_samples(path))
    if not isinstance(count, int) or count < 1:
        raise DatasetError(f"{path}: holds no picture with a caption (.txt, or `caption` in .json); remove it")
    return count


def read_samples(path: Path) -> list[Sample]:
    """Return where the samples of a shard lie, in the order of the tar. Raises DatasetError for what is no tar."""
    samples, others = [], []
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in _groups(tar):
                picture = next((extent for kind, extent in members.items() if kind in PICTURES), None)
                caption = members.get("txt") or members.get("json")
                if picture is not None and caption is not None:
                    samples.append(Sample(key, picture, caption))
                else:
                    others.append(key)
    except (tarfile.TarError, OSError) as error:
        raise DatasetError(f"{path}: cannot be read as a tar: {error}") from None
    if others:
        print(f"{path}: left out {len(others)} samples without a picture or a caption: {others[0]}, …", file=sys.stderr)
    return samples


def _groups(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, Extent]]]:
    """Yield members that follow each other and share the name up to the first dot, by what stands behind it."""
    key, members = "", {}
    for member in tar:
        if not member.isreg():
            continue
        folder, _, name = member.name.rpartition("/")
        stem, _, kind = name.partition(".")
        own = f"{folder}/{stem}" if folder else stem
        if own != key and members:
            yield key, members
            members = {}
        key = own
        members[kind.lower()] = Extent(member.name, member.offset_data, member.size)
    if members:
        yield key, members


class Shards(Sequence[CaptionRecord]):
    """All samples of some shards as records, numbered through; read when they are asked for."""

    def __init__(self, shards: Sequence[Shard], limit: int | None = None) -> None:
        self.shards = list(shards)
        self.ends = list(accumulate(shard.count for shard in self.shards))
        self.count = min(self.ends[-1], limit or self.ends[-1])
        self._open: OrderedDict[int, list[Sample]] = OrderedDict()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int | slice) -> CaptionRecord | list[CaptionRecord]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self.count))]
        if not -self.count <= index < self.count:
            raise IndexError(index)
        number = index % self.count
        shard = bisect_right(self.ends, number)
        return self.record(shard, number - (self.ends[shard - 1] if shard else 0))

    def record(self, shard: int, place: int) -> CaptionRecord:
        """Return a sample of a shard. Raises DatasetError where the shard has changed, or its caption is no text."""
        path, sample = self.shards[shard].path, self._samples(shard)[place]
        try:
            with path.open("rb") as stream:
                picture, caption = (_read(stream, extent) for extent in (sample.picture, sample.caption))
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
        name = path / sample.picture.name
        return CaptionRecord(
            f"{path.stem}/{sample.key}",
            EncodedPicture(name, picture),
            (_caption(caption, path / sample.caption.name),),
        )

    def _samples(self, shard: int) -> list[Sample]:
        if shard not in self._open:
            found, promised = read_samples(self.shards[shard].path), self.shards[shard].count
            if len(found) != promised:
                raise DatasetError(
                    f"{self.shards[shard].path}: holds {len(found)} pictures with a caption, not the {promised} that "
                    "were counted at the start (or that its _stats.json says); delete a wrong _stats.json"
                )
            self._open[shard] = found
            if len(self._open) > MIXED:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]


def _read(stream, extent: Extent) -> bytes:
    stream.seek(extent.offset)
    return stream.read(extent.size)


def _caption(content: bytes, name: Path) -> str:
    try:
        text = content.decode()
        return json.loads(text)["caption"] if name.suffix == ".json" else text
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{name}: no caption in UTF-8: {error!r}") from None


class ShardStream:
    """Draw the samples in a new random order in every epoch; a last, smaller batch is left out.

    The shards are shuffled, and their samples among `MIXED` shards at a time. The batches of all processes together are
    the same for any number of processes whose batches are as many pictures together.
    """

    def __init__(self, shards: Shards, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        """Raises ValueError for fewer samples than a batch of all processes takes."""
        self.shards, self.batch_size, self.seed, self.rank, self.world = shards, batch_size, seed, rank, world
        self.files = len(shards)
        self.batches = self.files // (batch_size * world)  # per epoch
        if self.batches == 0:
            raise ValueError(f"{self.files} samples are fewer than a batch of {batch_size * world}")
        self._counts = [shard.count for shard in shards.shards]
        self._epoch = self._group = -1
        self._order: list[int] = []  # of the shards, in this epoch
        self._ends: list[int] = []  # of each group of MIXED shards, in samples
        self._places: list[tuple[int, int]] = []  # shard and place of each sample of the group

    def batch(self, index: int) -> list[CaptionRecord]:
        """See `RecordStream`. Raises DatasetError for a shard that has changed."""
        epoch, place = divmod(index, self.batches)
        first = (place * self.world + self.rank) * self.batch_size
        return [self.shards.record(*self._place(epoch, first + number)) for number in range(self.batch_size)]

    def _place(self, epoch: int, number: int) -> tuple[int, int]:
        if epoch != self._epoch:
            self._order = list(range(len(self._counts)))
            Random(seed_of("shards", self.seed, epoch)).shuffle(self._order)
            groups = [self._order[start : start + MIXED] for start in range(0, len(self._order), MIXED)]
            self._ends = list(accumulate(sum(self._counts[shard] for shard in group) for group in groups))
            self._epoch, self._group = epoch, -1
        group = bisect_right(self._ends, number)
        if group != self._group:
            members = self._order[group * MIXED : (group + 1) * MIXED]
            self._places = [(shard, place) for shard in members for place in range(self._counts[shard])]
            Random(seed_of("samples", self.seed, epoch, group)).shuffle(self._places)
            self._group = group
        return self._places[number - (self._ends[group - 1] if group else 0)]


class Source(sources.Source):
    """Shards below `--images`: those of a split in the folder of its name, or, for `train`, in `--images` itself."""

    def splits(self, wanted: str | None) -> dict[str | None, str]:
        """See `sources.Source`."""
        name = self.options.images.name if self.options.images else ""
        return {wanted: f"webdataset {wanted or name}"}

    def records(self, task: str, split: str | None, limit: int | None = None) -> Shards:
        """See `sources.Source`; a sequence that reads a record when it is asked for."""
        images = self.options.images
        if images is None:
            raise DatasetError(f"--data {self.name} needs --images, the folder of the shards (*.tar)")
        if self.options.annotations is not None or self.options.questions is not None:
            raise DatasetError(f"--data {self.name} reads captions from the shards; leave --annotations out")
        if split not in self._known:
            own = images / (split or ".")
            self._known[split] = find_shards(images if split == "train" and not own.is_dir() else own)
        return Shards(self._known[split], limit)

    def stream(
        self, task: str, split: str | None, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1
    ) -> ShardStream:
        """See `sources.Source`."""
        return ShardStream(self.records(task, split), batch_size, seed=seed, rank=rank, world=world)

    def validation_stream(self, task: str, split: str | None, batch_size: int) -> ShardStream | None:
        """See `sources.Source`."""
        if split is None:
            return None
        records = self.records(task, split)
        return ShardStream(records, min(batch_size, len(records)))
