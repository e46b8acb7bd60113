"""Real servers for the tests: `serve` starts one per repository, `scratch_repository` writes a small one, and
`built` builds one from a golden checkpoint.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from openai_endpoint import endpoint_of

from builders.build import build, build_repository
from builders.plan import Source
from mplug.checkpoint import save_weights
from mplug.config import TASKS, read_config
from mplug.network import MPlug
from mplug.server.command import Options, TritonServer

CHECKOUT = Path(__file__).resolve().parents[2]
GOLDEN = CHECKOUT / "tests" / "parity" / "data"

# A batched stage: one run takes SLEEP seconds whatever its batch, and tells how many rows it saw.
SLOW_CONFIG = """
backend: "python"
max_batch_size: 64
input [{ name: "X" data_type: TYPE_FP32 dims: [1] }]
output [
  { name: "Y" data_type: TYPE_FP32 dims: [1] },
  { name: "ROWS" data_type: TYPE_INT32 dims: [1] }
]
dynamic_batching { max_queue_delay_microseconds: 5000 }
"""
SLOW_MODEL = """
import time

import numpy as np

from mplug.errors import InvalidRequest
from mplug.triton.models import StageModel

SLEEP = 0.2


class TritonPythonModel(StageModel):
    def create(self, context):
        return self.run

    def check(self, inputs):
        if (inputs["X"] == -1).any():
            raise InvalidRequest("X: -1 is refused by the stage")

    def run(self, inputs):
        time.sleep(SLEEP)
        x = inputs["X"]
        if (x == -2).any():
            raise RuntimeError("the stage broke\\nits second line")
        return {"Y": x + 1, "ROWS": np.full(x.shape, len(x), np.int32)}
"""

# A task: calls the stage STEPS times, each time on what it gave.
RELAY_CONFIG = """
backend: "python"
max_batch_size: 0
input [
  { name: "X" data_type: TYPE_FP32 dims: [1] },
  { name: "STEPS" data_type: TYPE_INT32 dims: [1] optional: true },
  { name: "NOTE" data_type: TYPE_STRING dims: [-1] optional: true }
]
output [
  { name: "Y" data_type: TYPE_FP32 dims: [1] },
  { name: "ROWS" data_type: TYPE_INT32 dims: [-1] },
  { name: "NOTE" data_type: TYPE_STRING dims: [-1] },
  { name: "PYTHON" data_type: TYPE_STRING dims: [1] }
]
"""
RELAY_MODEL = """
import sys

import numpy as np

from mplug.errors import InvalidRequest
from mplug.triton.models import TaskModel


class Relay:
    def parse(self, inputs):
        x = inputs["X"]
        if np.isnan(x).any():
            raise InvalidRequest("X: not a number")
        if x[0] == -3:
            raise RuntimeError("parse broke\\nits second line")
        return x, int(inputs.get("STEPS", [1])[0]), inputs.get("NOTE", [])

    async def run(self, request, call_stage):
        x, steps, note = request
        rows = []
        for _ in range(steps):
            outputs = await call_stage("slow", {"X": x[None]}, ["Y", "ROWS"])
            x = outputs["Y"][0]
            rows.append(outputs["ROWS"][0, 0])
        if x[0] == 1000:
            return {"Y": "not an array"}
        if x[0] == 1001:
            await call_stage("absent", {"X": x}, ["Y"])
        return {"Y": x, "ROWS": np.array(rows, np.int32), "NOTE": note, "PYTHON": [sys.prefix]}


class TritonPythonModel(TaskModel):
    def create(self, context):
        return Relay()
