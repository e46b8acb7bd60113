"""One request to one server over gRPC or HTTP, blocking or with asyncio; every failure is a `ClientError`.

tritonclient's four clients differ in how they take timeouts and in what they raise. The differences end here.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import random
import re
import time
import weakref
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Literal

import numpy as np
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from clients.client.calls import ClientError
from clients.client.shared_memory import PATIENCE, PAUSE, SHARED_FROM, Region, Regions, size_of

Protocol = Literal["grpc", "http"]
DEFAULT_URL: dict[Protocol, str] = {"grpc": "localhost:8001", "http": "localhost:8000"}
DEFAULT_TIMEOUT = 60.0  # seconds for one request, its repetitions included

#: A request that found a server too busy or not ready, or no server, is repeated so often. No other is.
RETRIES = {"UNAVAILABLE": 5, "UNREACHABLE": 3}
_FIRST_PAUSE = 0.1  # seconds before the first repetition; doubles each time

_LONGEST_MESSAGE = 500  # characters shown of what a server says
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(\d{1,5})")
_LOOPBACK = ("localhost", "127.", "[::1]")
_MAX_MESSAGE_BYTES = 2**31 - 1

# The gRPC names of what Triton's HTTP front end answers.
_HTTP_STATUS = {
    "400": "INVALID_ARGUMENT",
    "404": "NOT_FOUND",
    "409": "ALREADY_EXISTS",
    "499": "CANCELLED",
    "500": "INTERNAL",
    "501": "UNIMPLEMENTED",
    "503": "UNAVAILABLE",
    "504": "DEADLINE_EXCEEDED",
}
# How gRPC words UNAVAILABLE when it is the connection that failed and not the server that said so.
_NO_CONNECTION = re.compile(r"failed to connect|connection re|resol|dns|socket closed|recvmsg", re.I)


class Endpoint:
    """Where a server is and how it is talked to: what the blocking and the asyncio connection share."""

    def __init__(self, url: str | None, protocol: Protocol, timeout: float, shared_memory: bool = False) -> None:
        if protocol not in DEFAULT_URL:
            raise ClientError(f"protocol is {protocol!r}, it must be one of {', '.join(DEFAULT_URL)}")
        url = DEFAULT_URL[protocol] if url is None else url
        found = _HOST_AND_PORT.fullmatch(url)
        if found is None or not 0 < int(found[2]) < 2**16:
            raise ClientError(f"{url!r} is not HOST:PORT, for example {DEFAULT_URL[protocol]}")
        if not timeout > 0:
            raise ClientError(f"timeout is {timeout} s, it must be positive")
        self.url, self.protocol, self.timeout, self.shared_memory = url, protocol, timeout, shared_memory
        self._is_local = found[1].startswith(_LOOPBACK)

    def __str__(self) -> str:
        return f"{self.url} ({self.protocol})"

    def api(self, suffix: str = "") -> ModuleType:
        """tritonclient's module; imported on use, so that gRPC works without the packages that HTTP needs."""
        return importlib.import_module(f"tritonclient.{self.protocol}{suffix}")

    def channel_arguments(self) -> list[tuple[str, int]]:
        """gRPC channel options; giving any replaces all of tritonclient's, its message sizes among them."""
        return [
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            # gRPC waits 1 s before it looks again for a server it missed: longer than all our repetitions.
            ("grpc.initial_reconnect_backoff_ms", int(_FIRST_PAUSE * 1000)),
            # A proxy from the environment cannot know this machine's own address.
            ("grpc.enable_http_proxy", 0 if self._is_local else 1),
        ]

    def call_options(self, timeout: float) -> dict[str, float]:
        """The time limit of one call, seconds; HTTP clients take theirs once, when they are made."""
        return {"client_timeout": timeout} if self.protocol == "grpc" else {}

    def error(self, error: Exception, model: str, shared: bool = False) -> ClientError:
        """What any of tritonclient's clients raised, as one line and one status. `shared`: memory was."""
        if isinstance(error, InferenceServerException) and error.status() is not None:
            said = " ".join((error.message() or "").split())[:_LONGEST_MESSAGE]
            status = str(error.status()).removeprefix("StatusCode.")
            status = _HTTP_STATUS.get(status, status)
            if shared and "find shared memory region" in said:
                status = "UNAVAILABLE"  # a server that was started again: the next attempt registers a new one
            if status == "INVALID_ARGUMENT":
                return ClientError(said, status)
            if status == "DEADLINE_EXCEEDED":
                return self._late()
            if status == "UNAVAILABLE" and self.protocol == "grpc" and _NO_CONNECTION.search(said):
                return self._away(said)
            return ClientError(f"{model} at {self} answered {status}: {said}", status)
        if isinstance(error, ClientError):
            return error
        if isinstance(error, TimeoutError):
            return self._late()
        return self._away(" ".join(str(error).split())[:_LONGEST_MESSAGE] or type(error).__name__)

    def _away(self, detail: str) -> ClientError:
        return ClientError(
            f"no Triton server answers at {self}: is it running, and is that its {self.protocol} port? ({detail})",
            "UNREACHABLE",
        )

    def not_shared(self, error: Exception) -> ClientError:
        """The server could not map this process's memory."""
        found = self.error(error, "shared memory")
        if found.status in ("UNREACHABLE", "DEADLINE_EXCEEDED", "UNAVAILABLE"):
            return found
        return ClientError(
            f"{self} cannot open this process's shared memory: is it on this host, in containers with --ipc=host? "
            f"ask without shared memory otherwise ({found})",
            "FAILED_PRECONDITION",
        )

    def _late(self) -> ClientError:
        return ClientError(f"no answer from {self} within {self.timeout:g} s", "DEADLINE_EXCEEDED")


