"""NLVR2: `nlvr_{train,dev,test}.json`, a list of `images` (two), `sentence` and `label` ("True", "False")."""

from __future__ import annotations

from pathlib import Path

from builders.data import sources
from builders.data.readers.annotations import Images, entries_of
from builders.data.readers.records import DatasetError, PairRecord

LABELS = {"True": "true", "False": "false", True: "true", False: "false"}


def read(annotations: Path, images: Path, split: str | None = None) -> list[PairRecord]:
    """Statements in the file's order. Raises DatasetError naming the file, entry, key or picture.

    Training pictures that the file has in folders by number are also looked for in `train/` itself, where mPLUG's
    script has them.
    """
    folder, records = Images(images), []
    for index, entry in enumerate(entries_of(annotations)):
        names = entry.texts("images")
        if len(names) != 2:
            raise entry.wrong("images", "two pictures")
        pair = tuple(folder.find(entry, name, f"train/{Path(name).name}") for name in names)
        key = str(entry["identifier"]) if "identifier" in entry else str(index)
        records.append(PairRecord(key, pair, entry.text("sentence"), entry.label("label", LABELS)))
    if not records:
        raise DatasetError(f"{annotations}: holds no statements")
    return records


class Source(sources.Source):
    """See the module."""

    read = staticmethod(read)
