"""Attention and BERT's post-norm layer, shared by the text, fusion and decoder stages.

Shapes: B sequences, L queries, K keys, H heads, D head width, W = H·D hidden width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mplug.config import TextConfig

#: Added to the scores of masked keys. Finite, so that half precision keeps it and a row of
#: nothing but masked keys gives no NaN; exp(-1e4) is 0 in every precision used here.
MASKED = -1e4


def additive_mask(attention_mask: Tensor) -> Tensor:
    """Turn an attention mask `[B, K]` of ones and zeros into scores to add, `[B, 1, 1, K]`, float."""
    return ((1.0 - attention_mask.float()) * MASKED)[:, None, None, :]


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Compute scaled dot-product attention: `[B, H, L, D]`, `[B, H, K, D]` twice → `[B, H, L, D]`.

    Exported graphs get it written out: TensorRT's and OpenVINO's pattern matchers fuse the plain
    products, and OpenVINO's own scaled_dot_product_attention is slower for one query per beam. So
    does training on a CPU, where the fused kernel's backward pass takes six times as long.
    """
    training_on_cpu = query.requires_grad and query.device.type == "cpu"
    if not (torch.compiler.is_exporting() or training_on_cpu):
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=None if mask is None else mask.to(query.dtype)
        )
    # Scaled before the product: compilers would otherwise scale the keys, which are many more.
    scores = query * (1.0 / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, dim=-1) @ value


class MultiHeadAttention(nn.Module):
    """BERT's attention block: projections, attention, output projection, residual, LayerNorm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def split_heads(self, states: Tensor) -> Tensor:
        """Split `[B, L, W]` into `[B, H, L, D]`."""
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_and_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of `states` `[B, K, W]`, each `[B, H, K, D]`."""
        return self.split_heads(self.key(states)), self.split_heads(self.value(states))

    def finish(self, context: Tensor, residual: Tensor) -> Tensor:
        """Project what was attended to, `[B, H, L, D]`, add `residual` `[B, L, W]` and normalise."""
        context = context.transpose(1, 2).flatten(2)
        return self.norm(self.dropout(self.output(context)) + residual)

    def forward(self, states: Tensor, mask: Tensor | None, source: Tensor | None = None) -> Tensor:
        """Attend from `states` `[B, L, W]` to `source` `[B, K, W]` (itself, if None)."""
        key, value = self.keys_and_values(states if source is None else source)
        return self.finish(attention(self.split_heads(self.query(states)), key, value, mask), states)


class FeedForward(nn.Module):
    """BERT's feed-forward block with exact GELU, residual and LayerNorm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.hidden_size, config.intermediate_size)
        self.contract = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor) -> Tensor:
        hidden = functional.gelu(self.expand(states))
        return self.norm(self.dropout(self.contract(hidden)) + states)


class TransformerLayer(nn.Module):
    """Self-attention, optional cross-attention, feed-forward; post-norm throughout."""

    def __init__(self, config: TextConfig, *, cross_attention: bool) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config)
        self.cross_attention = MultiHeadAttention(config) if cross_attention else None
        self.feed_forward = FeedForward(config)

    def forward(
        self, states: Tensor, mask: Tensor | None, source: Tensor | None = None, source_mask: Tensor | None = None
    ) -> Tensor:
        states = self.self_attention(states, mask)
        if self.cross_attention is not None:
            states = self.cross_attention(states, source_mask, source)
        return self.feed_forward(states)


class Embeddings(nn.Module):
    """BERT's embeddings: word + position + token type 0, LayerNorm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_positions, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Embed token ids and positions, of shapes that broadcast: `[..., W]`."""
        summed = self.word(input_ids) + self.position(positions) + self.token_type.weight[0]
        return self.dropout(self.norm(summed))
