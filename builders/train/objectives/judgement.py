"""Objectives: judge a statement about two images (NLVR2), or whether an image entails a hypothesis (SNLI-VE).

Both read the fused `[CLS]` through a small head, as `mplug.tasks.judgement` serves them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from builders.train.fused_states import fuse, token_mask
from mplug.network import MPlug


def nlvr_logits(
    network: MPlug,
    image_states: Tensor,
    statement_ids: Tensor,
    statement_mask: Tensor | None,
    left_index: Tensor,
    right_index: Tensor,
) -> Tensor:
    """Logits `[T, 2]` (false, true) of statements `[T, L]`, each about images `left_index` and `right_index` `[T]`.

    The statement is fused with one image and with the other, and the head reads both `[CLS]`, left before right.
    """
    mask = token_mask(statement_ids) if statement_mask is None else statement_mask
    text_states = network.text_encoder(statement_ids, mask)
    both = torch.cat([left_index, right_index])
    _, fused = network.fusion_encoder(image_states[both], text_states.repeat(2, 1, 1), mask.repeat(2, 1))
    left, right = fused[:, 0].chunk(2)
    return network.nlvr_head(torch.cat([left, right], dim=-1)).float()


def nlvr_loss(
    network: MPlug,
    image_states: Tensor,
    statement_ids: Tensor,
    statement_mask: Tensor | None,
    left_index: Tensor,
    right_index: Tensor,
    labels: Tensor,
) -> Tensor:
    """Cross-entropy of labels `[T]`, indices into `NLVR_LABELS`; the rest as in `nlvr_logits`."""
    logits = nlvr_logits(network, image_states, statement_ids, statement_mask, left_index, right_index)
    return functional.cross_entropy(logits, labels)


def entail_logits(
    network: MPlug,
    image_states: Tensor,
    hypothesis_ids: Tensor,
    hypothesis_mask: Tensor | None,
    image_index: Tensor | None = None,
) -> Tensor:
    """Logits `[T, 3]` of hypotheses `[T, L]`, in the order of `ENTAILMENT_LABELS`."""
    fused = fuse(network, image_states, hypothesis_ids, hypothesis_mask, image_index)
    return network.entail_head(fused.text[:, 0]).float()


def entail_loss(
    network: MPlug,
    image_states: Tensor,
    hypothesis_ids: Tensor,
    hypothesis_mask: Tensor | None,
    labels: Tensor,
    image_index: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of labels `[T]`, indices into `ENTAILMENT_LABELS`."""
    logits = entail_logits(network, image_states, hypothesis_ids, hypothesis_mask, image_index)
    return functional.cross_entropy(logits, labels)
