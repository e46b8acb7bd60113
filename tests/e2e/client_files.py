"""Pictures, broken files and a video for the tests of the clients."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
from PIL import Image

#: Files that hold no picture → what is said of each.
BROKEN = {
    "truncated.jpg": "truncated or damaged",
    "empty.png": "IMAGE is empty",
    "text.png": "IMAGE is not an image in a known format",
    "bytes.png": "more than 64 MiB",
    "pixels.png": "more pixels than the 64,000,000",
    "gone.png": "No such file",
    "unreadable.png": "Input/output error",
    "pipe.png": "not a regular file",
}


def noise(seed: int, size: tuple[int, int] = (80, 60)) -> Image.Image:
    """A picture like no other: coarse noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def fill(folder: Path, count: int, start: int = 0) -> list[str]:
    """Good pictures, every third in a folder below; their paths in order."""
    (folder / "below").mkdir(parents=True, exist_ok=True)
    names = [f"below/{number:03}.png" if number % 3 == 0 else f"{number:03}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        noise(start + number).save(folder / name)
    return sorted(names)


def break_some(folder: Path) -> None:
    """One file of each kind in `BROKEN`, a folder that is called like a picture, and what is no picture by name."""
    noise(0).save(folder / "truncated.jpg")
    whole = (folder / "truncated.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("a text that was given another name")
    with (folder / "bytes.png").open("wb") as file:
        file.truncate(3 << 30)  # a hole: it takes no room on the disk
    Image.new("1", (16_000, 8_000)).save(folder / "pixels.png")
    (folder / "gone.png").symlink_to(folder / "nowhere")
    (folder / "unreadable.png").symlink_to("/proc/self/mem")  # opens, and cannot be read: for root, too
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "notes.txt").write_text("no picture, and not called one")


def film(path: Path, frames: int = 12) -> None:
    """A video of so many different frames."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 80, 60, "yuv420p"
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_image(noise(number))))
        container.mux(stream.encode())
