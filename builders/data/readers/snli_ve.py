"""SNLI-VE: `ve_{train,dev,test}.json`, a list of `image` (a Flickr30K name without .jpg), `sentence` and `label`."""

from __future__ import annotations

from pathlib import Path

from builders.data import sources
from builders.data.readers.annotations import Images, entries_of
from builders.data.readers.records import DatasetError, HypothesisRecord
from mplug.contract import ENTAILMENT_LABELS

LABELS = {label: label for label in ENTAILMENT_LABELS}


def read(annotations: Path, images: Path, split: str | None = None) -> list[HypothesisRecord]:
    """Hypotheses in the file's order. Raises DatasetError naming the file, entry, key or picture."""
    folder, records = Images(images), []
    for index, entry in enumerate(entries_of(annotations)):
        name = str(entry["image"])
        image = folder.find(entry, f"{name}.jpg", name)
        records.append(HypothesisRecord(str(index), image, entry.text("sentence"), entry.label("label", LABELS)))
    if not records:
        raise DatasetError(f"{annotations}: holds no hypotheses")
    return records


class Source(sources.Source):
    """See the module."""

    read = staticmethod(read)