def pause_before_retry(error: ClientError, attempt: int, deadline: float) -> float:
    """Seconds to wait after attempt number `attempt` (from 0) failed; raises `error` if it was the last.

    `deadline` is in `time.monotonic()` seconds. Asking a model again is safe: requests change nothing.
    """
    # Spread out, so that clients turned away together do not come back together.
    pause = _FIRST_PAUSE * 2**attempt * random.uniform(0.75, 1.25)
    if attempt >= RETRIES.get(error.status, 0) or time.monotonic() + pause >= deadline:
        raise error
    return pause


class Connection:
    """A blocking connection. For one thread at a time, as tritonclient's HTTP client is."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._api = endpoint.api()
        self._client = self._connect()
        self._regions = Regions()
        # Whoever forgets to close: the server is still told which regions it may forget.
        self._finalizer = weakref.finalize(self, _close, self._client, self._regions)

    def _connect(self) -> Any:
        if self._endpoint.protocol == "grpc":
            options: dict[str, Any] = {"channel_args": self._endpoint.channel_arguments()}
        else:
            options = {"connection_timeout": self._endpoint.timeout, "network_timeout": self._endpoint.timeout}
        return self._api.InferenceServerClient(self._endpoint.url, **options)

    def infer(self, model: str, inputs: Mapping[str, np.ndarray], timeout: float) -> dict[str, np.ndarray]:
        """One attempt, of at most `timeout` seconds."""
        used: list[Region] = []
        try:
            with self._limit(timeout):
                tensors = [
                    _tensor(self._api, name, array, self._region(size, used) if size else None)
                    for name, array, size in _with_shared_sizes(inputs, self._endpoint)
                ]
                outputs = _outputs(self._client.infer(model, tensors, **self._endpoint.call_options(timeout)))
        except Exception as error:  # sockets, gevent and gRPC each raise their own
            for region in used:  # the server may still read it
                self._regions.give_up(region)
            if isinstance(error, TimeoutError):
                self._reconnect()
            raise self._endpoint.error(error, model, shared=bool(used)) from error
        for region in used:
            self._regions.give(region)
        _sweep(self._client, self._regions)
        return outputs

    @contextlib.contextmanager
    def _limit(self, timeout: float) -> Iterator[None]:
        """tritonclient over HTTP limits each read of a socket and not the whole; gRPC has its own limit."""
        if self._endpoint.protocol == "grpc":
            yield
            return
        import gevent  # what its HTTP client is made of

        with gevent.Timeout(timeout, TimeoutError):
            yield

    def _reconnect(self) -> None:
        """An HTTP connection left in the middle of an answer cannot be used again."""
        if self._endpoint.protocol == "http":
            self._finalizer.detach()
            self._client.close()
            self._client = self._connect()
            self._finalizer = weakref.finalize(self, _close, self._client, self._regions)

    def _region(self, size: int, used: list[Region]) -> Region:
        """A region that the server has mapped; noted in `used`."""
        region = self._regions.take(size)
        if region is None:
            region = self._regions.create(size)
            try:
                self._client.register_system_shared_memory(region.name, region.key, region.size)
            except Exception as error:
                self._regions.give_up(region)  # who did not wait for the answer may have it registered
                raise self._endpoint.not_shared(error) from error
            region.unlink()
        used.append(region)
        return region

    def is_ready(self, model: str | None) -> bool:
        options = self._endpoint.call_options(self._endpoint.timeout)
        try:
            if model:
                return self._client.is_model_ready(model, **options)
            return self._client.is_server_ready(**options)
        except Exception:  # whatever kept it from saying so, it is not ready
            return False

    def close(self) -> None:
        self._finalizer()


class AsyncConnection:
    """The same with asyncio. To be made inside a running event loop; any number of requests at once."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._api = endpoint.api()
        if endpoint.protocol == "grpc":
            options: dict[str, Any] = {"channel_args": endpoint.channel_arguments()}
        else:
            options = {"conn_timeout": endpoint.timeout}
        self._client = endpoint.api(".aio").InferenceServerClient(endpoint.url, **options)
        self._regions = Regions()

    async def infer(self, model: str, inputs: Mapping[str, np.ndarray], timeout: float) -> dict[str, np.ndarray]:
        used: list[Region] = []
        answered = False
        try:
            async with asyncio.timeout(timeout):
                tensors = [
                    _tensor(self._api, name, array, await self._region(size, used) if size else None)
                    for name, array, size in _with_shared_sizes(inputs, self._endpoint)
                ]
                options = self._endpoint.call_options(timeout)
                outputs = _outputs(await self._client.infer(model, tensors, **options))
            answered = True
            return outputs
        except Exception as error:
            raise self._endpoint.error(error, model, shared=bool(used)) from error
        finally:  # cancelled, too
            for region in used:
                (self._regions.give if answered else self._regions.give_up)(region)
            if answered:
                await self._sweep()

    async def _region(self, size: int, used: list[Region]) -> Region:
        region = self._regions.take(size)
        if region is None:
            region = self._regions.create(size)
            try:
                await self._client.register_system_shared_memory(region.name, region.key, region.size)
            except BaseException as error:
                self._regions.give_up(region)
                if isinstance(error, Exception):
                    raise self._endpoint.not_shared(error) from error
                raise
            region.unlink()
        used.append(region)
        return region

    async def _sweep(self) -> None:
        leaving = self._regions.leaving
        for name in leaving.copy():
            with contextlib.suppress(Exception):  # it is in use, or the server has gone
                await self._client.unregister_system_shared_memory(name)
                leaving.remove(name)

    async def is_ready(self, model: str | None) -> bool:
        options = self._endpoint.call_options(self._endpoint.timeout)
        try:
            if model:
                return await self._client.is_model_ready(model, **options)
            return await self._client.is_server_ready(**options)
        except Exception:
            return False

    async def close(self) -> None:
        self._regions.give_up_all()
        deadline = time.monotonic() + PATIENCE
        await self._sweep()
        while self._regions.leaving and time.monotonic() < deadline and await self.is_ready(None):
            await asyncio.sleep(PAUSE)
            await self._sweep()
        await self._client.close()


