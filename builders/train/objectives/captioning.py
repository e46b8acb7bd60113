"""Objective: caption an image, by the cross-entropy of every next token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mplug.network import MPlug


def decoder_source(network: MPlug, image_states: Tensor, prompt_ids: Tensor) -> tuple[Tensor, Tensor]:
    """What a captioner's decoder reads, as the checkpoint's config says.

    Args:
        image_states: `[B, N, W]`.
        prompt_ids: `[L]` ids of the prompt from `[CLS]` to `[SEP]`, without padding.
    Returns:
        Encoder states `[B, N', W]` and their mask `[B, N']`.
    """
    batch = image_states.shape[0]
    if network.config.caption_states == "image":
        return image_states, torch.ones(image_states.shape[:2], device=image_states.device)
    # One prompt serves the whole batch.
    text_states = network.text_encoder(prompt_ids[None], torch.ones_like(prompt_ids[None])).expand(batch, -1, -1)
    attention_mask = torch.ones(text_states.shape[:2], device=image_states.device)
    fused = network.fusion_encoder(image_states, text_states, attention_mask)
    return network.decoder_input(*fused, attention_mask)


def caption_loss(network: MPlug, source: tuple[Tensor, Tensor], caption_ids: Tensor, pad_id: int = 0) -> Tensor:
    """Mean cross-entropy of the tokens after `[CLS]`.

    Args:
        source: what the decoder reads (`decoder_source`).
        caption_ids: `[B, L]` from `[CLS]` to `[SEP]`, padded with `pad_id`.
    """
    logits = network.text_decoder(caption_ids[:, :-1], *source)
    return functional.cross_entropy(logits.flatten(0, 1).float(), caption_ids[:, 1:].flatten(), ignore_index=pad_id)
