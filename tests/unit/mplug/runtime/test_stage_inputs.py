"""Tensors that are sent straight to an encoding stage."""

from __future__ import annotations

import numpy as np
import pytest

from mplug.contract import ENCODERS
from mplug.errors import InvalidRequest, StageError
from mplug.runtime.stage_inputs import StageInputs, check_finite

SIZES = {"fixed": {"R": 64, "W": 8}, "max_text_length": 6, "vocab_size": 50}


def floats(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.int32)


GOOD = {
    "vision_encoder": {
        "PIXELS": np.zeros((2, 3, 64, 64), np.uint8),
        "PICTURE_BOX": np.array([[0, 0, 64, 64], [0, 9, 64, 55]], np.int32),
        "PIXEL_STATISTICS": np.array([[0], [1]], np.int32),
    },
    "text_encoder": {"INPUT_IDS": ones(2, 6), "ATTENTION_MASK": ones(2, 6)},
    "fusion_encoder": {"IMAGE_STATES": floats(2, 5, 8), "TEXT_STATES": floats(2, 6, 8), "ATTENTION_MASK": ones(2, 6)},
}


@pytest.mark.parametrize("stage", GOOD)
def test_what_is_right_is_taken(stage: str) -> None:
    StageInputs(ENCODERS[stage], **SIZES).check(GOOD[stage])


@pytest.mark.parametrize(
    ("stage", "changes", "complaint"),
    [
        ("vision_encoder", {"PIXELS": np.zeros((2, 3, 32, 64), np.uint8)}, r"PIXELS: .*\[B, 3, 64, 64\]"),
        ("vision_encoder", {"PIXELS": np.zeros((2, 3, 64), np.uint8)}, r"PIXELS: shape \[2, 3, 64\]"),
        ("vision_encoder", {"PIXELS": np.zeros((0, 3, 64, 64), np.uint8)}, r"PIXELS: shape \[0, 3, 64, 64\]"),
        ("vision_encoder", {"PICTURE_BOX": ones(1, 4)}, r"PICTURE_BOX: shape \[1, 4\], but must be \[B, 4\]"),
        *(
            ("vision_encoder", {"PICTURE_BOX": np.array([[0, 0, 64, 64], box], np.int32)}, "PICTURE_BOX: must be left")
            for box in ([-1, 0, 64, 64], [0, 0, 65, 64], [5, 0, 5, 64], [0, 64, 64, 0], [0, 0, 64, 65], [0, -1, 64, 64])
        ),
        ("vision_encoder", {"PIXEL_STATISTICS": 2 * ones(2, 1)}, r"PIXEL_STATISTICS: must be one of 0 \(clip\), 1 \("),
        ("vision_encoder", {"PIXEL_STATISTICS": -ones(2, 1)}, "PIXEL_STATISTICS: must be one of"),
        ("text_encoder", {"INPUT_IDS": ones(1, 7), "ATTENTION_MASK": ones(1, 7)}, "INPUT_IDS: 7 tokens exceed the 6"),
        ("text_encoder", {"ATTENTION_MASK": ones(2, 5)}, r"ATTENTION_MASK: shape \[2, 5\], but must be \[B, 6\]"),
        ("text_encoder", {"INPUT_IDS": 50 * ones(2, 6)}, "INPUT_IDS: ids must be 0…49"),
        ("text_encoder", {"INPUT_IDS": -ones(2, 6)}, "INPUT_IDS: ids must be 0…49"),
        (
            "fusion_encoder",
            {"IMAGE_STATES": floats(2, 5, 9)},
            r"IMAGE_STATES: shape \[2, 5, 9\], but must be \[B, 5, 8\]",
        ),
        ("fusion_encoder", {"TEXT_STATES": floats(1, 6, 8)}, r"TEXT_STATES: shape \[1, 6, 8\]"),
        ("fusion_encoder", {"IMAGE_STATES": floats(2, 5, 8) + np.nan}, "IMAGE_STATES: holds NaN"),
        ("fusion_encoder", {"IMAGE_STATES": floats(2, 5, 8) - 1e20}, r"IMAGE_STATES: magnitude 1e\+20 exceeds .* 1000"),
        ("fusion_encoder", {"TEXT_STATES": floats(2, 6, 8) + np.inf}, "TEXT_STATES: holds NaN or infinite"),
        ("fusion_encoder", {"ATTENTION_MASK": ones(2, 1)}, r"ATTENTION_MASK: shape \[2, 1\]"),
    ],
)
def test_what_is_wrong_is_named(stage: str, changes: dict[str, np.ndarray], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        StageInputs(ENCODERS[stage], **SIZES).check(GOOD[stage] | changes)


def test_outputs_that_are_no_numbers_are_an_error() -> None:
    check_finite("fusion_encoder", {"MATCH_LOGITS": floats(2, 2), "TOKEN_IDS": ones(2, 2)})
    with pytest.raises(StageError, match="fusion_encoder: output MATCH_LOGITS holds NaN"):
        check_finite("fusion_encoder", {"TOKEN_IDS": ones(2, 2), "MATCH_LOGITS": floats(2, 2) + np.nan})
