"""Objective: do an image and a text belong together? Read off the fused `[CLS]`, as the published code does.

Wrong pairs are hard: for every image a text, and for every text an image, drawn from the batch with the more
chance the more similar they are to the contrastive encoders.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mplug.network import MPlug

#: Added to every chance, so that nothing is out of reach while the temperature is low.
LEAST_CHANCE = 1e-4


def hard_negatives(
    similarity: Tensor, ids: Tensor | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one wrong partner per row of `similarity` `[B, B]`.

    `ids` `[B]`: partners with the row's own id are right too and never drawn (negative ids belong to nobody).
    Returns the rows that have a wrong partner at all, `[M]`, and their partners, `[M]`.
    """
    right = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    if ids is not None:
        right |= (ids[:, None] == ids[None]) & (ids[:, None] >= 0)
    chances = (torch.softmax(similarity.float(), dim=1) + LEAST_CHANCE).masked_fill(right, 0.0)
    rows = (~right).any(1).nonzero()[:, 0]
    if len(rows) == 0:
        return rows, rows
    return rows, torch.multinomial(chances[rows], 1, generator=generator)[:, 0]


def match_logits(network: MPlug, image_states: Tensor, text_states: Tensor, attention_mask: Tensor) -> Tensor:
    """Logits `[T, 2]` of pairs: no match, match. Shapes as in the fusion encoder."""
    _, fused_text = network.fusion_encoder(image_states, text_states, attention_mask)
    return network.match_head(fused_text[:, 0]).float()


def matching_loss(
    network: MPlug,
    image_states: Tensor,
    text_states: Tensor,
    attention_mask: Tensor,
    image_to_text: Tensor,
    text_to_image: Tensor,
    *,
    ids: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cross-entropy over the B right pairs and up to 2 B wrong ones.

    Args:
        image_states, text_states, attention_mask: `[B, N, W]`, `[B, L, W]`, `[B, L]` of B pairs.
        image_to_text, text_to_image: `[B, B]` similarities that negatives are drawn by (`Contrast`).
        ids: `[B]` pairs with the same id are no wrong partners of each other.
    """
    pairs = torch.arange(len(image_states), device=image_states.device)
    images, wrong_texts = hard_negatives(image_to_text, ids, generator)
    texts, wrong_images = hard_negatives(text_to_image, ids, generator)
    image_order = torch.cat([pairs, images, wrong_images])
    text_order = torch.cat([pairs, wrong_texts, texts])
    logits = match_logits(network, image_states[image_order], text_states[text_order], attention_mask[text_order])
    labels = torch.zeros_like(image_order)
    labels[: len(pairs)] = 1
    return functional.cross_entropy(logits, labels)
