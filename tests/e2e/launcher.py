"""A `python -m mplug.server` of the tests' own: started, waited for, signalled, and what it leaves behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton_grpc

CHECKOUT = Path(__file__).resolve().parents[2]
FREE_PORTS = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "health")]


class Launched:
    """A `python -m mplug.server` process and what it prints."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mplug.server", *map(str, arguments)],
            cwd="/",  # wherever it is started, the models find our package
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors: list[str] = []
        self._reader = threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True)
        self._reader.start()

    def wait_ready(self) -> None:
        self.ready_line = self.process.stdout.readline()
        assert "ready" in self.ready_line, self.end()
        self.http_url = re.search(r" at http://(\S+),", self.ready_line).group(1)
        self.grpc_url = re.search(r"grpc (\S+),", self.ready_line).group(1)
        self.metrics_url = re.search(r"metrics (http://[^,\s]+)", self.ready_line).group(1)
        self.health_url = re.search(r"health (http://[^;\s]+)", self.ready_line).group(1)

    def end(self, number: int | None = None, seconds: float = 40) -> tuple[int, str]:
        """Exit code and standard error, after a signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code, "".join(self.errors)

    def served_by(self) -> list[int]:
        """Process ids of tritonserver and its stubs: the launcher's descendants."""
        parents = {}
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = entry.read_text().rpartition(")")[2].split()
            except OSError:  # ended meanwhile
                continue
            parents[int(entry.parent.name)] = int(fields[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found[1:]

    def left_overs(self) -> list[str]:
        """Shared memory and scratch folders of the launcher."""
        shared = Path("/dev/shm").glob(f"triton_python_backend_shm_region_mplug_{self.process.pid}_*")
        scratch = Path(tempfile.gettempdir()).glob(f"mplug-server-{self.process.pid}-*")
        return [str(path) for path in (*shared, *scratch)]


@contextmanager
def launched(*arguments: str | Path) -> Iterator[Launched]:
    server = Launched(*arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def relay(url: str, x: float, steps: int) -> float:
    """The scratch task's answer, over gRPC."""
    inputs = []
    for name, array in (("X", np.array([x], np.float32)), ("STEPS", np.array([steps], np.int32))):
        inputs.append(triton_grpc.InferInput(name, [1], {"f": "FP32", "i": "INT32"}[array.dtype.kind]))
        inputs[-1].set_data_from_numpy(array)
    with triton_grpc.InferenceServerClient(url) as client:
        return float(client.infer("relay", inputs).as_numpy("Y")[0])


def running(pids: list[int]) -> list[int]:
    """Those that still run; a zombie does not."""
    alive = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            alive.append(pid)
    return alive


def wait_gone(pids: list[int], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while running(pids):
        assert time.monotonic() < deadline, f"still running: {running(pids)}"
        time.sleep(0.05)


def wait_in_flight(server: Launched, count: int, seconds: float = 20) -> None:
    """Until the slow stage has answered so many requests' first steps."""
    deadline = time.monotonic() + seconds
    while True:
        with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
            begun = re.search(r'^nv_inference_count\{model="slow",.*\} (\S+)$', response.read().decode(), re.MULTILINE)
        if begun and float(begun[1]) >= count:
            return
        assert time.monotonic() < deadline, "the requests did not reach the stage"
        time.sleep(0.02)
