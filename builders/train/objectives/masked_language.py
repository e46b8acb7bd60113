"""Objective: name the words that were masked, from the rest of the text and the image (BERT, arXiv 1810.04805).

Of 15 % of the tokens, 80 % become `[MASK]`, 10 % another token, and 10 % stay as they are. The head reads the
fused text; it serves training alone and is no part of a checkpoint.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from builders.train.fused_states import PAD_ID, fuse
from mplug.config import TextConfig
from mplug.network import MPlug

MASKED_SHARE = 0.15
MASK_TOKEN_SHARE = 0.8
RANDOM_TOKEN_SHARE = 0.1


class SpecialIds(NamedTuple):
    """Ids of the tokens that no masking touches, and of the one that it writes; a `Tokenizer` has them."""

    cls_id: int
    sep_id: int
    mask_id: int


class MaskedLanguageHead(nn.Module):
    """BERT's: dense, GELU, LayerNorm, then the text encoder's own word embedding and a bias."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, states: Tensor, word_embedding: Tensor) -> Tensor:
        """States `[…, W]`, embedding `[V, W]` → logits `[…, V]`."""
        return functional.linear(self.norm(functional.gelu(self.dense(states))), word_embedding, self.bias)


def mask_tokens(
    input_ids: Tensor,
    special: SpecialIds,
    vocab_size: int,
    *,
    share: float = MASKED_SHARE,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Ids `[T, L]` → ids with tokens masked, and which places `[T, L]` (bool) have to be named."""

    def uniform() -> Tensor:
        return torch.rand(input_ids.shape, device=input_ids.device, generator=generator)

    kept = (input_ids == PAD_ID) | (input_ids == special.cls_id) | (input_ids == special.sep_id)
    chosen = (uniform() < share) & ~kept
    fate = uniform()
    other = torch.randint(vocab_size, input_ids.shape, device=input_ids.device, generator=generator)
    masked = torch.where(chosen & (fate < MASK_TOKEN_SHARE), special.mask_id, input_ids)
    replaced = chosen & (fate >= MASK_TOKEN_SHARE) & (fate < MASK_TOKEN_SHARE + RANDOM_TOKEN_SHARE)
    return torch.where(replaced, other, masked), chosen


def masked_language_loss(
    network: MPlug,
    head: MaskedLanguageHead,
    image_states: Tensor,
    input_ids: Tensor,
    special: SpecialIds,
    *,
    image_index: Tensor | None = None,
    share: float = MASKED_SHARE,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean cross-entropy of the masked tokens of texts `[T, L]`, zero where chance masks none."""
    masked_ids, chosen = mask_tokens(
        input_ids, special, network.config.text.vocab_size, share=share, generator=generator
    )
    # The mask is that of the text before masking: a random token may be [PAD].
    fused = fuse(network, image_states, masked_ids, (input_ids != PAD_ID).long(), image_index)
    # The head runs over the masked places alone: its output is as wide as the vocabulary.
    logits = head(fused.text[chosen], network.text_encoder.embeddings.word.weight).float()
    losses = functional.cross_entropy(logits, input_ids[chosen], reduction="sum")
    return losses / chosen.sum().clamp(min=1)
