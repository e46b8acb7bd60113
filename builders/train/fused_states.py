"""Text read together with an image, as all objectives need it; several texts may share one image.

Shapes: B images, T texts, N image states, L tokens, W width, V vocabulary. `image_index` `[T]` says which image
each text belongs to, so that the vision encoder runs once per image; without it, text i belongs to image i.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mplug.network import MPlug

PAD_ID = 0  # [PAD] is the first line of every BERT vocabulary


class FusedStates(NamedTuple):
    """What the fusion encoder makes of images and texts, and the mask of the texts."""

    image: Tensor  #: `[T, N, W]`
    text: Tensor  #: `[T, L, W]`
    mask: Tensor  #: `[T, L]`


def token_mask(input_ids: Tensor) -> Tensor:
    """Attention mask of padded ids `[T, L]`, int64."""
    return (input_ids != PAD_ID).long()


def images_of_texts(image_states: Tensor, image_index: Tensor | None) -> Tensor:
    """Image states `[B, N, W]` → those of each text, `[T, N, W]`."""
    return image_states if image_index is None else image_states[image_index]


def fuse(
    network: MPlug,
    image_states: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    image_index: Tensor | None = None,
) -> FusedStates:
    """Image states `[B, N, W]` and token ids `[T, L]` → both fused. The mask is that of the ids, if not given."""
    mask = token_mask(input_ids) if attention_mask is None else attention_mask
    text_states = network.text_encoder(input_ids, mask)
    return FusedStates(*network.fusion_encoder(images_of_texts(image_states, image_index), text_states, mask), mask)


def token_losses(
    network: MPlug,
    source: tuple[Tensor, Tensor],
    target_ids: Tensor,
    soft_targets: Tensor | None = None,
    alpha: float = 0.0,
) -> Tensor:
    """Cross-entropy of every token of `target_ids` `[T, L]` after the first, `[T, L - 1]`, zero on padding.

    Args:
        source: what the decoder reads, states `[T, N, W]` and mask `[T, N]`.
        soft_targets: `[T, L - 1, V]` probabilities of a momentum copy, which get the share `alpha` of the loss.
    """
    logits = network.text_decoder(target_ids[:, :-1], *source).float()
    wanted = target_ids[:, 1:]
    losses = functional.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD_ID, reduction="none"
    ).view_as(wanted)
    if soft_targets is not None:
        distilled = -(torch.log_softmax(logits, dim=-1) * soft_targets).sum(-1) * (wanted != PAD_ID)
        losses = (1 - alpha) * losses + alpha * distilled
    return losses


def mean_over_tokens(losses: Tensor, target_ids: Tensor) -> Tensor:
    """Mean of `token_losses` over what is not padding."""
    return losses.sum() / (target_ids[:, 1:] != PAD_ID).sum().clamp(min=1)
