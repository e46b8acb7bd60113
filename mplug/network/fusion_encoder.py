"""Stage `fusion_encoder`: cross-modal skip-connections (paper, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mplug.config import TextConfig
from mplug.network.attention import TransformerLayer, additive_mask


class FusionEncoder(nn.Module):
    """Image and text states → both, fused.

    Most layers are asymmetric co-attention: only the short text is worked on, and the long image
    sequence goes round them (the skip). Every `stride_layer`-th is connected attention over both;
    what it makes of the image is added to what went round.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(config, cross_attention=not config.fusion_layer_is_connected(index))
            for index in range(config.fusion_layers)
        )

    @property
    def has_connected_layer(self) -> bool:
        """Whether any layer changes the image states; published large has none."""
        return any(layer.cross_attention is None for layer in self.layers)

    def forward(self, image_states: Tensor, text_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse image states `[B, N, W]` and text states `[B, L, W]` with mask `[B, L]`; both keep their shapes."""
        text_mask = additive_mask(attention_mask)
        image_mask = torch.zeros_like(image_states[:, :, 0], dtype=text_mask.dtype)[:, None, None, :]
        joint_mask = torch.cat([image_mask, text_mask], dim=-1)
        image_length = image_states.shape[1]
        for layer in self.layers:
            if layer.cross_attention is not None:
                text_states = layer(text_states, text_mask, image_states)
            else:
                joint = layer(torch.cat([image_states, text_states], dim=1), joint_mask)
                image_states = image_states + joint[:, :image_length]
                text_states = joint[:, image_length:]
        return image_states, text_states
