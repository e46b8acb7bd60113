"""ONNX → TensorRT engine, for data-centre GPUs (`tensorrt`) and RTX GPUs (`tensorrt-rtx`).

One code path: the two packages have the same names for all that is used here. What differs:
- `tensorrt` compiles on the GPU that is to run the engine, and chooses among kernels by timing them;
- `tensorrt-rtx` compiles on any machine, also one without a GPU, for the compute capabilities it is told.

An engine is `<graph>.<target>.plan`, and beside it `<graph>.<target>.json` says what it was built from:
an engine cannot be opened without a GPU.
"""

from __future__ import annotations

import importlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mplug.contract import MAX_BEAMS, MAX_CANDIDATE_TOKENS, MAX_CANDIDATES, GraphSpec
from mplug.decoding.candidate_scores import ROWS_PER_PIECE
from mplug.network import MPlug
from mplug.runtime.gpu.engine import PACKAGES
from mplug.runtime.interface import RuntimeUnavailable
from mplug.runtime.room import POSITION_MULTIPLE, STATE_MULTIPLE, round_up
from mplug.tasks.inputs import PADDING_STEP

PRECISIONS = ("fp16", "bf16", "fp32")
#: Compute capabilities that TensorRT-RTX compiles for: Turing, Ampere, Ada, Blackwell.
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
#: Longest requests that the decoder steps many at once, in tokens; and how many it steps at once of longer ones.
MANY_POSITIONS, FEW_SLOTS = 64, 4
#: Batches that full TensorRT chooses kernels for, besides the largest. TensorRT-RTX chooses for shapes that it meets
#: and needs no profile for them.
TUNED_BATCHES = (1, 8)
#: Most texts that the decoder scores in one run, tokens of each, and given tokens that are scored in one place. The
#: logits of all tokens of all texts are in memory at once.
SCORED = (ROWS_PER_PIECE, MAX_CANDIDATE_TOKENS, MAX_CANDIDATES)
#: Turing has tensor cores for fp16 alone.
TURING = "7.5"
#: Layer types that may not be in a network: each breaks CUDA graphs or makes shapes depend on data.
STRAY_LAYERS = ("LOOP", "TRIP_LIMIT", "RECURRENCE", "ITERATOR", "CONDITION", "NON_ZERO", "ASSERTION", "PLUGIN")


class EngineError(RuntimeError):
    """TensorRT cannot compile a graph; the message holds its own."""


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is built for."""

    target: str = "tensorrt-rtx"
    precision: str = "fp16"
    #: For `tensorrt-rtx`: such as ("8.6", "8.9"). Empty: Ampere and later, and the file holds all of them.
    compute_capabilities: tuple[str, ...] = ()
    #: For `tensorrt`: an engine that also runs on other GPUs from Ampere on, and is slower.
    hardware_compatible: bool = False
    #: For `tensorrt`: an engine that later versions of TensorRT can load, too.
    version_compatible: bool = False
    #: For `tensorrt`: kernels once timed are not timed again. Read if it exists, and written.
    timing_cache: Path | None = None
    #: Scratch memory that kernels may use, MiB.
    workspace_mib: int = 2048

    def __post_init__(self) -> None:
        if self.target not in PACKAGES:
            raise ValueError(f"unknown target {self.target!r}; known: {', '.join(PACKAGES)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"TensorRT stages are built in {', '.join(PRECISIONS)}, not {self.precision}")
        rtx = self.target == "tensorrt-rtx"
        unknown = [capability for capability in self.compute_capabilities if capability not in RTX_CAPABILITIES]
        if unknown:
            raise ValueError(
                f"--compute-capability {', '.join(unknown)}: TensorRT-RTX compiles for "
                f"{', '.join(RTX_CAPABILITIES)}; build on the GPU itself with --target tensorrt"
            )
        if self.compute_capabilities and not rtx:
            raise ValueError("--compute-capability is for --target tensorrt-rtx; tensorrt compiles for the GPU here")
        if rtx and (self.hardware_compatible or self.version_compatible or self.timing_cache):
            raise ValueError(
                "hardware and version compatibility and the timing cache are for --target tensorrt; "
                "for tensorrt-rtx name each --compute-capability"
            )
        if TURING in self.compute_capabilities and self.precision != "fp16":
            raise ValueError(f"compute capability {TURING} computes in fp16 alone, not in {self.precision}")


def resolve_precision(precision: str) -> str:
    """Return what `auto` means: fp16, which every tensor core computes, and which is eight times finer than bf16."""
    return "fp16" if precision == "auto" else precision


def engine_name(graph: str, target: str) -> str:
    """Return the file name of a graph's engine."""
    return f"{graph}.{target}.plan"


