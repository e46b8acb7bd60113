"""Objectives: a word that names a thing looks at the patches that show it, and knows how many there are and where.

Questions, boxes and judgements all rest on words finding what they name among the image states. One answer per
question says little about that; scenes that we draw ourselves come with the truth for every such word of every
text. (Compare the alignment of words and boxes in MDETR, arXiv 2104.12763.) The heads are thrown away afterwards.

Shapes: B images, T texts, L tokens, P patches, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mplug.network.attention import MultiHeadAttention
from mplug.network.fusion_encoder import FusionEncoder

BOX_WEIGHT = 10.0  # of a box's mean absolute error beside the cross-entropy of the count
GUIDED_HEADS = 2  # of the first cross-attention; the others look where they like


class NamedThings(nn.Module):
    """Linear heads over fused text states, and their loss: of what a word names, how many are there, and where?"""

    def __init__(self, width: int, most: int) -> None:
        super().__init__()
        self.count, self.first_count = nn.Linear(width, most + 1), nn.Linear(width, most + 1)
        self.box, self.pointed_box = nn.Linear(width, 4), nn.Linear(width, 4)

    def forward(self, fused_text: Tensor, counts: Tensor, boxes: Tensor) -> Tensor:
        """Fused text states `[T, L, W]`, counts `[T, L]` (-1: names nothing), boxes `[T, L, 4]` → loss.

        Cross-entropy of the counts, at the words themselves and, of what is named first, at the text's `[CLS]`, which
        judgements are read off; and the error of the boxes of things that there are one of.
        """
        named = counts >= 0
        states, wanted = fused_text[named], boxes[named]
        counted = functional.cross_entropy(self.count(states).float(), counts[named])
        some = named.any(1)
        first = counts[some].gather(1, named[some].int().argmax(1, keepdim=True))[:, 0]
        counted = counted + functional.cross_entropy(self.first_count(fused_text[some, 0]).float(), first)
        single = (wanted[:, 2] > 0).float()
        errors = (self.box(states).float() - wanted).abs().mean(-1)
        return counted + BOX_WEIGHT * (errors * single).sum() / single.sum().clamp(min=1)

    def pointed(self, first: Tensor, boxes: Tensor) -> Tensor:
        """Fused `[CLS]` `[T, W]` of referring expressions, boxes `[T, 4]` of what they mean → loss."""
        return BOX_WEIGHT * (self.pointed_box(first).float() - boxes).abs().mean()


class GuidedLooks:
    """Where the words of a pass through the fusion encoder look in its first cross-attention, and the loss of that."""

    def __init__(self, encoder: FusionEncoder) -> None:
        attention = encoder.layers[0].cross_attention
        assert isinstance(attention, MultiHeadAttention)
        self.attention = attention
        self.seen: tuple[Tensor, Tensor] | None = None
        attention.register_forward_pre_hook(self._remember)

    def _remember(self, _: nn.Module, arguments: tuple[Tensor, Tensor, Tensor]) -> None:
        states, _, source = arguments
        self.seen = states, source

    def loss(self, words: Tensor, images: Tensor, patch_labels: Tensor) -> Tensor:
        """Negative logarithm of the attention that words pay to the patches of what they name, of the last pass.

        Args:
            words: `[T, L]` class + 1 that a word names, 0 for none, of the first T texts of the pass.
            images: `[T]` image of each text.
            patch_labels: `[B, P]` class + 1 that each patch shows, 0 for background.
        """
        assert self.seen is not None
        states, source = self.seen
        texts, places = words.nonzero(as_tuple=True)
        shown = patch_labels[images[texts]] == words[texts, places][:, None]  # [M, P]
        there = shown.any(1)
        texts, places, shown = texts[there], places[there], shown[there]
        query = self.attention.query(states[texts, places]).unflatten(-1, (self.attention.heads, -1))  # [M, H, D]
        key = self.attention.split_heads(self.attention.key(source[: len(words)]))[texts]  # [M, H, 1 + P, D]
        scores = (query[:, :, None] * key).sum(-1).float() / math.sqrt(query.shape[-1])
        paid = (torch.softmax(scores, dim=-1)[:, :GUIDED_HEADS, 1:] * shown[:, None]).sum(-1)
        return -torch.log(paid.clamp(min=1e-6)).mean() if len(texts) else scores.sum()
