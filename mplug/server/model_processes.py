"""The processes that run the models: known from readiness on, so that a dead one is noticed.

tritonserver 24.10 goes on answering 200 to every health request when a process of its Python backend has died, and
requests to that model wait for their clients' deadlines. So the launcher looks at the processes themselves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

STUB_NAME = "triton_python_b"  # the kernel keeps 15 characters of triton_python_backend_stub
STOPPED_SECONDS = 2.0  # a process that is stopped for longer (SIGSTOP) answers nobody


@dataclass
class _Watched:
    process: psutil.Process
    label: str
    stopped_since: float | None = None


class ModelProcesses:
    """tritonserver and its Python backend's stubs, as they were when the server became ready.

    Other children of tritonserver's come and go and mean nothing.
    """

    def __init__(self, tritonserver: int) -> None:
        server = psutil.Process(tritonserver)
        self._watched = [_Watched(server, "tritonserver")]
        for child in server.children(recursive=True):
            try:
                if child.name().startswith(STUB_NAME):
                    self._watched.append(_Watched(child, _label(child)))
            except psutil.NoSuchProcess:
                continue  # a helper that has done its work

    @property
    def pids(self) -> list[int]:
        """Process ids of the stubs."""
        return [watched.process.pid for watched in self._watched[1:]]

    def fault(self) -> str | None:
        """Return which process has died or has been stopped for `STOPPED_SECONDS`, None while all of them run."""
        now = time.monotonic()
        for watched in self._watched:
            status = _status(watched.process)
            if status is None:
                return f"the process of {watched.label} (process {watched.process.pid}) has died"
            if status != psutil.STATUS_STOPPED:
                watched.stopped_since = None
            elif watched.stopped_since is None:
                watched.stopped_since = now
            elif now - watched.stopped_since > STOPPED_SECONDS:
                return (
                    f"the process of {watched.label} (process {watched.process.pid}) "
                    f"has been stopped for more than {STOPPED_SECONDS:.0f} s"
                )
        return None


def _label(stub: psutil.Process) -> str:
    """The model that a stub runs: its first argument is the path DIR/MODEL/VERSION/model.py."""
    try:
        arguments = stub.cmdline()
    except psutil.ZombieProcess:  # it died while the models were loading, and tritonserver became ready all the same
        arguments = []
    parts = arguments[1].split("/") if len(arguments) > 1 else []
    return f"model {parts[-3]}" if len(parts) >= 3 else "a model"


def _status(process: psutil.Process) -> str | None:
    """The state of a process, None when it has ended (another process with its id does not count)."""
    try:
        if not process.is_running():
            return None
        status = process.status()
    except psutil.NoSuchProcess:
        return None
    return None if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else status
