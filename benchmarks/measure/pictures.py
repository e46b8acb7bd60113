"""Pictures to send, all different: a picture that was seen before is answered from the response cache."""

from __future__ import annotations

import io
from itertools import count

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 480, 360  # pixels
COARSE = (9, 12, 3)


def picture(seed: int) -> bytes:
    """Return a JPEG of soft random colours; each seed gives a different picture."""
    colours = np.random.default_rng(seed).integers(0, 256, COARSE, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(colours).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


class Pictures:
    """So many pictures, drawn beforehand, handed out in turn. With more than the cache holds, none is found in it."""

    def __init__(self, number: int, first_seed: int = 0) -> None:
        self._pictures = [picture(first_seed + index) for index in range(number)]
        self._turn = count()

    def next(self) -> bytes:
        """Return the next picture; after the last, the first again."""
        return self._pictures[next(self._turn) % len(self._pictures)]

    def __len__(self) -> int:
        return len(self._pictures)
