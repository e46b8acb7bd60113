"""Words that no text of a training had, taken apart before the next training.

A loss over the whole vocabulary pushes words that never occur all the same way, until their embeddings are nearly one
vector (Gao et al. 2019, arXiv 1907.12009). Data that has two of them, "gray" and "teal", then asks a network to tell
apart what it reads alike. Untaught are the words that lie where the vocabulary's [unusedN] lie, which no text has.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch.nn import functional

from mplug.inputs.tokenizer import SPECIAL_TOKENS, Tokenizer
from mplug.network import MPlug

UNUSED = 994  # [unused0] to [unused993], as in BERT's vocabulary
AS_UNUSED = 0.05  # of the [unusedN], the share that lies further from their mean than a word that counts as untaught
ALIKE = 0.5  # length of the mean of [unusedN] as unit vectors, below which they have nothing in common to take away


def _unused(tokenizer: Tokenizer) -> list[int]:
    ids = []
    for number in range(UNUSED):
        with suppress(KeyError):
            ids.append(tokenizer.token_id(f"[unused{number}]"))
    return ids


@torch.no_grad()
def take_apart(network: MPlug, tokenizer: Tokenizer) -> list[int]:
    """Take out of the text encoder's embeddings of untaught words what these have in common, in place.

    What is left of a word is its own: what it began with, and the little that it was taught. Returns the ids of the
    words; none where [unusedN] are not alike. Raises ValueError for a network without a text encoder and for a
    vocabulary without [unusedN].
    """
    if not hasattr(network, "text_encoder"):
        raise ValueError("words are taken apart in a text encoder, and this network has none")
    unused = _unused(tokenizer)
    if not unused:
        raise ValueError("the vocabulary has no [unusedN], so nothing tells which words were never taught")
    rows = network.text_encoder.embeddings.word.weight
    mean = functional.normalize(rows[unused], dim=1).mean(0)
    if mean.norm() < ALIKE:
        return []
    likeness = functional.cosine_similarity(rows, mean[None])
    found = likeness >= likeness[unused].quantile(AS_UNUSED)
    found[[tokenizer.token_id(token) for token in SPECIAL_TOKENS]] = False
    common = functional.normalize(mean, dim=0)
    rows[found] -= torch.outer(rows[found] @ common, common)
    return found.nonzero().flatten().tolist()
