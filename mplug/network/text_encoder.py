"""Stage `text_encoder`: the first layers of BERT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mplug.config import TextConfig
from mplug.network.attention import Embeddings, TransformerLayer, additive_mask


class TextEncoder(nn.Module):
    """Token ids → text states."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            TransformerLayer(config, cross_attention=False) for _ in range(config.text_encoder_layers)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode `[B, L]` ids with their mask (1 for tokens, 0 for padding) into text states `[B, L, W]`."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        states = self.embeddings(input_ids, positions)
        mask = additive_mask(attention_mask)
        for layer in self.layers:
            states = layer(states, mask)
        return states
