"""What a runtime offers, and how the one that a stage was built for is found.

A stage's folder holds `stage.json` beside its artefacts; it names the runtime, the precision and the
sizes that cannot be read off the artefact.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mplug.contract import DECODER_SCORE, ENCODERS, decoder_prefill, decoder_step
from mplug.runtime.room import Room

#: Runtimes by the name of the `--target` they serve. Imported on use, so that a served CPU process
#: loads neither torch nor TensorRT.
RUNTIMES = {
    "openvino": "mplug.runtime.openvino",
    "torch": "mplug.runtime.torch",
    "tensorrt": "mplug.runtime.gpu.tensorrt",
    "tensorrt-rtx": "mplug.runtime.gpu.tensorrt",
}

#: Targets whose stages are engines on a GPU.
GPU_TARGETS = ("tensorrt", "tensorrt-rtx")

#: The device that a runtime chooses itself: the CPU for OpenVINO, the first GPU for TensorRT, for PyTorch the first GPU
#: or else the CPU.
ANY_DEVICE = "auto"

STAGE_FILE = "stage.json"
#: Threads that one stage may use; unset, the runtime takes every core that this process may run on.
THREADS_VARIABLE = "MPLUG_THREADS"


class RuntimeUnavailable(RuntimeError):
    """An artefact cannot be run here; the message says why and what to do."""


@dataclass(frozen=True)
class StageInfo:
    """What `stage.json` says."""

    folder: Path
    target: str
    precision: str
    sizes: dict[str, int]  #: for the decoder: layers, heads, head_width, vocab_size, max_positions …
    defaults: dict[str, Any]  #: for the decoder: generation lengths and special ids

    def write(self) -> None:
        """Write it into the stage's version folder."""
        document = {"target": self.target, "precision": self.precision, "sizes": self.sizes, "defaults": self.defaults}
        (self.folder / STAGE_FILE).write_text(json.dumps(document, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> StageInfo:
        """Read it from a stage's version folder. Raises RuntimeUnavailable if it is not there."""
        path = folder / STAGE_FILE
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError:
            raise RuntimeUnavailable(f"{path} is missing: this folder was not made by builders/build.py") from None
        return cls(folder, document["target"], document["precision"], document["sizes"], document["defaults"])


class Graph(Protocol):
    """A compiled graph: arrays by name in, arrays by name out (names and shapes: `mplug.contract`)."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...


class StepChoices(NamedTuple):
    """What one step chose, for S slots of M beams, best beam first."""

    parents: np.ndarray  #: `[S, M]` int32: the beam that each beam continues
    tokens: np.ndarray  #: `[S, M]` int32
    scores: np.ndarray  #: `[S, M]` fp32: sums of log-probabilities; NaN where a slot's caches hold NaN
    over: np.ndarray  #: `[S]` int32: 1 where the search has ended


class Decoder(Protocol):
    """The decoder with its KV cache and its beam searches, which never leave it. Slots hold one request each."""

    #: Caches that are larger than needed are kept while they take no more than this, because changing them costs time.
    spare_bytes: int
    #: Steps that are worth running before the first one's choices are read.
    chunk: int

    def cache_bytes(self, room: Room) -> int:
        """Return the memory that caches of this size take."""

    def reserve(self, room: Room) -> None:
        """Give the caches exactly this size.

        What the slots hold is kept as far as there is room for it.
        """

    def admit(self, slot: int, encoder_states: np.ndarray) -> None:
        """Compute and keep the cross-attention keys and values of states `[A, W]`."""

    def load(self, slot: int, search: Mapping[str, np.ndarray]) -> None:
        """Set a slot's search: rows of `mplug.contract.SEARCH_STATE` and `SEARCH_OPTIONS` by name.

        Rows may be shorter than the room reserved.
        """

    def move(self, source: int, target: int) -> None:
        """Copy a slot's caches and its search to another slot."""

    def step(self, slots: int, beams: int, count: int) -> list[StepChoices]:
        """Run `count` steps of the first slots and return what each chose; valid until the next call.

        No request in them has more than `beams` beams. Outputs may be wider.
        """


class Runtime(Protocol):
    """One kind of artefact."""

    def open_graph(self, info: StageInfo, name: str, device: str) -> Graph: ...

    def open_decoder(self, info: StageInfo, device: str) -> Decoder: ...


def open_runtime(target: str) -> Runtime:
    """Return the runtime of a target. Raises RuntimeUnavailable with the choices, or naming what is not installed."""
    if target not in RUNTIMES:
        raise RuntimeUnavailable(f"unknown runtime {target!r}; known: {', '.join(RUNTIMES)}")
    try:
        return importlib.import_module(RUNTIMES[target])
    except ImportError as error:
        raise RuntimeUnavailable(f"the runtime {target!r} needs a package that is not installed: {error}") from error


def open_graph(folder: Path, name: str, device: str = ANY_DEVICE) -> Graph:
    """Open the graph `name` of a stage's version folder with the runtime it was built for.

    `device`: `auto`, `cpu` or `cuda:N`. Raises RuntimeUnavailable for one that the runtime does not run on.
    """
    info = StageInfo.read(folder)
    return open_runtime(info.target).open_graph(info, name, device)


def open_decoder(folder: Path, device: str = ANY_DEVICE) -> Decoder:
    """Open the decoder of a stage's version folder with the runtime it was built for; see `open_graph`."""
    info = StageInfo.read(folder)
    return open_runtime(info.target).open_decoder(info, device)


def check_inputs(info: StageInfo, name: str, found: Iterable[str]) -> None:
    """Raise RuntimeUnavailable if a compiled graph asks for other inputs than `mplug.contract` has."""
    layers = info.sizes.get("layers", 0)
    specs = (*ENCODERS.values(), DECODER_SCORE, decoder_prefill(layers), decoder_step(layers))
    wanted = {spec.name: set(spec.input_names) for spec in specs}
    if set(found) != wanted[name]:
        raise RuntimeUnavailable(
            f"{info.folder}: {name} was built by another version of mPLUG on Triton; "
            "build the repository again with builders/build.py"
        )


def gpu_index(device: str) -> int:
    """Return the number of the GPU that `auto` (the first) or `cuda:N` names. Raises RuntimeUnavailable for others."""
    if device == ANY_DEVICE:
        return 0
    name, _, number = device.partition(":")
    if name != "cuda" or not number.isdecimal():
        raise RuntimeUnavailable(f"device {device!r} is not a GPU: name one as cuda:N, or use {ANY_DEVICE}")
    return int(number)


def threads() -> int:
    """Return the threads of one stage: MPLUG_THREADS, or the cores that this process may use."""
    configured = os.environ.get(THREADS_VARIABLE, "")
    if not configured:
        return len(os.sched_getaffinity(0))
    if not configured.isdecimal() or int(configured) < 1:
        raise RuntimeUnavailable(f"{THREADS_VARIABLE} is {configured!r}, not a positive number of threads")
    return int(configured)
