"""The baseline of every task but captioning: our PyTorch network, one request at a time, nothing compiled or kept.

Encoders in one forward pass, texts of a request in one batch, decoding without a key-value cache as published; fp32.
Runs in a process of its own: `load` there, then `ask`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contenders.uncached import Uncached
from benchmarks.presets import BEAMS, CLS_ID, SEP_ID
from mplug.checkpoint import load_checkpoint
from mplug.decoding.beam_search import SearchOptions
from mplug.inputs.images import decode_image
from mplug.inputs.pixels import letterbox_pixel_values, pixel_values
from mplug.inputs.tokenizer import Tokenizer

BOX_TOKENS = 4
_loaded: list[Eager] = []


def load(checkpoint: Path) -> None:
    """Load the checkpoint, once in the process."""
    _loaded.append(Eager(checkpoint))


def ask(task: str, pictures: Sequence[bytes], texts: Sequence[str], tokens: int) -> list[float]:
    """Answer one request (encoded pictures, texts, tokens of an answer) and return figures of the answer."""
    with torch.inference_mode():
        return getattr(_loaded[0], task)(pictures, texts, tokens)


class Eager:
    """A method per public model; all take pictures, texts and a number of tokens."""

    def __init__(self, checkpoint: Path) -> None:
        self._network = load_checkpoint(checkpoint)[0].eval()
        self._config = self._network.config
        self._tokenizer = Tokenizer(checkpoint / "vocab.txt")
        self._decoder = Uncached(self._network, CLS_ID)  # sets the threads, too

    def embed_image(self, pictures: Sequence[bytes], texts: Sequence[str], tokens: int) -> list[float]:
        """Return the feature."""
        return self._network.image_feature(self._states(pictures))[0].tolist()

    def embed_text(self, pictures: Sequence[bytes], texts: Sequence[str], tokens: int) -> list[float]:
        """Return the feature."""
        return self._network.text_feature(self._text(texts)[0])[0].tolist()

    def match(self, pictures: Sequence[bytes], texts: Sequence[str], tokens: int) -> list[float]:
        """Return a score per text."""
        _, fused, _ = self._fused(self._states(pictures), texts)
        return self._network.match_head(fused[:, 0])[:, 1].tolist()

    def vqa(self, pictures: Sequence[bytes], texts: Sequence[str], tokens: int) -> list[float]:
        """Return the ids of the answer."""
        return self._search(self._states(pictures), texts, SearchOptions(BEAMS, tokens, tokens, 1, 0.6, SEP_ID))

    def ground(self, pictures: Sequence[bytes], texts: Sequence[str], tokens: int) -> list[float]:
        """Return four ids of any kind: restricting them to those of boxes costs nothing."""
        size = self._config.vision.image_size
        canvases = [torch.from_numpy(letterbox_pixel_values(decode_image(each), size)[0]) for each in pictures]
        states = self._network.vision_encoder(torch.stack(canvases))
        return self._search(states, texts, SearchOptions(1, BOX_TOKENS, BOX_TOKENS, 1, 0.0, SEP_ID))

    def nlvr(self, pictures: Sequence[bytes], texts: Sequence[str], tokens: int) -> list[float]:
        """Return the probabilities of false and true."""
        _, fused, _ = self._fused(self._states(pictures), texts)
        return self._network.nlvr_head(fused[:, 0].reshape(1, -1)).softmax(-1)[0].tolist()

    def entail(self, pictures: Sequence[bytes], texts: Sequence[str], tokens: int) -> list[float]:
        """Return the probabilities of the three classes."""
        _, fused, _ = self._fused(self._states(pictures), texts)
        return self._network.entail_head(fused[:, 0]).softmax(-1)[0].tolist()

    def _states(self, pictures: Sequence[bytes]) -> Tensor:
        """Return image states `[pictures, N, W]`."""
        size = self._config.vision.image_size
        pixels = [torch.from_numpy(pixel_values(decode_image(each), size)) for each in pictures]
        return self._network.vision_encoder(torch.stack(pixels))

    def _text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return text states `[texts, L, W]` and their mask `[texts, L]`, as long as the longest text."""
        encoded = [self._tokenizer.encode(text, self._config.max_text_length) for text in texts]
        ids, mask = (torch.stack([torch.from_numpy(each[part]) for each in encoded]) for part in (0, 1))
        longest = int(mask.sum(1).max())
        return self._network.text_encoder(ids[:, :longest], mask[:, :longest]), mask[:, :longest]

    def _fused(self, states: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Fuse one picture with all texts, or one text with all pictures; return image and text states and the mask."""
        text, mask = self._text(texts)
        pairs = max(len(states), len(text))
        image, text, mask = states.expand(pairs, -1, -1), text.expand(pairs, -1, -1), mask.expand(pairs, -1)
        return *self._network.fusion_encoder(image, text, mask), mask

    def _search(self, states: Tensor, texts: Sequence[str], options: SearchOptions) -> list[float]:
        read = self._network.decoder_input(*self._fused(states, texts))
        return list(self._decoder.search(*read, options)[0].token_ids)
