"""Sprites ready to be drawn: loaded, augmented, and pasted into pictures with what is measured of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import cv2
import numpy as np

from demo.scenes.augmentation import TRAITS, VISIBLE, SpriteAugmenter, crop_visible, premultiply
from demo.scenes.classes import DATA_DIR, Drawing, EmojiClass, load_classes
from demo.scenes.grammar import Box
from demo.scenes.layout import Place
from demo.scenes.sprites import load_sprites

BANK_DEPTH = 6  # augmented renderings kept per drawing
BANK_REFRESH = 0.2  # chance that a use draws a new rendering once the bank is full
EDGE_KERNEL = np.ones((5, 5), np.uint8)  # the edge is two pixels deep
SOLID = 160  # alpha above which a pixel may be a probe
PROBES = 20  # pixels that the contrast check looks at, along a sprite's edge and as many all over it
CONTRAST_STEP = 40  # least difference of the most different channel, of 255
CONTRAST_SHARE = 0.6  # of the probes along the edge, that must differ by that much
BODY_CONTRAST_SHARE = 0.4  # of the probes all over the sprite
DIRECTION_WORDS = frozenset({"left", "right", "east", "west"})  # classes that would change when mirrored


@dataclass(frozen=True)
class Sprite:
    """A rendering ready to paste: premultiplied RGBA, and probes: first its edge, then all of it."""

    pixels: np.ndarray  # uint8 [h, w, 4]
    probes: np.ndarray  # float32 [2 * PROBES, 2], (y, x) as shares of height and width
    colours: np.ndarray  # int32 [2 * PROBES, 3]

    @cached_property
    def shape(self) -> tuple[float, float]:
        """(width, height) with the longer side scaled to 1."""
        height, width = self.pixels.shape[:2]
        longest = max(width, height)
        return width / longest, height / longest


@dataclass(frozen=True)
class Piece:
    """A sprite at its place in a picture."""

    sprite: Sprite
    place: Place
    mirror: bool


class SpriteBank:
    """The sprites of some styles, each augmented anew now and then.

    Raises ``ValueError`` for unknown styles; ``folder`` holds the sprite atlases. ``traits``: see ``SpriteAugmenter``.
    """

    def __init__(
        self, styles: Sequence[str], random: Random, folder: Path = DATA_DIR, traits: Collection[str] = TRAITS
    ) -> None:
        self._random = random
        self._augmenter = SpriteAugmenter(random, traits)
        self._base = load_sprites(styles, folder)
        self._plain: dict[tuple[str, str], Sprite] = {}
        self._bank: dict[tuple[str, str], list[Sprite]] = {}
        self._options = [_styles_of(emoji_class, self._base) for emoji_class in load_classes()]

    def options(self, emoji_class: EmojiClass) -> list[tuple[str, tuple[Drawing, ...]]]:
        """Return (style, its drawings of the class) for every style that has the class; empty where none has."""
        return self._options[emoji_class.index]

    def sprite(self, emoji_class: EmojiClass, drawing: Drawing, style: str, *, augment: bool) -> Sprite:
        """Return a rendering of a drawing; ``augment``: one that breaks its style."""
        key = (style, drawing.codepoint)
        if not augment:
            if key not in self._plain:
                self._plain[key] = _prepare(crop_visible(premultiply(self._base[style][drawing.codepoint])))
            return self._plain[key]
        bank = self._bank.setdefault(key, [])
        if len(bank) == BANK_DEPTH and self._random.random() >= BANK_REFRESH:
            return self._random.choice(bank)
        base = self._base[style][drawing.codepoint]
        others = [
            self._base[other][drawing.codepoint]
            for other, drawings in self._options[emoji_class.index]
            if other != style and drawing in drawings
        ]
        sprite = _prepare(self._augmenter.augment(base, emoji_class.coloured, others))
        if len(bank) == BANK_DEPTH:
            bank[self._random.randrange(BANK_DEPTH)] = sprite
        else:
            bank.append(sprite)
        return sprite


def stand_out(image: np.ndarray, pieces: Sequence[Piece]) -> bool:
    """Return whether every sprite, edge and body, would differ enough from a background (uint8 [h, w, 3])."""
    rows, columns, colours = [], [], []
    for piece in pieces:
        probes, place = piece.sprite.probes, piece.place
        share_x = 1 - probes[:, 1] if piece.mirror else probes[:, 1]
        rows.append(place.y + probes[:, 0] * (place.height - 1))
        columns.append(place.x + share_x * (place.width - 1))
        colours.append(piece.sprite.colours)
    row, column = np.concatenate(rows).astype(np.intp), np.concatenate(columns).astype(np.intp)
    distance = np.abs(image[row, column] - np.concatenate(colours)).max(1)
    edge, body = (distance >= CONTRAST_STEP).reshape(-1, 2, PROBES).mean(2).min(0)
    return edge >= CONTRAST_SHARE and body >= BODY_CONTRAST_SHARE


def paste(image: np.ndarray, piece: Piece) -> np.ndarray:
    """Draw one sprite into the image; return its alpha, uint8 [place.height, place.width]."""
    pixels, place = piece.sprite.pixels, piece.place
    height, width = pixels.shape[:2]
    if 2 * place.height < height or 2 * place.width < width:
        # Bilinear scaling below one half skips pixels: average them in twos first.
        halves = max(1, width // 2), max(1, height // 2)
        pixels = cv2.resize(pixels, halves, interpolation=cv2.INTER_AREA)
    pixels = cv2.resize(pixels, (place.width, place.height), interpolation=cv2.INTER_LINEAR)
    if piece.mirror:
        pixels = cv2.flip(pixels, 1)
    colour, alpha = cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB), cv2.extractChannel(pixels, 3)
    window = image[place.y : place.y + place.height, place.x : place.x + place.width]
    clear = cv2.bitwise_not(alpha)
    window[:] = cv2.add(colour, cv2.multiply(window, cv2.merge((clear, clear, clear)), scale=1 / 255))
    return alpha


def visible_box(alpha: np.ndarray, place: Place) -> Box:
    """Return the box of the visible pixels of a pasted sprite, in pixels of the picture."""
    left, top, width, height = cv2.boundingRect(cv2.compare(alpha, VISIBLE, cv2.CMP_GT))
    x, y = place.x + left, place.y + top
    return float(x), float(y), float(x + width), float(y + height)


def may_mirror(emoji_class: EmojiClass) -> bool:
    """Return whether a class stays the same when its drawing is mirrored."""
    return DIRECTION_WORDS.isdisjoint(emoji_class.name.split())


def _styles_of(
    emoji_class: EmojiClass, base: dict[str, dict[str, np.ndarray]]
) -> list[tuple[str, tuple[Drawing, ...]]]:
    """Return (style, its drawings of the class) for every loaded style that has the class."""
    options = []
    for style, sprites in base.items():
        drawings = tuple(drawing for drawing in emoji_class.drawings if drawing.codepoint in sprites)
        if drawings:
            options.append((style, drawings))
    return options


def _prepare(pixels: np.ndarray) -> Sprite:
    """Choose the probes of a premultiplied sprite."""
    solid = cv2.compare(cv2.extractChannel(pixels, 3), SOLID, cv2.CMP_GT)
    if not solid.any():  # a faint sprite: take what there is
        solid = cv2.compare(cv2.extractChannel(pixels, 3), VISIBLE, cv2.CMP_GT)
    inner = cv2.erode(solid, EDGE_KERNEL, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    probes = []
    for mask in (cv2.subtract(solid, inner), solid):
        places = np.flatnonzero(mask)
        # Evenly spread over the pixels in reading order: needs no random numbers.
        probes.append(places[np.arange(PROBES) * (len(places) - 1) // (PROBES - 1)])
    height, width = solid.shape
    y, x = np.divmod(np.concatenate(probes), width)
    shares = np.stack((y / max(1, height - 1), x / max(1, width - 1)), 1).astype(np.float32)
    colours = pixels[y, x].astype(np.int32)
    return Sprite(pixels, shares, colours[:, :3] * 255 // np.maximum(colours[:, 3:], 1))
