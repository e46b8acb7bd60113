"""Ray: started here or joined, with enough CPUs, and its errors on one line."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import ray
from ray.data import DataContext

import bulk
import mplug
from bulk.errors import BulkError
from bulk.last_words import said_at_a_sudden_end
from bulk.location import one_line
from mplug.runtime.interface import THREADS_VARIABLE

#: What workers import, each beside nothing else of ours: in a checkout one folder has both, in a wheel two.
PACKAGES = [Path(package.__file__).resolve().parent for package in (bulk, mplug)]
#: CPUs beside the workers': for the tasks that read and those that write. Without them Ray Data waits for ever.
SPARE_CPUS = 2
BLOCK_BYTES = 512 << 10  # a small block keeps all workers busy with a single file; batches gather several
CONNECT_SECONDS = 10
#: How Ray begins the message of an error of ours.
_WRAPPED = re.compile(r"^Failed to .* transient\.?: ")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray prints from the terminal: its C++ on descriptor 2, its driver on standard output, in pages.

    Python's standard error goes on as it was.
    """
    out, err, shown = sys.stdout, sys.stderr, os.dup(2)
    with (
        open(os.devnull, "w") as nowhere,
        os.fdopen(os.dup(shown), "w", buffering=1, errors="backslashreplace") as new,
    ):
        err.flush()
        os.dup2(nowhere.fileno(), 2)
        sys.stdout, sys.stderr = nowhere, new
        try:
            with said_at_a_sudden_end(shown):
                yield
        finally:
            sys.stdout, sys.stderr = out, err
            os.dup2(shown, 2)
            os.close(shown)


@contextlib.contextmanager
def started(address: str | None, workers: int, threads: int, gpus: float) -> Iterator[None]:
    """Start Ray on this machine, or join the cluster at `address`; leave it at the end.

    Raises BulkError when nobody answers there, or when the cluster has too few CPUs or GPUs.
    """
    warnings.filterwarnings("ignore", module=r"ray\.|bulk\.")  # Ray announces what it will change
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with _quiet():
        yield from _started(address, workers, threads, gpus)


def _started(address: str | None, workers: int, threads: int, gpus: float) -> Iterator[None]:
    needed = workers * threads + SPARE_CPUS
    variables = {THREADS_VARIABLE: str(threads), "OMP_NUM_THREADS": str(threads)}
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address is None:
            environment = {
                "env_vars": {**variables, "PYTHONPATH": os.pathsep.join(str(path.parent) for path in PACKAGES)}
            }
            ray.init(
                num_cpus=needed, include_dashboard=False, _node_ip_address="127.0.0.1", runtime_env=environment, **quiet
            )
        else:
            _check_reachable(address)
            environment = {"env_vars": variables, "py_modules": [str(path) for path in PACKAGES]}
            ray.init(address=address, runtime_env=environment, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"no Ray cluster answers at {address}" if address else "Ray cannot be started here"
        raise BulkError(f"{where}: {one_line(error)[:300]}") from error
    try:
        _check_resources(needed, workers, threads, gpus)
        context = DataContext.get_current()
        context.target_max_block_size = BLOCK_BYTES
        context.enable_progress_bars = False  # ours counts rows that are safe
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise OSError when nobody listens there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ValueError("--address takes the HOST:PORT that `ray start --head` prints")
    socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def _check_resources(needed: int, workers: int, threads: int, gpus: float) -> None:
    for name, wanted in (("CPU", needed), ("GPU", workers * gpus)):
        there, free = ray.cluster_resources().get(name, 0.0), ray.available_resources().get(name, 0.0)
        if min(there, free) >= wanted:
            continue
        most = int((free - SPARE_CPUS) // threads) if name == "CPU" else int(free // gpus)
        reason = f"{workers} workers of {threads}, and {SPARE_CPUS} for reading and writing"
        raise BulkError(
            f"the cluster has {there:g} {name}s, {free:g} of them free, and {wanted:g} are needed"
            f"{f' ({reason})' if name == 'CPU' else ''}: "
            + (f"give --workers {most}" if most >= 1 else f"add {name}s to the cluster")
        )


def reason(error: BaseException) -> str:
    """Return what ended a run, on one line: the cause, without what Ray wraps around it."""
    died = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
    causes = [error]
    while (inner := getattr(causes[-1], "cause", None) or causes[-1].__cause__) is not None and inner not in causes:
        causes.append(inner)
    for each in causes:
        if isinstance(each, ray.exceptions.RayActorError) and each.actor_init_failed:
            raised = [line for line in str(each).splitlines() if line.strip()][-1]  # of a traceback as text
            return f"a worker cannot start: {one_line(raised)}"[:500]
    if any(isinstance(each, died) for each in causes):
        return (
            "a worker process died again and again on the same inputs, as it does for want of memory: give fewer "
            f"--workers; Ray's logs (/tmp/ray/session_latest/logs) have the rest{_exit_detail(causes)}"
        )
    return _WRAPPED.sub("", one_line(causes[-1]))[:500]


def _exit_detail(causes: list[BaseException]) -> str:
    """Return what Ray knows of how a worker ended, in brackets; nothing where it does not say."""
    found = re.search(r"Worker exit type: (.{1,300})", " ".join(map(one_line, causes)))
    return f" ({found[1]})" if found else ""
