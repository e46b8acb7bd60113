"""A checkpoint's stages as TensorRT engines in a repository, each checked as far as this machine can.

Exported in fp32, turned into half precision, checked beside PyTorch on the CPU, compiled; and where the
engine can run here, that is checked beside PyTorch as well.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import torch

from builders.compile.compare import compare_decoders, compare_graph
from builders.compile.export import example_inputs, export
from builders.compile.tensorrt import TURING, Compiler, EngineOptions, Limits, write_engine
from builders.compile.tensorrt_check import OnnxGraph, compare_onnx, onnx_decoder
from builders.compile.tensorrt_precision import HALF_TYPES, to_half
from mplug.contract import OPTIONAL_OUTPUTS, GraphSpec
from mplug.network import MPlug
from mplug.runtime import open_decoder, open_graph
from mplug.runtime.gpu.engine import can_run

#: Config of a stage for Triton's own TensorRT backend.
NATIVE_CONFIG = Path("configs/tensorrt.pbtxt")
#: What errors measured on a GPU are called by, so that they stand beside those measured on the CPU.
ON_DEVICE = "on the GPU"


class TensorRTStages:
    """Builds graph after graph, in the order of `mplug.network.graphs.graphs_of`."""

    def __init__(
        self,
        network: MPlug,
        end_id: int,
        max_states: int,
        max_frames: int,
        options: EngineOptions,
        built: list[dict[str, Any]],
    ) -> None:
        """Take `max_states`, which one request may bring to the decoder, and `max_frames`, the images of a video.

        To `built` is added what is written beside each engine, without its network.
        """
        self._network, self._end_id, self._options = network, end_id, options
        self._max_states = max_states
        self._frames = max_frames if any(task.startswith("video") for task in network.config.tasks) else 1
        self._compiler = Compiler(options)
        self._decoder_graphs: dict[str, OnnxGraph] = {}
        self._built = built

    def build(self, spec: GraphSpec, graph: torch.nn.Module, folder: Path, scratch: Path) -> dict[str, float]:
        """Compile one graph into a stage's version folder; relative error per output that was compared."""
        path = scratch / f"{spec.name}.onnx"
        export_graph(spec, graph, self._network, path, self._options)
        checked = OnnxGraph(path, self._options.precision)
        if spec.name in ("text_decoder_prefill", "text_decoder_step"):
            errors = self._check_decoder(spec, checked)
        else:
            errors = compare_onnx(checked, spec, graph, self._network)
        limits = Limits(_batch_of(folder.parent), self._max_states, self._frames)
        information = write_engine(self._compiler, path, spec, self._network, limits, folder)
        path.unlink()
        information.pop("network")
        self._built.append(information)
        if self._options.target == "tensorrt" and self._frames == 1:
            drop_absent_outputs(folder.parent / NATIVE_CONFIG, spec)
        else:  # RTX engines are no food for that backend, and it cannot split a batch that frames make too large
            (folder.parent / NATIVE_CONFIG).unlink(missing_ok=True)
        measured = self._check_engine(spec, graph, folder)
        return errors | {f"{name} {ON_DEVICE}": error for name, error in measured.items()}

    def _check_decoder(self, spec: GraphSpec, checked: OnnxGraph) -> dict[str, float]:
        self._decoder_graphs[spec.name] = checked
        if len(self._decoder_graphs) < 2:
            return {}  # the prefill is compared with the step, through which alone it acts
        decoder = onnx_decoder(self._network, *self._decoder_graphs.values())
        self._decoder_graphs = {}
        return compare_decoders(decoder, self._network, self._end_id)

    def _check_engine(self, spec: GraphSpec, graph: torch.nn.Module, folder: Path) -> dict[str, float]:
        if not can_run(self._options.target) or spec.name.endswith("prefill"):
            return {}
        if spec.name.endswith("step"):
            return compare_decoders(open_decoder(folder), self._network, self._end_id)
        return compare_graph(open_graph(folder, spec.name), spec, graph, self._network)


def export_graph(spec: GraphSpec, graph: torch.nn.Module, network: MPlug, path: Path, options: EngineOptions) -> None:
    """Write a graph as ONNX in the precision of an engine's options."""
    export(spec, graph, example_inputs(spec, network), path)
    if options.precision in HALF_TYPES:
        single_sums = TURING not in options.compute_capabilities  # its compiler takes no product in fp32
        onnx.save(to_half(onnx.load(path), options.precision, single_sums=single_sums), path)


def drop_absent_outputs(config: Path, spec: GraphSpec) -> None:
    """Take outputs that this checkpoint has no head for out of a native backend's config.

    Triton's TensorRT backend refuses a config that names an output which the engine has not. Each output
    stands on a line of its own there.
    """
    if not config.exists():
        return
    absent = set(OPTIONAL_OUTPUTS) - set(spec.output_names)
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not any(f'name: "{name}"' in line for name in absent)))


def _batch_of(model: Path) -> int:
    """Return the requests that a model's config admits to a batch: `max_batch_size`, or the decoder's `max_slots`."""
    text = (model / "config.pbtxt").read_text()
    batch = re.search(r"^max_batch_size: (\d+)", text, re.MULTILINE)
    slots = re.search(r'key: "max_slots", value: \{ string_value: "(\d+)"', text)
    found = slots or batch
    if found is None or int(found[1]) < 1:
        raise ValueError(f"{model / 'config.pbtxt'}: neither max_slots nor max_batch_size is given")
    return int(found[1])