def _sweep(client: Any, regions: Regions) -> None:
    """Tell the server which regions it may forget."""
    for name in regions.leaving.copy():
        with contextlib.suppress(Exception):  # it is in use, or the server has gone
            client.unregister_system_shared_memory(name)
            regions.leaving.remove(name)


def _close(client: Any, regions: Regions) -> None:
    regions.give_up_all()
    deadline = time.monotonic() + PATIENCE
    _sweep(client, regions)
    while regions.leaving and time.monotonic() < deadline and _is_live(client):
        time.sleep(PAUSE)
        _sweep(client, regions)
    client.close()


def _is_live(client: Any) -> bool:
    try:
        return client.is_server_live()
    except Exception:  # whatever kept it from saying so
        return False


def _outputs(result: Any) -> dict[str, np.ndarray]:
    """All output tensors of tritonclient's result, by name."""
    response = result.get_response()
    if isinstance(response, dict):
        names = [output["name"] for output in response.get("outputs", [])]
    else:
        names = [output.name for output in response.outputs]
    return {name: result.as_numpy(name) for name in names}


def _with_shared_sizes(inputs: Mapping[str, np.ndarray], endpoint: Endpoint) -> Iterator[tuple[str, np.ndarray, int]]:
    """(name, tensor, bytes of shared memory that it goes through, 0 for none)."""
    for name, array in inputs.items():
        size = size_of(array) if endpoint.shared_memory else 0
        yield name, array, size if size >= SHARED_FROM else 0


def _tensor(api: ModuleType, name: str, array: np.ndarray, region: Region | None) -> Any:
    tensor = api.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    if region is None:
        tensor.set_data_from_numpy(array)
    else:
        tensor.set_shared_memory(region.name, region.write(array))
    return tensor
