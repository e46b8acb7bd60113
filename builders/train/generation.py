"""Texts from the decoder during training: the likeliest token at each place, or samples; with a cache, as served.

Beam search belongs to serving and evaluation (`mplug.decoding.beam_search`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from builders.train.fused_states import PAD_ID
from mplug.network import MPlug


@torch.no_grad()
def generate(
    network: MPlug,
    source: tuple[Tensor, Tensor],
    *,
    start_id: int,
    end_id: int | None,
    length: int,
    allowed: slice | None = None,
    sampled: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One text per row of `source`, ids `[T, ≤ length]` from `start_id`; behind `end_id` stands padding.

    Args:
        source: what the decoder reads, states `[T, N, W]` and mask `[T, N]`.
        end_id: ends a text; None: every text is `length` long.
        allowed: the range of ids to choose from; all, if None.
        sampled: draw every token with its probability instead of taking the likeliest.
    Nothing is dropped out, in training either.
    """
    states, mask = source
    decoder, rows = network.text_decoder, len(states)
    training = decoder.training
    decoder.eval()
    crossed = decoder.prefill(states)
    tokens = torch.full((rows, 1), start_id, device=states.device)
    ended = torch.zeros(rows, dtype=torch.bool, device=states.device)
    past = [(key[:, :, :0, None], value[:, :, :0, None]) for key, value in crossed]  # [T, H, 0, 1, D]
    for place in range(length - 1):
        positions = torch.full((rows,), place, device=states.device)
        ancestry = torch.zeros((rows, 1, place), dtype=torch.long, device=states.device)
        logits, written = decoder.step(tokens[:, -1:], positions, ancestry, mask, past, crossed)
        past = [
            (torch.cat([old_key, key[:, :, None]], dim=2), torch.cat([old_value, value[:, :, None]], dim=2))
            for (old_key, old_value), (key, value) in zip(past, written, strict=True)
        ]
        logits = logits[:, 0].float()
        if allowed is not None:
            logits = logits[:, allowed]
        if sampled:
            following = torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator)[:, 0]
        else:
            following = logits.argmax(-1)
        following = torch.where(ended, PAD_ID, following + (allowed.start if allowed is not None else 0))
        tokens = torch.cat([tokens, following[:, None]], dim=1)
        if end_id is not None:
            ended |= following == end_id
            if ended.all():
                break
    decoder.train(training)
    return tokens