def load_package(target: str) -> ModuleType:
    """Import the compiler of a target. Raises RuntimeUnavailable saying what to install."""
    try:
        return importlib.import_module(PACKAGES[target])
    except ImportError as error:
        raise RuntimeUnavailable(
            f"--target {target} needs the package {PACKAGES[target]}: pip install -r requirements-gpu.txt ({error})"
        ) from error


# Shapes

#: Least, usual and largest shape of inputs, by name.
Shapes = dict[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Range:
    """Smallest, usual and largest length of a dynamic axis. Kernels are chosen for the usual one."""

    least: int
    usual: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.usual <= self.most:
            raise ValueError(f"{self.least} ≤ {self.usual} ≤ {self.most} does not hold")


@dataclass(frozen=True)
class Limits:
    """How many requests a stage is asked to run at once, and how long they may be."""

    batch: int  #: `max_batch_size` of the stage; for the decoder its `max_slots`
    states: int  #: encoder states that a request to the decoder may bring
    frames: int = 1  #: images whose states the fusion encoder reads side by side: more than 1 for video


def profiles(
    spec: GraphSpec, network: MPlug, limits: Limits, tuned_batches: Sequence[int] = ()
) -> list[dict[str, Range]]:
    """Return ranges of a graph's dynamic axes by their letters in `mplug.contract`; an engine runs what one holds.

    TensorRT sets memory aside for a profile's largest shapes all at once, so the decoder's step has two: many
    requests of the usual length, and few of any length. `tuned_batches` have a profile each besides, of the usual
    lengths, in which kernels are chosen for that batch; the first profile is then for the largest.
    """
    found = _profiles(spec, network, limits)
    first = found[0]
    letter = next((axis for axis in ("S", "B") if axis in first), None)
    if letter is None or first[letter].most == 1:
        return found
    most = first[letter].most
    tuned = [first | {letter: Range(1, batch, batch)} for batch in tuned_batches if batch < most]
    if tuned:
        found[0] = first | {letter: Range(1, most, most)}
    return found + tuned


def _profiles(spec: GraphSpec, network: MPlug, limits: Limits) -> list[dict[str, Range]]:
    config = network.config
    if spec.name == "text_decoder_score":
        texts, length, given = SCORED
        length = min(length, config.text.max_positions)
        return [
            {
                "P": Range(1, texts, texts),
                "L": Range(1, min(8, length), length),
                "G": Range(1, 1, given),
                "A": _states(network, limits.states),
            }
        ]
    if spec.name == "text_decoder_prefill":  # one request at a time, straight into its slot of the caches
        return [{"S": Range(1, 1, 1), "A": _states(network, limits.states)}]
    if spec.name == "text_decoder_step":
        beams = Range(1, config.generation.num_beams, MAX_BEAMS)
        usual, most = (
            config.vision.tokens + config.max_text_length,
            round_up(config.text.max_positions, POSITION_MULTIPLE),
        )
        positions = min(round_up(config.generation.max_length, POSITION_MULTIPLE), most)
        return [
            {
                "S": Range(1, min(8, limits.batch), limits.batch),
                "M": beams,
                "C": beams,
                "T": Range(1, positions, min(max(MANY_POSITIONS, positions), most)),
                "A": _states(network, min(usual, limits.states)),
            },
            {
                "S": Range(1, 1, min(FEW_SLOTS, limits.batch)),
                "M": beams,
                "C": beams,
                "T": Range(1, positions, most),
                "A": _states(network, limits.states),
            },
        ]
    # Self-attention over all frames needs memory that grows with their square: fewer such requests at once.
    batch = max(1, limits.batch // limits.frames) if spec.name == "fusion_encoder" else limits.batch
    tokens = config.vision.tokens
    return [
        {
            "B": Range(1, min(4, batch), batch),
            "L": Range(1, min(PADDING_STEP, config.max_text_length), config.max_text_length),
            "A": Range(1, tokens, limits.frames * tokens),
        }
    ]


def _states(network: MPlug, most: int) -> Range:
    """Return the range of encoder states: usually those of one image, at most `most`."""
    most = round_up(most, STATE_MULTIPLE)
    return Range(1, min(round_up(network.config.vision.tokens, STATE_MULTIPLE), most), most)


def input_shapes(spec: GraphSpec, network: MPlug, ranges: Mapping[str, Range]) -> Shapes:
    """Return the least, usual and largest shape of every input of a graph that has a dynamic axis."""
    text, vision = network.config.text, network.config.vision
    fixed = {"W": text.hidden_size, "H": text.heads, "D": text.head_width, "R": vision.image_size, "N": vision.tokens}

    def length(axis: str | int, bound: str) -> int:
        if isinstance(axis, int):
            return axis
        return getattr(ranges[axis], bound) if axis in ranges else fixed[axis]

    return {
        tensor.name: tuple(tuple(length(axis, bound) for axis in tensor.axes) for bound in ("least", "usual", "most"))
        for tensor in spec.inputs
        if tensor.dynamic_axes
    }


# Compiling


@dataclass(frozen=True)
class NetworkReport:
    """What TensorRT's parser made of a graph."""

    layers: int
    layer_types: dict[str, dict[str, int]]  #: how many layers there are, by type and by the element type they answer in
    inputs: dict[str, tuple[str, tuple[int, ...]]]  #: name → element type, shape with −1 where it varies
    outputs: dict[str, tuple[str, tuple[int, ...]]]


class Compiler:
    """Compiles graphs for one target."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self._trt = load_package(options.target)
        self._logger = _collecting_logger(self._trt)
        self._builder = self._trt.Builder(self._logger)
        if self._builder is None:
            raise self._error("TensorRT cannot start here; --target tensorrt needs the GPU that is to run the engine")

    @property
    def version(self) -> str:
        """Of the TensorRT package."""
        return str(self._trt.__version__)

    def parse(self, onnx: Path) -> tuple[Any, NetworkReport]:
        """Read an ONNX file into a network. Raises EngineError with what the parser said."""
        trt = self._trt
        self._logger.messages.clear()
        # Required by TensorRT 10; from 11 on, and in RTX, networks are strongly typed anyway.
        network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(onnx)):
            said = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
            raise EngineError(f"{onnx.name}: TensorRT cannot parse it: {said}")
        network.name = onnx.stem
        return network, _report(network)

    def compile(self, onnx: Path, spec: GraphSpec, shapes: Sequence[Shapes]) -> tuple[bytes, NetworkReport]:
        """Compile an ONNX file for the shapes of `input_shapes`, one per profile. Raises EngineError."""
        network, report = self.parse(onnx)
        config = self._configure()
        for one in shapes:
            check_report(report, spec, one)
            profile = self._builder.create_optimization_profile()
            for name, (least, usual, most) in one.items():
                profile.set_shape(name, least, usual, most)
            if config.add_optimization_profile(profile) < 0:
                raise self._error(f"{spec.name}: TensorRT rejects the shapes {one}")
        cache = self._timing_cache(config)
        plan = self._builder.build_serialized_network(network, config)
        if plan is None:
            raise self._error(f"{spec.name}: TensorRT does not compile it")
        if cache is not None and self.options.timing_cache is not None:
            self.options.timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
        return bytes(plan), report

    def _configure(self) -> Any:
        trt, options = self._trt, self.options
        config = self._builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names of layers for the engine inspector
        if options.target == "tensorrt-rtx":
            # Else an engine may allocate while it runs, and a stream in which it does cannot be recorded.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if options.precision == "fp32":
            config.clear_flag(trt.BuilderFlag.TF32)  # is on by default and keeps ten bits of the products' inputs
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.compute_capabilities:
            config.num_compute_capabilities = len(options.compute_capabilities)
            for index, capability in enumerate(options.compute_capabilities):
                config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), index)
        return config

    def _timing_cache(self, config: Any) -> Any:
        path = self.options.timing_cache
        if path is None:
            return None
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            raise self._error(f"{path} is not a timing cache of this GPU and TensorRT version; remove it")
        return cache

    def _error(self, message: str) -> EngineError:
        said = "; ".join(self._logger.messages[-3:])
        return EngineError(f"{message}: {said}" if said else message)


def _collecting_logger(trt: ModuleType) -> Any:
    class CollectingLogger(trt.ILogger):
        """Keeps errors, for the exception that follows, and drops the rest."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.messages.append(message.strip())

    return CollectingLogger()


def _report(network: Any) -> NetworkReport:
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    types: dict[str, Counter[str]] = {}
    for layer in layers:
        answer = layer.get_output(0)
        types.setdefault(layer.type.name, Counter())[answer.dtype.name if answer is not None else "NONE"] += 1

    def described(tensor: Any) -> tuple[str, tuple[int, ...]]:
        return tensor.dtype.name, tuple(tensor.shape)

    return NetworkReport(
        layers=len(layers),
        layer_types={name: dict(found) for name, found in sorted(types.items())},
        inputs={tensor.name: described(tensor) for tensor in map(network.get_input, range(network.num_inputs))},
        outputs={tensor.name: described(tensor) for tensor in map(network.get_output, range(network.num_outputs))},
    )


def check_report(report: NetworkReport, spec: GraphSpec, shapes: Shapes) -> None:
    """Raise EngineError unless a network has the contract's inputs and outputs and no stray layers.

    TensorRT itself does not notice when the shapes of two inputs disagree about an axis they share.
    """
    if list(report.inputs) != spec.input_names or set(report.outputs) != set(spec.output_names):
        raise EngineError(
            f"{spec.name}: inputs {list(report.inputs)} and outputs {list(report.outputs)} are not those "
            "of the contract"
        )
    stray = [name for name in report.layer_types if name.startswith(STRAY_LAYERS)]
    if stray:
        raise EngineError(f"{spec.name}: has layers of type {', '.join(stray)}")
    for tensor in spec.inputs:
        _, shape = report.inputs[tensor.name]
        varying = {index for index, length in enumerate(shape) if length < 0}
        if varying != set(tensor.dynamic_axes):
            raise EngineError(
                f"{spec.name}: input {tensor.name} varies along axes {sorted(varying)}, and the contract "
                f"says {sorted(tensor.dynamic_axes)}"
            )
        if bool(varying) != (tensor.name in shapes):
            raise EngineError(f"{spec.name}: no shapes are given for {tensor.name}")
    lengths: dict[str, set[tuple[int, ...]]] = {}
    for tensor in spec.inputs:
        for index, axis in tensor.dynamic_axes.items():
            lengths.setdefault(axis, set()).add(tuple(shape[index] for shape in shapes[tensor.name]))
    disagreeing = sorted(axis for axis, found in lengths.items() if len(found) > 1)
    if disagreeing:
        raise EngineError(f"{spec.name}: inputs disagree about the lengths of axes {', '.join(disagreeing)}")


def write_engine(
    compiler: Compiler, onnx: Path, spec: GraphSpec, network: MPlug, limits: Limits, folder: Path
) -> dict[str, Any]:
    """Compile an ONNX file into `folder` and write beside it what was built; returns that, too."""
    options = compiler.options
    tuned_batches = TUNED_BATCHES if options.target == "tensorrt" else ()
    shapes = [input_shapes(spec, network, ranges) for ranges in profiles(spec, network, limits, tuned_batches)]
    started = time.monotonic()
    plan, report = compiler.compile(onnx, spec, shapes)
    path = folder / engine_name(spec.name, options.target)
    path.write_bytes(plan)
    settings = {key: value for key, value in asdict(options).items() if key != "timing_cache"}
    information = {
        "graph": spec.name,
        **settings,
        "version": compiler.version,
        "seconds": round(time.monotonic() - started, 1),
        "onnx_bytes": onnx.stat().st_size,
        "engine_bytes": len(plan),
        "shapes": shapes,
        "network": asdict(report),
    }
    path.with_suffix(".json").write_text(json.dumps(information, indent=1) + "\n")
    return information
