"""Real data sets, in the layouts in which the published scripts read them.

`READERS[name].read(annotations, images, split)` gives records; easy-vqa, which brings its own files, has
`easy_vqa.read(split)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from builders.data.readers import coco, flickr30k, nlvr2, refcoco, snli_ve, vqa
from builders.data.readers.records import Record


@dataclass(frozen=True)
class Reader:
    """A data set: what it can be used for, and how it is read."""

    tasks: tuple[str, ...]
    read: Callable[..., Sequence[Record]]


READERS = {
    "coco": Reader(("caption", "retrieval"), coco.read),
    "flickr30k": Reader(("retrieval", "caption"), flickr30k.read),
    "vqa": Reader(("vqa",), vqa.read),
    "refcoco": Reader(("grounding",), refcoco.read),
    "nlvr2": Reader(("nlvr",), nlvr2.read),
    "snli-ve": Reader(("entail",), snli_ve.read),
}
