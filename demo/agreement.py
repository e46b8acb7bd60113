"""Do searches in half precision end as in fp32? Counted over the captions of fresh scenes, on a CPU.

    python demo/agreement.py checkpoints/demo --scenes 500 --page docs/gpu.md

All stages on one side are PyTorch in fp32, on the other the graphs that TensorRT compiles, in fp16 and in bf16, with
the roundings that a GPU makes. The result is printed, and written into a page that has a place for it. The scenes are
drawn from a seed that training never uses.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

if not __package__:
    # Run as a script: in place of this folder, whose tensorrt.py would stand for the package of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from builders.compile.tensorrt import EngineOptions
from builders.compile.tensorrt_check import OnnxGraph, onnx_decoder
from builders.compile.tensorrt_precision import HALF_TYPES
from builders.compile.tensorrt_stages import export_graph
from demo.scenes.generator import SceneGenerator
from demo.scenes.sprites import SPLIT_STYLES
from demo.splits import SPLITS
from mplug.checkpoint import load_checkpoint
from mplug.contract import DECODER, DECODER_SCORE, GraphSpec, Value, Values
from mplug.decoding.loop import DecodeLoop
from mplug.decoding.request import DecodeRequestParser
from mplug.decoding.service import DecoderService
from mplug.inputs.tokenizer import Tokenizer
from mplug.network import MPlug
from mplug.network.graphs import graphs_of
from mplug.pipeline import encoded
from mplug.runtime.interface import Decoder
from mplug.runtime.torch import eager_decoder
from mplug.tasks.caption import CaptionRequest, CaptionTask
from mplug.tasks.checkpoint_files import ServedCheckpoint

MAX_STATES = 1 << 16  # of one request; the graphs in memory set no limit
#: Marks in a page of Markdown between which the result stands.
BEGIN, END = "<!-- agreement -->", "<!-- end of agreement -->"

#: A graph on either side: arrays by name in and out.
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Agreement:
    """How whole searches end in two decoders."""

    requests: int
    same: int  #: whose best hypothesis has the same tokens
    worst_score: float  #: largest difference of scores where it has

    @property
    def share(self) -> float:
        return self.same / self.requests


def search_agreement(
    network: MPlug,
    end_id: int,
    prefix: list[int],
    decoder: Decoder,
    reference_states: Sequence[np.ndarray],
    states: Sequence[np.ndarray],
) -> Agreement:
    """Search with the network in fp32 over `reference_states`, and with `decoder` over `states`, and compare.

    Both are lists of encoder states `[A, W]`, one per request, as the encoders of either side give them.
    The search is the checkpoint's own, and starts from the ids of `prefix`.
    """

    def search(decoder: Decoder, states: Sequence[np.ndarray]) -> list[Values]:
        start = np.array(prefix, np.int32)
        with open_service(network, prefix[0], end_id, decoder, len(states)) as service:
            return [
                answer.result()
                for answer in [_submit(service, {"ENCODER_STATES": one, "PROMPT_IDS": start}) for one in states]
            ]

    return compare_answers(search(eager_decoder(network, end_id), reference_states), search(decoder, states))


def compare_answers(expected: Sequence[Values], found: Sequence[Values]) -> Agreement:
    """Compare answers that hold TOKEN_IDS and SCORE, best first, request by request."""
    same = [
        (one, other)
        for one, other in zip(expected, found, strict=True)
        if one["TOKEN_IDS"][0].tolist() == other["TOKEN_IDS"][0].tolist()
    ]
    worst = max((abs(float(one["SCORE"][0] - other["SCORE"][0])) for one, other in same), default=0.0)
    return Agreement(len(expected), len(same), worst)


@contextlib.contextmanager
def open_service(
    network: MPlug, start_id: int, end_id: int, decoder: Decoder, requests: int
) -> Iterator[DecoderService]:
    """Open the stage `text_decoder` over a decoder in memory; it queues as many requests as `requests`."""
    config = network.config
    parser = DecodeRequestParser(
        hidden_size=config.text.hidden_size,
        vocab_size=config.text.vocab_size,
        max_positions=config.text.max_positions,
        max_states=MAX_STATES,
        start_id=start_id,
        end_id=end_id,
        generation=config.generation,
    )
    service = DecoderService(parser, DecodeLoop(decoder, max_slots=16, max_queue=requests), None)
    try:
        yield service
    finally:
        service.close()


def _submit(service: DecoderService, inputs: Mapping[str, Value]) -> Future[Values]:
    answer: Future[Values] = Future()
    service.submit(inputs, answer.set_result, answer.set_exception)
    return answer


def caption_agreement(checkpoint: Path, precisions: Sequence[str], scenes: int, folder: Path) -> dict[str, Agreement]:
    """Caption fresh scenes on either side, from pixels to tokens. `folder` takes the ONNX files."""
    network, files = load_checkpoint(checkpoint)
    config = network.config
    tokenizer = Tokenizer(files.vocabulary, config.text.vocab_size)
    end_id = tokenizer.sep_id
    graphs = [(spec, graph) for spec, graph in graphs_of(network, end_id) if spec is not DECODER_SCORE]
    images = SceneGenerator(SPLIT_STYLES, size=config.vision.image_size, seed=SPLITS["test"].seed).batch(scenes).images
    task = CaptionTask(ServedCheckpoint(config, tokenizer, config.vision.image_size))
    requests = [task.parse({"IMAGE": [encoded(Image.fromarray(image))]}) for image in images]

    def caption(decoder: Decoder, stages: Mapping[str, Run]) -> list[Values]:
        with open_service(network, tokenizer.cls_id, end_id, decoder, scenes) as service:
            return asyncio.run(_answers(task, requests, stages, service))

    reference = caption(
        eager_decoder(network, end_id), {spec.name: _eager(spec, graph.eval()) for spec, graph in graphs}
    )
    agreements = {}
    for precision in precisions:
        half: dict[str, OnnxGraph] = {}
        for spec, graph in tqdm(graphs, desc=f"exporting {precision}", unit="graph", leave=False, disable=None):
            path = folder / f"{spec.name}.onnx"
            export_graph(spec, graph, network, path, EngineOptions(precision=precision))
            half[spec.name] = OnnxGraph(path, precision)
        decoder = onnx_decoder(network, half["text_decoder_prefill"], half["text_decoder_step"])
        agreements[precision] = compare_answers(reference, caption(decoder, half))
    return agreements


async def _answers(
    task: CaptionTask, requests: Sequence[CaptionRequest], stages: Mapping[str, Run], service: DecoderService
) -> list[Values]:
    """Run the public model's task over graphs in memory; requests share the decoder's steps."""

    async def call_stage(name: str, inputs: Mapping[str, Value], outputs: Sequence[str]) -> Values:
        if name == DECODER:
            return await asyncio.wrap_future(_submit(service, inputs))
        return dict(stages[name](inputs))

    running = [asyncio.ensure_future(task.run(request, call_stage)) for request in requests]
    return [await answer for answer in tqdm(running, desc="captioning", unit="scene", leave=False, disable=None)]


def _eager(spec: GraphSpec, graph: torch.nn.Module) -> Run:
    @torch.inference_mode()
    def run(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        outputs = graph(*(torch.from_numpy(inputs[name]) for name in spec.input_names))
        return {name: output.numpy() for name, output in zip(spec.output_names, outputs, strict=True)}

    return run


def table(agreements: Mapping[str, Agreement], checkpoint: str, day: str) -> str:
    """The result as Markdown."""
    rows = [
        f"| {precision} | {one.same} of {one.requests} ({one.share:.1%}) | {one.worst_score:.4f} |"
        for precision, one in agreements.items()
    ]
    head = ["| precision | captions as in fp32 | largest difference of their scores |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows, "", f"Measured on `{checkpoint}`, {day}."])


def write_into(page: Path, text: str) -> None:
    """Put `text` between the page's two marks. Raises ValueError where they are not."""
    document = page.read_text(encoding="utf-8")
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: has no place for the result, {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--precision", choices=tuple(HALF_TYPES), action="append", help="one of them alone (default: both)"
    )
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table there, between its marks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        precisions = options.precision or list(HALF_TYPES)
        agreements = caption_agreement(options.checkpoint, precisions, options.scenes, Path(folder))
    result = table(agreements, options.checkpoint.name, datetime.now(UTC).date().isoformat())
    print(result)
    if options.page is not None:
        write_into(options.page, result)


if __name__ == "__main__":
    main()
