"""Overlap of boxes, for grounding: right is what overlaps by half (Mao et al. 2016, arXiv 1511.02283)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

ENOUGH = 0.5


def iou(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Return the intersection over union (0…1) of boxes `[…, 4]`, corners x0, y0, x1, y1; 0 where none has an area."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(box[..., 2:] - box[..., :2], 0, None).prod(-1) for box in (first, second)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