"""
CACHED_CONFIG = RELAY_CONFIG + "response_cache { enable: true }\n"


def _write_model(repository: Path, name: str, config: str, model: str) -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text(config)
    (folder / "model.py").write_text(textwrap.dedent(model))


@pytest.fixture(scope="session")
def write_model() -> Callable[[Path, str, str, str], None]:
    """`write_model(repository, name, config, model)`: a Python model; `model` is the text of its model.py."""
    return _write_model


@pytest.fixture(scope="session")
def scratch_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trivial models on the adapter: `slow` is a stage, `relay` and `cached` are tasks that call it."""
    repository = tmp_path_factory.mktemp("repository")
    _write_model(repository, "slow", SLOW_CONFIG, SLOW_MODEL)
    _write_model(repository, "relay", RELAY_CONFIG, RELAY_MODEL)
    _write_model(repository, "cached", CACHED_CONFIG, RELAY_MODEL)
    return repository


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., TritonServer]]:
    """`serve(repository_dir)`: a running server on free ports, one per repository, until the session ends."""
    servers: dict[tuple[Path, Options], TritonServer] = {}

    def start(repository: str | Path, options: Options | None = None) -> TritonServer:
        key = (Path(repository).resolve(), options or Options())
        if key not in servers:
            server = TritonServer(*key)
            server.start()
            servers[key] = server
        return servers[key]

    yield start
    for server in servers.values():
        server.stop()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the session that the processes of pytest-xdist share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def built(shared_folder: Path) -> Callable[..., Path]:
    """`built(case, *arguments)`: the repository that builders/build.py makes of a golden case, once a session.

    In fp32, so that token ids and scores are those of the reference; exporting takes half a minute.
    """

    def build(case: str, *arguments: str) -> Path:
        folder = shared_folder / re.sub(r"\W+", "-", " ".join((case, *arguments)))
        output = folder / "repository"  # appears when it is whole
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not output.exists():
                command = [sys.executable, "builders/build.py", GOLDEN / case, "--output", output]
                done = subprocess.run(
                    [*command, "--precision", "fp32", *arguments], cwd=CHECKOUT, capture_output=True, text=True
                )
                assert done.returncode == 0, done.stderr
        return output

    return build


@pytest.fixture(scope="session")
def caption_server(built: Callable[..., Path], serve: Callable[..., TritonServer]) -> TritonServer:
    """The golden captioner, compiled for the CPU and served until the session ends."""
    return serve(built("caption"))


@pytest.fixture(scope="session")
def several_server(tmp_path_factory: pytest.TempPathFactory, serve: Callable[..., TritonServer]) -> TritonServer:
    """Four golden checkpoints in one repository, and the captioner once more, under the name `again`."""
    repository = tmp_path_factory.mktemp("several") / "repository"
    named = [
        *(Source(GOLDEN / case) for case in ("caption", "vqa", "retrieval", "grounding")),
        Source(GOLDEN / "caption", "again"),
    ]
    build_repository(named, repository, target="torch")
    return serve(repository)


@pytest.fixture(scope="session")
def every_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of the demo's size and vocabulary that is fine-tuned, in name, for every task."""
    folder = tmp_path_factory.mktemp("every_task") / "checkpoint"
    folder.mkdir()
    demo = CHECKOUT / "checkpoints" / "demo"
    document = yaml.safe_load((demo / "config.yaml").read_text())
    document["tasks"] = sorted(TASKS, key=lambda task: task != "image-captioning")  # the first gives the lengths
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    for name in ("config_bert.json", "vocab.txt"):
        shutil.copy(demo / name, folder / name)
    network = MPlug(read_config(folder / "config.yaml", folder / "config_bert.json"))
    network.initialise(seed=5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and "position" not in name:
                parameter.mul_(3)  # as initialised, all images look nearly alike to it
    save_weights(network, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def every_task_server(
    every_task: Path, tmp_path_factory: pytest.TempPathFactory, serve: Callable[..., TritonServer]
) -> TritonServer:
    """All public models over one set of stages, run by PyTorch, which builds in seconds; shared memory is allowed."""
    repository = tmp_path_factory.mktemp("every_task_built") / "repository"
    build(every_task, repository, target="torch")
    return serve(repository, Options(allow_shared_memory=True))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    command = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, CHECKOUT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def openai_endpoint(every_task_server: TritonServer) -> Iterator[str]:
    """HOST:PORT of an OpenAI-compatible endpoint before the server of all public models."""
    with endpoint_of(every_task_server.grpc_url) as address:
        yield address
