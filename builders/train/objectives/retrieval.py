"""Objective: find the text to an image and the image to a text; published fine-tuning for retrieval.

Contrast and matching together. An image comes with several texts, one per batch: the image's id makes all of
them right for it, in the batch and in the queue.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from builders.train.objectives.contrastive import Contrast, ImageTextContrast
from builders.train.objectives.matching import matching_loss
from mplug.network import MPlug


class RetrievalLosses(NamedTuple):
    """Both losses, and what is to be enqueued."""

    contrast: Contrast
    matching: Tensor


def retrieval_loss(
    network: MPlug,
    contrast: ImageTextContrast,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    ids: Tensor | None = None,
    *,
    image_states: Tensor | None = None,
    kept: Tensor | None = None,
    alpha: float | None = None,
    generator: torch.Generator | None = None,
) -> RetrievalLosses:
    """Losses of B pairs, image i belonging to text i; `ids` `[B]` are those of the images.

    `image_states`: of `pixel_values` (and `kept`), where they are at hand already. The caller adds the losses up
    and enqueues.
    """
    if image_states is None:
        image_states = network.vision_encoder(pixel_values, kept)
    text_states = network.text_encoder(input_ids, attention_mask)
    result = contrast(
        network, image_states, text_states, pixel_values, input_ids, attention_mask, kept=kept, ids=ids, alpha=alpha
    )
    matching = matching_loss(
        network,
        image_states,
        text_states,
        attention_mask,
        result.image_to_text,
        result.text_to_image,
        ids=ids,
        generator=generator,
    )
    return RetrievalLosses(result, matching)
