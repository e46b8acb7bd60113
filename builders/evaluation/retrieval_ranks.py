"""Recall at 1, 5 and 10 of two-step retrieval: similarities shortlist, the matching head ranks the shortlist.

As published (arXiv 2205.12005, section 4.2): what is not on a shortlist stands behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RECALLS = (1, 5, 10)


def shortlist(similarities: np.ndarray, length: int) -> np.ndarray:
    """Similarities `[queries, items]` → the `length` most similar items of each query, best first, `[queries, k]`."""
    return np.argsort(-similarities, axis=1, kind="stable")[:, :length]


def ranks(similarities: np.ndarray, scores: np.ndarray, right: Sequence[set[int]]) -> np.ndarray:
    """Rank, from 0, of the best right item of each query, `[queries]`.

    `scores` `[queries, items]` are NaN for what is not on the query's shortlist: that is ranked behind, by similarity.
    Raises ValueError for a query without a right item.
    """
    found = np.empty(len(similarities), int)
    for query, items in enumerate(right):
        if not items:
            raise ValueError(f"query {query} has no right item")
        scored = ~np.isnan(scores[query])
        # lexsort's last key counts most, and it sorts upwards.
        order = np.lexsort((-similarities[query], -np.where(scored, scores[query], 0.0), ~scored))
        found[query] = int(np.isin(order, list(items)).argmax())
    return found


def recalls(found: np.ndarray) -> dict[int, float]:
    """Share of the ranks that are below 1, 5 and 10."""
    return {most: float((found < most).mean()) for most in RECALLS}
