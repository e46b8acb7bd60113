"""One request to one server over gRPC or HTTP, blocking or with asyncio; every failure is a `ClientError`.

tritonclient's four clients differ in how they take timeouts and in what they raise. The differences end here.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import time
import weakref
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Literal

import numpy as np
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from . import shared_memory_key
from .api_key import API_KEY_VARIABLE, api_key_headers
from .errors import ClientError
from .retries import FIRST_PAUSE
from .shared_memory import PATIENCE, PAUSE, SHARED_FROM, Region, Regions, size_of
from .tracing import trace_headers

Protocol = Literal["grpc", "http"]
#: Whether large inputs go through shared memory, or the file with the server's key to it.
SharedMemory = bool | str | os.PathLike[str]
DEFAULT_URL: dict[Protocol, str] = {"grpc": "localhost:8001", "http": "localhost:8000"}
DEFAULT_TIMEOUT = 60.0  # seconds for one request, its retries included

_LONGEST_MESSAGE = 500  # characters shown of what a server says
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(\d{1,5})")
_LOOPBACK = ("localhost", "127.", "[::1]")
_MAX_MESSAGE_BYTES = 2**31 - 1
_RESTRICTED = "is restricted, expecting header"  # what Triton says of an API that wants a key

# The gRPC names of what Triton's HTTP front end, or a gateway before it, answers.
_HTTP_STATUS = {
    "400": "INVALID_ARGUMENT",
    "401": "UNAUTHENTICATED",
    "403": "PERMISSION_DENIED",
    "404": "NOT_FOUND",
    "409": "ALREADY_EXISTS",
    "413": "INVALID_ARGUMENT",
    "429": "UNAVAILABLE",
    "499": "CANCELLED",
    "500": "INTERNAL",
    "501": "UNIMPLEMENTED",
    "502": "UNAVAILABLE",
    "503": "UNAVAILABLE",
    "504": "DEADLINE_EXCEEDED",
}
# How gRPC words UNAVAILABLE when it is the connection that failed and not the server that said so.
_NO_CONNECTION = re.compile(r"failed to connect|connection re|resol|dns|socket closed|recvmsg", re.I)


class Endpoint:
    """Where a server is and how it is reached: what the blocking and the asyncio connection share."""

    def __init__(
        self,
        url: str | None,
        protocol: Protocol,
        timeout: float,
        shared_memory: SharedMemory = False,
        api_key: str | None = None,
    ) -> None:
        if protocol not in DEFAULT_URL:
            raise ClientError(f"protocol is {protocol!r}, it must be one of {', '.join(DEFAULT_URL)}")
        url = DEFAULT_URL[protocol] if url is None else url
        found = _HOST_AND_PORT.fullmatch(url)
        if found is None or not 0 < int(found[2]) < 2**16:
            raise ClientError(f"{url!r} is not HOST:PORT, for example {DEFAULT_URL[protocol]}")
        if not timeout > 0:
            raise ClientError(f"timeout is {timeout} s, it must be positive")
        self.url, self.protocol, self.timeout = url, protocol, timeout
        self.shared_memory = bool(shared_memory)
        self._key_headers = api_key_headers(api_key)
        self._is_local = found[1].startswith(_LOOPBACK)
        self._port, self._key_file = int(found[2]), None if isinstance(shared_memory, bool) else shared_memory

    def __str__(self) -> str:
        return f"{self.url} ({self.protocol})"

    def api(self, suffix: str = "") -> ModuleType:
        """Return tritonclient's module; imported on use, so that gRPC works without the packages that HTTP needs."""
        return importlib.import_module(f"tritonclient.{self.protocol}{suffix}")

    def channel_arguments(self) -> list[tuple[str, int]]:
        """Return gRPC channel options; they replace all of tritonclient's, its message sizes among them."""
        return [
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            # gRPC waits 1 s before it looks again for a server it missed: longer than all our retries.
            ("grpc.initial_reconnect_backoff_ms", int(FIRST_PAUSE * 1000)),
            # A proxy from the environment cannot know this machine's own address.
            ("grpc.enable_http_proxy", 0 if self._is_local else 1),
        ]

    def call_options(self, timeout: float) -> dict[str, Any]:
        """Return the options of one call: the API key, and its time limit in seconds.

        HTTP clients take their time limit once, when they are made.
        """
        limit = {"client_timeout": timeout} if self.protocol == "grpc" else {}
        return {**limit, "headers": self._key_headers or None}

    def infer_options(self, timeout: float) -> dict[str, Any]:
        """Return the options of one inference: those of every call, and the headers of the trace that it belongs to."""
        return {**self.call_options(timeout), "headers": {**self._key_headers, **(trace_headers() or {})} or None}

    def shared_memory_headers(self) -> dict[str, str]:
        """Return what opens the server's shared-memory API; read anew each time, since a restarted server has another.

        Raises ClientError when the key file cannot be used.
        """
        return shared_memory_key.headers(self.protocol, self._port, self._key_file)

    def error(self, error: Exception, model: str, shared: bool = False) -> ClientError:
        """Return what tritonclient raised as a ClientError. `shared`: whether the request used shared memory."""
        if isinstance(error, InferenceServerException) and error.status() is not None:
            said = " ".join((error.message() or "").split())[:_LONGEST_MESSAGE]
            status = str(error.status()).removeprefix("StatusCode.")
            status = _HTTP_STATUS.get(status, status)
            if shared and "find shared memory region" in said:
                status = "UNAVAILABLE"  # a server that was started again: the next attempt registers a new one
            if status == "INVALID_ARGUMENT":
                return ClientError(said, status)
            if status == "DEADLINE_EXCEEDED":
                return self._timed_out()
            if status == "UNAVAILABLE" and self.protocol == "grpc" and _NO_CONNECTION.search(said):
                return self._unreachable(said)
            if status == "PERMISSION_DENIED" and _RESTRICTED not in said:
                said += f" ({self._key_advice()})"
            return ClientError(f"{model} at {self} answered {status}: {said}", status)
        if isinstance(error, ClientError):
            return error
        if isinstance(error, TimeoutError):
            return self._timed_out()
        return self._unreachable(" ".join(str(error).split())[:_LONGEST_MESSAGE] or type(error).__name__)

    def _key_advice(self) -> str:
        if self._key_headers:
            return "is this API key among the gateway's?"
        return f"a gateway with API keys wants one: set {API_KEY_VARIABLE}, or name a file with --api-key-file"

    def _unreachable(self, detail: str) -> ClientError:
        return ClientError(
            f"no Triton server answers at {self}: is it running, and is that its {self.protocol} port? ({detail})",
            "UNREACHABLE",
        )

    def raise_refusal(self, error: Exception) -> None:
        """Raise the ClientError that a refused API key is; return for any other failure."""
        found = self.error(error, "the server")
        if found.status == "PERMISSION_DENIED":
            raise found from error

    def not_shared(self, error: Exception) -> ClientError:
        """Return what to say when the server did not map this process's memory."""
        if isinstance(error, ClientError):
            return error
        found = self.error(error, "shared memory")
        if found.status in ("UNREACHABLE", "DEADLINE_EXCEEDED") or (
            found.status == "UNAVAILABLE" and _RESTRICTED not in str(found)
        ):
            return found
        return ClientError(
            f"{self} does not map this process's shared memory: it must be on this host (containers: --ipc=host) and "
            f"be started with --allow-shared-memory by the same user; ask without shared memory otherwise ({found})",
            "FAILED_PRECONDITION",
        )

    def _timed_out(self) -> ClientError:
        return ClientError(f"no answer from {self} within {self.timeout:g} s", "DEADLINE_EXCEEDED")


