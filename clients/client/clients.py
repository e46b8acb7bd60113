"""The two clients: the same methods, made from the same functions of `clients.client.calls`."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, get_args, get_type_hints

from . import calls
from .calls import Call
from .connection import DEFAULT_TIMEOUT, AsyncConnection, Connection, Endpoint, Protocol
from .errors import ClientError
from .retries import RetryPolicy

READY_PAUSE = 0.5  # seconds between questions whether a server is ready

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(make: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    """Return the method of `Client` that sends what `make` makes of the same arguments."""

    def method(self: Client, *arguments: P.args, **options: P.kwargs) -> T:
        return self.infer(make(*arguments, **options))

    _describe(method, make, "Client")
    return method


def _awaited(make: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    """Return the method of `AsyncClient` that sends what `make` makes of the same arguments."""

    async def method(self: AsyncClient, *arguments: P.args, **options: P.kwargs) -> T:
        return await self.infer(make(*arguments, **options))

    _describe(method, make, "AsyncClient")
    return method


def _describe(method: Any, make: Callable[..., Call[Any]], owner: str) -> None:
    """Give a method the name, text and signature of its function: `self` in front, the answer in place of the call."""
    method.__name__, method.__doc__ = make.__name__, make.__doc__
    method.__qualname__ = f"{owner}.{make.__name__}"
    (answer,) = get_args(get_type_hints(make)["return"])
    signature = inspect.signature(make)
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [self, *signature.parameters.values()]
    method.__signature__ = signature.replace(parameters=parameters, return_annotation=answer)


class _Settings:
    """What both clients are made from, and how they name the served models."""

    def __init__(
        self,
        url: str | None = None,
        protocol: Protocol = "grpc",
        timeout: float = DEFAULT_TIMEOUT,
        *,
        shared_memory: bool | str | os.PathLike[str] = False,
        checkpoint: str = "",
        retries: int | None = None,
        api_key: str | None = None,
    ) -> None:
        """`url` is HOST:PORT, by default localhost with the protocol's port.

        `timeout`: seconds for one answer, retries included. `shared_memory`: large inputs reach a server on the same
        host through memory that both map; a path names the file with the server's key. `checkpoint`: the name that
        builders/build.py was given for it, in a repository of several (`NAME_caption` is asked in place of
        `caption`). `retries`: how often a request that is safe to send again is sent again; by default up to 5 times.
        `api_key`: what a gateway asks for in the header x-api-key; by default the environment's MPLUG_API_KEY, if set.
        """
        self._endpoint = Endpoint(url, protocol, timeout, shared_memory, api_key)
        self._retries = RetryPolicy(retries)
        self._prefix = f"{checkpoint}_" if checkpoint else ""
        self._answered: set[str] = set()  # models that have answered this client

    def _model(self, name: str) -> str:
        return self._prefix + name

    def _never_ready(self) -> ClientError:
        return ClientError(f"no server is ready at {self._endpoint.url}; `make serve` starts one", "UNREACHABLE")


class Client(_Settings):
    """Asks one server, one request at a time; use one client per thread.

    Images are encoded bytes, paths, or PIL images; an image argument of `caption`, `vqa`, `embed_image` and
    `match` may also be a list of frames. Options left out are the served checkpoint's defaults. Every method raises
    `ClientError`; a request that is safe to send again is retried first.
    """

    _connected: Connection | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connected is not None:
            self._connected.close()
            self._connected = None

    @property
    def _connection(self) -> Connection:
        if self._connected is None:
            self._connected = Connection(self._endpoint)
        return self._connected

    def infer(self, call: Call[T]) -> T:
        """Send any call of `clients.client.calls` and return its answer."""
        model = self._model(call.model)
        deadline = time.monotonic() + self._endpoint.timeout
        attempt = 0
        while True:
            try:
                outputs = self._connection.infer(model, call.inputs, deadline - time.monotonic())
            except ClientError as error:
                vanished = error.status == "NOT_FOUND" and (model in self._answered or not self.is_ready())
                time.sleep(self._retries.pause(error, attempt, deadline, vanished=vanished))
                attempt += 1
            else:
                self._answered.add(model)
                return call.parse(outputs)

    def is_ready(self, model: str | None = None) -> bool:
        """Return whether the server, or one of its models, takes requests now; False where nobody answers."""
        return self._connection.is_ready(self._model(model) if model else None)

    def wait_ready(self, seconds: float, stop: threading.Event | None = None) -> None:
        """Wait until the server takes requests.

        Raises ClientError when it does not within `seconds`, or until `stop` is set, and at once when a gateway refuses
        the API key.
        """
        stop, deadline = stop or threading.Event(), time.monotonic() + seconds
        while not self.is_ready():
            self._connection.check_admitted()
            if time.monotonic() > deadline or stop.wait(READY_PAUSE):
                raise self._never_ready()

    caption = _blocking(calls.caption)
    vqa = _blocking(calls.vqa)
    embed_image = _blocking(calls.embed_image)
    embed_text = _blocking(calls.embed_text)
    match = _blocking(calls.match)
    ground = _blocking(calls.ground)
    nlvr = _blocking(calls.nlvr)
    entail = _blocking(calls.entail)


class AsyncClient(_Settings):
    """`Client` with asyncio: the same methods and arguments, any number of requests at once."""

    _connected: AsyncConnection | None = None

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
        """Send any call of `clients.client.calls` and return its answer."""
        model = self._model(call.model)
        deadline = time.monotonic() + self._endpoint.timeout
        attempt = 0
        while True:
            try:
                outputs = await self._connection.infer(model, call.inputs, deadline - time.monotonic())
            except ClientError as error:
                vanished = error.status == "NOT_FOUND" and (model in self._answered or not await self.is_ready())
                await asyncio.sleep(self._retries.pause(error, attempt, deadline, vanished=vanished))
                attempt += 1
            else:
                self._answered.add(model)
                return call.parse(outputs)

    async def is_ready(self, model: str | None = None) -> bool:
        """Return whether the server, or one of its models, takes requests now; False where nobody answers."""
        return await self._connection.is_ready(self._model(model) if model else None)

    async def wait_ready(self, seconds: float) -> None:
        """Wait until the server takes requests.

        Raises ClientError when it does not within `seconds`, and at once when a gateway refuses the API key.
        """
        deadline = time.monotonic() + seconds
        while not await self.is_ready():
            await self._connection.check_admitted()
            if time.monotonic() > deadline:
                raise self._never_ready()
            await asyncio.sleep(READY_PAUSE)

    caption = _awaited(calls.caption)
    vqa = _awaited(calls.vqa)
    embed_image = _awaited(calls.embed_image)
    embed_text = _awaited(calls.embed_text)
    match = _awaited(calls.match)
    ground = _awaited(calls.ground)
    nlvr = _awaited(calls.nlvr)
    entail = _awaited(calls.entail)
