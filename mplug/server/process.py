"""A tritonserver process on a model repository: started, ready, drained, gone.

    with TritonServer("build/demo") as server:      # free ports, 127.0.0.1
        client = tritonclient.grpc.InferenceServerClient(server.grpc_url)

Stopping goes in steps, because a tritonserver that is asked to end goes on accepting requests, waits for idle HTTP
connections until its exit timeout, and answers NOT_FOUND from the moment its models are gone: new requests are refused
(the models see the drain state), requests in flight are waited for, and then tritonserver is killed, so that no request
meets a server without models.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mplug.server import guardian
from mplug.server.access import AccessKeys
from mplug.server.gpu_memory import gpu_arguments
from mplug.server.install import CHECKOUT, ServerError, TritonInstall, find_triton
from mplug.server.log import ServerLog
from mplug.server.model_processes import ModelProcesses
from mplug.tracing import ENDPOINT_VARIABLE, HEADERS, TracingError, checked_endpoint
from mplug.triton.drain import DRAIN_FILE_VARIABLE, DROP, IN_FLIGHT_METRIC, REFUSE, DrainState

CACHE_MB = 256  # response cache, MiB
DRAIN_SECONDS = 30.0  # how long requests in flight are waited for
START_SECONDS = 900.0  # loading may compile for a device
THREADS = 64  # BLS calls that the Python backend runs at a time
SHM_DEFAULT, SHM_GROWTH = (
    4 << 20,
    16 << 20,
)  # bytes per model instance: a dozen fit a container's usual 64 MiB
DROP_SECONDS = 0.5  # for the models to see that they are to give up, and for their answers to leave
SETTLE_SECONDS = 0.2  # for the last answers to leave tritonserver, after the models have given them
SPAN_SECONDS = 1.5  # for the last spans to leave the models' processes, which send them twice a second
EXIT_SECONDS = 2  # tritonserver's own exit timeout, where somebody else asks it to end
MAX_BODY_BYTES = 64 << 20  # of one HTTP request, where this tritonserver can be given a bound
#: tritonserver's Python backend refuses to share regions with clients whose names begin so (from release 25.07 on).
SHM_PREFIX = "triton_python_backend_shm_region_"
PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Options:
    """How to serve; the defaults are those for tests: free ports (0), this machine only."""

    host: str = "127.0.0.1"
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    cache_mb: int = CACHE_MB  # 0: no response cache
    drain_seconds: float = DRAIN_SECONDS
    start_seconds: float = START_SECONDS
    model_config_name: str | None = None  # picks configs/NAME.pbtxt where a model has one
    log: str = "warning"  # or info, verbose
    trace_endpoint: str | None = None  # where spans of requests go, OTLP over HTTP
    allow_shared_memory: bool = False  # clients of this user may pass inputs through shared memory
    tritonserver: str = "auto"  # see find_triton
    triton_arguments: tuple[str, ...] = ()  # passed on as they are


class TritonServer:
    """A tritonserver on one repository. `with` starts it, waits until it is ready, and stops it."""

    def __init__(self, repository: str | Path, options: Options | None = None) -> None:
        self.repository = Path(repository)
        self.options = options or Options()
        self.models: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._scratch: Path | None = None
        self.keys = AccessKeys(self.options.allow_shared_memory)
        self._shm_prefix = f"{SHM_PREFIX}mplug_{os.getpid()}_{secrets.token_hex(4)}_"
        self._log = ServerLog()
        self._drain_state: DrainState | None = None
        self._models: ModelProcesses | None = None
        self._guardian: subprocess.Popen[str] | None = None

    @property
    def http_url(self) -> str:
        """HOST:PORT, as tritonclient.http takes it."""
        return f"{_reachable(self.options.host)}:{self.options.http_port}"

    @property
    def grpc_url(self) -> str:
        """HOST:PORT, as tritonclient.grpc takes it."""
        return f"{_reachable(self.options.host)}:{self.options.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """HOST:PORT of the Prometheus metrics, under /metrics."""
        return f"{_reachable(self.options.host)}:{self.options.metrics_port}"

    @property
    def pid(self) -> int | None:
        """The tritonserver's process id while it runs."""
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """The tritonserver's exit code, negative for a signal; None while it runs."""
        return self._process.poll() if self._process else None

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Start and wait until every model is ready.

        `cancelled`: asked while waiting; True ends the wait with a ServerError. The calling thread must
        outlive the server: the kernel ends a tritonserver whose starting thread has died, so that a killed
        launcher leaves none. Raises ServerError with the reason; nothing is left running then.
        """
        _require_repository(self.repository)
        self.options = _with_ports(self.options)
        self._scratch = Path(tempfile.mkdtemp(prefix=f"mplug-server-{os.getpid()}-"))
        try:
            install = find_triton(self._scratch, self.options.tritonserver)
            drain_file = self._scratch / "drain"
            self._drain_state = DrainState.create(drain_file)
            environment = install.environment | {DRAIN_FILE_VARIABLE: str(drain_file)}
            environment.pop(ENDPOINT_VARIABLE, None)
            if self.options.trace_endpoint is not None:
                environment[ENDPOINT_VARIABLE] = checked_endpoint(self.options.trace_endpoint)
            self._guardian = self._start_guardian()
            self._process = subprocess.Popen(
                self._command(install),
                env=environment,
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C reaches us alone, and we drain
                preexec_fn=_die_with_parent,
            )
            self._tell_guardian(str(self._process.pid))
            self._log.follow(self._process)
            self._wait_ready(install, cancelled)
            self._models = ModelProcesses(self._process.pid)
            self.keys.hand_out((self.options.http_port, self.options.grpc_port))
        except BaseException as error:
            self._end()
            if isinstance(error, TracingError):
                raise ServerError(str(error)) from error
            if isinstance(error, OSError):  # not an executable of this machine, no space for the scratch folder …
                raise ServerError(f"cannot start tritonserver: {error}") from error
            raise

    def fault(self) -> str | None:
        """Return why the server can serve no longer, None while it can; to be asked several times a second.

        That is when tritonserver or a model's process has ended or is stopped, and when somebody else has asked
        tritonserver to end.
        """
        if self.exit_code is not None or self._models is None:
            return self.failure()
        found = self._models.fault()
        if found is not None:
            return "\n".join([found, *self._log.complaints()])
        if self._log.stopping_signal is not None:
            name = signal.Signals(self._log.stopping_signal).name
            return f"tritonserver itself has received {name}; to stop it without loss, signal the launcher"
        return None

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> int:
        """Drain and end the server; safe to call again. Returns how many requests had to be dropped.

        `hurry`: asked while draining; True gives up the rest of the wait.
        """
        dropped = 0
        if self._models is not None and self.exit_code is None:
            dropped = self._drain(hurry)
            time.sleep(SETTLE_SECONDS if self.options.trace_endpoint is None else SPAN_SECONDS)
        self._end()
        return dropped

    def kill(self) -> None:
        """End the server at once: its clients' connections close, and nobody waits for an answer that cannot come."""
        self._end()

    def failure(self) -> str:
        """Why the server ended by itself: one line, and what it last complained of."""
        code = self.exit_code
        if code is not None and code < 0:
            reason = f"tritonserver was ended by {signal.Signals(-code).name}"
        else:
            reason = f"tritonserver ended with exit code {code}"
        return "\n".join([reason, *self._log.complaints()])

    def _start_guardian(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-I", guardian.__file__, str(self._scratch), self._shm_prefix]
        return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd="/", start_new_session=True)

    def _tell_guardian(self, line: str) -> None:
        with contextlib.suppress(OSError):  # somebody has ended it: then it is missed only where we are killed, too
            self._guardian.stdin.write(f"{line}\n")
            self._guardian.stdin.flush()

    def _command(self, install: TritonInstall) -> list[str]:
        options = self.options
        levels = ("warning", "info", "verbose").index(options.log)
        command = [
            str(install.executable),
            *install.arguments,
            f"--model-repository={self.repository.resolve()}",
            f"--http-address={options.host}",
            f"--http-port={options.http_port}",
            f"--grpc-address={options.host}",
            f"--grpc-port={options.grpc_port}",
            f"--metrics-address={options.host}",
            f"--metrics-port={options.metrics_port}",
            # A model that fails leaves the server up and not ready, so that we can ask it for the reason.
            "--exit-on-error=false",
            "--strict-readiness=true",
            f"--exit-timeout-secs={EXIT_SECONDS}",
            f"--log-info={'true' if levels >= 1 else 'false'}",
            f"--log-verbose={1 if levels >= 2 else 0}",
            f"--backend-config=python,thread-pool-size={THREADS}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            f"--backend-config=python,shm-default-byte-size={SHM_DEFAULT}",
            f"--backend-config=python,shm-growth-byte-size={SHM_GROWTH}",
            # Messages that have been answered are freed: kept for reuse, each stays as large as its largest request.
            "--grpc-infer-allocation-pool-size=0",
            *self.keys.arguments(),
        ]
        if install.bounds_bodies:
            command += [f"--http-max-input-size={MAX_BODY_BYTES}"]
        if not _completes_configs(self.repository):
            # Asking a model to complete its config costs a process with all its imports: most of a start.
            command += ["--disable-auto-complete-config"]
        if options.trace_endpoint is not None:
            pattern = f"(?i)^({'|'.join(HEADERS)})$"
            command += [f"--{protocol}-header-forward-pattern={pattern}" for protocol in ("grpc", "http")]
        if options.cache_mb > 0 and install.cache_directory is not None:
            command += [f"--cache-directory={install.cache_directory}"]
            command += [f"--cache-config=local,size={options.cache_mb << 20}"]
        if options.model_config_name:
            command += [f"--model-config-name={options.model_config_name}"]
        return [*command, *gpu_arguments(self.repository), *options.triton_arguments]

    def _wait_ready(self, install: TritonInstall, cancelled: Callable[[], bool]) -> None:
        began = time.monotonic()
        said = began
        while True:
            if self.exit_code is not None:
                raise ServerError(self.failure())
            if cancelled():
                raise ServerError("stopped while the models were loading")
            status, _ = _request(self.http_url, "GET", "/v2/health/ready")
            if status == 200 and _request(self.metrics_url, "GET", "/metrics")[0] == 200:
                self.models = sorted(model["name"] for model in self._index())
                return
            if status is not None and status != 200:
                # tritonserver opens its ports when it is done loading: what is not ready now never will be.
                raise ServerError(self._load_failure())
            now = time.monotonic()
            if now - began > self.options.start_seconds:
                raise ServerError(f"the models were not ready after {self.options.start_seconds:.0f} s")
            if now - said > 15:
                said = now
                print(f"still loading models, {now - began:.0f} s", file=sys.stderr, flush=True)
            time.sleep(0.05)

    def _index(self) -> list[dict[str, str]]:
        _, body = _request(self.http_url, "POST", "/v2/repository/index", self.keys.headers)
        return json.loads(body or "[]")

    def _load_failure(self) -> str:
        lines = []
        for model in self._index():
            if model.get("state") != "READY":
                # A model whose config.pbtxt cannot be read has no state: the reason stands in the log alone.
                reason = model.get("reason") or "\n".join(self._log.complaints(about=f"'{model['name']}'"))
                lines.append(f"model {model['name']} failed to load: {reason.strip() or 'no reason given'}")
        return "\n".join(lines) or "\n".join(["the models are not ready", *self._log.complaints()])

    def _drain(self, hurry: Callable[[], bool]) -> int:
        """Refuse new requests and wait until none is in flight; returns how many were when time ran out."""
        self._drain_state.set(REFUSE)
        deadline = time.monotonic() + self.options.drain_seconds
        idle = in_flight = 0
        while idle < 2:  # twice: a request may have passed the check for the file just before
            if self._models.fault() is not None:
                return in_flight  # nobody is left to answer them
            in_flight = self._in_flight()
            idle = idle + 1 if in_flight == 0 else 0
            if in_flight and (time.monotonic() > deadline or hurry()):
                self._drain_state.set(DROP)
                time.sleep(DROP_SECONDS)
                return in_flight
            time.sleep(0.05)
        return 0

    def _in_flight(self) -> int:
        """Requests that are queued or being answered. Stage calls of a task count beside the task."""
        _, body = _request(self.metrics_url, "GET", "/metrics")
        pattern = rf"^(?:nv_inference_pending_request_count|{IN_FLIGHT_METRIC})\{{.*\}} (\S+)$"
        return round(sum(float(value) for value in re.findall(pattern, body, re.MULTILINE)))

    def _end(self) -> None:
        """Kill what is left of the server, and remove its shared memory and files."""
        self.keys.take_back()
        if self._process is not None:
            _kill_group(self._process)
            self._log.join()
        for left_over in Path("/dev/shm").glob(f"{self._shm_prefix}*"):
            left_over.unlink(missing_ok=True)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        if self._guardian is not None:
            self._tell_guardian("done")
            self._guardian.communicate()
            self._guardian = None