class Connection:
    """A blocking connection. For one thread at a time, as tritonclient's HTTP client is."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._api = endpoint.api()
        self._client = self._connect()
        self._regions = Regions()
        # Where close() is forgotten, the server still unmaps the regions.
        self._finalizer = weakref.finalize(self, _close, self._client, self._regions, self._endpoint)

    def _connect(self) -> Any:
        if self._endpoint.protocol == "grpc":
            options: dict[str, Any] = {"channel_args": self._endpoint.channel_arguments()}
        else:
            options = {"connection_timeout": self._endpoint.timeout, "network_timeout": self._endpoint.timeout}
        return self._api.InferenceServerClient(self._endpoint.url, **options)

    def infer(self, model: str, inputs: Mapping[str, np.ndarray], timeout: float) -> dict[str, np.ndarray]:
        """Send one request, once, for at most `timeout` seconds; returns its output tensors. Raises ClientError."""
        used: list[Region] = []
        try:
            with self._limit(timeout):
                tensors = [
                    _tensor(self._api, name, array, self._region(size, used) if size else None)
                    for name, array, size in _with_shared_sizes(inputs, self._endpoint)
                ]
                outputs = _outputs(self._client.infer(model, tensors, **self._endpoint.infer_options(timeout)))
        except Exception as error:  # sockets, gevent and gRPC each raise their own
            for region in used:  # the server may still read it
                self._regions.give_up(region)
            if isinstance(error, TimeoutError):
                self._reconnect()
            raise self._endpoint.error(error, model, shared=bool(used)) from error
        for region in used:
            self._regions.give(region)
        _sweep(self._client, self._regions, self._endpoint)
        return outputs

    @contextlib.contextmanager
    def _limit(self, timeout: float) -> Iterator[None]:
        """Limit a request over HTTP, where tritonclient limits each read of a socket; gRPC has its own limit."""
        if self._endpoint.protocol == "grpc":
            yield
            return
        import gevent  # what its HTTP client is made of

        with gevent.Timeout(timeout, TimeoutError):
            yield

    def _reconnect(self) -> None:
        """Replace an HTTP connection: left in the middle of an answer, it cannot be used again."""
        if self._endpoint.protocol == "http":
            self._finalizer.detach()
            self._client.close()
            self._client = self._connect()
            self._finalizer = weakref.finalize(self, _close, self._client, self._regions, self._endpoint)

    def _region(self, size: int, used: list[Region]) -> Region:
        """Return a region that the server has mapped, and add it to `used`."""
        region = self._regions.take(size)
        if region is None:
            region = self._regions.create(size)
            try:
                self._client.register_system_shared_memory(
                    region.name, region.key, region.size, headers=self._endpoint.shared_memory_headers()
                )
            except Exception as error:
                self._regions.give_up(region)  # a request that timed out may have registered it
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

    def check_admitted(self) -> None:
        """Raise ClientError when a gateway refuses this client's API key, or that it has none."""
        try:
            self._client.get_server_metadata(**self._endpoint.call_options(self._endpoint.timeout))
        except Exception as error:
            self._endpoint.raise_refusal(error)

    def close(self) -> None:
        self._finalizer()


