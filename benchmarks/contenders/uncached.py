"""The other baseline: our PyTorch network decoding as the published code does, without a key-value cache.

At each step the whole prefix runs through the decoder again, over image states that are tiled over the beams,
in fp32. The search is ours and finds the same tokens. Attention is PyTorch's fused one, which the published
code had not: the published code itself is no faster than this.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.presets import BEAMS, CLS_ID, SEP_ID
from benchmarks.workspace import Workspace
from mplug.checkpoint import load_checkpoint
from mplug.decoding.beam_search import BeamSearch, Hypothesis, SearchOptions
from mplug.inputs.images import decode_image
from mplug.inputs.pixels import pixel_values
from mplug.network import MPlug
from mplug.network.beam_step import BLOCKED
from mplug.runtime.interface import threads


def open_captioner(workspace: Workspace) -> UncachedCaptioner:
    """Load the workspace's checkpoint."""
    return UncachedCaptioner(load_checkpoint(workspace.checkpoint)[0])


class UncachedCaptioner:
    """A `Captioner` over a network: pictures are decoded and resized exactly as the server does."""

    def __init__(self, network: MPlug) -> None:
        self._model = Uncached(network, CLS_ID)
        self._image_size = network.config.vision.image_size
        self._length_penalty = network.config.generation.length_penalty

    def caption(self, picture: bytes, tokens: int) -> list[int]:
        """See `Captioner.caption`."""
        options = SearchOptions(BEAMS, tokens, tokens, 1, self._length_penalty, SEP_ID)
        best = self._model.caption(pixel_values(decode_image(picture), self._image_size), options)[0]
        return [CLS_ID, *best.token_ids]


class Uncached:
    """Beam search over a network; by itself a captioner that reads the image states alone."""

    def __init__(self, network: MPlug, start_id: int) -> None:
        torch.set_num_threads(threads())
        self._network, self._start_id = network.eval(), start_id

    @torch.inference_mode()
    def caption(self, pixel_values: np.ndarray, options: SearchOptions) -> list[Hypothesis]:
        """Return the best hypotheses for pixels `[3, R, R]`; their ids follow the start token."""
        image_states = self._network.vision_encoder(torch.from_numpy(pixel_values)[None])  # [1, N, W]
        return self.search(image_states, torch.ones(image_states.shape[:2], dtype=torch.long), options)

    @torch.inference_mode()
    def search(self, states: Tensor, mask: Tensor, options: SearchOptions) -> list[Hypothesis]:
        """Return the best hypotheses for states `[1, A, W]` with mask `[1, A]`."""
        search = BeamSearch(options)
        ids = torch.full((options.num_beams, 1), self._start_id)
        while True:
            tokens, log_probabilities = self._likeliest(ids, states, mask, options, search.end_blocked)
            continuation = search.advance(tokens.numpy(), log_probabilities.numpy())
            if continuation is None:
                return search.best()
            parents, chosen = (torch.from_numpy(part) for part in (continuation.parents, continuation.tokens))
            ids = torch.cat([ids[parents], chosen[:, None].long()], dim=1)

    def _likeliest(
        self, ids: Tensor, states: Tensor, mask: Tensor, options: SearchOptions, end_blocked: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the M likeliest next tokens of prefixes `[M, L]` and their log-probabilities, `[M, M]`."""
        tiled = states.repeat(len(ids), 1, 1)  # [M, A, W]
        logits = self._network.text_decoder(ids, tiled, mask.repeat(len(ids), 1))  # [M, L, V]
        log_probabilities = torch.log_softmax(logits[:, -1], dim=-1)
        if end_blocked:
            log_probabilities[:, options.end_id] = BLOCKED
        best = torch.topk(log_probabilities, options.num_beams, dim=-1)
        return best.indices, best.values
