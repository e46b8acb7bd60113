"""The machine that a result was measured on: its name, and its limits measured on the spot."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mplug.runtime.interface import THREADS_VARIABLE, threads

#: Packages whose version changes what is measured.
PACKAGES = ("openvino", "torch", "transformers", "litserve", "nvidia-pytriton", "tritonclient", "numpy")
#: Flags of a CPU that say what half-precision arithmetic it has.
TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
#: A limit is the best of so many tries: others on the machine only ever make it look lower.
TRIES = 7


def describe() -> dict[str, Any]:
    """Return CPU, cores, memory, system, versions and date, as written to every result file."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = set(_field(cpu, "flags").split())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _field(cpu, "model name") or platform.processor() or platform.machine(),
        "cpu_family_model_stepping": "/".join(_field(cpu, name) for name in ("cpu family", "model", "stepping")),
        "cpu_features": [flag for flag in TELLING_FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "threads_per_stage": threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system() + " " + platform.release().split("-")[0],
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _field(cpuinfo: str, name: str) -> str:
    found = re.search(rf"^{name}\s*: (.*)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Limits:
    """What the machine can do at most. Bandwidths in bytes per second, arithmetic in operations per second."""

    read_bandwidth: float  #: a matrix too large for the caches, multiplied by a vector
    copy_bandwidth: float  #: reads and writes of a copy
    triad_bandwidth: float  #: reads and writes of a = b + s·c
    matmul_fp32: float  #: a multiply-add counts as two
    matmul_bf16: float

    @property
    def bandwidth(self) -> float:
        """The most that was seen to move."""
        return max(self.read_bandwidth, self.copy_bandwidth, self.triad_bandwidth)

    def arithmetic(self, precision: str) -> float:
        """Return the peak for stages of a precision; int8 weights are multiplied in half precision."""
        return self.matmul_fp32 if precision == "fp32" else max(self.matmul_bf16, self.matmul_fp32)


def measure_limits(matrix_side: int, array_mib: int) -> Limits:
    """Measure streaming arrays of `array_mib` MiB and multiplying square matrices, with the threads of a stage."""
    import torch  # on use: parts that measure no limits do without

    torch.set_num_threads(threads())
    count = array_mib * 2**20 // 4
    one, two, three = (torch.ones(count) for _ in range(3))
    columns = 4096
    matrix, vector = one[: count // columns * columns].view(-1, columns), torch.ones(columns)
    array_bytes = 4 * count
    square = torch.randn(matrix_side, matrix_side)
    half = square.to(torch.bfloat16)
    operations = 2 * matrix_side**3
    return Limits(
        read_bandwidth=matrix.numel() * 4 / best_seconds(lambda: torch.mv(matrix, vector)),
        copy_bandwidth=2 * array_bytes / best_seconds(lambda: two.copy_(one)),
        triad_bandwidth=3 * array_bytes / best_seconds(lambda: torch.add(one, two, alpha=3.0, out=three)),
        matmul_fp32=operations / best_seconds(lambda: square @ square),
        matmul_bf16=operations / best_seconds(lambda: half @ half),
    )


def best_seconds(run: Callable[[], object], tries: int = TRIES) -> float:
    """Return the shortest of `tries` runs, after one that is not counted."""
    run()
    taken = []
    for _ in range(tries):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken)


def environment() -> dict[str, str]:
    """Return settings of the environment that change what is measured, where they are set."""
    names = (THREADS_VARIABLE, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {name: os.environ[name] for name in names if name in os.environ}
