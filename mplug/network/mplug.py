"""The four stages and the heads that read them, composed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mplug.config import MPlugConfig
from mplug.contract import ENTAILMENT_LABELS, NLVR_LABELS
from mplug.network.fusion_encoder import FusionEncoder
from mplug.network.text_decoder import TextDecoder
from mplug.network.text_encoder import TextEncoder
from mplug.network.vision_encoder import VisionEncoder

#: Which stages and heads each task of a checkpoint needs (stages first, in the order of the flow).
PARTS_OF_TASK = {
    "image-captioning": ("vision_encoder", "text_decoder"),
    "video-captioning": ("vision_encoder", "text_decoder"),
    "visual-question-answering": ("vision_encoder", "text_encoder", "fusion_encoder", "text_decoder"),
    "video-question-answering": ("vision_encoder", "text_encoder", "fusion_encoder", "text_decoder"),
    "visual-grounding": ("vision_encoder", "text_encoder", "fusion_encoder", "text_decoder"),
    "image-text-retrieval": (
        "vision_encoder",
        "text_encoder",
        "fusion_encoder",
        "vision_projection",
        "text_projection",
        "match_head",
    ),
    "video-text-retrieval": (
        "vision_encoder",
        "text_encoder",
        "fusion_encoder",
        "vision_projection",
        "text_projection",
        "match_head",
    ),
    "nlvr2": ("vision_encoder", "text_encoder", "fusion_encoder", "nlvr_head"),
    "visual-entailment": ("vision_encoder", "text_encoder", "fusion_encoder", "entail_head"),
}


def parts_needed(config: MPlugConfig) -> tuple[str, ...]:
    """Return the stages and heads that the checkpoint's tasks use, each once, stages first."""
    needed = [part for task in config.tasks for part in PARTS_OF_TASK[task]]
    if config.caption_states == "fused" and any(task.endswith("captioning") for task in config.tasks):
        needed += PARTS_OF_TASK["visual-question-answering"]
    order = (
        "vision_encoder",
        "text_encoder",
        "fusion_encoder",
        "text_decoder",
        "vision_projection",
        "text_projection",
        "match_head",
        "nlvr_head",
        "entail_head",
    )
    return tuple(part for part in order if part in needed)


class MPlug(nn.Module):
    """A checkpoint's network: only the parts that its tasks need (`parts_needed`)."""

    def __init__(self, config: MPlugConfig, parts: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.config = config
        width = config.text.hidden_size
        makers = {
            "vision_encoder": lambda: VisionEncoder(config),
            "text_encoder": lambda: TextEncoder(config.text),
            "fusion_encoder": lambda: FusionEncoder(config.text),
            "text_decoder": lambda: TextDecoder(config.text),
            "vision_projection": lambda: nn.Linear(width, config.embed_dim),
            "text_projection": lambda: nn.Linear(width, config.embed_dim),
            "match_head": lambda: nn.Linear(width, 2),
            "nlvr_head": lambda: ClassificationHead(2 * width, width, len(NLVR_LABELS)),
            "entail_head": lambda: ClassificationHead(width, width, len(ENTAILMENT_LABELS)),
        }
        for part in parts or parts_needed(config):
            self.add_module(part, makers[part]())

    def initialise(self, seed: int = 0, *, by_width: bool = False) -> None:
        """Set fresh weights for training from scratch: normal(0, 0.02), norms one, biases zero, sine positions.

        `by_width`: matrices of layers get a deviation of 1 / √(numbers that they read) instead, and half of it where
        they write to the states; 0.02 is BERT's choice for a width of 768, and far too little for narrow networks.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" in name or name.endswith("projection.1.weight"):
                nn.init.ones_(parameter)
            else:
                matrix = by_width and parameter.ndim > 1 and not name.endswith("position_embedding")
                matrix = matrix and ".embeddings." not in name
                std = parameter[0].numel() ** -0.5 if matrix else 0.02
                halved = matrix and name.rpartition(".")[0].endswith(("output", "contract"))
                nn.init.normal_(parameter, std=std / 2 if halved else std, generator=generator)
        if hasattr(self, "vision_encoder"):
            self.vision_encoder.initialise_positions()

    def decoder_input(self, image_states: Tensor, text_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Concatenate image and text states for the decoder: `[B, N + L, W]` and its mask `[B, N + L]`."""
        image_mask = torch.ones_like(image_states[:, :, 0], dtype=attention_mask.dtype)
        return torch.cat([image_states, text_states], dim=1), torch.cat([image_mask, attention_mask], dim=1)

    def image_feature(self, image_states: Tensor) -> Tensor:
        """Project image states `[B, N, W]` to unit vectors `[B, E]` of the contrastive space."""
        return functional.normalize(self.vision_projection(image_states[:, 0]), dim=-1)

    def text_feature(self, text_states: Tensor) -> Tensor:
        """Project text states `[B, L, W]` to unit vectors `[B, E]` of the contrastive space."""
        return functional.normalize(self.text_projection(text_states[:, 0]), dim=-1)


class ClassificationHead(nn.Sequential):
    """The small head over fused `[CLS]` states that NLVR2 and visual entailment use."""

    def __init__(self, inputs: int, hidden: int, labels: int) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, labels))
