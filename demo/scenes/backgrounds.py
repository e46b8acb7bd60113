"""Six kinds of background: a picture of numbers (the field) coloured by a 256-colour palette.

Each field is drawn once, larger than the image, and cut out at random places and orientations;
a background then costs one crop and one colour look-up.
"""

from __future__ import annotations

import colorsys
from random import Random

import cv2
import numpy as np

KINDS = ("plain", "gradient", "noise", "stripes", "blobs", "halves")
FIELDS_PER_KIND = 48
FIELD_SCALE = 1.5  # side of a field over side of the image

# How much of the second colour each field value takes, float32 [256, 1].
_EVEN = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
_SHARP = (_EVEN > 0.5).astype(np.float32)
MIXES = {"gradient": _EVEN, "noise": _EVEN, "stripes": _SHARP, "halves": _SHARP}
BLOB_MIXES = [np.minimum(np.floor(_EVEN * levels), levels - 1) / (levels - 1) for levels in (2, 3, 4)]


class Backgrounds:
    """Seeded source of backgrounds, uint8 [size, size, 3] RGB."""

    def __init__(self, size: int, random: Random) -> None:
        self.size = size
        self.random = random
        self._seed = random.getrandbits(32)
        self._fields: dict[tuple[str, int], np.ndarray] = {}

    def draw(self, kind: str | None = None) -> np.ndarray:
        """Return a new background; ``kind`` (one of ``KINDS``) is drawn too when it is None."""
        random = self.random
        kind = kind or random.choice(KINDS)
        if kind == "plain":
            return np.full((self.size, self.size, 3), random_colour(random), np.uint8)
        field = self._field(kind, random.randrange(FIELDS_PER_KIND))
        spare = field.shape[0] - self.size
        top, left = random.randint(0, spare), random.randint(0, spare)
        field = field[top : top + self.size, left : left + self.size]
        if random.random() < 0.5:
            field = field.T
        if random.random() < 0.5:
            field = field[::-1]
        return cv2.applyColorMap(np.ascontiguousarray(field), self._palette(kind))

    def _field(self, kind: str, number: int) -> np.ndarray:
        """Return one of the kind's fields, uint8; drawn when first asked for, from a seed of its own."""
        key = kind, number
        if key not in self._fields:
            noise = np.random.default_rng((self._seed, KINDS.index(kind), number))
            self._fields[key] = FIELD_MAKERS[kind](noise, int(self.size * FIELD_SCALE))
        return self._fields[key]

    def _palette(self, kind: str) -> np.ndarray:
        """Return the colours of the field's values, uint8 [256, 1, 3]."""
        random = self.random
        base = np.array(random_colour(random), np.float32)
        if kind == "noise" or random.random() < 0.4:  # a variation of one colour
            other = np.clip(base + np.array([random.gauss(0, 45) for _ in range(3)]), 0, 255)
        else:
            other = np.array(random_colour(random), np.float32)
        mix = random.choice(BLOB_MIXES) if kind == "blobs" else MIXES[kind]
        return (base + mix * (other - base)).astype(np.uint8)[:, None]


def random_colour(random: Random) -> tuple[int, int, int]:
    """Return an RGB colour: white, dark, grey, pastel or saturated."""
    kind = random.random()
    if kind < 0.12:
        value = random.uniform(0.94, 1)
        red, green, blue = value, value, value
    elif kind < 0.22:
        red, green, blue = _hsv(random, (0, 0.6), (0, 0.25))
    elif kind < 0.32:
        red = green = blue = random.uniform(0.1, 0.95)
    elif kind < 0.65:
        red, green, blue = _hsv(random, (0.1, 0.4), (0.75, 1))
    else:
        red, green, blue = _hsv(random, (0.3, 1), (0.25, 1))
    return round(255 * red), round(255 * green), round(255 * blue)


def _hsv(random: Random, saturation: tuple[float, float], value: tuple[float, float]) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(random.random(), random.uniform(*saturation), random.uniform(*value))


def _ramp(noise: np.random.Generator, side: int) -> np.ndarray:
    """Return distance along a random direction, 0..1, float32 [side, side]."""
    angle = noise.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    ramp = np.cos(angle) * x + np.sin(angle) * y
    return (ramp - ramp.min()) / np.ptp(ramp)


def _gradient_field(noise: np.random.Generator, side: int) -> np.ndarray:
    if noise.random() < 0.6:
        return (255 * _ramp(noise, side)).astype(np.uint8)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    distance = np.hypot(x - noise.uniform(0.2, 0.8), y - noise.uniform(0.2, 0.8))
    return (255 * distance / distance.max()).astype(np.uint8)


def _smooth_noise(noise: np.random.Generator, side: int, cells: int) -> np.ndarray:
    coarse = noise.random((cells, cells), dtype=np.float32)
    smooth = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return (smooth - smooth.min()) / np.ptp(smooth)


def _noise_field(noise: np.random.Generator, side: int) -> np.ndarray:
    octaves = [_smooth_noise(noise, side, int(cells)) for cells in (4, 12, noise.integers(24, side + 1))]
    field = sum(weight * octave for weight, octave in zip(noise.dirichlet((1, 1, 1)), octaves, strict=True))
    return (255 * field).astype(np.uint8)


def _stripe_field(noise: np.random.Generator, side: int) -> np.ndarray:
    waves = [np.sin(2 * np.pi * noise.uniform(5, 16) * _ramp(noise, side)) for _ in range(2)]
    pattern = noise.choice(("stripes", "checks", "dots"), p=(0.6, 0.2, 0.2))
    if pattern == "stripes":
        field = waves[0]
    elif pattern == "checks":
        field = waves[0] * waves[1]
    else:
        field = waves[0] + waves[1] - 1
    return (255 * np.clip(0.5 + 4 * field, 0, 1)).astype(np.uint8)


def _blob_field(noise: np.random.Generator, side: int) -> np.ndarray:
    return (255 * _smooth_noise(noise, side, int(noise.integers(4, 9)))).astype(np.uint8)


def _half_field(noise: np.random.Generator, side: int) -> np.ndarray:
    field = _ramp(noise, side) + 0.03 * noise.uniform(0, 2) * np.sin(12 * _ramp(noise, side))
    return (255 * np.clip(0.5 + 40 * (field - noise.uniform(0.4, 0.6)), 0, 1)).astype(np.uint8)


FIELD_MAKERS = {
    "gradient": _gradient_field,
    "noise": _noise_field,
    "stripes": _stripe_field,
    "blobs": _blob_field,
    "halves": _half_field,
}
