"""The golden cases: small random checkpoints in published layouts, and what the published code makes of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mplug.inputs.images import decode_image
from mplug.inputs.pixels import Pixels

DATA = Path(__file__).parent / "data"
#: Relative to the largest magnitude of the reference tensor.
TOLERANCE = 1e-4
SCORE_TOLERANCE = 1e-3


@cache
def tensors(case: str) -> dict[str, np.ndarray]:
    """The arrays of a case by name."""
    with np.load(DATA / case / "tensors.npz") as archive:
        return {name: archive[name] for name in archive.files}


@cache
def vision_inputs(case: str) -> dict[str, np.ndarray]:
    """The pictures of a case as the stage `vision_encoder` takes them; their `pixel_values`, as bytes."""
    reference = tensors(case)["pixel_values"]
    stem = "frame" if case == "video" else "image"
    pictures = [decode_image((DATA / case / f"{stem}{index}.png").read_bytes()) for index in range(len(reference))]
    pixels = Pixels.of_images(pictures, reference.shape[-1])
    np.testing.assert_array_equal(pixels.normalised(), reference)
    return pixels.inputs()


@cache
def expected(case: str) -> dict[str, Any]:
    """The JSON answers of a case."""
    return json.loads((DATA / case / "expected.json").read_text())


def assert_close(actual: Any, reference: np.ndarray, name: str = "") -> None:
    """Assert agreement to TOLERANCE, relative per tensor."""
    actual = np.asarray(actual)
    assert actual.shape == reference.shape, f"{name}: {actual.shape} is not {reference.shape}"
    error = np.abs(actual - reference).max() / np.abs(reference).max()
    assert error < TOLERANCE, f"{name}: relative error {error:.2e}"


def assert_same_hypotheses(
    actual: list[tuple[list[int], float]], reference: list[dict[str, Any]], name: str = ""
) -> None:
    """Assert that an n-best list has the reference's token ids in its order, and its scores."""
    assert [ids for ids, _ in actual] == [entry["ids"] for entry in reference], name
    for (_, score), entry in zip(actual, reference, strict=True):
        assert abs(score - entry["score"]) < SCORE_TOLERANCE, f"{name}: {score} is not {entry['score']}"
