"""WebDataset shards of small pictures, in img2dataset's layout, for the tests."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: int = 32) -> bytes:
    """Return a JPEG of noise; every seed has another."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """Write a plain tar of files."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def write_shards(folder: Path, counts: Sequence[int], *, stats: bool = False, text: str = "picture") -> None:
    """Write shards 00000.tar, 00001.tar, … of so many pictures with captions `{text} {shard} {number}`.

    `stats`: and beside each what img2dataset writes beside its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for shard, count in enumerate(counts):
        members = []
        for number in range(count):
            key = f"{shard:05d}{number:04d}"
            caption = f"{text} {shard} {number}"
            about = {"caption": caption, "key": key, "status": "success", "url": "https://pictures.example/1.jpg"}
            members += [
                (f"{key}.jpg", picture(1000 * shard + number)),
                (f"{key}.txt", caption.encode()),
                (f"{key}.json", json.dumps(about).encode()),
            ]
        write_tar(folder / f"{shard:05d}.tar", members)
        if stats:
            told = {"count": count + 3, "successes": count, "failed_to_download": 3}
            (folder / f"{shard:05d}_stats.json").write_text(json.dumps(told))
