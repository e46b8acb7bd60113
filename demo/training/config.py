"""The demo checkpoint's sizes and tasks."""

from __future__ import annotations

from mplug.config import TASKS, GenerationConfig, MPlugConfig, TextConfig, VisionConfig

WIDTH = 192
STEM = (64, 128, 192)  # channels of the convolutions before the vision transformer
PROMPT = "a picture of"


def demo_config(image_size: int, vocab_size: int) -> MPlugConfig:
    """The demo checkpoint's sizes: about 8 M parameters."""
    return MPlugConfig(
        vision=VisionConfig(image_size=image_size, patch_size=16, width=WIDTH, layers=6, stem=STEM),
        text=TextConfig(
            vocab_size=vocab_size,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            heads=3,
            max_positions=64,
            type_vocab_size=2,
            layer_norm_eps=1e-12,
            dropout=0.0,
            num_hidden_layers=3,
            text_encoder_layers=2,
            fusion_layers=3,
            stride_layer=2,
            text_decode_layers=3,
        ),
        generation=GenerationConfig(num_beams=5, min_length=2, max_length=24),
        tasks=TASKS,
        embed_dim=128,
        max_text_length=32,
        caption_states="fused",
        prompt=PROMPT,
    )
