"""Encodings are shared by requests for the same picture, and by no others."""

from __future__ import annotations

import asyncio

import numpy as np
from PIL import Image

from mplug.inputs.pixels import Pixels
from mplug.runtime.state_cache import StateCache


def test_what_differs_in_any_input_is_encoded_by_itself() -> None:
    """The same bytes as a whole picture and as one with padding, normalised in one way and in the other."""
    black = Image.new("RGB", (8, 8))
    whole, (band, _) = Pixels.of_images([black], 8), Pixels.letterboxed(black.crop((0, 0, 8, 4)), 8)
    other, _ = Pixels.letterboxed(black, 8, "imagenet")
    assert all(np.array_equal(pixels.levels, whole.levels) for pixels in (band, other))
    runs: list[int] = []

    async def ask_for_all() -> list[dict[str, np.ndarray]]:
        cache = StateCache(1 << 20)

        async def encode(pixels: Pixels) -> dict[str, np.ndarray]:
            runs.append(1)
            return {"IMAGE_STATES": pixels.normalised()}

        wanted = [whole, band, other, whole, band, other]
        return await asyncio.gather(
            *(cache.get(("vision_encoder", pixels.inputs()), lambda pixels=pixels: encode(pixels)) for pixels in wanted)
        )

    answers = asyncio.run(ask_for_all())
    assert len(runs) == 3
    for answer, pixels in zip(answers, [whole, band, other] * 2, strict=True):
        np.testing.assert_array_equal(answer["IMAGE_STATES"], pixels.normalised())
