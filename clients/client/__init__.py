"""A small importable client for a served mPLUG.

    from clients.client import Client

    with Client("localhost:8001") as client:
        print(client.caption("examples/photo.jpg")[0].text)

`AsyncClient` has the same methods, to be awaited. Both speak gRPC or HTTP and raise `ClientError`, one clear
line, for anything that goes wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TypeVar, Unpack

import numpy as np

from clients.client import calls
from clients.client.calls import (
    ENTAILMENT_LABELS,
    Answer,
    Call,
    Caption,
    ClientError,
    Entailment,
    Grounding,
    ImageLike,
    Match,
    SearchOptions,
    Verdict,
    VideoLike,
)
from clients.client.connection import (
    DEFAULT_TIMEOUT,
    DEFAULT_URL,
    AsyncConnection,
    Connection,
    Endpoint,
    Protocol,
    pause_before_retry,
)

__all__ = [
    "DEFAULT_TIMEOUT",
    "DEFAULT_URL",
    "ENTAILMENT_LABELS",
    "Answer",
    "AsyncClient",
    "Caption",
    "Client",
    "ClientError",
    "Entailment",
    "Grounding",
    "Match",
    "Verdict",
]

T = TypeVar("T")


class Client:
    """Asks one server, one request at a time; use one client per thread.

    Images are encoded bytes, paths, or PIL images; an image argument of `caption`, `vqa` and `embed_image`
    may also be a list of frames. Options left out are the served checkpoint's defaults. Every method raises
    `ClientError`; a request that found no server, or one too busy or not ready, is repeated a few times first.
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: Protocol = "grpc",
        timeout: float = DEFAULT_TIMEOUT,
        *,
        shared_memory: bool = False,
        checkpoint: str = "",
    ) -> None:
        """`url` is HOST:PORT, by default localhost with the protocol's port.

        `timeout`: seconds for one answer, repetitions included. `shared_memory`: large inputs reach a server on
        the same host through memory that both map. `checkpoint`: the name that builders/build.py was given for
        it, in a repository of several (`NAME_caption` is asked in place of `caption`).
        """
        self._endpoint = Endpoint(url, protocol, timeout, shared_memory)
        self._connection = Connection(self._endpoint)
        self._prefix = f"{checkpoint}_" if checkpoint else ""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def infer(self, call: Call[T]) -> T:
        """Sends any call of `clients.client.calls` and reads its answer."""
        model = self._prefix + call.model
        deadline = time.monotonic() + self._endpoint.timeout
        attempt = 0
        while True:
            try:
                outputs = self._connection.infer(model, call.inputs, deadline - time.monotonic())
            except ClientError as error:
                time.sleep(pause_before_retry(error, attempt, deadline))
                attempt += 1
            else:
                return call.parse(outputs)

    def is_ready(self, model: str | None = None) -> bool:
        """Whether the server, or one of its models, takes requests now; False where nobody answers."""
        return self._connection.is_ready(self._prefix + model if model else None)

    def caption(
        self,
        image: ImageLike | Sequence[ImageLike] | None = None,
        prompt: str | None = None,
        *,
        video: VideoLike | None = None,
        frames: int | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[Caption]:
        """Captions, best first, each beginning with `prompt` where one is given.

        `frames`: how many to sample from a video.
        """
        return self.infer(calls.caption(image, prompt, video=video, frames=frames, **options))

    def vqa(
        self,
        image: ImageLike | Sequence[ImageLike] | None = None,
        question: str = "",
        candidates: Sequence[str] | None = None,
        *,
        ocr: Sequence[str] | None = None,
        objects: Sequence[str] | None = None,
        video: VideoLike | None = None,
        frames: int | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[Answer]:
        """Answers, best first: written freely, or the `candidates` ranked.

        `ocr` and `objects`: words read in the picture and labels of things in it, which ride behind the question.
        """
        call = calls.vqa(image, question, candidates, ocr=ocr, objects=objects, video=video, frames=frames, **options)
        return self.infer(call)

    def embed_image(
        self,
        image: ImageLike | Sequence[ImageLike] | None = None,
        *,
        video: VideoLike | None = None,
        frames: int | None = None,
    ) -> np.ndarray:
        """Embedding for retrieval, float32 [E]; compare by dot product."""
        return self.infer(calls.embed_image(image, video=video, frames=frames))

    def embed_text(self, text: str) -> np.ndarray:
        """Embedding for retrieval, float32 [E]; compare by dot product."""
        return self.infer(calls.embed_text(text))

    def match(self, image: ImageLike, texts: Sequence[str]) -> list[Match]:
        """How well each text fits the image, in the order of `texts`."""
        return self.infer(calls.match(image, texts))

    def ground(self, image: ImageLike, expression: str) -> Grounding:
        """The box of what the expression describes, in pixels of the image as shown upright."""
        return self.infer(calls.ground(image, expression))

    def nlvr(self, images: tuple[ImageLike, ImageLike], statement: str) -> Verdict:
        """Whether the statement is true of the two images."""
        return self.infer(calls.nlvr(images, statement))

    def entail(self, image: ImageLike, hypothesis: str) -> Entailment:
        """Whether the image entails the hypothesis, contradicts it, or neither."""
        return self.infer(calls.entail(image, hypothesis))


class AsyncClient:
    """`Client` with asyncio: the same methods and arguments, any number of requests at once."""

    def __init__(
        self,
        url: str | None = None,
        protocol: Protocol = "grpc",
        timeout: float = DEFAULT_TIMEOUT,
        *,
        shared_memory: bool = False,
        checkpoint: str = "",
    ) -> None:
        self._endpoint = Endpoint(url, protocol, timeout, shared_memory)
        self._connected: AsyncConnection | None = None
        self._prefix = f"{checkpoint}_" if checkpoint else ""

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._connected is not None:
            await self._connected.close()
            self._connected = None

    @property
    def _connection(self) -> AsyncConnection:
        # Made on first use: it belongs to the event loop that then runs.
        if self._connected is None:
            self._connected = AsyncConnection(self._endpoint)
        return self._connected

    async def infer(self, call: Call[T]) -> T:
        model = self._prefix + call.model
        deadline = time.monotonic() + self._endpoint.timeout
        attempt = 0
        while True:
            try:
                outputs = await self._connection.infer(model, call.inputs, deadline - time.monotonic())
            except ClientError as error:
                await asyncio.sleep(pause_before_retry(error, attempt, deadline))
                attempt += 1
            else:
                return call.parse(outputs)

    async def is_ready(self, model: str | None = None) -> bool:
        return await self._connection.is_ready(self._prefix + model if model else None)

    async def caption(
        self,
        image: ImageLike | Sequence[ImageLike] | None = None,
        prompt: str | None = None,
        *,
        video: VideoLike | None = None,
        frames: int | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[Caption]:
        return await self.infer(calls.caption(image, prompt, video=video, frames=frames, **options))

    async def vqa(
        self,
        image: ImageLike | Sequence[ImageLike] | None = None,
        question: str = "",
        candidates: Sequence[str] | None = None,
        *,
        ocr: Sequence[str] | None = None,
        objects: Sequence[str] | None = None,
        video: VideoLike | None = None,
        frames: int | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[Answer]:
        call = calls.vqa(image, question, candidates, ocr=ocr, objects=objects, video=video, frames=frames, **options)
        return await self.infer(call)

    async def embed_image(
        self,
        image: ImageLike | Sequence[ImageLike] | None = None,
        *,
        video: VideoLike | None = None,
        frames: int | None = None,
    ) -> np.ndarray:
        return await self.infer(calls.embed_image(image, video=video, frames=frames))

    async def embed_text(self, text: str) -> np.ndarray:
        return await self.infer(calls.embed_text(text))

    async def match(self, image: ImageLike, texts: Sequence[str]) -> list[Match]:
        return await self.infer(calls.match(image, texts))

    async def ground(self, image: ImageLike, expression: str) -> Grounding:
        return await self.infer(calls.ground(image, expression))

    async def nlvr(self, images: tuple[ImageLike, ImageLike], statement: str) -> Verdict:
        return await self.infer(calls.nlvr(images, statement))

    async def entail(self, image: ImageLike, hypothesis: str) -> Entailment:
        return await self.infer(calls.entail(image, hypothesis))
