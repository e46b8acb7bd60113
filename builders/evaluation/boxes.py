"""Overlap of boxes, for grounding: right is what overlaps by half (Mao et al. 2016, arXiv 1511.02283)."""

from __future__ import annotations

from builders.data.readers.records import Box

ENOUGH = 0.5


def iou(first: Box, second: Box) -> float:
    """Intersection over union (0…1) of boxes x0, y0, x1, y1; 0 where neither has an area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    union = _area(first) + _area(second) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
