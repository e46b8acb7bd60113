"""Augmentation that breaks the style of a drawing and leaves the object.

A model that only ever saw four art styles has to name the objects of a fifth: so what differs between
styles (shading, outline, palette, proportions, small detail) is made random. Classes whose captions
state a colour keep their hue.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from random import Random

import cv2
import numpy as np
from PIL import Image

CANVAS = 120  # pixels; holds a 72 px sprite turned, sheared and outlined
LIGHTS = 48  # ready-made shading pictures, and half as many textures
WARPS = 48  # ready-made sine warps
FLAT_COLOURS = (3, 5, 8, 12)  # palette sizes of the flattened renderings
OUTLINE_WIDTHS = (1, 1, 2, 2, 3, 4)  # pixels
INK_WIDTHS = (1, 2, 2, 3)  # pixels, of lines where colours meet
HALF_SPRITE = 36  # pixels
#: What differs between hands, each made random: proportions and perspective; palette; lines; shading and texture.
TRAITS = ("shape", "palette", "lines", "surface")
VISIBLE = 40  # alpha above which a pixel counts, as in emoji_sprites
LEVELS = np.arange(256)
UNLIT = 160  # value of a shading picture that changes nothing


class SpriteAugmenter:
    """Seeded; turns an RGBA sprite into another rendering of the same object.

    ``gentle_share`` (0..1) of the renderings are only turned and bent: the true look stays in the mix. ``traits`` are
    those of ``TRAITS`` that change; the others stay as they were drawn.
    """

    def __init__(self, random: Random, traits: Collection[str] = TRAITS) -> None:
        self.random = random
        self.traits = frozenset(traits)
        self.gentle_share = 0.2
        noise = np.random.default_rng(random.getrandbits(32))
        self._lights = [_shading(noise) for _ in range(LIGHTS)]
        self._lights += [_texture(noise) for _ in range(LIGHTS // 2)]
        self._warps = [_warp_field(noise) for _ in range(WARPS)]
        self._flat: dict[tuple[int, int], np.ndarray] = {}

    def augment(self, sprite: np.ndarray, keep_colour: bool, others: Sequence[np.ndarray] = ()) -> np.ndarray:
        """Return a new premultiplied RGBA sprite, uint8 [h, w, 4], tight to alpha > 40.

        ``sprite``: uint8 [h, w, 4], not premultiplied, at most 72 px; it has to outlive this object.
        ``keep_colour``: the hue is part of the truth. ``others``: the same drawing by other hands, whose colours it
        may take on.
        """
        random = self.random
        if random.random() < self.gentle_share:
            return crop_visible(self._warp(premultiply(sprite)))
        if self._may("surface", 0.35):
            sprite = self._flattened(sprite, random.choice(FLAT_COLOURS))
        warped = crop_visible(self._warp(premultiply(sprite)), OUTLINE_WIDTHS[-1] + 1)
        alpha = cv2.extractChannel(warped, 3)
        colour = cv2.cvtColor(cv2.cvtColor(warped, cv2.COLOR_mRGBA2RGBA), cv2.COLOR_RGBA2RGB)
        if others and self._may("palette", 0.25):
            colour = _repainted(colour, alpha, random.choice(others), random.uniform(0.3, 1.0))
        if self._may("palette", 1.0):
            colour = self._recolour(colour, keep_colour)
        if self._may("lines", 0.25):
            colour = _ink_edges(colour, alpha, random.choice(INK_WIDTHS), random.uniform(0.3, 1.0))
        if self._may("surface", 1.0):
            colour = self._resurface(colour)
        if random.random() < 0.15:
            self._cut_out(alpha)
        if random.random() < 0.15:
            _, alpha = cv2.threshold(alpha, 127, 255, cv2.THRESH_BINARY)  # the jagged edge of a hard mask
        sprite = premultiply(cv2.merge((*cv2.split(colour), alpha)))
        if self._may("lines", 0.35):
            sprite = self._outline(sprite, alpha, keep_colour)
        return crop_visible(sprite)

    def _may(self, trait: str, chance: float) -> bool:
        """Return whether a trait changes this time."""
        return self.random.random() < chance and trait in self.traits

    def _flattened(self, sprite: np.ndarray, colours: int) -> np.ndarray:
        """Return the sprite in few flat colours: what turns 3D and gradient art into flat art."""
        key = (id(sprite), colours)
        if key not in self._flat:
            smooth = cv2.medianBlur(np.ascontiguousarray(sprite[..., :3]), 3)
            # Invisible pixels would cost palette entries: paint them in the mean visible colour.
            visible = sprite[..., 3] > VISIBLE
            smooth[~visible] = smooth[visible].mean(0)
            image = Image.fromarray(smooth).quantize(colours, dither=Image.Dither.NONE).convert("RGB")
            self._flat[key] = np.dstack((np.asarray(image), sprite[..., 3]))
        return self._flat[key]

    def _warp(self, sprite: np.ndarray) -> np.ndarray:
        """Rotate, shear, stretch and reshape a premultiplied sprite; uint8 [120, 120, 4]."""
        random = self.random
        height, width = sprite.shape[:2]
        angle = math.radians(max(-20.0, min(20.0, random.gauss(0, 10))))
        stretch = 2 ** random.uniform(-0.2, 0.2)  # aspect 0.75 to 1.33 in all
        shear = random.uniform(-0.15, 0.15)
        cos, sin = math.cos(angle), math.sin(angle)
        # destination = rotation · shear · stretch; the warp needs the way back.
        forward = np.array([[cos, -sin], [sin, cos]]) @ np.array([[stretch, shear], [0, 1 / stretch]])
        if self._may("shape", 0.5):
            (xx, xy), (yx, yy) = forward.tolist()  # determinant 1: the inverse needs no division
            map_x, map_y = cv2.split(
                cv2.transform(
                    random.choice(self._warps),
                    np.array([[yy, -xy, (width - 1) / 2], [-yx, xx, (height - 1) / 2]]),
                )
            )
            return cv2.remap(sprite, map_x, map_y, cv2.INTER_LINEAR)
        offset = np.array([(CANVAS - 1) / 2] * 2) - forward @ np.array([(width - 1) / 2, (height - 1) / 2])
        matrix = np.column_stack((forward, offset))
        return cv2.warpAffine(sprite, matrix, (CANVAS, CANVAS), flags=cv2.INTER_LINEAR)

    def _recolour(self, colour: np.ndarray, keep_colour: bool) -> np.ndarray:
        random = self.random
        if not keep_colour and random.random() < 0.12:
            grey = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)
            colour = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
        elif random.random() < 0.6:
            hsv = cv2.cvtColor(colour, cv2.COLOR_RGB2HSV)
            table = np.empty((1, 256, 3), np.uint8)
            shift = 0.0
            if not keep_colour:
                shift = random.uniform(-90, 90) if random.random() < 0.2 else random.gauss(0, 10)
            table[0, :, 0] = (LEVELS + shift) % 180  # OpenCV's hue counts half degrees
            strength = random.uniform(0.75, 1.25) if keep_colour else random.uniform(0.3, 1.7)
            table[0, :, 1] = np.clip(LEVELS * strength, 0, 255)
            table[0, :, 2] = LEVELS
            colour = cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB)
        if random.random() < 0.7:
            colour = cv2.LUT(colour, self._tone_table(keep_colour))
        return colour

    def _tone_table(self, keep_colour: bool) -> np.ndarray:
        """Return contrast, brightness, gamma, gain and posterising in one table, uint8 [1, 256, 3]."""
        random = self.random
        strength = 0.4 if keep_colour else 1.0
        contrast = 1 + strength * random.uniform(-0.4, 0.5)
        tone = (LEVELS / 255 - 0.5) * contrast + 0.5 + strength * random.uniform(-0.15, 0.15)
        tone = np.clip(tone, 0, 1) ** (2 ** (strength * random.uniform(-0.7, 0.7)))
        if not keep_colour and random.random() < 0.2:
            steps = random.randint(2, 5)
            tone = np.round(tone * steps) / steps
        gains = np.array([1 + 0.5 * strength * random.uniform(-0.35, 0.35) for _ in range(3)])
        return (255 * np.clip(tone[:, None] * gains, 0, 1)).astype(np.uint8)[None]

    def _resurface(self, colour: np.ndarray) -> np.ndarray:
        """Add shading or texture; blur or sharpen."""
        random = self.random
        height, width = colour.shape[:2]
        if random.random() < 0.4:
            light = random.choice(self._lights)
            top, left = random.randint(0, CANVAS - height), random.randint(0, CANVAS - width)
            colour = cv2.multiply(colour, light[top : top + height, left : left + width], scale=1 / UNLIT)
        choice = random.random()
        if choice < 0.15:
            colour = cv2.stackBlur(colour, (random.choice((3, 5, 7)),) * 2)
        elif choice < 0.35:
            blurred = cv2.stackBlur(colour, (random.choice((3, 5, 9)),) * 2)
            amount = random.uniform(0.3, 1.5)
            colour = cv2.addWeighted(colour, 1 + amount, blurred, -amount, 0)
        return colour

    def _cut_out(self, alpha: np.ndarray) -> None:
        """Erase one to three small round or square pieces, in place."""
        random = self.random
        height, width = alpha.shape
        for _ in range(random.randint(1, 3)):
            x, y = random.randrange(width), random.randrange(height)
            radius = random.randint(3, 9)
            if random.random() < 0.5:
                cv2.circle(alpha, (x, y), radius, 0, -1)
            else:
                cv2.rectangle(alpha, (x - radius, y - radius), (x + radius, y + radius), 0, -1)

    def _outline(self, sprite: np.ndarray, alpha: np.ndarray, keep_colour: bool) -> np.ndarray:
        """Return the premultiplied sprite with a line around it."""
        random = self.random
        width = random.choice(OUTLINE_WIDTHS)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
        line = cv2.subtract(cv2.dilate(alpha, kernel), alpha)
        choice = random.random()
        if choice < 0.55:
            ink = tuple(random.randint(0, 50) for _ in range(3))
        elif choice < 0.75 or keep_colour:
            ink = (random.randint(200, 255),) * 3
        else:
            ink = tuple(random.randint(0, 255) for _ in range(3))
        return cv2.add(sprite, cv2.multiply(cv2.merge((line, line, line, line)), (*ink, 255), scale=1 / 255))


def premultiply(sprite: np.ndarray) -> np.ndarray:
    """Return RGBA uint8 [h, w, 4] with colours multiplied by alpha, so that resizing makes no fringe."""
    return cv2.cvtColor(sprite, cv2.COLOR_RGBA2mRGBA)


def crop_visible(sprite: np.ndarray, margin: int = 0) -> np.ndarray:
    """Return the sprite cropped to alpha > 40, with up to ``margin`` pixels around.

    Raises ``ValueError`` when nothing is visible.
    """
    x, y, width, height = cv2.boundingRect(cv2.compare(cv2.extractChannel(sprite, 3), VISIBLE, cv2.CMP_GT))
    if not width:
        raise ValueError("the sprite has no visible pixel")
    top, left = max(0, y - margin), max(0, x - margin)
    return sprite[top : y + height + margin, left : x + width + margin].copy()


def _repainted(colour: np.ndarray, alpha: np.ndarray, other: np.ndarray, strength: float) -> np.ndarray:
    """Move mean and spread of the visible colours, in Lab, a share of the way to those of another RGBA drawing."""
    lab = cv2.cvtColor(colour, cv2.COLOR_RGB2LAB)
    mean, spread = cv2.meanStdDev(lab, mask=alpha)
    wanted = cv2.cvtColor(np.ascontiguousarray(other[..., :3]), cv2.COLOR_RGB2LAB)
    wanted_mean, wanted_spread = cv2.meanStdDev(wanted, mask=np.ascontiguousarray(other[..., 3]))
    gain = 1 + strength * (np.clip(wanted_spread / np.maximum(spread, 1.0), 0.4, 2.5) - 1)
    shift = mean + strength * (wanted_mean - mean) - gain * mean
    table = np.clip(LEVELS[:, None] * gain.T + shift.T, 0, 255).astype(np.uint8)[None]
    return cv2.cvtColor(cv2.LUT(lab, table), cv2.COLOR_LAB2RGB)


def _ink_edges(colour: np.ndarray, alpha: np.ndarray, width: int, strength: float) -> np.ndarray:
    """Draw dark lines of ``width`` pixels where colours meet, as line-art styles do."""
    edges = cv2.Canny(colour, 60, 140)
    edges = cv2.GaussianBlur(cv2.dilate(edges, np.ones((width, width), np.uint8)), (3, 3), 0)
    edges = cv2.bitwise_and(edges, alpha)
    shade = cv2.bitwise_not(cv2.convertScaleAbs(edges, alpha=strength))
    return cv2.multiply(colour, cv2.merge((shade, shade, shade)), scale=1 / 255)


def _shading(noise: np.random.Generator) -> np.ndarray:
    """Return a soft light, uint8 [120, 120, 3] around 160, which changes nothing."""
    y, x = np.mgrid[-1 : 1 : CANVAS * 1j, -1 : 1 : CANVAS * 1j]
    angle = noise.uniform(0, 2 * np.pi)
    if noise.random() < 0.5:
        light = np.cos(angle) * x + np.sin(angle) * y
    else:
        light = 0.7 - 1.4 * np.hypot(x - 0.4 * np.cos(angle), y - 0.4 * np.sin(angle))
    factor = np.clip(1 + noise.uniform(0.3, 0.9) * light, 0.4, 1.55)
    return np.repeat((UNLIT * factor).astype(np.uint8)[..., None], 3, 2)


def _texture(noise: np.random.Generator) -> np.ndarray:
    """Return fine grain or hatching, uint8 [120, 120, 3] around 160, which changes nothing."""
    if noise.random() < 0.6:
        cells = int(noise.integers(15, CANVAS + 1))
        grain = cv2.resize(noise.normal(0, 1, (cells, cells)), (CANVAS, CANVAS))
    else:
        y, x = np.mgrid[0:CANVAS, 0:CANVAS]
        angle, period = noise.uniform(0, np.pi), noise.uniform(3, 10)
        grain = np.sin(2 * np.pi / period * (np.cos(angle) * x + np.sin(angle) * y))
    factor = np.clip(1 + noise.uniform(0.08, 0.25) * grain, 0.4, 1.55)
    return np.repeat((UNLIT * factor).astype(np.uint8)[..., None], 3, 2)


def _warp_field(noise: np.random.Generator) -> np.ndarray:
    """Return where each pixel comes from, centred (x, y), float32 [120, 120, 2]: waves, perspective, proportions."""
    axis = np.arange(CANVAS, dtype=np.float32) - (CANVAS - 1) / 2
    x, y = np.meshgrid(axis, axis)
    if noise.random() < 0.6:
        x, y = _proportioned(x, noise), _proportioned(y, noise)
    if noise.random() < 0.5:  # seen from the side, or from above or below
        depth = 1 + (noise.uniform(-0.3, 0.3) * x + noise.uniform(-0.3, 0.3) * y) / CANVAS
        x, y = x / depth, y / depth
    if noise.random() < 0.5:
        amplitude, period, phase = noise.uniform(1, 3.5, 2), noise.uniform(40, 100, 2), noise.uniform(0, 2 * np.pi, 2)
        x, y = (
            x + amplitude[0] * np.sin(2 * np.pi * y / period[0] + phase[0]),
            y + amplitude[1] * np.sin(2 * np.pi * x / period[1] + phase[1]),
        )
    return np.stack((x, y), 2).astype(np.float32)


def _proportioned(axis: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """Return coordinates that enlarge the middle or the ends of a sprite, each half of it in its own measure."""
    below, above = 2 ** noise.uniform(-0.45, 0.45, 2)
    reach = np.abs(axis) / HALF_SPRITE
    return np.sign(axis) * HALF_SPRITE * np.where(axis < 0, reach**below, reach**above)
