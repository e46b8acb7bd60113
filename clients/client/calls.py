"""What each public model is asked, and how its answer is read: one function per model, the methods of both clients.

A `Call` made here is sent by either client over either protocol. Names, types and shapes are those of the served
models' contract; shapes have no batch dimension.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from .answers import Answer, Caption, Entailment, Grounding, Match, Verdict
from .errors import ClientError
from .images import as_png, read_file

T = TypeVar("T")
Tensors = Mapping[str, np.ndarray]

#: An encoded picture, a path to one, or a picture in memory (sent as PNG, so without loss).
ImageLike = bytes | str | os.PathLike[str] | Image.Image
#: An encoded video or a path to one.
VideoLike = bytes | str | os.PathLike[str]


# ----------------------------------------------------------------------------------------------- calls


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request: the model, its input tensors, and how to read the output tensors."""

    model: str
    inputs: dict[str, np.ndarray]
    read: Callable[[Tensors], T]

    def parse(self, outputs: Tensors) -> T:
        """Return the typed answer. Raises ClientError for tensors that are not what the contract promises."""
        try:
            return self.read(outputs)
        except KeyError as error:
            raise ClientError(f"the answer of {self.model} has no {error.args[0]}", "INTERNAL") from error
        except (ValueError, IndexError, TypeError) as error:
            raise ClientError(f"the answer of {self.model} cannot be read: {error}", "INTERNAL") from error


def caption(
    image: ImageLike | Sequence[ImageLike] | None = None,
    prompt: str | None = None,
    *,
    video: VideoLike | None = None,
    frames: int | None = None,
    num_beams: int | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    num_return: int | None = None,
    length_penalty: float | None = None,
) -> Call[list[Caption]]:
    """Return captions of a picture, of several frames, or of a video, best first, each beginning with `prompt`.

    `frames`: how many to sample from a video. Search options left out are the served checkpoint's defaults:
    `num_beams`, `min_length` and `max_length` in tokens, `num_return` captions (at most `num_beams`),
    `length_penalty`.
    """
    inputs = _visual(image, video, frames) | _search(num_beams, min_length, max_length, num_return, length_penalty)
    if prompt is not None:
        inputs["PROMPT"] = _texts([prompt], "prompt")
    return Call("caption", inputs, lambda outputs: [Caption(*each) for each in _generated(outputs, "CAPTION")])


def vqa(
    image: ImageLike | Sequence[ImageLike] | None = None,
    question: str = "",
    candidates: Sequence[str] | None = None,
    *,
    ocr: Sequence[str] | None = None,
    objects: Sequence[str] | None = None,
    video: VideoLike | None = None,
    frames: int | None = None,
    num_beams: int | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    num_return: int | None = None,
    length_penalty: float | None = None,
) -> Call[list[Answer]]:
    """Return answers to a question, best first: written freely, or the `candidates` ranked.

    `ocr` and `objects`: words read in the picture and labels of things in it, appended to the question. The rest as
    for `caption`.
    """
    inputs = _visual(image, video, frames) | _search(num_beams, min_length, max_length, num_return, length_penalty)
    inputs["QUESTION"] = _texts([question], "question")
    for name, texts in (("candidates", candidates), ("ocr", ocr), ("objects", objects)):
        if texts is not None:
            inputs[name.upper()] = _texts(texts, name)
    return Call("vqa", inputs, lambda outputs: [Answer(*each) for each in _generated(outputs, "ANSWER")])


def embed_image(
    image: ImageLike | Sequence[ImageLike] | None = None,
    *,
    video: VideoLike | None = None,
    frames: int | None = None,
) -> Call[np.ndarray]:
    """Return the embedding of an image or a video, float32 [E], of length 1; compare by dot product."""
    return Call("embed_image", _visual(image, video, frames), lambda outputs: outputs["FEATURE"])


def embed_text(text: str) -> Call[np.ndarray]:
    """Return the embedding of a text, float32 [E], of length 1; compare by dot product."""
    return Call("embed_text", {"TEXT": _texts([text], "text")}, lambda outputs: outputs["FEATURE"])


def match(
    image: ImageLike | Sequence[ImageLike] | None = None,
    texts: Sequence[str] = (),
    *,
    video: VideoLike | None = None,
    frames: int | None = None,
) -> Call[list[Match]]:
    """Return how well each text fits an image, several frames or a video, in the order of `texts`."""
    inputs = _visual(image, video, frames) | {"TEXT": _texts(texts, "texts")}

    def read(outputs: Tensors) -> list[Match]:
        pairs = zip(outputs["SCORE"].tolist(), outputs["SIMILARITY"].tolist(), strict=True)
        return [Match(*pair) for pair in pairs]

    return Call("match", inputs, read)


