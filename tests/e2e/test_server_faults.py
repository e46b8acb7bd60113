"""A process that dies or stops, a disk that is full: noticed, told, and nobody left waiting."""

from __future__ import annotations

import os
import re
import resource
import signal
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from launcher import FREE_PORTS, Launched, launched, relay, wait_gone, wait_in_flight
from tritonclient.utils import InferenceServerException

from clients.client import shared_memory_key

UNHURRIED = 15.0  # the promise is two seconds; a loaded machine takes its time to end processes


def process_of(server: Launched, model: str) -> int:
    """The process id of a model's stub."""
    for pid in server.served_by():
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if len(arguments) > 1 and arguments[1].endswith(f"/{model}/1/model.py".encode()):
            return pid
    raise AssertionError(f"no process runs {model}")


def asked(url: str) -> tuple[int, str]:
    """Status and text of an HTTP address."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode().strip()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode().strip()


def wait_status(url: str, status: int, seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while True:
        try:
            found, text = asked(url)
        except OSError:
            found, text = 0, ""
        if found == status:
            return text
        assert time.monotonic() < deadline, f"{url} answers {found} {text}, not {status}"
        time.sleep(0.02)


@pytest.mark.parametrize("model", ["slow", "relay"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_dead_model_process_ends_the_launcher_and_every_wait(
    scratch_repository: Path, model: str, number: int
) -> None:
    with launched(scratch_repository, *FREE_PORTS) as server:
        server.wait_ready()
        served = server.served_by()
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(relay, server.grpc_url, x, 100) for x in range(4)]  # 20 s each
            wait_in_flight(server, 4)
            began = time.monotonic()
            os.kill(process_of(server, model), number)
            code, errors = server.end(seconds=UNHURRIED)
            for answer in answers:
                with pytest.raises(InferenceServerException):
                    answer.result(UNHURRIED)
        assert time.monotonic() - began < UNHURRIED  # the stage alone would have kept them for 20 s
        assert code == 1
        assert re.search(
            rf"error: the process of model {model} \(process \d+\) has (died|been stopped for more than 2 s)", errors
        )
        wait_gone(served)
        assert server.left_overs() == []


def test_a_child_of_tritonserver_that_runs_no_model_means_nothing(tmp_path: Path, write_model) -> None:
    config = """
    backend: "python"
    max_batch_size: 0
    input [{ name: "X" data_type: TYPE_FP32 dims: [1] }]
    output [{ name: "Y" data_type: TYPE_FP32 dims: [1] }]
    """
    model = """
    import subprocess
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def initialize(self, args):
            self.helper = subprocess.Popen(["sleep", "600"])
        def execute(self, requests):
            return [pb_utils.InferenceResponse([]) for _ in requests]
    """
    write_model(tmp_path, "helped", config, model)
    with launched(tmp_path, *FREE_PORTS) as server:
        server.wait_ready()
        helper = next(pid for pid in server.served_by() if psutil.Process(pid).name() == "sleep")
        os.kill(helper, signal.SIGKILL)
        time.sleep(1)  # ten looks at the processes
        assert asked(server.health_url) == (200, "ready")
        assert server.end(signal.SIGTERM)[0] == 0


def test_restart_serves_again_on_the_same_ports(scratch_repository: Path) -> None:
    with launched(scratch_repository, *FREE_PORTS, "--restart") as server:
        server.wait_ready()
        first = server.grpc_url
        os.kill(process_of(server, "slow"), signal.SIGKILL)
        assert "slow" in wait_status(server.health_url, 503)
        wait_status(server.health_url, 200)
        server.wait_ready()
        assert server.grpc_url == first and relay(first, 1, 1) == 2
        os.kill(process_of(server, "relay"), signal.SIGKILL)
        wait_status(server.health_url, 503)
        code, errors = server.end(signal.SIGTERM)
    assert code == 0
    assert "starting again in 1 s" in errors and "starting again in 2 s" in errors
    assert server.left_overs() == []


def test_tritonserver_told_to_end_by_somebody_else_is_a_fault(scratch_repository: Path) -> None:
    with launched(scratch_repository, *FREE_PORTS) as server:
        server.wait_ready()
        tritonserver = next(pid for pid in server.served_by() if psutil.Process(pid).name() == "tritonserver")
        os.kill(tritonserver, signal.SIGTERM)
        code, errors = server.end()
    assert code == 1
    assert "tritonserver itself has received SIGTERM; to stop it without loss, signal the launcher" in errors
    assert server.left_overs() == []


def test_a_lame_duck_serves_on_while_its_health_says_not_ready(scratch_repository: Path) -> None:
    with launched(scratch_repository, *FREE_PORTS, "--lame-duck", "3") as server:
        server.wait_ready()
        assert asked(server.health_url) == (200, "ready")
        live = server.health_url.replace("/ready", "/live")
        server.process.send_signal(signal.SIGTERM)
        assert wait_status(server.health_url, 503) == "draining"
        assert asked(live) == (200, "live")
        assert relay(server.grpc_url, 1, 1) == 2  # a balancer that has not looked yet loses nothing
        assert server.end()[0] == 0
    with launched(scratch_repository, *FREE_PORTS, "--lame-duck", "-1") as server:
        code, errors = server.end()
    assert code == 2 and "-1 is not a number of seconds, 0 or more" in errors


def test_a_drain_needs_no_room_on_the_disk(scratch_repository: Path) -> None:
    with launched(scratch_repository, *FREE_PORTS) as server:
        server.wait_ready()
        # As on a full disk, no file of the launcher's grows any more.
        psutil.Process(server.process.pid).rlimit(resource.RLIMIT_FSIZE, (0, 0))
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(relay, server.grpc_url, 1, 6)
            wait_in_flight(server, 1)
            server.process.send_signal(signal.SIGTERM)
            code, errors = server.end()
            assert answer.result(30) == 7
    assert (code, errors) == (0, "")
    assert server.left_overs() == []


def test_what_a_killed_launcher_leaves_is_removed(scratch_repository: Path) -> None:
    with launched(scratch_repository, *FREE_PORTS) as server:
        server.wait_ready()
        served = server.served_by()
        server.end(signal.SIGKILL)
        wait_gone(served, seconds=UNHURRIED)
        deadline = time.monotonic() + UNHURRIED
        while server.left_overs():
            assert time.monotonic() < deadline, server.left_overs()
            time.sleep(0.05)


def test_a_lost_device_ends_the_server(tmp_path: Path, write_model) -> None:
    """An error of CUDA's that every later call repeats; the real one takes a GPU to provoke."""
    config = """
    backend: "python"
    max_batch_size: 8
    input [{ name: "X" data_type: TYPE_FP32 dims: [1] }]
    output [{ name: "Y" data_type: TYPE_FP32 dims: [1] }]
    """
    model = """
    from mplug.runtime.gpu.cuda import DeviceError, DeviceLost
    from mplug.triton.models import StageModel

    class TritonPythonModel(StageModel):
        def create(self, context):
            return self.run
        def run(self, inputs):
            kind = DeviceLost if inputs["X"][0, 0] else DeviceError
            raise kind("cudaMemcpyAsync: an illegal memory access was encountered")
    """
    write_model(tmp_path, "device", config, model)

    def ask(url: str, x: float) -> None:
        given = triton_grpc.InferInput("X", [1, 1], "FP32")
        given.set_data_from_numpy(np.array([[x]], np.float32))
        with triton_grpc.InferenceServerClient(url) as client, pytest.raises(InferenceServerException):
            client.infer("device", [given], client_timeout=UNHURRIED)

    with launched(tmp_path, *FREE_PORTS) as server:
        server.wait_ready()
        ask(server.grpc_url, 0)
        assert asked(server.health_url) == (200, "ready")  # an error that passes ends nothing
        ask(server.grpc_url, 1)
        code, errors = server.end(seconds=UNHURRIED)
    assert code == 1
    assert "the process of model device" in errors
    assert "the device is lost, the process ends: DeviceLost: cudaMemcpyAsync" in errors.rpartition("has died")[2]


