"""Objective: answer a question about an image, as the published fine-tuning for VQA does.

A question may have several answers, each weighted by the share of people who gave it. A momentum copy may add
soft labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from builders.train.fused_states import fuse, token_losses
from mplug.network import MPlug


def _source(
    network: MPlug,
    image_states: Tensor,
    question_ids: Tensor,
    question_mask: Tensor | None,
    image_index: Tensor | None,
    question_index: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """What the decoder reads for each answer."""
    fused = fuse(network, image_states, question_ids, question_mask, image_index)
    states, mask = network.decoder_input(*fused)
    return (states, mask) if question_index is None else (states[question_index], mask[question_index])


def answer_loss(
    network: MPlug,
    image_states: Tensor,
    question_ids: Tensor,
    question_mask: Tensor | None,
    answer_ids: Tensor,
    weights: Tensor | None = None,
    image_index: Tensor | None = None,
    *,
    question_index: Tensor | None = None,
    soft_targets: Tensor | None = None,
    alpha: float = 0.4,
) -> Tensor:
    """Weighted negative log-likelihoods of A answers, summed over tokens and divided by the number of questions.

    Args:
        image_states: `[B, N, W]`.
        question_ids, question_mask: `[T, L]`; without mask, that of the ids.
        answer_ids: `[A, M]` from `[CLS]` to `[SEP]`, padded.
        weights: `[A]`, adding up to 1 per question as published; ones, if not given.
        image_index: `[T]` image of each question. question_index: `[A]` question of each answer.
        soft_targets: `[A, M - 1, V]` of `soft_answers`, with `alpha` their share of the loss.
    """
    source = _source(network, image_states, question_ids, question_mask, image_index, question_index)
    losses = token_losses(network, source, answer_ids, soft_targets, alpha).sum(1)  # [A]
    if weights is not None:
        losses = losses * weights
    return losses.sum() / len(question_ids)


@torch.no_grad()
def soft_answers(
    teacher: MPlug,
    pixel_values: Tensor,
    question_ids: Tensor,
    question_mask: Tensor | None,
    answer_ids: Tensor,
    image_index: Tensor | None = None,
    question_index: Tensor | None = None,
) -> Tensor:
    """Probabilities `[A, M - 1, V]` that a momentum copy of the network gives to the tokens of the answers."""
    image_states = teacher.vision_encoder(pixel_values)
    source = _source(teacher, image_states, question_ids, question_mask, image_index, question_index)
    return torch.softmax(teacher.text_decoder(answer_ids[:, :-1], *source).float(), dim=-1)
