"""Calling the stage `text_decoder` from a public model, so that it stops when nobody waits any more."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping

import numpy as np

from mplug.contract import CallStage, Value, Values
from mplug.decoding.beam_search import SearchOptions
from mplug.errors import ServingError
from mplug.runtime.gpu.array import DeviceArray

#: Options of the search that public models pass on as the client sent them.
SEARCH_OPTIONS = ("NUM_BEAMS", "MIN_LENGTH", "MAX_LENGTH", "NUM_RETURN", "LENGTH_PENALTY")
DECODER = "text_decoder"
OUTPUTS = ("TOKEN_IDS", "SCORE")
TAG_BYTES = 16


async def decode(call_stage: CallStage, inputs: Mapping[str, Value]) -> Values:
    """Run a search; returns TOKEN_IDS `[n, L]` and SCORE `[n]`.

    Triton does not pass a client's cancellation on to calls that a model has made. So the request carries
    a tag, and where this coroutine is cancelled, the decoder is told the tag and drops the request at
    its next step.
    """
    tag = [os.urandom(TAG_BYTES)]
    try:
        return await call_stage(DECODER, {**inputs, "TAG": tag}, OUTPUTS)
    except asyncio.CancelledError:
        withdrawal = asyncio.ensure_future(call_stage(DECODER, {"CANCEL": tag}, OUTPUTS))
        # A decoder that has gone cannot be told, and who was cancelled is cancelled all the same.
        withdrawal.add_done_callback(lambda told: told.cancelled() or told.exception())
        with contextlib.suppress(ServingError):
            await asyncio.shield(withdrawal)
        raise


def search_inputs(search: SearchOptions) -> dict[str, Value]:
    """Options of a search as the decoder's inputs."""
    return {
        "NUM_BEAMS": np.array([search.num_beams], np.int32),
        "MIN_LENGTH": np.array([search.min_length], np.int32),
        "MAX_LENGTH": np.array([search.max_length], np.int32),
        "NUM_RETURN": np.array([search.num_return], np.int32),
        "LENGTH_PENALTY": np.array([search.length_penalty], np.float32),
    }


def encoder_inputs(states: np.ndarray | DeviceArray, mask: np.ndarray | None = None) -> dict[str, Value]:
    """What the decoder reads: states `[A, W]`, and where some are padding, their mask `[A]`."""
    inputs: dict[str, Value] = {"ENCODER_STATES": states}
    if mask is not None:
        inputs["ENCODER_MASK"] = mask
    return inputs
