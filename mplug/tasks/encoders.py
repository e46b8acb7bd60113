"""Calling the three encoding stages from a public model.

Triton's response cache goes by a request's inputs alone: who asks for fewer outputs of the same image than the
one before gets what was kept, and who asks for more gets too little. So every task asks a stage for all that
its checkpoint has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mplug.config import MPlugConfig
from mplug.contract import FORWARDED_OUTPUTS, CallStage, Forwarded
from mplug.runtime.gpu.array import DeviceArray, concatenated


@dataclass(frozen=True)
class EncodedText:
    """Texts behind the text encoder."""

    states: np.ndarray  #: `[B, L, W]`
    mask: np.ndarray  #: `[B, L]` int32
    projections: np.ndarray | None  #: `[B, E]`, of retrieval checkpoints


def has_projections(config: MPlugConfig) -> bool:
    """Whether the encoders have contrastive projections behind them."""
    return any(task.endswith("retrieval") for task in config.tasks)


async def encode_images(
    call_stage: CallStage, config: MPlugConfig, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels `[F, 3, R, R]` → states `[F, N, W]` and, of retrieval checkpoints, projections `[F, E]`."""
    outputs = ["IMAGE_STATES", *(["IMAGE_PROJECTION"] if has_projections(config) else [])]
    found = await call_stage("vision_encoder", {"PIXEL_VALUES": pixels}, outputs)
    return found["IMAGE_STATES"], found.get("IMAGE_PROJECTION")


def side_by_side(states: np.ndarray) -> np.ndarray:
    """States of frames `[F, N, W]` as those of one long image, `[1, F·N, W]`."""
    return states.reshape(1, -1, states.shape[-1])


async def encode_texts(call_stage: CallStage, config: MPlugConfig, ids: np.ndarray, mask: np.ndarray) -> EncodedText:
    """Ids and mask `[B, L]` → their states, and of retrieval checkpoints their projections."""
    outputs = ["TEXT_STATES", *(["TEXT_PROJECTION"] if has_projections(config) else [])]
    found = await call_stage("text_encoder", {"INPUT_IDS": ids, "ATTENTION_MASK": mask}, outputs)
    return EncodedText(found["TEXT_STATES"], mask, found.get("TEXT_PROJECTION"))


async def fuse(
    call_stage: CallStage, image_states: np.ndarray, text: EncodedText, outputs: Sequence[str]
) -> dict[str, np.ndarray]:
    """Image states `[B, A, W]` and texts → the named outputs of the fusion encoder."""
    inputs = {"IMAGE_STATES": image_states, "TEXT_STATES": text.states, "ATTENTION_MASK": text.mask}
    return await call_stage("fusion_encoder", inputs, outputs)


async def fuse_for_decoder(
    call_stage: CallStage, image_states: np.ndarray, text: EncodedText
) -> tuple[np.ndarray | DeviceArray, np.ndarray]:
    """One image and one text → what the decoder reads of both: states `[A + L, W]` and mask `[A + L]`.

    The states stay on the GPU where the stages are there.
    """
    fused = await fuse(call_stage, image_states, text, Forwarded(FORWARDED_OUTPUTS))
    image, words = (fused[name][0] for name in FORWARDED_OUTPUTS)
    return concatenated([image, words]), np.concatenate([np.ones(len(image), np.int32), text.mask[0]])


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Vectors `[..., E]` at length 1, as torch's `normalize` does it."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
