"""What clients see of models on the adapter: answers, errors, overlap, cancellation, the response cache."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from mplug.server.command import TritonServer

TRITON_TYPES = {"float32": "FP32", "int32": "INT32", "object": "BYTES"}


@pytest.fixture(scope="module")
def server(serve: Callable[..., TritonServer], scratch_repository: Path) -> TritonServer:
    return serve(scratch_repository)


def tensor(module, name: str, values: list[float] | list[int] | list[bytes], dtype: type):
    array = np.array(values, dtype)
    made = module.InferInput(name, list(array.shape), TRITON_TYPES[array.dtype.name])
    made.set_data_from_numpy(array)
    return made


def infer(client, model: str = "relay", **inputs):
    """X, STEPS and NOTE as lists, over the protocol of the client."""
    module = triton_grpc if isinstance(client, triton_grpc.InferenceServerClient) else triton_http
    dtypes = {"X": np.float32, "STEPS": np.int32, "NOTE": np.object_}
    return client.infer(model, [tensor(module, name, value, dtypes[name]) for name, value in inputs.items()])


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: TritonServer):
    if request.param == "grpc":
        made = triton_grpc.InferenceServerClient(server.grpc_url)
    else:
        made = triton_http.InferenceServerClient(server.http_url)
    yield made
    made.close()


def metric(server: TritonServer, name: str, **labels: str) -> float:
    """The sum of a metric over the series with these labels."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    series = [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    wanted = [line for line in series if all(f'{key}="{value}"' in line for key, value in labels.items())]
    return sum(float(line.rsplit(" ", 1)[1]) for line in wanted)


def settled(server: TritonServer, name: str, **labels: str) -> float:
    """The metric once it has stood still for half a second: Triton counts a request after its answer has left."""
    value = metric(server, name, **labels)
    while True:
        time.sleep(0.5)
        before, value = value, metric(server, name, **labels)
        if before == value:
            return value


def test_answers_of_every_kind_of_tensor(client) -> None:
    result = infer(client, X=[5], STEPS=[2], NOTE=["grüße".encode(), b"\x00\xff", b""])
    assert result.as_numpy("Y").tolist() == [7]
    assert result.as_numpy("ROWS").shape == (2,)
    assert result.as_numpy("NOTE").tolist() == ["grüße".encode(), b"\x00\xff", b""]


def test_served_models_run_in_this_very_environment(client) -> None:
    assert infer(client, X=[0]).as_numpy("PYTHON").tolist() == [sys.prefix.encode()]


def test_generate_endpoint(server: TritonServer) -> None:
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/relay/generate", data=json.dumps({"X": 5, "NOTE": "a"}).encode()
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        answer = json.load(response)
    assert (answer["Y"], answer["NOTE"]) == (6, "a")


