"""Calls of the four stages by public models.

Triton's response cache identifies a request by its inputs alone, not by the outputs that it asks for: a call that
asks for more outputs than the cached one gets too few. So every task asks an encoder for all outputs that its
checkpoint has, and shares the cached answer with the other tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mplug.config import MPlugConfig
from mplug.contract import DECODER, FORWARDED_OUTPUTS, CallStage, Forwarded, Value, Values
from mplug.decoding.beam_search import SearchOptions
from mplug.errors import ServingError
from mplug.inputs.pixels import Pixels
from mplug.runtime.gpu.array import DeviceArray, concatenated

#: Search options of the public models that decode.
SEARCH_OPTIONS = ("NUM_BEAMS", "MIN_LENGTH", "MAX_LENGTH", "NUM_RETURN", "LENGTH_PENALTY")
OUTPUTS = ("TOKEN_IDS", "SCORE")
TAG_BYTES = 16


@dataclass(frozen=True)
class EncodedText:
    """Outputs of the text encoder."""

    states: np.ndarray  #: `[B, L, W]`
    mask: np.ndarray  #: `[B, L]` int32
    projections: np.ndarray | None  #: `[B, E]`, of retrieval checkpoints


def has_projections(config: MPlugConfig) -> bool:
    """Return whether the encoders end in contrastive projections."""
    return any(task.endswith("retrieval") for task in config.tasks)


async def encode_images(
    call_stage: CallStage, config: MPlugConfig, pixels: Pixels
) -> tuple[np.ndarray, np.ndarray | None]:
    """Encode F pictures; return states `[F, N, W]` and, of retrieval checkpoints, projections `[F, E]`."""
    outputs = ["IMAGE_STATES", *(["IMAGE_PROJECTION"] if has_projections(config) else [])]
    found = await call_stage("vision_encoder", pixels.inputs(), outputs)
    return found["IMAGE_STATES"], found.get("IMAGE_PROJECTION")


def side_by_side(states: np.ndarray) -> np.ndarray:
    """Return the states of frames `[F, N, W]` as those of one image, `[1, F·N, W]`."""
    return states.reshape(1, -1, states.shape[-1])


async def encode_texts(call_stage: CallStage, config: MPlugConfig, ids: np.ndarray, mask: np.ndarray) -> EncodedText:
    """Encode ids and mask `[B, L]`."""
    outputs = ["TEXT_STATES", *(["TEXT_PROJECTION"] if has_projections(config) else [])]
    found = await call_stage("text_encoder", {"INPUT_IDS": ids, "ATTENTION_MASK": mask}, outputs)
    return EncodedText(found["TEXT_STATES"], mask, found.get("TEXT_PROJECTION"))


async def fuse(
    call_stage: CallStage, image_states: np.ndarray, text: EncodedText, outputs: Sequence[str]
) -> dict[str, np.ndarray]:
    """Fuse image states `[B, A, W]` with as many texts; return the named outputs of the fusion encoder."""
    inputs = {"IMAGE_STATES": image_states, "TEXT_STATES": text.states, "ATTENTION_MASK": text.mask}
    return await call_stage("fusion_encoder", inputs, outputs)


async def fuse_for_decoder(
    call_stage: CallStage, image_states: np.ndarray, text: EncodedText
) -> tuple[np.ndarray | DeviceArray, np.ndarray]:
    """Fuse one image and one text; return the states `[A + L, W]` that the decoder reads, and their mask `[A + L]`.

    The states stay on the GPU if the stages run there.
    """
    fused = await fuse(call_stage, image_states, text, Forwarded(FORWARDED_OUTPUTS))
    image, words = (fused[name][0] for name in FORWARDED_OUTPUTS)
    return concatenated([image, words]), np.concatenate([np.ones(len(image), np.int32), text.mask[0]])


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Return vectors `[..., E]` scaled to length 1, as torch's `normalize` does."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


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
