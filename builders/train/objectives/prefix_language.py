"""Objective: go on where a sentence was cut (prefix language modelling; paper, section 3.3).

The first part goes through text encoder and fusion, and the decoder, which reads the fused image and text states,
writes the rest. A first part without any word leaves a caption to be written from the image alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from builders.train.fused_states import PAD_ID, fuse, mean_over_tokens, token_losses
from mplug.network import MPlug


def cut_texts(
    input_ids: Tensor, cls_id: int, sep_id: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Cut texts `[T, L]`, `[CLS] … [SEP]` padded, each at a random place before its last token.

    Returns the first parts and the rests, both `[T, L]` of the same form. n tokens between `[CLS]` and `[SEP]`
    are cut before the first, the second … or the last of them, all equally likely.
    """
    length = input_ids.shape[1]
    inner = (input_ids != PAD_ID).sum(1) - 2  # [T]
    draw = torch.rand(len(input_ids), device=input_ids.device, generator=generator)
    first = (draw * inner).long().clamp(max=length)[:, None]  # tokens of the first part, [T, 1]
    inner = inner[:, None]
    places = torch.arange(length, device=input_ids.device)[None]
    prefix = torch.where(places <= first, input_ids, PAD_ID)
    prefix = torch.where(places == first + 1, sep_id, prefix)
    shifted = input_ids.gather(1, (places + first).clamp(max=length - 1))
    rest = torch.where(places <= inner - first + 1, shifted, PAD_ID)
    return prefix, torch.where(places == 0, cls_id, rest)


def prefix_language_loss(
    network: MPlug,
    image_states: Tensor,
    input_ids: Tensor,
    cls_id: int,
    sep_id: int,
    *,
    image_index: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean cross-entropy of the tokens of the rests of texts `[T, L]`."""
    prefix, rest = cut_texts(input_ids, cls_id, sep_id, generator=generator)
    fused = fuse(network, image_states, prefix, image_index=image_index)
    return mean_over_tokens(token_losses(network, network.decoder_input(*fused), rest), rest)
