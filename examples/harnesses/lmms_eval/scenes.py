"""How lmms-eval asks about the pictures of `examples/`: functions that the tasks beside this file name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2]


def picture(row: dict[str, Any]) -> list[Image.Image]:
    """Return the picture of a row, as lmms-eval wants it: in RGB, in a list."""
    return [Image.open(EXAMPLES / row["picture"]).convert("RGB")]


def question(row: dict[str, Any], _: Any = None) -> str:
    """Return the question, and nothing beside it: mPLUG follows no instructions on how to answer."""
    return row["question"]


def no_question(row: dict[str, Any], _: Any = None) -> str:
    """Return no text: the endpoint describes a picture that comes alone."""
    return ""
