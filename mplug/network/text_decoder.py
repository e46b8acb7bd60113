"""Stage `text_decoder`: BERT with causal self-attention and cross-attention, and its KV-cached step.

Three ways through the same weights:
- `forward` over a whole text (training, scoring given answers),
- `prefill`: encoder states → cross-attention keys and values, once per request,
- `step`: one token for every beam of every slot.

Shapes of a step: S slots (one request each), B beams, T positions that the cache holds, C cache
columns per position (C ≥ B), H heads, D head width, N encoder states, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mplug.config import TextConfig
from mplug.network.attention import MASKED, Embeddings, MultiHeadAttention, TransformerLayer, additive_mask, attention


class TextDecoder(nn.Module):
    """Token ids and encoder states → log-probabilities of the next token."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            TransformerLayer(config, cross_attention=True) for _ in range(config.text_decode_layers)
        )
        self.head_dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.head_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size))

    def head(self, states: Tensor) -> Tensor:
        """Compute logits `[..., V]` of hidden states `[..., W]`; the output matrix is the word embedding."""
        states = self.head_norm(functional.gelu(self.head_dense(states)))
        return functional.linear(states, self.embeddings.word.weight, self.head_bias)

    def forward(
        self,
        input_ids: Tensor,
        encoder_states: Tensor,
        encoder_mask: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Compute logits `[B, L, V]` of the token after each of `[B, L]` ids, given `[B, N, W]` states and a mask."""
        length = input_ids.shape[1]
        positions = torch.arange(length, device=input_ids.device)
        states = self.embeddings(input_ids, positions)
        causal = (positions[None, :] > positions[:, None]) * MASKED  # [L, L]
        mask = causal[None, None] if attention_mask is None else causal + additive_mask(attention_mask)
        cross_mask = additive_mask(encoder_mask)
        for layer in self.layers:
            states = layer(states, mask, encoder_states, cross_mask)
        return self.head(states)

    def prefill(self, encoder_states: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Compute the cross-attention keys and values of encoder states `[S, N, W]` per layer, `[S, H, N, D]` each."""
        return [_cross(layer).keys_and_values(encoder_states) for layer in self.layers]

    def step(
        self,
        tokens: Tensor,
        positions: Tensor,
        ancestry: Tensor,
        encoder_mask: Tensor,
        self_cache: list[tuple[Tensor, Tensor]],
        cross_cache: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Decode one token for all beams.

        Args:
            tokens: `[S, B]` last token of each beam.
            positions: `[S]` its position, from 0.
            ancestry: `[S, B, T]` which column of the cache holds the beam's own past at each
                position; −1 where there is none. It stands in for reordering the cache: beams
                swap ancestors by swapping rows of these small numbers, and no key ever moves.
            encoder_mask: `[S, N]` ones for encoder states, zeros for padding.
            self_cache: per layer keys and values of the tokens before, `[S, H, T, C, D]` each.
            cross_cache: per layer keys and values of the encoder states, `[S, H, N, D]` each.

        Returns:
            Logits `[S, B, V]`, and per layer the new keys and values `[S, H, B, D]`, which the
            caller writes to column b of each slot's position.
        """
        states = self.embeddings(tokens, positions[:, None])  # [S, B, W]
        columns = torch.arange(self_cache[0][0].shape[3], device=tokens.device, dtype=ancestry.dtype)
        own = (ancestry[:, :, :, None] == columns).flatten(2)  # [S, B, T*C]
        past_mask = torch.where(own, 0.0, MASKED)[:, None]
        cross_mask = additive_mask(encoder_mask)
        written = []
        for layer, (past_key, past_value), (cross_key, cross_value) in zip(
            self.layers, self_cache, cross_cache, strict=True
        ):
            block = layer.self_attention
            key, value = block.keys_and_values(states)  # [S, H, B, D]
            written.append((key, value))
            context = _beam_attention(
                block.split_heads(block.query(states)),
                key,
                value,
                past_key.flatten(2, 3),
                past_value.flatten(2, 3),
                past_mask,
            )
            states = block.finish(context, states)
            # The beams of a slot are the queries of one attention over its encoder states, so the
            # keys are read once per slot, not once per beam.
            cross = _cross(layer)
            context = attention(cross.split_heads(cross.query(states)), cross_key, cross_value, cross_mask)
            states = layer.feed_forward(cross.finish(context, states))
        return self.head(states), written


def _cross(layer: nn.Module) -> MultiHeadAttention:
    assert isinstance(layer, TransformerLayer) and layer.cross_attention is not None
    return layer.cross_attention


def _beam_attention(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, past_mask: Tensor
) -> Tensor:
    """Attend from each beam to its own past and to itself: all `[S, H, B, D]`, past `[S, H, T*C, D]`."""
    query = query * (1.0 / math.sqrt(query.shape[-1]))
    past = query @ past_key.transpose(-1, -2) + past_mask  # [S, H, B, T*C]
    itself = (query * key).sum(-1, keepdim=True)  # [S, H, B, 1]
    # The mask is fp32, and with it the softmax, whatever the products are in.
    weights = torch.softmax(torch.cat([past, itself], dim=-1), dim=-1).to(value.dtype)
    return weights[..., :-1] @ past_value + weights[..., -1:] * value
