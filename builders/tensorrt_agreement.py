"""Do searches in half precision end as in fp32? Counted over the captions of fresh scenes, on a CPU.

    python builders/tensorrt_agreement.py checkpoints/demo --precision fp16 --scenes 500

All stages on one side are PyTorch in fp32, on the other the graphs that TensorRT compiles, with the roundings
that a GPU makes. The scenes are those of `builders/evaluate.py`, drawn from a seed that training never uses.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

if not __package__:
    # Run as a script: in place of this folder, whose tensorrt.py would stand for the package of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from builders.compare import EagerDecoder
from builders.data.emoji_scenes import SceneGenerator
from builders.data.emoji_sprites import TRAIN_STYLES
from builders.evaluation.emoji import TEST_SEED
from builders.tensorrt_check import OnnxDecoder, OnnxGraph
from builders.tensorrt_precision import HALF_TYPES
from builders.tensorrt_stages import export_graph
from mplug.beam_search import Hypothesis, SearchOptions
from mplug.checkpoint import load_checkpoint
from mplug.config import MPlugConfig
from mplug.contract import GraphSpec
from mplug.decode_loop import DecodeLoop, DecodeRequest
from mplug.network import MPlug
from mplug.network.graphs import graphs_of
from mplug.preprocess import pixel_values
from mplug.runtime.interface import Decoder
from mplug.tokenizer import Tokenizer

SEARCH_SECONDS = 600  # that one search may take

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


def search_agreement(network: MPlug, end_id: int, prefix: list[int], decoder: Decoder,
                     reference_states: Sequence[np.ndarray], states: Sequence[np.ndarray]) -> Agreement:
    """Search with the network in fp32 over `reference_states`, and with `decoder` over `states`.

    Both are lists of encoder states `[A, W]`, one per request, as the encoders of either side give them.
    The search is the checkpoint's own, behind the ids of `prefix`.
    """
    expected = _search(EagerDecoder(network, end_id), network, end_id, prefix, reference_states)
    found = _search(decoder, network, end_id, prefix, states)
    same = [(one, other) for one, other in zip(expected, found, strict=True) if one.token_ids == other.token_ids]
    worst = max((abs(one.score - other.score) for one, other in same), default=0.0)
    return Agreement(len(expected), len(same), worst)


def _search(decoder: Decoder, network: MPlug, end_id: int, prefix: list[int],
            states: Sequence[np.ndarray]) -> list[Hypothesis]:
    generation = network.config.generation
    options = SearchOptions(generation.num_beams, generation.min_length, generation.max_length, 1,
                            generation.length_penalty, end_id)
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
            loop.submit(DecodeRequest(
                encoder_states=np.ascontiguousarray(one, np.float32), encoder_mask=np.ones(len(one), np.int32),
                prefix=list(prefix), options=options, token_range=(0, network.config.text.vocab_size),
                done=answered(index), failed=answered(index),
            ))
        for event in events:
            if not event.wait(SEARCH_SECONDS):
                raise TimeoutError(f"a search takes more than {SEARCH_SECONDS} s")
    finally:
        loop.stop()
    for answer in answers.values():
        if isinstance(answer, BaseException):
            raise answer
    return [answers[index][0] for index in range(len(states))]


def caption_agreement(checkpoint: Path, precision: str, scenes: int, folder: Path) -> Agreement:
    """Caption fresh scenes on either side, from pixels to tokens. `folder` takes the ONNX files."""
    network, files = load_checkpoint(checkpoint)
    config = network.config
    tokenizer = Tokenizer(files.vocabulary, config.text.vocab_size)
    reference: dict[str, Run] = {}
    half: dict[str, OnnxGraph] = {}
    for spec, graph in tqdm(list(graphs_of(network, tokenizer.sep_id)), desc="exporting", leave=False, disable=None):
        reference[spec.name] = _eager(spec, graph.eval())
        path = folder / f"{spec.name}.onnx"
        export_graph(spec, graph, network, path, precision)
        half[spec.name] = OnnxGraph(path, precision)
    decoder = OnnxDecoder(network, half["text_decoder_prefill"], half["text_decoder_step"])
    images = SceneGenerator(TRAIN_STYLES, size=config.vision.image_size, seed=TEST_SEED).batch(scenes).images
    pixels = [pixel_values(Image.fromarray(image), config.vision.image_size) for image in images]
    prompt = tokenizer.pieces(config.prompt)
    states = [
        [_encoder_states(graphs, one, prompt, tokenizer, config) for one in tqdm(pixels, leave=False, disable=None)]
        for graphs in (reference, half)
    ]
    prefix = [tokenizer.cls_id, *(prompt if config.caption_states == "image" else [])]
    return search_agreement(network, tokenizer.sep_id, prefix, decoder, *states)


def _eager(spec: GraphSpec, graph: torch.nn.Module) -> Run:
    @torch.inference_mode()
    def run(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        outputs = graph(*(torch.from_numpy(inputs[name]) for name in spec.input_names))
        return {name: output.numpy() for name, output in zip(spec.output_names, outputs, strict=True)}

    return run


def _encoder_states(graphs: Mapping[str, Run], pixels: np.ndarray, prompt: list[int], tokenizer: Tokenizer,
                    config: MPlugConfig) -> np.ndarray:
    """What the decoder reads of one picture, `[A, W]`; as `mplug.tasks.caption` chains the stages."""
    image = graphs["vision_encoder"]({"PIXEL_VALUES": pixels[None]})["IMAGE_STATES"]
    if config.caption_states == "image":
        return image[0]
    ids = np.array([[tokenizer.cls_id, *prompt, tokenizer.sep_id]], np.int32)
    mask = np.ones_like(ids)
    text = graphs["text_encoder"]({"INPUT_IDS": ids, "ATTENTION_MASK": mask})["TEXT_STATES"]
    fused = graphs["fusion_encoder"]({"IMAGE_STATES": image, "TEXT_STATES": text, "ATTENTION_MASK": mask})
    return np.concatenate([fused["FUSED_IMAGE_STATES"][0], fused["FUSED_TEXT_STATES"][0]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--precision", choices=tuple(HALF_TYPES), default="fp16")
    parser.add_argument("--scenes", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        agreement = caption_agreement(options.checkpoint, options.precision, options.scenes, Path(folder))
    print(f"{options.precision}: {agreement.same} of {agreement.requests} captions as in fp32 ({agreement.share:.1%}); "
          f"where they are, scores differ by at most {agreement.worst_score:.4f}")


if __name__ == "__main__":
    main()