def _die_with_parent() -> None:
    """Runs in the child before it becomes tritonserver."""
    _libc.prctl(PDEATHSIG, signal.SIGTERM)


def _kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a process and its group, where the stubs are, and wait until the group is empty."""
    group = process.pid
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            break
        process.wait()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-group, os.WNOHANG)  # a container's first process inherits the stubs
        time.sleep(0.02)


def _reachable(host: str) -> str:
    """An address to connect to for an address to bind to."""
    return "127.0.0.1" if host in ("0.0.0.0", "") else host


def _request(url: str, method: str, path: str, headers: Mapping[str, str] | None = None) -> tuple[int | None, str]:
    """Status and body; (None, "") when there is no answer."""
    connection = http.client.HTTPConnection(url, timeout=5)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException):
        return None, ""
    finally:
        connection.close()


def _require_repository(repository: Path) -> None:
    advice = "make one with: python builders/build.py CHECKPOINT --output DIR"
    if not repository.is_dir():
        raise ServerError(f"{repository} is not a folder; {advice}")
    if not any(repository.glob("*/config.pbtxt")):
        raise ServerError(f"{repository} is not a model repository: no */config.pbtxt in it; {advice}")


def _completes_configs(repository: Path) -> bool:
    """Whether a model has the hook by which it completes its config.pbtxt."""
    return any("def auto_complete_config(" in model.read_text() for model in repository.glob("*/*/model.py"))


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _with_ports(options: Options) -> Options:
    """The options with free ports in place of 0. Raises ServerError when a port asked for is taken."""
    chosen: dict[str, int] = {}
    for name in ("http_port", "grpc_port", "metrics_port"):
        port = getattr(options, name)
        if port == 0:
            # Below the range of outgoing connections, any of which could take the port while the models load.
            candidates = random.sample(range(20000, 32000), 200)
            port = next(p for p in candidates if p not in chosen.values() and _is_free(options.host, p))
        elif not _is_free(options.host, port):
            flag = f"--{name.replace('_', '-')}"
            raise ServerError(f"port {port} on {options.host} is occupied: end what uses it or choose another {flag}")
        chosen[name] = port
    return replace(options, **chosen)
