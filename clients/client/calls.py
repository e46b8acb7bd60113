"""What each public model is asked, and how its answer reads: one function and one answer class per model.

Knows tensors, not transports: a `Call` made here is sent by either client over either protocol. Names, types
and shapes are those of the served models' contract; shapes have no batch dimension.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypedDict, TypeVar

import numpy as np
from PIL import Image, ImageOps

T = TypeVar("T")
Tensors = Mapping[str, np.ndarray]

#: An encoded picture, a path to one, or a picture in memory (sent as PNG, so without loss).
ImageLike = bytes | str | os.PathLike[str] | Image.Image
#: An encoded video or a path to one.
VideoLike = bytes | str | os.PathLike[str]

#: A larger file is not even read: the server takes at most so much of a video, and half of it of a picture.
MAX_FILE_BYTES = 64 << 20

#: What the probabilities of `entail` stand for, in their order.
ENTAILMENT_LABELS = ("contradiction", "neutral", "entailment")

# What PNG can store; other modes are sent as RGB.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


class ClientError(Exception):
    """A request that got no result. The message is one line, fit to be shown as it is.

    `status`: INVALID_ARGUMENT (the request is wrong), NOT_FOUND (no such model), UNAVAILABLE (not ready or
    too busy), DEADLINE_EXCEEDED (timeout), INTERNAL and the other gRPC code names, the same over HTTP;
    and of our own UNREACHABLE (no server answers there) and UNREADABLE (a local file).
    """

    def __init__(self, message: str, status: str = "INVALID_ARGUMENT") -> None:
        super().__init__(" ".join(message.split()))
        self.status = status


class SearchOptions(TypedDict, total=False):
    """Options of a generating model; what is absent or None is left to the server."""

    num_beams: int | None
    min_length: int | None  # tokens
    max_length: int | None  # tokens
    num_return: int | None  # answers, at most num_beams
    length_penalty: float | None


# --------------------------------------------------------------------------------------------- answers


@dataclass(frozen=True)
class Caption:
    text: str
    score: float  # log-probability over the length penalty; the higher the better
    token_ids: list[int]  # from [CLS], padding removed


@dataclass(frozen=True)
class Answer:
    text: str
    score: float
    token_ids: list[int]


@dataclass(frozen=True)
class Match:
    score: float  # logit of "this text fits this image"
    similarity: float  # cosine of the two embeddings


@dataclass(frozen=True)
class Grounding:
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the image as shown upright
    token_ids: list[int]


@dataclass(frozen=True)
class Verdict:
    label: str  # "true" or "false"
    probability: float


@dataclass(frozen=True)
class Entailment:
    label: str  # of ENTAILMENT_LABELS
    probabilities: tuple[float, ...]  # of each of them


# ----------------------------------------------------------------------------------------------- calls


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request: the model, its input tensors, and how to read the output tensors."""

    model: str
    inputs: dict[str, np.ndarray]
    read: Callable[[Tensors], T]

    def parse(self, outputs: Tensors) -> T:
        """The typed answer; `ClientError` for tensors that are not what the contract promises."""
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
    """Describe a picture, several frames, or a video."""
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
    """Answer a question freely, or rank the given answers.

    `ocr` and `objects`: words read in the picture and labels of things in it, which ride behind the question.
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
    """The image's embedding, float32 [E], of length 1."""
    return Call("embed_image", _visual(image, video, frames), lambda outputs: outputs["FEATURE"])


def embed_text(text: str) -> Call[np.ndarray]:
    """The text's embedding, float32 [E], of length 1."""
    return Call("embed_text", {"TEXT": _texts([text], "text")}, lambda outputs: outputs["FEATURE"])


def match(image: ImageLike, texts: Sequence[str]) -> Call[list[Match]]:
    """How well each text fits the image, in the order of `texts`."""
    inputs = {"IMAGE": _images([image]), "TEXT": _texts(texts, "texts")}

    def read(outputs: Tensors) -> list[Match]:
        pairs = zip(outputs["SCORE"].tolist(), outputs["SIMILARITY"].tolist(), strict=True)
        return [Match(*pair) for pair in pairs]

    return Call("match", inputs, read)


def ground(image: ImageLike, expression: str) -> Call[Grounding]:
    """Where in the image the thing is that the expression describes."""
    inputs = {"IMAGE": _images([image]), "EXPRESSION": _texts([expression], "expression")}

    def read(outputs: Tensors) -> Grounding:
        x0, y0, x1, y1 = outputs["BOX"].tolist()
        return Grounding((x0, y0, x1, y1), outputs["BOX_TOKENS"].tolist())

    return Call("ground", inputs, read)


def nlvr(images: tuple[ImageLike, ImageLike], statement: str) -> Call[Verdict]:
    """Whether the statement is true of the two images."""
    if isinstance(images, (bytes, str, os.PathLike, Image.Image)) or len(images) != 2:
        raise ClientError("nlvr takes two images")
    inputs = {"IMAGE": _images(images), "STATEMENT": _texts([statement], "statement")}
    return Call(
        "nlvr",
        inputs,
        lambda outputs: Verdict(_strings(outputs["LABEL"])[0], float(outputs["PROBABILITY"][0])),
    )


def entail(image: ImageLike, hypothesis: str) -> Call[Entailment]:
    """Whether the image entails the hypothesis, contradicts it, or neither."""
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
        inputs["VIDEO"] = _bytes([video if isinstance(video, bytes) else _read_file(video)])
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
    if not isinstance(image, Image.Image):
        return _read_file(image)
    upright = ImageOps.exif_transpose(image)  # PNG would not carry the EXIF orientation along
    if upright.mode not in _PNG_MODES:
        upright = upright.convert("RGB")
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ClientError(f"{os.fspath(path)} cannot be read: {reason}", "UNREADABLE") from error
    if len(data) > MAX_FILE_BYTES:
        limit = f"{MAX_FILE_BYTES >> 20} MiB, which is more than the server takes"
        raise ClientError(f"{os.fspath(path)} cannot be read: it has more than {limit}", "UNREADABLE")
    return data


# ------------------------------------------------------------------------------------ tensors → answers


def _generated(outputs: Tensors, text_name: str) -> list[tuple[str, float, list[int]]]:
    """(text, score, token ids) per hypothesis, best first."""
    texts, scores = _strings(outputs[text_name]), outputs["SCORE"].tolist()
    ids = [np.trim_zeros(row, "b").tolist() for row in outputs["TOKEN_IDS"]]
    return list(zip(texts, scores, ids, strict=True))


def _strings(tensor: np.ndarray) -> list[str]:
    # HTTP answers without binary data carry str instead of bytes.
    return [item if isinstance(item, str) else item.decode("utf-8") for item in tensor.tolist()]
