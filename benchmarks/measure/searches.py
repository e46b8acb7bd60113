"""Searches to step a decoder with, without a request behind them."""

from __future__ import annotations

import numpy as np

from benchmarks.presets import BEAMS
from mplug.runtime.search_state import new_search


def search_at(past: int, states: int, vocabulary: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Return a search of BEAMS beams at position `past`, for `Decoder.load`; it ends with its next token."""
    search = new_search(
        prefix=[0],
        encoder_mask=np.ones(states, np.int32),
        beams=BEAMS,
        min_length=past + 1,
        max_length=past + 1,
        token_range=(0, vocabulary),
    )
    return search | {
        "TOKENS": random.integers(0, vocabulary, BEAMS, np.int32),
        "SCORES": np.zeros(BEAMS, np.float32),
        "POSITIONS": np.int32(past),
        "ANCESTRY": random.integers(0, BEAMS, (BEAMS, past), np.int32),
    }
