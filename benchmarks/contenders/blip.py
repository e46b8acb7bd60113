"""The baseline: BLIP of `transformers`, of the same shape as our model, with random weights and nothing downloaded.

BLIP-base (arXiv 2201.12086) is the nearest relative that a library serves: ViT-B/16 at 384 pixels and a BERT
decoder of 12 layers over the image states, with a key-value cache, in bf16 or fp32, whichever is quicker here.
"""

from __future__ import annotations

import os

# Before the import: weights are random, and a benchmark asks nobody for files.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import BlipConfig, BlipForConditionalGeneration
from transformers.utils import logging

from benchmarks.measure.machine import best_seconds, is_emulated
from benchmarks.presets import BEAMS, CLS_ID, PAD_ID, SEP_ID, ModelSizes
from benchmarks.workspace import Workspace
from mplug.inputs.images import decode_image
from mplug.inputs.pixels import pixel_values
from mplug.runtime.interface import threads

PRECISIONS = {torch.bfloat16: "bf16", torch.float32: "fp32"}
#: Tokens of the caption that precisions are compared by: its steps cost what later ones cost.
TRIED_TOKENS = 4


def blip_config(sizes: ModelSizes) -> BlipConfig:
    """Return a BLIP of these sizes."""
    vision = {
        "hidden_size": sizes.vision_width,
        "intermediate_size": 4 * sizes.vision_width,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": sizes.vision_width // 64,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "initializer_range": 0.02,
    }
    text = {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.hidden_size,
        "encoder_hidden_size": sizes.vision_width,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.decoder_layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.max_positions,
        "bos_token_id": CLS_ID,
        "eos_token_id": SEP_ID,
        "sep_token_id": SEP_ID,
        "pad_token_id": PAD_ID,
    }
    return BlipConfig(text_config=text, vision_config=vision)


def open_captioner(workspace: Workspace) -> Blip:
    """Return a BLIP as large as the model that the workspace measures, in its best precision."""
    return best_blip(workspace.preset.sizes)


def best_blip(sizes: ModelSizes) -> Blip:
    """Return the BLIP whose precision is the quicker one here: fp32 where bf16 is emulated, else by a short caption."""
    blank = np.zeros((3, sizes.image_size, sizes.image_size), np.float32)
    taken = {}
    for dtype, precision in PRECISIONS.items():
        if not is_emulated(precision):
            blip = Blip(sizes, dtype)
            taken[dtype] = best_seconds(lambda blip=blip: blip.generate([blank], TRIED_TOKENS), tries=2)
    return Blip(sizes, min(taken, key=taken.__getitem__, default=torch.float32))


class Blip:
    """Encoded pictures → captions of a forced length, by beam search."""

    def __init__(self, sizes: ModelSizes, dtype: torch.dtype, seed: int = 0) -> None:
        torch.set_num_threads(threads())
        torch.manual_seed(seed)
        logging.set_verbosity_error()
        self._sizes, self._dtype = sizes, dtype
        self.precision = PRECISIONS[dtype]
        self.model = BlipForConditionalGeneration(blip_config(sizes)).to(dtype).eval()

    def pixels(self, picture: bytes) -> np.ndarray:
        """Decode and resize a picture exactly as ours: `[3, R, R]` float32."""
        return pixel_values(decode_image(picture), self._sizes.image_size)

    def caption(self, picture: bytes, tokens: int) -> list[int]:
        """See `Captioner.caption`."""
        return self.generate([self.pixels(picture)], tokens)[0].tolist()

    @torch.inference_mode()
    def generate(self, pixels: list[np.ndarray], tokens: int, beams: int = BEAMS) -> np.ndarray:
        """Return ids `[batch, 1 + tokens]` from the start token on; every caption has exactly `tokens`."""
        batch = torch.from_numpy(np.stack(pixels)).to(self._dtype)
        ids = self.model.generate(batch, num_beams=beams, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)
        return ids.numpy()
