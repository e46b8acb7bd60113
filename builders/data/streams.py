"""Endless streams of records that can be entered anywhere: batch number `index` is always the same records.

A run that is resumed therefore needs nothing but the number of the next batch. With several processes each has a
stream of its own: `rank` of `world`.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from typing import Protocol

from builders.data.readers.records import Record


def seed_of(*parts: object) -> int:
    """Return a seed below 2³² that depends on every part."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=4).digest(), "big")


class RecordStream(Protocol):
    """A source of batches of records.

    `files`: how many records the batches are drawn from; 0 where pictures are drawn and not read.
    """

    seed: int
    files: int

    def batch(self, index: int) -> Sequence[Record]:
        """Return the records of batch `index`, from 0; the same at every call."""


class ShuffledRecords:
    """Draw the records of a data set in a new random order in every epoch; a last, smaller batch is left out."""

    def __init__(
        self, records: Sequence[Record], batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        """Raises ValueError for fewer records than a batch of all processes takes."""
        self.records, self.batch_size, self.seed, self.rank, self.world = records, batch_size, seed, rank, world
        self.files = len(records)
        self.batches = len(records) // (batch_size * world)  # per epoch
        if self.batches == 0:
            raise ValueError(f"{len(records)} records are fewer than a batch of {batch_size * world}")
        self._order: tuple[int, list[int]] = (-1, [])

    def batch(self, index: int) -> list[Record]:
        """See `RecordStream`."""
        epoch, place = divmod(index, self.batches)
        if self._order[0] != epoch:
            order = list(range(len(self.records)))
            Random(seed_of("order", self.seed, epoch)).shuffle(order)
            self._order = (epoch, order)
        first = (place * self.world + self.rank) * self.batch_size
        return [self.records[number] for number in self._order[1][first : first + self.batch_size]]