class AsyncConnection:
    """A connection for asyncio, made inside a running event loop; any number of requests at once."""

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
                options = self._endpoint.infer_options(timeout)
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
                await self._client.register_system_shared_memory(
                    region.name, region.key, region.size, headers=self._endpoint.shared_memory_headers()
                )
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
            try:
                headers = self._endpoint.shared_memory_headers()
                await self._client.unregister_system_shared_memory(name, headers=headers)
            except Exception as error:  # it is in use, or the server is gone
                if not _is_refused(error):
                    continue
            if name in leaving:  # another request's sweep may have been faster
                leaving.remove(name)

    async def is_ready(self, model: str | None) -> bool:
        options = self._endpoint.call_options(self._endpoint.timeout)
        try:
            if model:
                return await self._client.is_model_ready(model, **options)
            return await self._client.is_server_ready(**options)
        except Exception:
            return False

    async def check_admitted(self) -> None:
        try:
            await self._client.get_server_metadata(**self._endpoint.call_options(self._endpoint.timeout))
        except Exception as error:
            self._endpoint.raise_refusal(error)

    async def close(self) -> None:
        self._regions.give_up_all()
        deadline = time.monotonic() + PATIENCE
        await self._sweep()
        while self._regions.leaving and time.monotonic() < deadline and await self.is_ready(None):
            await asyncio.sleep(PAUSE)
            await self._sweep()
        await self._client.close()


def _sweep(client: Any, regions: Regions, endpoint: Endpoint) -> None:
    """Have the server unmap the regions that are no longer used."""
    for name in regions.leaving.copy():
        try:
            client.unregister_system_shared_memory(name, headers=endpoint.shared_memory_headers())
        except Exception as error:  # it is in use, or the server is gone
            if not _is_refused(error):
                continue
        regions.leaving.remove(name)


def _is_refused(error: Exception) -> bool:
    """Return whether the server will never do it for us: it has another key, or the key file cannot be used."""
    return isinstance(error, ClientError) or _RESTRICTED in str(error)


def _close(client: Any, regions: Regions, endpoint: Endpoint) -> None:
    regions.give_up_all()
    deadline = time.monotonic() + PATIENCE
    _sweep(client, regions, endpoint)
    while regions.leaving and time.monotonic() < deadline and _is_live(client):
        time.sleep(PAUSE)
        _sweep(client, regions, endpoint)
    client.close()


def _is_live(client: Any) -> bool:
    try:
        return client.is_server_live()
    except Exception:  # whatever kept it from saying so
        return False


def _outputs(result: Any) -> dict[str, np.ndarray]:
    """Return all output tensors of tritonclient's result, by name."""
    response = result.get_response()
    if isinstance(response, dict):
        names = [output["name"] for output in response.get("outputs", [])]
    else:
        names = [output.name for output in response.outputs]
    return {name: result.as_numpy(name) for name in names}


def _with_shared_sizes(inputs: Mapping[str, np.ndarray], endpoint: Endpoint) -> Iterator[tuple[str, np.ndarray, int]]:
    """Yield (name, tensor, bytes of shared memory that it goes through, 0 for none)."""
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
