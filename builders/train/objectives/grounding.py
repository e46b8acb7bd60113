"""Objective: say where in the image an expression points, as four tokens.

The published form, and what `mplug.tasks.ground` serves: the decoder starts from one unused token and writes
centre x, centre y, width and height of the box, each a token counted from the first of R + 1 bins, R being the
side of the square canvas in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from builders.train.fused_states import fuse, mean_over_tokens, token_losses
from builders.train.generation import generate
from mplug.inputs.tokenizer import Tokenizer
from mplug.network import MPlug
from mplug.tasks.ground import BOX_TOKENS, FIRST_BIN, START


class BoxIds(NamedTuple):
    """Ids of the tokens that boxes are written with."""

    start: int
    first_bin: int
    bins: int  #: R + 1

    @classmethod
    def of(cls, tokenizer: Tokenizer, canvas: int) -> BoxIds:
        """For a canvas of so many pixels a side. Raises ValueError for a vocabulary that lacks the tokens."""
        last = FIRST_BIN + canvas
        try:
            start, first, _ = (tokenizer.token_id(f"[unused{number}]") for number in (START, FIRST_BIN, last))
        except KeyError as error:
            needed = f"grounding at {canvas} pixels needs [unused{START}] to [unused{last}]"
            raise ValueError(f"{needed}: {error.args[0]}") from None
        return cls(start, first, canvas + 1)

    def tokens(self, boxes: Tensor) -> Tensor:
        """Boxes `[T, 4]`, corners in pixels of the canvas → ids `[T, 5]` from the start."""
        low, high = boxes[:, :2].float(), boxes[:, 2:].float()
        places = torch.cat([(low + high) / 2, high - low], dim=1).round().long().clamp(0, self.bins - 1)
        start = torch.full_like(places[:, :1], self.start)
        return torch.cat([start, self.first_bin + places], dim=1)

    def boxes(self, tokens: Tensor) -> Tensor:
        """Ids `[T, 5]` from the start → corners `[T, 4]` in pixels of the canvas."""
        places = (tokens[:, 1:] - self.first_bin).float()
        centre, size = places[:, :2], places[:, 2:]
        return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def near_boxes(tokens: Tensor, box_ids: BoxIds, vocabulary: int, spread: float) -> Tensor:
    """Box tokens `[T, 5]` → soft targets `[T, 4, V]`: a bell over the bins around each, `spread` bins wide.

    Bins are an order that the vocabulary does not know of: nearly right is then better than wrong.
    """
    bins = torch.arange(box_ids.bins, device=tokens.device)
    distances = (tokens[:, 1:, None] - box_ids.first_bin - bins).float() / spread
    targets = torch.zeros(len(tokens), tokens.shape[1] - 1, vocabulary, device=tokens.device)
    targets[:, :, box_ids.first_bin : box_ids.first_bin + box_ids.bins] = torch.softmax(-distances.square() / 2, dim=-1)
    return targets


def grounding_loss(
    network: MPlug,
    image_states: Tensor,
    expression_ids: Tensor,
    expression_mask: Tensor | None,
    box_ids: Tensor,
    image_index: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of the box tokens; expressions `[T, L]`, box ids `[T, 5]` (`BoxIds.tokens`)."""
    fused = fuse(network, image_states, expression_ids, expression_mask, image_index)
    return mean_over_tokens(token_losses(network, network.decoder_input(*fused), box_ids), box_ids)


def greedy_boxes(
    network: MPlug,
    image_states: Tensor,
    expression_ids: Tensor,
    expression_mask: Tensor | None,
    box_ids: BoxIds,
    image_index: Tensor | None = None,
) -> Tensor:
    """Return the likeliest box token at each place, as served: ids `[T, 5]` from the start."""
    source = network.decoder_input(*fuse(network, image_states, expression_ids, expression_mask, image_index))
    bins = slice(box_ids.first_bin, box_ids.first_bin + box_ids.bins)
    return generate(network, source, start_id=box_ids.start, end_id=None, length=1 + BOX_TOKENS, allowed=bins)
