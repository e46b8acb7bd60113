"""`/v1/embeddings`: texts and pictures in one space; their dot product is the similarity."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clients.client import AsyncClient, ClientError
from deploy.openai.errors import ApiError, of_client
from deploy.openai.media import decoded
from deploy.openai.schema import EmbeddingRequest, ImagePart, VideoPart

Bounded = Callable[[Callable[[], Awaitable[np.ndarray]]], Awaitable[np.ndarray]]


@dataclass(frozen=True)
class Item:
    """A text, a picture or a video to embed."""

    kind: str  # text, image or video
    value: str | bytes


def read(request: EmbeddingRequest) -> list[Item]:
    """Return what is to be embedded. Raises ApiError."""
    items = []
    for index, part in enumerate(request.input):
        place = f"input[{index}]"
        if isinstance(part, ImagePart):
            items.append(Item("image", decoded(part.image_url.url, "image", place)))
        elif isinstance(part, VideoPart):
            items.append(Item("video", decoded(part.video_url.url, "video", place)))
        else:
            items.append(Item("text", part.text))
    return items


async def embed(items: Sequence[Item], client: AsyncClient, bounded: Bounded) -> np.ndarray:
    """Return vectors of length 1, float32 `[items, E]`. Raises ApiError or ClientError for the first that fails."""

    async def one(item: Item, place: str) -> np.ndarray:
        try:
            return await asked(item)
        except ClientError as error:
            if error.status == "INVALID_ARGUMENT":
                raise of_client(error, place) from error
            raise

    async def asked(item: Item) -> np.ndarray:
        if item.kind == "text":
            return await bounded(lambda: client.embed_text(item.value))
        if item.kind == "image":
            return await bounded(lambda: client.embed_image(item.value))
        return await bounded(lambda: client.embed_image(video=item.value))

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item, f"input[{index}]")) for index, item in enumerate(items)]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return np.stack([task.result() for task in tasks])


def document(request: EmbeddingRequest, features: np.ndarray) -> dict[str, Any]:
    """Return the list of embeddings. Raises ApiError for a number of dimensions that they do not have."""
    size = features.shape[1]
    if request.dimensions not in (None, size):
        message = f"dimensions: {request.dimensions}, but these embeddings have {size} and are not shortened"
        raise ApiError(400, message, param="dimensions", code="invalid_value")

    def shown(vector: np.ndarray) -> str | list[float]:
        if request.encoding_format == "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return vector.tolist()

    return {
        "object": "list",
        "model": request.model,
        "data": [{"object": "embedding", "index": i, "embedding": shown(each)} for i, each in enumerate(features)],
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }
