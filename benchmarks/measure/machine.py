"""The machine that a result was measured on: its name, and its limits measured on the spot."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mplug.runtime.interface import THREADS_VARIABLE, threads

#: Packages whose version changes what is measured.
PACKAGES = ("openvino", "torch", "transformers", "litserve", "nvidia-pytriton", "tritonclient", "numpy")
#: Flags of a CPU that say what half-precision and byte arithmetic it has.
TELLING_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
#: What makes the libraries compute as on a CPU with AVX2 alone: oneDNN (in OpenVINO and PyTorch), PyTorch, MKL, numpy.
AVX2_ALONE = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX",
}
#: Side of a product that is quick in any precision.
SMALL_SIDE = 256
#: A limit is the best of so many tries: others on the machine only ever make it look lower.
TRIES = 7


def describe() -> dict[str, Any]:
    """Return CPU, cores, memory, system, versions and date, as written to every result file.

    `emulated` names the instruction set that the libraries were limited to, where they were.
    """
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = set(_field(cpu, "flags").split())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _field(cpu, "model name") or platform.processor() or platform.machine(),
        "cpu_family_model_stepping": "/".join(_field(cpu, name) for name in ("cpu family", "model", "stepping")),
        "cpu_features": [flag for flag in TELLING_FLAGS if flag in flags],
        "emulated": "AVX2" if limited_to_avx2() else "",
        "cores": len(os.sched_getaffinity(0)),
        "threads_per_stage": threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system() + " " + platform.release().split("-")[0],
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def limited_to_avx2() -> bool:
    """Return whether the environment limits oneDNN's products to AVX2."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() == AVX2_ALONE["ONEDNN_MAX_CPU_ISA"]


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

    read_bandwidth: float  #: a matrix too large for the caches, multiplied by a vector: the better of fp32 and bf16
    copy_bandwidth: float  #: reads and writes of a copy
    triad_bandwidth: float  #: reads and writes of a = b + s·c
    matmul_fp32: float  #: a multiply-add counts as two
    matmul_bf16: float
    matmul_int8: float  #: integer products, summed in 32 bits

    def or_better(self, others: Limits) -> Limits:
        """Return the higher of both for each: other work on the machine only ever makes a limit look lower."""
        return Limits(*map(max, astuple(self), astuple(others)))

    def arithmetic(self, precision: str) -> float:
        """Return the peak for stages of a precision; int8 stages multiply whole numbers where that is quicker."""
        half = max(self.matmul_bf16, self.matmul_fp32)
        return {"fp32": self.matmul_fp32, "int8": max(self.matmul_int8, half)}.get(precision, half)


def measure_limits(matrix_side: int, array_mib: int) -> Limits:
    """Measure streaming arrays of `array_mib` MiB and multiplying square matrices, with the threads of a stage."""
    import torch  # on use: parts that measure no limits do without

    torch.set_num_threads(threads())
    count = array_mib * 2**20 // 4
    one, two, three = (torch.ones(count) for _ in range(3))
    array_bytes = 4 * count
    columns = 4096
    rows = count // columns

    def read(dtype: torch.dtype) -> float:
        matrix = one.view(dtype)[: rows * columns].view(rows, columns)
        vector = torch.ones(columns, dtype=dtype)
        return matrix.numel() * matrix.element_size() / best_seconds(lambda: torch.mv(matrix, vector))

    return Limits(
        read_bandwidth=max(read(torch.float32), read(torch.bfloat16)),
        copy_bandwidth=2 * array_bytes / best_seconds(lambda: two.copy_(one)),
        triad_bandwidth=3 * array_bytes / best_seconds(lambda: torch.add(one, two, alpha=3.0, out=three)),
        matmul_fp32=product_rate("fp32", matrix_side),
        matmul_bf16=product_rate("bf16", matrix_side),
        matmul_int8=product_rate("int8", matrix_side),
    )


def product_rate(precision: str, side: int) -> float:
    """Return the operations per second of products of square matrices; of small ones where they are emulated."""
    import torch

    if side > SMALL_SIDE and is_emulated(precision):
        side = SMALL_SIDE
    square = torch.randn(side, side)
    if precision == "int8":
        whole = (square * 32).to(torch.int8)
        return 2 * side**3 / best_seconds(lambda: torch._int_mm(whole, whole))
    square = square.to({"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    return 2 * side**3 / best_seconds(lambda: square @ square)


def is_emulated(precision: str) -> bool:
    """Return whether the CPU has no instructions for a precision: large products of it can then take minutes."""
    return product_rate(precision, SMALL_SIDE) < product_rate("fp32", SMALL_SIDE) / 2


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
    names = (THREADS_VARIABLE, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", *AVX2_ALONE)
    return {name: os.environ[name] for name in names if name in os.environ}
