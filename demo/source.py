"""Emoji scenes as a source of data: fixed splits to evaluate on, fresh scenes to train on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from builders.data import sources
from builders.data.readers.records import DatasetError, Record
from demo.records import RECORDS, TITLES, caption_figures
from demo.scene_stream import SceneRecords
from demo.scenes.sprites import SPLIT_STYLES, TRAIN_STYLES
from demo.splits import SPLITS
from demo.texts.vocabulary import write_vocabulary

ITEMS = 1000  # evaluated per task and split
VALIDATION_SEED = 1_000_003  # training takes --seed
CORPUS, CORPUS_BATCH = 2000, 100  # scenes whose captions CIDEr counts words in


class Source(sources.Source):
    """See the module."""

    default_items = ITEMS
    shares_texts = True
    caption_figures = staticmethod(caption_figures)

    def splits(self, wanted: str | None) -> dict[str | None, str]:
        """See `sources.Source`."""
        if wanted is None:
            return {name: title for name, title in TITLES.items() if SPLITS[name].is_here}
        if wanted not in SPLITS:
            raise DatasetError(f"--split {wanted!r} is none of: {', '.join(SPLITS)}")
        try:
            SPLITS[wanted].check_folder()
        except FileNotFoundError as error:
            raise DatasetError(f"--split {wanted}: {error}") from None
        return {wanted: TITLES.get(wanted, wanted)}

    def records(self, task: str, split: str | None, limit: int | None = None) -> Sequence[Record]:
        """See `sources.Source`."""
        return RECORDS[task](split or "test", limit or ITEMS)

    def stream(
        self, task: str, split: str | None, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1
    ) -> SceneRecords:
        """See `sources.Source`; every process draws scenes of its own."""
        return SceneRecords(task, TRAIN_STYLES, batch_size, seed=seed, rank=rank, texts=self.options.texts)

    def validation_stream(self, task: str, split: str | None, batch_size: int) -> SceneRecords:
        """See `sources.Source`; unaugmented scenes."""
        texts = self.options.texts
        return SceneRecords(task, SPLIT_STYLES, batch_size, seed=VALIDATION_SEED, texts=texts, augment=False)

    def captions(self, split: str | None, seed: int) -> list[Sequence[str]]:
        """See `sources.Source`."""
        stream = SceneRecords("caption", TRAIN_STYLES, CORPUS_BATCH, seed=seed, augment=False)
        return [record.captions for index in range(CORPUS // CORPUS_BATCH) for record in stream.batch(index)]

    def write_vocabulary(self, path: Path) -> None:
        """See `sources.Source`."""
        write_vocabulary(path)