@pytest.mark.parametrize(
    ("inputs", "code", "status", "message"),
    [
        ({"X": [np.nan]}, "INVALID_ARGUMENT", 400, "X: not a number"),
        ({"X": [-1]}, "INVALID_ARGUMENT", 400, "slow: X: -1 is refused by the stage"),
        ({"X": [-2]}, "INTERNAL", 500, "slow: internal error: RuntimeError: the stage broke"),
        ({"X": [-3]}, "INTERNAL", 500, "internal error: RuntimeError: parse broke"),
        (
            {"X": [999]},
            "INTERNAL",
            500,
            "internal error: TypeError: Y: not an array or a list of bytes but str",
        ),
        ({"X": [1000]}, "INTERNAL", 500, "absent"),
        ({"X": [1, 2]}, "INVALID_ARGUMENT", 400, "unexpected shape for input 'X'"),
        ({"NOTE": [b"a"]}, "INVALID_ARGUMENT", 400, "X: missing; required: X"),
    ],
)
def test_errors_have_a_code_and_one_line(client, inputs, code: str, status: int, message: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        infer(client, **inputs)
    assert message in caught.value.message()
    assert "second line" not in caught.value.message()
    assert "Traceback" not in caught.value.message()
    is_grpc = isinstance(client, triton_grpc.InferenceServerClient)
    assert caught.value.status() == (f"StatusCode.{code}" if is_grpc else str(status))


def test_unknown_tensors_and_wrong_types_are_named(client) -> None:
    module = triton_grpc if isinstance(client, triton_grpc.InferenceServerClient) else triton_http
    x = tensor(module, "X", [1], np.float32)
    for inputs, outputs, name in (
        ([x, tensor(module, "WHAT", [1], np.float32)], None, "'WHAT'"),
        ([tensor(module, "X", [1], np.int32)], None, "'X'"),
        ([x], [module.InferRequestedOutput("WHERE")], "'WHERE'"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer("relay", inputs, outputs=outputs)
        assert name in caught.value.message()


def test_a_refused_request_does_not_hurt_its_batch(server: TritonServer) -> None:
    def one(x: int) -> float | str:
        with triton_grpc.InferenceServerClient(server.grpc_url) as client:
            try:
                return infer(client, X=[x]).as_numpy("Y")[0]
            except InferenceServerException as error:
                return error.message()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, [1, 2, -1, 4, -1, 6, 7, 8]))
    assert [answer for answer in answers if not isinstance(answer, str)] == [2, 3, 5, 7, 8, 9]
    assert all("refused by the stage" in answers[index] for index in (2, 4))


def test_requests_in_flight_reach_the_stage_as_one_batch(server: TritonServer) -> None:
    requests = 32
    with triton_grpc.InferenceServerClient(server.grpc_url) as client:
        began = time.perf_counter()
        infer(client, X=[0], STEPS=[4])
        alone = time.perf_counter() - began

    def one(x: int) -> np.ndarray:
        with triton_grpc.InferenceServerClient(server.grpc_url) as client:
            result = infer(client, X=[x], STEPS=[4])
        assert result.as_numpy("Y").tolist() == [x + 4]
        return result.as_numpy("ROWS")

    began = time.perf_counter()
    with ThreadPoolExecutor(requests) as pool:
        rows = list(pool.map(one, range(requests)))
    together = time.perf_counter() - began
    # One after the other they would take 32 times as long as one, and never share a run.
    assert together < alone * requests / 4
    assert np.mean(rows) > requests / 3


def test_a_cancelled_request_ends_early(server: TritonServer) -> None:
    before = metric(server, "nv_inference_request_success", model="slow")
    errors = []
    with triton_grpc.InferenceServerClient(server.grpc_url) as client:
        inputs = [tensor(triton_grpc, "X", [0], np.float32), tensor(triton_grpc, "STEPS", [50], np.int32)]
        call = client.async_infer("relay", inputs, callback=lambda result, error: errors.append(error))
        wait_until(lambda: metric(server, "nv_inference_request_success", model="slow") > before)
        call.cancel()
        wait_until(lambda: metric(server, "mplug_requests_in_flight", model="relay") == 0)
    assert "CANCELLED" in str(errors[0])
    assert metric(server, "nv_inference_request_success", model="slow") - before < 25


def test_many_quick_requests_and_cancellations(server: TritonServer) -> None:
    """Answers come from other threads than admissions: what the two share must bear it."""
    requests, in_flight = 2000, 32
    free = threading.Semaphore(in_flight)
    outcomes: list[str] = []

    def answered(result, error) -> None:
        outcomes.append("answered" if error is None else error.status())
        free.release()

    inputs = [tensor(triton_grpc, "X", [3], np.float32), tensor(triton_grpc, "STEPS", [0], np.int32)]
    with triton_grpc.InferenceServerClient(server.grpc_url) as client:
        for index in range(requests):
            assert free.acquire(timeout=20)
            call = client.async_infer("relay", inputs, callback=answered)
            if index % 4 == 0:
                call.cancel()
        wait_until(lambda: len(outcomes) == requests)
        assert set(outcomes) <= {"answered", "StatusCode.CANCELLED"}
        assert outcomes.count("answered") >= requests * 3 / 4
        assert infer(client, X=[5]).as_numpy("Y").tolist() == [6]


def test_response_cache_answers_the_second_time(server: TritonServer) -> None:
    hits = settled(server, "nv_cache_num_hits_per_model", model="cached")
    runs = settled(server, "nv_inference_request_success", model="slow")
    with triton_grpc.InferenceServerClient(server.grpc_url) as client:
        first = infer(client, "cached", X=[77], NOTE=[b"a"])
        second = infer(client, "cached", X=[77], NOTE=[b"a"])
        other = infer(client, "cached", X=[78], NOTE=[b"a"])
    assert first.as_numpy("Y") == second.as_numpy("Y") == 78
    assert other.as_numpy("Y") == 79
    assert settled(server, "nv_cache_num_hits_per_model", model="cached") == hits + 1
    assert settled(server, "nv_inference_request_success", model="slow") == runs + 2


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