def test_restricted_apis_need_the_key(serve, scratch_repository: Path) -> None:
    server = serve(scratch_repository)
    paths = (
        "/v2/systemsharedmemory/status",
        "/v2/models/relay/config",
        "/v2/models/relay/stats",
        "/v2/trace/setting",
        "/v2/logging",
    )
    for path in paths:
        assert asked(f"http://{server.http_url}{path}")[0] == 403, path
    opened = urllib.request.Request(f"http://{server.http_url}/v2/logging", headers=server.keys.headers)
    with urllib.request.urlopen(opened, timeout=5) as response:
        assert response.status == 200
    with triton_grpc.InferenceServerClient(server.grpc_url) as client:
        for call in (
            client.get_system_shared_memory_status,
            client.get_cuda_shared_memory_status,
            client.get_model_repository_index,
            client.get_inference_statistics,
            client.get_trace_settings,
            client.get_log_settings,
            lambda: client.get_model_config("relay"),
            lambda: client.unload_model("relay"),
            lambda: client.update_log_settings({"log_info": False}),
        ):
            with pytest.raises(InferenceServerException, match="restricted"):
                call()
        assert client.get_log_settings(headers=server.keys.grpc_headers) is not None
        with pytest.raises(InferenceServerException, match="restricted"):
            client.get_system_shared_memory_status(headers=server.keys.grpc_headers)
        assert client.get_model_metadata("relay").name == "relay"
        assert client.is_model_ready("relay")


def test_the_shared_memory_key_is_for_this_user_alone(
    scratch_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with launched(scratch_repository, *FREE_PORTS, "--allow-shared-memory") as server:
        server.wait_ready()
        ports = [int(url.rpartition(":")[2]) for url in (server.http_url, server.grpc_url)]
        files = [tmp_path / f"mplug-{os.getuid()}" / f"{port}.key" for port in ports]
        assert all(str(path) in server.ready_line for path in files)
        assert [oct(path.stat().st_mode)[-3:] for path in (*files, files[0].parent)] == ["600", "600", "700"]
        for module, protocol, port in ((triton_http, "http", ports[0]), (triton_grpc, "grpc", ports[1])):
            with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
                with pytest.raises(InferenceServerException, match="restricted"):
                    client.get_system_shared_memory_status()
                client.get_system_shared_memory_status(headers=shared_memory_key.headers(protocol, port, None))
        assert server.end(signal.SIGTERM)[0] == 0
    assert not any(path.exists() for path in files)
    files[0].parent.chmod(0o755)
    with launched(scratch_repository, *FREE_PORTS, "--allow-shared-memory") as server:
        code, errors = server.end()
    assert code == 1 and "is not a directory of this user alone" in errors


def test_another_host_is_warned_of(scratch_repository: Path) -> None:
    with launched(scratch_repository, *FREE_PORTS, "--host", "0.0.0.0") as server:
        server.wait_ready()
        code, errors = server.end(signal.SIGTERM)
    assert code == 0
    assert errors.startswith("warning: listening on 0.0.0.0") and "make gateway" in errors
    assert errors.count("\n") == 1
