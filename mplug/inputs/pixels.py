"""Decoded images as arrays, the way the published weights were trained to see them.

The numbers (resampling, the grounding canvas) are those of arXiv 2205.12005 and its published implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mplug.contract import PIXEL_STATISTICS
from mplug.inputs.normalisation import LEVELS


@dataclass(frozen=True)
class Pixels:
    """Pictures as the stage `vision_encoder` takes them: 8-bit levels, and how they are to be normalised."""

    levels: np.ndarray  #: uint8 `[F, 3, R, R]`, RGB
    boxes: np.ndarray  #: int32 `[F, 4]`: left, top, right, bottom of the picture on its canvas
    statistics: np.ndarray  #: int32 `[F, 1]`: index into `PIXEL_STATISTICS`

    @classmethod
    def of_images(cls, images: Sequence[Image.Image], size: int) -> Pixels:
        """Return images resized to squares of `size` with Pillow's bicubic filter.

        The aspect ratio is not kept, as in training.
        """
        levels = [_channels(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)) for image in images]
        boxes = np.tile(np.array([0, 0, size, size], np.int32), (len(levels), 1))
        return cls(np.stack(levels), boxes, np.zeros((len(levels), 1), np.int32))

    @classmethod
    def letterboxed(cls, image: Image.Image, size: int, statistics: str = "clip") -> tuple[Pixels, Letterbox]:
        """Return an image as grounding takes it, and where it lies on its canvas.

        `statistics`: what it is normalised with, `clip` or `imagenet`.

        The long side becomes `size`, the rest of the canvas is zero *after* normalisation, that is mean colour.
        Bilinear, unlike `of_images`: so the published grounding weights were trained.
        """
        letterbox = Letterbox.of(*image.size, size)
        width, height = letterbox.resized
        left, top, right, bottom = letterbox.left, letterbox.top, letterbox.left + width, letterbox.top + height
        levels = np.zeros((1, 3, size, size), np.uint8)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        levels[0, :, top:bottom, left:right] = _channels(resized)
        boxes = np.array([[left, top, right, bottom]], np.int32)
        index = np.array([[PIXEL_STATISTICS.index(statistics)]], np.int32)
        return cls(levels, boxes, index), letterbox

    def inputs(self) -> dict[str, np.ndarray]:
        """Return the stage's inputs by name."""
        return {"PIXELS": self.levels, "PICTURE_BOX": self.boxes, "PIXEL_STATISTICS": self.statistics}

    def normalised(self) -> np.ndarray:
        """Return what the network itself takes, float32 `[F, 3, R, R]`: the stage's graph does the same."""
        values = np.zeros(self.levels.shape, np.float32)
        for index, (left, top, right, bottom) in enumerate(self.boxes):
            table = LEVELS[self.statistics[index, 0]]
            for channel, level in enumerate(self.levels[index, :, top:bottom, left:right]):
                values[index, channel, top:bottom, left:right] = table[channel][level]
        return values


def pixel_values(image: Image.Image, size: int) -> np.ndarray:
    """An image as the network itself takes it: float32 [3, size, size], normalised; see `Pixels.of_images`."""
    return Pixels.of_images([image], size).normalised()[0]


def letterbox_pixel_values(image: Image.Image, size: int, statistics: str = "clip") -> tuple[np.ndarray, Letterbox]:
    """An image as the network takes it for grounding: float32 [3, size, size]; see `Pixels.letterboxed`."""
    pixels, letterbox = Pixels.letterboxed(image, size, statistics)
    return pixels.normalised()[0], letterbox


@dataclass(frozen=True)
class Letterbox:
    """Where an image lies on the square canvas that grounding looks at. All lengths in pixels."""

    width: int  # of the image as sent, upright
    height: int
    size: int  # side of the canvas
    left: int  # of the resized image on the canvas
    top: int

    @property
    def ratio(self) -> float:
        """Canvas pixels per image pixel."""
        return self.size / max(self.width, self.height)

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height of the image on the canvas; at least 1, however narrow the image."""
        return max(1, round(self.width * self.ratio)), max(1, round(self.height * self.ratio))

    @classmethod
    def of(cls, width: int, height: int, size: int) -> Letterbox:
        """The placing of a `width` × `height` image: long side to `size`, then centred.

        Where the space left is odd, the smaller half goes above and to the left; the published code says
        `round(space / 2 - 0.1)`.
        """
        resized_width, resized_height = cls(width, height, size, 0, 0).resized
        return cls(width, height, size, (size - resized_width) // 2, (size - resized_height) // 2)

    def to_image(self, box: Sequence[float] | np.ndarray) -> tuple[float, float, float, float]:
        """A box on the canvas as corners in the image as sent.

        `box`: centre x, centre y, width, height, each relative to the canvas side (0…1).
        Returns x0, y0, x1, y1 in pixels of the upright image, clipped to it.
        """
        centre_x, centre_y, width, height = (float(value) * self.size for value in box)

        def place(canvas: float, offset: int, limit: int) -> float:
            return min(max((canvas - offset) / self.ratio, 0.0), float(limit))

        return (
            place(centre_x - width / 2, self.left, self.width),
            place(centre_y - height / 2, self.top, self.height),
            place(centre_x + width / 2, self.left, self.width),
            place(centre_y + height / 2, self.top, self.height),
        )


def _channels(image: Image.Image) -> np.ndarray:
    """RGB image [H, W] → uint8 [3, H, W]."""
    return np.asarray(image).transpose(2, 0, 1)
