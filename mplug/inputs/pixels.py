"""Decoded images as arrays, the way the published weights were trained to see them.

The numbers (resampling, mean and std, the grounding canvas) are those of arXiv 2205.12005 and its published
implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

# CLIP's statistics of RGB scaled to 0…1 (Radford et al. 2021, arXiv 2103.00020, published preprocessing).
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)

# ImageNet's, which the authors' evaluation script of grounding leaves at their defaults.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


def _levels(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """The normalised value of each of the 256 levels, [3, 256].

    Looking levels up gives bit for bit what the arithmetic on whole images gives, for less work.
    """
    return (np.arange(256, dtype=np.float32) / np.float32(255) - mean[:, None]) / std[:, None]


_LEVELS = {"clip": _levels(PIXEL_MEAN, PIXEL_STD), "imagenet": _levels(IMAGENET_MEAN, IMAGENET_STD)}


def pixel_values(image: Image.Image, size: int) -> np.ndarray:
    """An image as the vision encoder takes it: float32 [3, size, size], normalised.

    Resized to a square with Pillow's bicubic filter; the aspect ratio is not kept, as in training.
    """
    return _normalise(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


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


def letterbox_pixel_values(image: Image.Image, size: int, statistics: str = "clip") -> tuple[np.ndarray, Letterbox]:
    """An image as grounding takes it: float32 [3, size, size] and where the image lies on it.

    `statistics`: what it is normalised with, `clip` or `imagenet`.

    The long side becomes `size`, the rest of the canvas is zero *after* normalisation, that is mean colour.
    Bilinear, unlike `pixel_values`: so the published grounding weights were trained.
    """
    letterbox = Letterbox.of(*image.size, size)
    width, height = letterbox.resized
    canvas = np.zeros((3, size, size), dtype=np.float32)
    rows = slice(letterbox.top, letterbox.top + height)
    columns = slice(letterbox.left, letterbox.left + width)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    canvas[:, rows, columns] = _normalise(resized, statistics)
    return canvas, letterbox


def _normalise(image: Image.Image, statistics: str = "clip") -> np.ndarray:
    """RGB image [H, W] → float32 [3, H, W]."""
    levels, values = np.asarray(image), _LEVELS[statistics]
    return np.stack([values[channel][levels[:, :, channel]] for channel in range(3)])
