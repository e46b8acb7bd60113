"""Requests to a real server, tensor by tensor, over either protocol: what a client that knows nothing of ours sends."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from mplug.server.command import TritonServer

PROTOCOLS = ("grpc", "http")
#: A request that is wrong, by protocol.
INVALID = {"grpc": "StatusCode.INVALID_ARGUMENT", "http": "400"}
Tensor = bytes | str | int | float | list[bytes] | np.ndarray


@dataclass(frozen=True)
class Wire:
    """One connection. Inputs may be arrays, or plain values, which become tensors of one element."""

    protocol: str
    api: ModuleType
    client: Any

    def ask(self, model: str = "caption", **inputs: Tensor) -> dict[str, np.ndarray]:
        """All outputs by name; raises InferenceServerException."""
        tensors = []
        for name, value in inputs.items():
            array = as_array(value)
            tensors.append(self.api.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            tensors[-1].set_data_from_numpy(array)
        result = self.client.infer(model, tensors)
        response = result.get_response()
        outputs = response["outputs"] if isinstance(response, dict) else response.outputs
        names = [output["name"] if isinstance(output, dict) else output.name for output in outputs]
        return {name: result.as_numpy(name) for name in names}

    def refusal(self, model: str = "caption", **inputs: Tensor) -> tuple[str, str]:
        """Status and message of a request that must be refused."""
        try:
            answer = self.ask(model, **inputs)
        except InferenceServerException as error:
            return error.status(), error.message()
        raise AssertionError(f"was answered: {answer}")

    def assert_refused(self, name: str, complaint: str, **inputs: Tensor) -> None:
        """Assert INVALID_ARG with one line that names the input and says what is wrong with it."""
        status, message = self.refusal(**inputs)
        assert status == INVALID[self.protocol], message
        assert name in message and re.search(complaint, message), message
        assert "Traceback" not in message and "\n" not in message.strip(), message


def as_array(value: Tensor) -> np.ndarray:
    """A tensor of one element for a plain value; bytes and lists of bytes become BYTES."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, int):
        return np.array([value], np.int32)
    if isinstance(value, float):
        return np.array([value], np.float32)
    elements = value if isinstance(value, list) else [value.encode() if isinstance(value, str) else value]
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array


@contextmanager
def connect(server: TritonServer, protocol: str) -> Iterator[Wire]:
    """A connection to a server."""
    api = tritonclient.grpc if protocol == "grpc" else tritonclient.http
    client = api.InferenceServerClient(server.grpc_url if protocol == "grpc" else server.http_url)
    try:
        yield Wire(protocol, api, client)
    finally:
        client.close()


def hypotheses(answer: dict[str, np.ndarray]) -> list[tuple[list[int], float]]:
    """The n-best list of a generating model's answer: ids from `[CLS]` without padding, and scores."""
    ids = [np.trim_zeros(row, "b").tolist() for row in answer["TOKEN_IDS"]]
    return list(zip(ids, answer["SCORE"].tolist(), strict=True))


def metric(server: TritonServer, name: str) -> float:
    """A metric of the server, summed over its series."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as response:
        text = response.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))
