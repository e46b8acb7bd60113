"""What Triton's response cache keeps without its outputs, errors and parts of answers, must spoil no other request."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException
from wire import Wire, connect

from mplug.server.command import TritonServer

# A cached stage that breaks the first FAILURES times it meets an X, whatever else it is asked.
FLAKY_CONFIG = """
backend: "python"
max_batch_size: 8
input [
  { name: "X" data_type: TYPE_FP32 dims: [1] },
  { name: "RETRY" data_type: TYPE_INT32 dims: [1] optional: true }
]
output [{ name: "Y" data_type: TYPE_FP32 dims: [1] }, { name: "RUNS" data_type: TYPE_INT32 dims: [1] }]
dynamic_batching { max_queue_delay_microseconds: 500 }
response_cache { enable: true }
"""
FLAKY_MODEL = """
from collections import Counter

import numpy as np

from mplug.errors import Unavailable
from mplug.triton.models import StageModel


class TritonPythonModel(StageModel):
    def create(self, context):
        self.runs = Counter()
        return self.run

    def run(self, inputs):
        assert list(inputs) == ["X"], f"the stage sees {list(inputs)}"
        (x,) = inputs["X"][:, 0].tolist()
        self.runs[x] += 1
        if self.runs[x] <= int(x) % 10:
            raise Unavailable("X: not now")
        return {"Y": inputs["X"] + 1, "RUNS": np.full(inputs["X"].shape, self.runs[x], np.int32)}
"""
# As published stages of other backends are: cached, and nothing but their own inputs.
PLAIN_CONFIG = FLAKY_CONFIG.replace(
    """[1] },
  { name: "RETRY" data_type: TYPE_INT32 dims: [1] optional: true }""",
    "[1] }",
)
CALLER_CONFIG = """
backend: "python"
max_batch_size: 0
input [{ name: "X" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "Y" data_type: TYPE_FP32 dims: [1] }, { name: "RUNS" data_type: TYPE_INT32 dims: [1] }]
"""
CALLER_MODEL = """
from mplug.triton.models import TaskModel


class Caller:
    def parse(self, inputs):
        return inputs["X"]

    async def run(self, request, call_stage):
        outputs = await call_stage("STAGE", {"X": request[None]}, ["Y", "RUNS"])
        return {name: value[0] for name, value in outputs.items()}


class TritonPythonModel(TaskModel):
    def create(self, context):
        return Caller()
"""


@pytest.fixture(scope="module")
def flaky_server(
    serve: Callable[..., TritonServer], write_model: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> TritonServer:
    repository = tmp_path_factory.mktemp("flaky")
    write_model(repository, "flaky", FLAKY_CONFIG, FLAKY_MODEL)
    write_model(repository, "plain", PLAIN_CONFIG, FLAKY_MODEL)
    write_model(repository, "caller", CALLER_CONFIG, CALLER_MODEL.replace("STAGE", "flaky"))
    write_model(repository, "plain_caller", CALLER_CONFIG, CALLER_MODEL.replace("STAGE", "plain"))
    return serve(repository)


def ask(server: TritonServer, model: str, x: float) -> tuple[float, int]:
    with connect(server, "grpc") as wire:
        return answer_of(wire, model, x)


def answer_of(wire: Wire, model: str, x: float) -> tuple[float, int]:
    outputs = wire.ask(model, X=np.array([x], np.float32))
    return float(outputs["Y"][0]), int(outputs["RUNS"][0])


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_failure_is_not_answered_again(flaky_server: TritonServer, failures: int) -> None:
    x = 100 + failures
    for _ in range(failures):  # each of them is a run, and told as what it is
        with pytest.raises(InferenceServerException, match="flaky: X: not now") as raised:
            ask(flaky_server, "caller", x)
        assert raised.value.status() == "StatusCode.UNAVAILABLE"
    runs = failures + 1
    assert ask(flaky_server, "caller", x) == (x + 1, runs)
    assert ask(flaky_server, "caller", x) == (x + 1, runs), "the good answer is not cached"


def test_what_did_not_fail_is_cached_at_once(flaky_server: TritonServer) -> None:
    assert [ask(flaky_server, "caller", 200) for _ in range(3)] == [(201, 1)] * 3


def ask_for_one_output(server: TritonServer, model: str, x: float, **inputs: np.ndarray) -> None:
    """As a client that may call stages directly and wants Y alone: Triton caches the answer without RUNS."""
    with connect(server, "grpc") as wire:
        tensors = []
        for name, array in {"X": np.array([[x]], np.float32), **inputs}.items():
            dtype = "FP32" if array.dtype == np.float32 else "INT32"
            tensors.append(wire.api.InferInput(name, list(array.shape), dtype))
            tensors[-1].set_data_from_numpy(array)
        wire.client.infer(model, tensors, outputs=[wire.api.InferRequestedOutput("Y")])


def test_an_answer_with_fewer_outputs_spoils_no_other(flaky_server: TritonServer) -> None:
    ask_for_one_output(flaky_server, "flaky", 300)
    answer = ask(flaky_server, "caller", 300)
    assert answer == (301, 2)
    assert ask(flaky_server, "caller", 300) == answer, "the whole answer is not cached"


def test_nobody_can_spoil_every_place_of_the_cache(flaky_server: TritonServer) -> None:
    ask_for_one_output(flaky_server, "flaky", 400)
    for place in range(1, 100):
        ask_for_one_output(flaky_server, "flaky", 400, RETRY=np.array([[place]], np.int32))
    assert ask(flaky_server, "caller", 400) == (401, 101)


def test_a_stage_that_cannot_be_asked_past_the_cache_fails_loudly(flaky_server: TritonServer) -> None:
    with pytest.raises(InferenceServerException, match="plain: X: not now"):
        ask(flaky_server, "plain_caller", 301)
    with pytest.raises(InferenceServerException, match="plain: answered without Y, RUNS"):
        ask(flaky_server, "plain_caller", 301)
