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

import psutil
import pytest
from tritonclient.utils import InferenceServerException

from tests.e2e.test_server_lifecycle import FREE_PORTS, Launched, launched, relay, wait_gone, wait_in_flight

NOTICED_SECONDS = 2.0  # the promise: a dead model process ends the launcher within this
UNHURRIED = 10.0  # for a loaded machine to end processes after that


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
        # Twice the promise: the end itself takes its time on a loaded machine. A client would have waited 20 s.
        assert time.monotonic() - began < 2 * NOTICED_SECONDS + (2 if number == signal.SIGSTOP else 0)
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
