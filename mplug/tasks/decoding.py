"""Calls of the stage `text_decoder` by public models, withdrawn when the caller is cancelled."""

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

#: Search options of the public models that decode.
SEARCH_OPTIONS = ("NUM_BEAMS", "MIN_LENGTH", "MAX_LENGTH", "NUM_RETURN", "LENGTH_PENALTY")
DECODER = "text_decoder"
OUTPUTS = ("TOKEN_IDS", "SCORE")
TAG_BYTES = 16


async def decode(call_stage: CallStage, inputs: Mapping[str, Value]) -> Values:
    """Run a search or a ranking; return TOKEN_IDS `[n, L]` and SCORE `[n]`.

    Triton does not pass a client's cancellation on to the calls of a model. So the request carries a tag; when this
    coroutine is cancelled, a second request withdraws the tag, and the decoder drops the first at its next step.
    """
    tag = [os.urandom(TAG_BYTES)]
    try:
        return await call_stage(DECODER, {**inputs, "TAG": tag}, OUTPUTS)
    except asyncio.CancelledError:
        withdrawal = asyncio.ensure_future(call_stage(DECODER, {"CANCEL": tag}, OUTPUTS))
        # A decoder that no longer answers has nothing to withdraw; its error must not replace the cancellation.
        withdrawal.add_done_callback(lambda answer: answer.cancelled() or answer.exception())
        with contextlib.suppress(ServingError):
            await asyncio.shield(withdrawal)
        raise


def search_inputs(search: SearchOptions) -> dict[str, Value]:
    """Return the options of a search as inputs of the decoder."""
    return {
        "NUM_BEAMS": np.array([search.num_beams], np.int32),
        "MIN_LENGTH": np.array([search.min_length], np.int32),
        "MAX_LENGTH": np.array([search.max_length], np.int32),
        "NUM_RETURN": np.array([search.num_return], np.int32),
        "LENGTH_PENALTY": np.array([search.length_penalty], np.float32),
    }


def encoder_inputs(states: np.ndarray | DeviceArray, mask: np.ndarray | None = None) -> dict[str, Value]:
    """Return the decoder's inputs for states `[A, W]` and, where some are padding, their mask `[A]`."""
    inputs: dict[str, Value] = {"ENCODER_STATES": states}
    if mask is not None:
        inputs["ENCODER_MASK"] = mask
    return inputs
