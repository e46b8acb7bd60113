"""One step of beam search over all slots, in operators that every compiler knows.

The rules are the published implementation's; `mplug.decoding.beam_search.BeamSearch` states them one request at a
time, in plain Python. S slots, M beams, V vocabulary, T positions, K candidates of each beam.

Equal scores: the lower beam goes first, then the lower token id. TopK promises no order among equals, so it only
proposes K candidates of each beam, and their order is computed here. Undefined is only which tokens are proposed
when more of them than K share one beam's lowest place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mplug.contract import MAX_BEAMS, SEARCH_FILL

#: Added to the log-probability of a blocked end token, as the published search does.
BLOCKED = -1e20
#: Added to the logits of tokens outside the allowed range, as the published grounding code does.
OUT_OF_RANGE = -10_000.0
#: Score of beams that a request does not use, and of all but the first beam at the start.
UNUSED = SEARCH_FILL["SCORES"]


#: Vocabularies from this size on are searched in groups of so many tokens.
LARGE_VOCABULARY, GROUP = 8192, 32
#: Stands behind the vocabulary's end in its last group.
LOWEST = -3e38


class SearchState(NamedTuple):
    """`mplug.contract.SEARCH_STATE`."""

    tokens: Tensor  # [S, M]
    scores: Tensor  # [S, M]
    ancestry: Tensor  # [S, M, T]
    positions: Tensor  # [S]
    over: Tensor  # [S]


class Options(NamedTuple):
    """The columns of OPTIONS, `[S]` each."""

    prefix_length: Tensor
    beams: Tensor
    min_length: Tensor
    max_length: Tensor
    first_token: Tensor
    end_of_tokens: Tensor


def beam_step(
    logits: Tensor, state: SearchState, prefix: Tensor, options: Tensor, end_id: int
) -> tuple[SearchState, Tensor]:
    """Continue every slot's search by one token.

    Args:
        logits: `[S, M, V]` of the token after each beam's last.
        prefix: `[S, T]` tokens that are decoded first.
        options: `[S, 6]`, see `Options`.
        end_id: id of `[SEP]`.
    Returns:
        The state of the next step, and the beam that each beam continues `[S, M]`. A slot whose logits hold NaN gets
        NaN scores. A slot that is over stays at its position.
    """
    asked = Options(*options.unbind(1))
    length = state.positions - asked.prefix_length + 1  # tokens chosen so far
    ids, log_probabilities = _candidates(logits, asked)
    blocked = (ids == end_id) & (length < asked.min_length)[:, None, None]
    log_probabilities = log_probabilities + torch.where(blocked, BLOCKED, 0.0)
    beams, parents, tokens, scores = _choose(ids, state.scores[:, :, None] + log_probabilities, logits.shape[-1])

    places = torch.arange(state.ancestry.shape[2], device=logits.device, dtype=torch.int32)
    in_prefix = state.positions < asked.prefix_length - 1
    forced = torch.where(places == state.positions[:, None] + 1, prefix, 0).sum(1, dtype=torch.int32)  # [S]
    tokens = torch.where(in_prefix[:, None], forced[:, None], tokens)
    parents = torch.where(in_prefix[:, None], beams, parents)
    scores = torch.where(in_prefix[:, None], state.scores, scores)
    scores = torch.where(beams < asked.beams[:, None], scores, UNUSED)
    sound = log_probabilities.sum((1, 2))[:, None]  # NaN where any is
    scores = torch.where(sound < 1.0, scores, sound)

    ended = ~in_prefix & ((tokens[:, 0] == end_id) | (length + 1 >= asked.max_length))
    over = (state.over > 0) | ended
    # Every beam has just written its own column of this position; then each takes over its parent's past.
    ancestry = torch.where(places == state.positions[:, None, None], beams[:, None], state.ancestry)
    ancestry = ancestry.gather(1, parents[:, :, None].expand(-1, -1, places.shape[0]).long())
    positions = state.positions + torch.where(over, 0, 1)
    return SearchState(tokens, scores, ancestry, positions.to(torch.int32), over.to(torch.int32)), parents


def _candidates(logits: Tensor, asked: Options) -> tuple[Tensor, Tensor]:
    """Logits `[S, M, V]` → the likeliest tokens of each beam and their log-probabilities, `[S, M, K]` each."""
    vocabulary = torch.arange(logits.shape[-1], device=logits.device, dtype=torch.int32)
    outside = (vocabulary < asked.first_token[:, None]) | (vocabulary >= asked.end_of_tokens[:, None])  # [S, V]
    logits = logits.float() + torch.where(outside, OUT_OF_RANGE, 0.0)[:, None, :]
    # One more than there are beams: the end token may be blocked.
    values, ids = likeliest(logits, min(MAX_BEAMS + 1, logits.shape[-1]))
    # Log-softmax written out, and of the candidates alone: compilers make softmax and logarithm of it, which turns
    # small probabilities into minus infinity.
    largest = values[:, :, :1]
    log_sum = torch.log(torch.exp(logits - largest).sum(-1, keepdim=True))
    return ids, values - largest - log_sum


def likeliest(logits: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return the `number` largest of logits `[S, M, V]`, largest first, and their ids, `[S, M, number]` each.

    In a large vocabulary they are sought in the groups with the largest maxima, of which as many hold all of them:
    TopK takes many times as long as a maximum.
    """
    slots, beams, vocabulary = logits.shape
    if vocabulary < LARGE_VOCABULARY:
        best = torch.topk(logits, number, dim=-1)
        return best.values, best.indices.to(torch.int32)
    groups = functional.pad(logits, (0, -vocabulary % GROUP), value=LOWEST).unflatten(-1, (-1, GROUP))  # [S, M, G, 32]
    each = groups.shape[2]
    chosen = torch.topk(groups.amax(-1), number, dim=-1).indices.to(torch.int32)  # [S, M, number]
    firsts = torch.arange(slots * beams, device=logits.device, dtype=torch.int32).reshape(slots, beams, 1) * each
    members = groups.flatten(0, 2).index_select(0, (chosen + firsts).flatten()).reshape(slots, beams, number * GROUP)
    best = torch.topk(members, number, dim=-1)
    places = best.indices.to(torch.int32)
    return best.values, chosen.gather(2, (places // GROUP).long()) * GROUP + places % GROUP


def _choose(ids: Tensor, totals: Tensor, vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Choose the M best of all beams' candidates `[S, M, K]`, best first.

    Returns the beams' numbers `[M]`, and parents, tokens and scores `[S, M]`.
    """
    slots, number, each = ids.shape
    beams = torch.arange(number, device=ids.device, dtype=torch.int32)
    parents = beams[:, None].expand(number, each)
    places = (parents * vocabulary + ids).flatten(1)  # where a candidate stands among the logits of all beams
    totals = totals.flatten(1)  # [S, M*K]
    ahead = totals[:, None, :] > totals[:, :, None]
    tied = (totals[:, None, :] == totals[:, :, None]) & (places[:, None, :] < places[:, :, None])
    rank = (ahead | tied).sum(-1, dtype=torch.int32)  # candidates before each
    numbers = torch.arange(number * each, device=ids.device, dtype=torch.int32)
    # The largest of them: with NaN several share a rank, or none has it, and an index it must be.
    chosen = torch.where(rank[:, None, :] == beams[:, None], numbers, 0).amax(-1).long()  # [S, M]
    parents = parents.flatten()[None].expand(slots, -1)
    return beams, parents.gather(1, chosen), ids.flatten(1).gather(1, chosen), totals.gather(1, chosen)
