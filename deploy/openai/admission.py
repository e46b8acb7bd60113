"""What the endpoint takes on: bounded requests, bytes and questions, and nothing for a client that has gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from deploy.openai.errors import ApiError

T = TypeVar("T")

#: A body of up to so many times the limit is read and thrown away: a client that still sends would miss the refusal.
DISCARDED = 4


@dataclass(frozen=True)
class Limits:
    """Bounds of an endpoint."""

    in_flight: int = 32  # questions at the server at a time: as many as its decode loop runs side by side
    waiting: int = 256  # requests beyond them
    body_bytes: int = 64 << 20
    held_bytes: int = 1 << 30  # of all bodies together
    body_seconds: float = 60.0  # for a body to arrive
    answer_seconds: float = 60.0  # from there to the answer


class Admission:
    """Counts what is being worked on, and refuses what exceeds the limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = 0
        self.held = 0  # bytes of bodies
        self._slots = asyncio.Semaphore(limits.in_flight)

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read a request's body and keep its place until the end of the block.

        Raises ApiError when the endpoint is full, when the body is too large or too slow, and ClientDisconnect.
        """
        if self.requests >= self.limits.in_flight + self.limits.waiting:
            raise _full(f"{self.requests} requests are being answered or waiting")
        self.requests += 1
        held = 0
        try:
            parts = []
            try:
                async with asyncio.timeout(self.limits.body_seconds):
                    await self._check_declared(request)
                    async for chunk in request.stream():
                        held += len(chunk)
                        self.held += len(chunk)
                        self._check_size(held)
                        parts.append(chunk)
            except TimeoutError as error:
                message = f"the body did not arrive within {self.limits.body_seconds:g} s"
                raise ApiError(408, message, code="request_timeout") from error
            yield b"".join(parts)
        finally:
            self.requests -= 1
            self.held -= held

    async def _check_declared(self, request: Request) -> None:
        """Refuse by the declared size, once what most clients send before they look for an answer has arrived."""
        declared = request.headers.get("content-length", "")
        try:
            self._check_size(int(declared) if declared.isdecimal() else 0)
        except ApiError:
            if "expect" not in request.headers and int(declared) <= DISCARDED * self.limits.body_bytes:
                async for _ in request.stream():
                    pass
            raise

    def _check_size(self, size: int) -> None:
        limit = self.limits.body_bytes
        if size > limit:
            message = f"the body exceeds {limit / 2**20:g} MiB: send smaller pictures, or fewer in one request"
            raise ApiError(413, message, code="request_too_large")
        if self.held > self.limits.held_bytes:
            raise _full("the bodies of all requests fill the memory set aside for them")

    async def bounded(self, question: Callable[[], Awaitable[T]]) -> T:
        """Put one question to the server as soon as there is a slot for it."""
        async with self._slots:
            return await question()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """Await `work` for at most `seconds`, and cancel it when the client goes: it is cancelled in the server, too.

    Raises ClientDisconnect, ApiError when it takes too long, and whatever `work` raises.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise ApiError(504, f"no answer within {seconds:g} s; try again later", code="timeout")
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _full(reason: str) -> ApiError:
    return ApiError(503, f"the endpoint is full: {reason}; try again later", code="overloaded")
