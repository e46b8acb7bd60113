"""Do searches in half precision end as in fp32? Counted over the captions of fresh scenes, on a CPU.

    python demo/agreement.py checkpoints/demo --scenes 500 --page docs/gpu.md

All stages on one side are PyTorch in fp32, on the other the graphs that TensorRT compiles, in fp16 and in bf16, with
the roundings that a GPU makes. The result is printed, and written into a page that has a place for it. The scenes are
drawn from a seed that training never uses.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

if not __package__:
    # Run as a script: in place of this folder, whose tensorrt.py would stand for the package of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from builders.compile.tensorrt_check import OnnxGraph, onnx_decoder
from builders.compile.tensorrt_precision import HALF_TYPES
from builders.compile.tensorrt_stages import export_graph
from demo.scenes.generator import SceneGenerator
from demo.scenes.sprites import TRAIN_STYLES
from demo.splits import SPLITS
from mplug.checkpoint import load_checkpoint
from mplug.config import MPlugConfig
from mplug.contract import DECODER_SCORE, GraphSpec
from mplug.decoding.beam_search import Hypothesis, SearchOptions
from mplug.decoding.loop import DecodeLoop, DecodeRequest
from mplug.inputs.pixels import pixel_values
from mplug.inputs.tokenizer import Tokenizer
from mplug.network import MPlug
from mplug.network.graphs import graphs_of
from mplug.runtime.interface import Decoder
from mplug.runtime.torch import eager_decoder

SEARCH_SECONDS = 600  # that one search may take
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
    """Search with the network in fp32 over `reference_states`, and with `decoder` over `states`.

    Both are lists of encoder states `[A, W]`, one per request, as the encoders of either side give them.
    The search is the checkpoint's own, behind the ids of `prefix`.
    """
    expected = _search(eager_decoder(network, end_id), network, end_id, prefix, reference_states)
    found = _search(decoder, network, end_id, prefix, states)
    same = [(one, other) for one, other in zip(expected, found, strict=True) if one.token_ids == other.token_ids]
    worst = max((abs(one.score - other.score) for one, other in same), default=0.0)
    return Agreement(len(expected), len(same), worst)


def _search(
    decoder: Decoder, network: MPlug, end_id: int, prefix: list[int], states: Sequence[np.ndarray]
) -> list[Hypothesis]:
    generation = network.config.generation
    options = SearchOptions(
        generation.num_beams, generation.min_length, generation.max_length, 1, generation.length_penalty, end_id
    )
    answers: dict[int, list[Hypothesis] | BaseException] = {}
    events = [Event() for _ in states]

    def answered(index: int) -> Callable[[list[Hypothesis] | BaseException], None]:
        def answer(value: list[Hypothesis] | BaseException) -> None:
            answers[index] = value
            events[index].set()

        return answer

    loop = DecodeLoop(decoder, max_slots=16, max_queue=len(states))
    try:
        for index, one in enumerate(states):
            loop.submit(
                DecodeRequest(
                    encoder_states=np.ascontiguousarray(one, np.float32),
                    encoder_mask=np.ones(len(one), np.int32),
                    prefix=list(prefix),
                    options=options,
                    token_range=(0, network.config.text.vocab_size),
                    done=answered(index),
                    failed=answered(index),
                )
            )
        for event in events:
            if not event.wait(SEARCH_SECONDS):
                raise TimeoutError(f"a search takes more than {SEARCH_SECONDS} s")
    finally:
        loop.stop()
    for answer in answers.values():
        if isinstance(answer, BaseException):
            raise answer
    return [answers[index][0] for index in range(len(states))]


def caption_agreement(checkpoint: Path, precisions: Sequence[str], scenes: int, folder: Path) -> dict[str, Agreement]:
    """Caption fresh scenes on either side, from pixels to tokens. `folder` takes the ONNX files."""
    network, files = load_checkpoint(checkpoint)
    config = network.config
    tokenizer = Tokenizer(files.vocabulary, config.text.vocab_size)
    graphs = [(spec, graph) for spec, graph in graphs_of(network, tokenizer.sep_id) if spec is not DECODER_SCORE]
    images = SceneGenerator(TRAIN_STYLES, size=config.vision.image_size, seed=SPLITS["test"].seed).batch(scenes).images
    pixels = [pixel_values(Image.fromarray(image), config.vision.image_size) for image in images]
    prompt = tokenizer.pieces(config.prompt)
    prefix = [tokenizer.cls_id, *(prompt if config.caption_states == "image" else [])]

    def states_of(side: Mapping[str, Run]) -> list[np.ndarray]:
        progress = tqdm(pixels, desc="encoding", unit="scene", leave=False, disable=None)
        return [_encoder_states(side, one, prompt, tokenizer, config) for one in progress]

    reference = states_of({spec.name: _eager(spec, graph.eval()) for spec, graph in graphs})
    agreements = {}
    for precision in precisions:
        half: dict[str, OnnxGraph] = {}
        for spec, graph in tqdm(graphs, desc=f"exporting {precision}", unit="graph", leave=False, disable=None):
            path = folder / f"{spec.name}.onnx"
            export_graph(spec, graph, network, path, precision)
            half[spec.name] = OnnxGraph(path, precision)
        decoder = onnx_decoder(network, half["text_decoder_prefill"], half["text_decoder_step"])
        agreements[precision] = search_agreement(network, tokenizer.sep_id, prefix, decoder, reference, states_of(half))
    return agreements


def _eager(spec: GraphSpec, graph: torch.nn.Module) -> Run:
    @torch.inference_mode()
    def run(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        outputs = graph(*(torch.from_numpy(inputs[name]) for name in spec.input_names))
        return {name: output.numpy() for name, output in zip(spec.output_names, outputs, strict=True)}

    return run


def _encoder_states(
    graphs: Mapping[str, Run], pixels: np.ndarray, prompt: list[int], tokenizer: Tokenizer, config: MPlugConfig
) -> np.ndarray:
    """What the decoder reads of one picture, `[A, W]`; as `mplug.tasks.caption` chains the stages."""
    image = graphs["vision_encoder"]({"PIXEL_VALUES": pixels[None]})["IMAGE_STATES"]
    if config.caption_states == "image":
        return image[0]
    ids = np.array([[tokenizer.cls_id, *prompt, tokenizer.sep_id]], np.int32)
    mask = np.ones_like(ids)
    text = graphs["text_encoder"]({"INPUT_IDS": ids, "ATTENTION_MASK": mask})["TEXT_STATES"]
    fused = graphs["fusion_encoder"]({"IMAGE_STATES": image, "TEXT_STATES": text, "ATTENTION_MASK": mask})
    return np.concatenate([fused["FUSED_IMAGE_STATES"][0], fused["FUSED_TEXT_STATES"][0]])


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
