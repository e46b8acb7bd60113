"""Inputs that several public models share: parsed, checked and turned into arrays for the stages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mplug.config import MPlugConfig
from mplug.contract import MAX_FRAMES, Value
from mplug.errors import InvalidRequest
from mplug.inputs.images import decode_image
from mplug.inputs.pixels import Pixels
from mplug.inputs.text import as_text, clean_caption
from mplug.inputs.tokenizer import Tokenizer
from mplug.inputs.video import decode_video, sample_indices
from mplug.runtime.room import round_up

#: Texts are padded to a multiple of this many tokens, which most questions, captions and expressions stay within.
PADDING_STEP = 16
#: Frames sampled from a video without FRAMES, as published.
DEFAULT_FRAMES = 8


def only(inputs: Mapping[str, Value], name: str) -> bytes:
    """Return the one element of a BYTES input. Raises InvalidRequest naming the input."""
    value = inputs.get(name)
    if not isinstance(value, list) or len(value) != 1:
        raise InvalidRequest(f"{name}: must hold exactly one element")
    return value[0]


def one_text(inputs: Mapping[str, Value], name: str, *, clean: bool = False) -> str:
    """Return the one text of an input, `clean`ed like captions and retrieval texts. Raises InvalidRequest."""
    return _text(only(inputs, name), name, clean)


def many_texts(inputs: Mapping[str, Value], name: str, most: int, *, clean: bool = False) -> dict[str, str]:
    """Return the 1…`most` texts of an input, each by its name in messages: `TEXT[0]` and so on.

    Raises InvalidRequest naming the text that is wrong.
    """
    value = inputs.get(name)
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        found = len(value) if isinstance(value, list) else 0
        raise InvalidRequest(f"{name}: holds {found} texts, but must hold 1 to {most}")
    return {(one := f"{name}[{index}]"): _text(data, one, clean) for index, data in enumerate(value)}


def _text(data: bytes, name: str, clean: bool) -> str:
    text = as_text(data, name)
    if clean:
        text = clean_caption(text)
        if not text:
            raise InvalidRequest(f"{name}: holds no words")
    return text


def check_tokens(name: str, tokens: int, allowed: int) -> None:
    """Raise InvalidRequest for a text without tokens, or with more than the checkpoint reads."""
    if not tokens:
        raise InvalidRequest(f"{name}: holds no words")
    if tokens > allowed:
        raise InvalidRequest(
            f"{name}: {tokens} tokens exceed the {allowed} that the checkpoint reads; send a shorter text"
        )


def padded_length(tokens: int, most: int) -> int:
    """Return how long texts of at most so many tokens are made: a multiple of PADDING_STEP, at most `most`.

    Padding is masked and changes nothing, but it costs time in every stage; few lengths let requests be one batch.
    """
    return min(most, round_up(tokens, PADDING_STEP))


def tokenised(
    tokenizer: Tokenizer, texts: Mapping[str, str], length: int, *, final_sep: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and mask `[B, L]` of texts by their names in messages; L holds the longest, see `padded_length`.

    Raises InvalidRequest for a text of more than `length` tokens.
    """
    counts = {name: len(tokenizer.pieces(text)) for name, text in texts.items()}
    for name, count in counts.items():
        check_tokens(name, count, length - 2)
    padded = padded_length(2 + max(counts.values()), length)
    pairs = [tokenizer.encode(text, padded, final_sep=final_sep) for text in texts.values()]
    return np.stack([ids for ids, _ in pairs]), np.stack([mask for _, mask in pairs])


def visual(inputs: Mapping[str, Value], config: MPlugConfig) -> Pixels:
    """Return the F pictures of IMAGE (one, or several as frames) or VIDEO; F is 1 for one image.

    FRAMES says how many frames are sampled, the checkpoint's `frame_sampling` which ones. Without FRAMES, all IMAGEs
    are used. Raises InvalidRequest.
    """
    frames, size, even = _frames(inputs), config.vision.image_size, config.frame_sampling == "even"
    if "IMAGE" in inputs and "VIDEO" in inputs:
        raise InvalidRequest("VIDEO: is sent beside IMAGE; send one of the two")
    if "VIDEO" in inputs:
        pictures = decode_video(only(inputs, "VIDEO"), frames or DEFAULT_FRAMES, name="VIDEO", even=even)
        return Pixels.of_images(pictures, size)
    if "IMAGE" not in inputs:
        raise InvalidRequest("IMAGE: missing; send an encoded image, or several as frames, or a VIDEO")
    images = inputs["IMAGE"]
    if not isinstance(images, list) or not 1 <= len(images) <= MAX_FRAMES:
        found = len(images) if isinstance(images, list) else 0
        raise InvalidRequest(f"IMAGE: holds {found} elements, but must hold one image or up to {MAX_FRAMES} frames")
    names = ["IMAGE"] if len(images) == 1 else [f"IMAGE[{index}]" for index in range(len(images))]
    chosen = sample_indices(len(images), frames or len(images), even=even)
    return Pixels.of_images([decode_image(images[index], name=names[index]) for index in chosen], size)


def is_video(inputs: Mapping[str, Value]) -> bool:
    """Return whether checked inputs are a video or several frames, not one image."""
    return "VIDEO" in inputs or len(inputs["IMAGE"]) > 1


def _frames(inputs: Mapping[str, Value]) -> int | None:
    if "FRAMES" not in inputs:
        return None
    array = np.asarray(inputs["FRAMES"]).reshape(-1)
    if array.size != 1 or not 1 <= int(array[0]) <= MAX_FRAMES:
        raise InvalidRequest(f"FRAMES: {array.tolist()[:8]} is not one number between 1 and {MAX_FRAMES}")
    return int(array[0])
