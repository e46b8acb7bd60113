"""`python -m mplug.server`: ready, signals, crashes, models that fail to load, and nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from launcher import FREE_PORTS, launched, relay, wait_gone, wait_in_flight
from tritonclient.utils import InferenceServerException


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_leaves_nothing(scratch_repository: Path, number: int) -> None:
    with launched(scratch_repository, *FREE_PORTS) as server:
        server.wait_ready()
        assert all(name in server.ready_line for name in ("slow", "relay", "cached"))
        served = server.served_by()
        assert len(served) >= 4  # tritonserver and three stubs
        assert server.left_overs()
        # An idle connection, as a pool or a load balancer holds it, must not keep the server from ending.
        idle = triton_http.InferenceServerClient(server.http_url)
        assert idle.is_server_ready()
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(relay, server.grpc_url, x, 6) for x in range(8)]
            wait_in_flight(server, 8)
            server.process.send_signal(number)
            time.sleep(0.3)  # the launcher sees the signal; the requests need a second more
            with pytest.raises(InferenceServerException) as refused:
                relay(server.grpc_url, 0, 1)
            assert refused.value.status() == "StatusCode.UNAVAILABLE"
            assert "shutting down" in refused.value.message()
            assert [answer.result(30) for answer in answers] == [x + 6 for x in range(8)]
        code, errors = server.end()
        idle.close()
        assert (code, errors) == (0, "")
        wait_gone(served)
        assert server.left_overs() == []


def test_a_second_signal_does_not_wait(scratch_repository: Path) -> None:
    with launched(scratch_repository, *FREE_PORTS) as server:
        server.wait_ready()
        served = server.served_by()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(relay, server.grpc_url, 0, 100)  # 20 s
            wait_in_flight(server, 1)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            code, errors = server.end(signal.SIGTERM)
            with pytest.raises(InferenceServerException, match="shutting down"):
                answer.result(30)
        assert time.monotonic() - began < 15
        assert code == 1
        assert re.search(r"error: \d+ requests were still in flight", errors)
        wait_gone(served)
        assert server.left_overs() == []


def test_a_killed_tritonserver_is_told_and_its_port_can_be_served_again(scratch_repository: Path) -> None:
    with launched(scratch_repository, *FREE_PORTS) as server:
        server.wait_ready()
        http_port = server.http_url.rpartition(":")[2]
        served = server.served_by()
        tritonserver = next(pid for pid in served if Path(f"/proc/{pid}/comm").read_text() == "tritonserver\n")
        os.kill(tritonserver, signal.SIGKILL)
        code, errors = server.end()
        assert code == 1
        assert "error: tritonserver was ended by SIGKILL" in errors
        wait_gone(served)
        assert server.left_overs() == []
    with launched(scratch_repository, *FREE_PORTS, "--http-port", http_port) as server:
        server.wait_ready()
        assert server.http_url.endswith(f":{http_port}")
        assert relay(server.grpc_url, 1, 1) == 2
        assert server.end(signal.SIGTERM)[0] == 0


def test_a_killed_launcher_takes_its_server_along(scratch_repository: Path) -> None:
    with launched(scratch_repository, *FREE_PORTS) as server:
        server.wait_ready()
        served = server.served_by()
        server.end(signal.SIGKILL)
        wait_gone(served, seconds=20)
        for folder in Path(tempfile.gettempdir()).glob(f"mplug-server-{server.process.pid}-*"):
            shutil.rmtree(folder)  # nobody was left to do it
        assert server.left_overs() == []


CONFIG = """
backend: "python"
max_batch_size: 0
input [{ name: "X" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "Y" data_type: TYPE_FP32 dims: [1] }]
"""


def test_models_that_fail_to_load_are_named_with_the_reason(tmp_path: Path, write_model) -> None:
    model = """
    class TritonPythonModel:
        def initialize(self, args):
            {}
        def execute(self, requests):
            return []
    """
    write_model(tmp_path, "fine", CONFIG, model.format("pass"))
    write_model(tmp_path, "broken", CONFIG, model.format("raise RuntimeError('no weights: build first')"))
    write_model(tmp_path, "typo", CONFIG + "nonsense: 3", model.format("pass"))
    with launched(tmp_path, *FREE_PORTS) as server:
        code, errors = server.end()
    assert code == 1
    assert re.search(r"model broken failed to load: .*RuntimeError: no weights: build first", errors)
    assert re.search(r"model typo failed to load: .*config.pbtxt", errors)
    assert '"nonsense"' in errors
    assert "model fine" not in errors
    assert server.process.stdout.read() == ""
    assert server.left_overs() == []


def test_a_signal_while_models_load(tmp_path: Path, write_model) -> None:
    model = """
    import time
    from pathlib import Path

    class TritonPythonModel:
        def initialize(self, args):
            Path(args["model_repository"], "loading").touch()
            time.sleep(60)
        def execute(self, requests):
            return []
    """
    write_model(tmp_path, "sleeper", CONFIG, model)
    with launched(tmp_path, *FREE_PORTS) as server:
        deadline = time.monotonic() + 30
        while not (tmp_path / "sleeper" / "loading").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        served = server.served_by()
        assert server.end(signal.SIGTERM, seconds=10) == (0, "")
        wait_gone(served)
        assert server.left_overs() == []


def test_an_occupied_port_is_named(scratch_repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with launched(scratch_repository, *FREE_PORTS, "--grpc-port", port) as server:
            code, errors = server.end()
    assert code == 1
    assert errors.startswith(f"error: port {port} on 127.0.0.1 is occupied") and "--grpc-port" in errors


def test_a_folder_that_is_no_repository(tmp_path: Path) -> None:
    for folder, reason in ((tmp_path / "absent", "is not a folder"), (tmp_path, "is not a model repository")):
        with launched(folder, *FREE_PORTS) as server:
            code, errors = server.end()
        assert code == 1
        assert errors.startswith(f"error: {folder} {reason}")
        assert errors.count("\n") == 1


def test_run_serves_for_the_time_of_one_command(scratch_repository: Path) -> None:
    script = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).status); sys.exit(7)"
    url = "http://{http}/v2/health/ready"
    with launched(scratch_repository, "--run", sys.executable, "-c", script, url) as server:
        code, errors = server.end()
    assert code == 7
    assert server.process.stdout.read() == "200\n"
    assert errors.startswith("ready") and errors.count("\n") == 1
    assert server.left_overs() == []


def test_a_command_that_does_not_heed_us_is_killed_at_the_second_signal(scratch_repository: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    script = f"import signal, time; {deaf}; print('deaf', flush=True); time.sleep(600)"
    with launched(scratch_repository, "--run", sys.executable, "-c", script) as server:
        assert server.process.stdout.readline() == "deaf\n"
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        code, _ = server.end(signal.SIGTERM)
    assert code == 128 + signal.SIGKILL
    assert server.left_overs() == []


def test_a_model_config_by_name(tmp_path: Path, write_model) -> None:
    model = """
    import json

    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def initialize(self, args):
            self.config = json.loads(args["model_config"])
        def execute(self, requests):
            y = np.array([float(self.config["parameters"]["y"]["string_value"])], np.float32)
            return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", y)]) for _ in requests]
    """
    parameter = 'parameters {{ key: "y" value: {{ string_value: "{}" }} }}'
    write_model(tmp_path, "relay", CONFIG + parameter.format(1), model)
    (tmp_path / "relay" / "configs").mkdir()
    (tmp_path / "relay" / "configs" / "other.pbtxt").write_text(CONFIG + parameter.format(2))
    for arguments, answer in (([], 1), (["--model-config-name", "other"], 2)):
        with launched(tmp_path, *FREE_PORTS, *arguments) as server:
            server.wait_ready()
            x = triton_grpc.InferInput("X", [1], "FP32")
            x.set_data_from_numpy(np.zeros(1, np.float32))
            with triton_grpc.InferenceServerClient(server.grpc_url) as client:
                assert client.infer("relay", [x]).as_numpy("Y").tolist() == [answer]
            assert server.end(signal.SIGTERM)[0] == 0
