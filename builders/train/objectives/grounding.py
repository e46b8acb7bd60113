"""Objective: say where in the image an expression points, as four tokens.

The published form, and what `mplug.tasks.ground` serves: the decoder starts from one unused token and writes
centre x, centre y, width and height of the box, each a token counted from the first of R + 1 bins, R being the
side of the square canvas in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from builders.train.fused_states import fuse
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
    tokens: Tensor,
    box_ids: BoxIds,
    image_index: Tensor | None = None,
) -> Tensor:
    """Return the published loss of expressions `[T, L]` and their box tokens `[T, 5]` (`BoxIds.tokens`).

    Cross-entropies over the box tokens alone, each coordinate weighted by how wrong the greedy boxes are: the distance
    of that coordinate times one minus the generalised intersection over union, as shares of the canvas. The weights are
    those of the whole batch, as published (`model_grounding_mplug.py` 153-166, where a view of the losses meets the
    weights of every example), so that a batch whose boxes are right teaches nothing.
    """
    source = network.decoder_input(*fuse(network, image_states, expression_ids, expression_mask, image_index))
    bins = slice(box_ids.first_bin, box_ids.first_bin + box_ids.bins)
    logits = network.text_decoder(tokens[:, :-1], *source)[..., bins].float()  # [T, 4, R + 1]
    wanted = tokens[:, 1:] - box_ids.first_bin
    losses = functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")  # [T, 4]
    with torch.no_grad():
        side = box_ids.bins - 1
        found, right = logits.argmax(-1) / side, wanted / side
        weights = (found - right).abs() * (1 - generalised_iou(found, right))[:, None]
    return (losses.mean(0) * weights.mean(0)).mean()


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the generalised intersection over union of boxes `[T, 4]`, pair by pair: `[T]`, from -1 to 1.

    Boxes are centre x, centre y, width and height. As published, 1e-5 keeps empty boxes from dividing by nothing
    (`vgTools/utils/box_utils.py`; the measure is that of arXiv 1902.09630).
    """
    (low, high), (other_low, other_high) = (
        (box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2) for box in (first, second)
    )
    shared = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(1)
    union = first[:, 2:].prod(1) + second[:, 2:].prod(1) - shared
    around = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod(1)
    return shared / (union + 1e-5) - (around - union) / (around + 1e-5)


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