def ground(image: ImageLike, expression: str) -> Call[Grounding]:
    """Return the box of what the expression describes, in pixels of the image as shown upright."""
    inputs = {"IMAGE": _images([image]), "EXPRESSION": _texts([expression], "expression")}

    def read(outputs: Tensors) -> Grounding:
        x0, y0, x1, y1 = outputs["BOX"].tolist()
        return Grounding((x0, y0, x1, y1), outputs["BOX_TOKENS"].tolist())

    return Call("ground", inputs, read)


def nlvr(images: tuple[ImageLike, ImageLike], statement: str) -> Call[Verdict]:
    """Return whether the statement is true of the two images."""
    if isinstance(images, (bytes, str, os.PathLike, Image.Image)) or len(images) != 2:
        raise ClientError("nlvr takes two images")
    inputs = {"IMAGE": _images(images), "STATEMENT": _texts([statement], "statement")}
    return Call(
        "nlvr",
        inputs,
        lambda outputs: Verdict(_strings(outputs["LABEL"])[0], float(outputs["PROBABILITY"][0])),
    )


def entail(image: ImageLike, hypothesis: str) -> Call[Entailment]:
    """Return whether the image entails the hypothesis, contradicts it, or neither."""
    inputs = {"IMAGE": _images([image]), "HYPOTHESIS": _texts([hypothesis], "hypothesis")}
    return Call(
        "entail",
        inputs,
        lambda outputs: Entailment(_strings(outputs["LABEL"])[0], tuple(outputs["PROBABILITY"].tolist())),
    )


# ---------------------------------------------------------------------------------- arguments → tensors


def _visual(
    image: ImageLike | Sequence[ImageLike] | None, video: VideoLike | None, frames: int | None
) -> dict[str, np.ndarray]:
    if (image is None) == (video is None):
        raise ClientError("give either an image (or several, as frames) or a video")
    inputs: dict[str, np.ndarray] = {}
    if video is not None:
        inputs["VIDEO"] = _bytes([video if isinstance(video, bytes) else read_file(video)])
    elif isinstance(image, (bytes, str, os.PathLike, Image.Image)):
        inputs["IMAGE"] = _images([image])
    else:
        inputs["IMAGE"] = _images(image)
    if frames is not None:
        inputs["FRAMES"] = _integer(frames, "frames")
    return inputs


def _search(
    num_beams: int | None,
    min_length: int | None,
    max_length: int | None,
    num_return: int | None,
    length_penalty: float | None,
) -> dict[str, np.ndarray]:
    integers = {
        "num_beams": num_beams,
        "min_length": min_length,
        "max_length": max_length,
        "num_return": num_return,
    }
    inputs = {name.upper(): _integer(value, name) for name, value in integers.items() if value is not None}
    if length_penalty is not None:
        inputs["LENGTH_PENALTY"] = np.array([length_penalty], dtype=np.float32)
    return inputs


def _integer(value: int, name: str) -> np.ndarray:
    if not -(2**31) <= value < 2**31:
        raise ClientError(f"{name} is {value}, which does not fit 32 bits")
    return np.array([value], dtype=np.int32)


def _texts(texts: Sequence[str], name: str) -> np.ndarray:
    if isinstance(texts, str):
        raise ClientError(f"{name} takes a list of texts, not one text")
    try:
        return _bytes([text.encode("utf-8") for text in texts])
    except UnicodeEncodeError as error:  # undecodable command-line arguments arrive as lone surrogates
        raise ClientError(f"{name} is not valid text: {error.reason}") from error


def _images(images: Sequence[ImageLike]) -> np.ndarray:
    return _bytes([_encoded(image) for image in images])


def _bytes(elements: list[bytes]) -> np.ndarray:
    """BYTES tensor; object elements, since NumPy's own byte strings drop trailing zeros."""
    tensor = np.empty(len(elements), dtype=np.object_)
    tensor[:] = elements
    return tensor


def _encoded(image: ImageLike) -> bytes:
    if isinstance(image, bytes):
        return image
    return as_png(image) if isinstance(image, Image.Image) else read_file(image)


# ------------------------------------------------------------------------------------ tensors → answers


def _generated(outputs: Tensors, text_name: str) -> list[tuple[str, float, list[int]]]:
    """Return (text, score, token ids) per hypothesis, best first."""
    texts, scores = _strings(outputs[text_name]), outputs["SCORE"].tolist()
    ids = [np.trim_zeros(row, "b").tolist() for row in outputs["TOKEN_IDS"]]
    return list(zip(texts, scores, ids, strict=True))


def _strings(tensor: np.ndarray) -> list[str]:
    # HTTP answers without binary data carry str instead of bytes.
    return [item if isinstance(item, str) else item.decode("utf-8") for item in tensor.tolist()]
