"""Stages → ONNX, with the names and dynamic axes of `mplug.contract`.

Weights are fp32 in the file; precision is the compiler's business.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from mplug.contract import PIXEL_STATISTICS, SEARCH_OPTIONS, SEARCH_STATE, GraphSpec, TensorSpec
from mplug.network import MPlug

#: Has Gelu and LayerNormalization as single operators, and no Attention operator yet, whose fp32
#: kernel ONNX Runtime lacks.
OPSET = 20
#: Text tokens of an example. A comparison's error is the largest of all elements, so it grows with their number, and
#: the tolerances were set with texts of this length; a checkpoint that reads 80 tokens is compared on the same.
EXAMPLE_TOKENS = 30


def example_inputs(spec: GraphSpec, network: MPlug, *, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    """Return random inputs by name, such as the graph could meet.

    `sizes` overrides the length of dynamic axes, by letter (see `mplug.contract`).
    """
    config, text = network.config, network.config.text
    lengths = {
        "B": 2,
        "L": min(config.max_text_length, EXAMPLE_TOKENS),
        "S": 3,
        "M": 4,
        "T": 7,
        "C": 5,
        "P": 3,
        "G": 2,
        "A": config.vision.tokens,
        "R": config.vision.image_size,
        "N": config.vision.tokens,
        "W": text.hidden_size,
        "H": text.heads,
        "D": text.head_width,
        "E": config.embed_dim,
    } | sizes
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: TensorSpec) -> Tensor:
        shape = [axis if isinstance(axis, int) else lengths[axis] for axis in tensor.axes]
        whole = {
            "INPUT_IDS": (0, text.vocab_size),
            "TOKENS": (0, text.vocab_size),
            "TARGETS": (0, text.vocab_size),
            "ATTENTION_MASK": (1, 2),
            "ENCODER_MASK": (1, 2),
            "POSITIONS": (0, lengths["T"]),
            "ANCESTRY": (-1, lengths["C"]),
            "OVER": (0, 1),
            "PREFIX": (0, text.vocab_size),
        }
        if tensor.name == "OPTIONS":
            # Choosing from position 0 on, all beams, 1 to 100 tokens of all there are.
            return torch.tensor([[1, lengths["M"], 1, 100, 0, text.vocab_size]] * shape[0], dtype=torch.int32)
        if tensor.name == "PIXELS":
            return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        if tensor.name == "PICTURE_BOX":  # padding on every side
            sides = [1, 2, lengths["R"] - 3, lengths["R"] - 4]
            return torch.tensor([sides] * shape[0], dtype=torch.int32)
        if tensor.name == "PIXEL_STATISTICS":
            return (torch.arange(shape[0], dtype=torch.int32) % len(PIXEL_STATISTICS))[:, None]
        if tensor.name in whole:
            values = torch.randint(*whole[tensor.name], shape, generator=generator, dtype=torch.int32)
            if tensor.name.endswith("MASK"):
                values[0, -1] = 0  # padding in one row
            return values
        return torch.randn(shape, generator=generator)

    return {tensor.name: draw(tensor) for tensor in spec.inputs}


def export(
    spec: GraphSpec, graph: nn.Module, inputs: dict[str, Tensor], path: Path, *, external_data: bool = False
) -> None:
    """Write a graph as one ONNX file, checked by the exporter itself; `external_data`: its weights in a second one."""
    dimensions = {
        letter: torch.export.Dim(letter, min=1)
        for letter in {axis for t in spec.inputs for axis in t.axes}
        if isinstance(letter, str)
    }
    shapes = [{index: dimensions[letter] for index, letter in tensor.dynamic_axes.items()} for tensor in spec.inputs]
    if spec.name == "text_decoder_step":
        named = len(SEARCH_STATE) + len(SEARCH_OPTIONS)
        shapes = [*shapes[:named], tuple(shapes[named:])]  # the caches arrive as one variadic argument
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.eval(),
            tuple(inputs[name] for name in spec.input_names),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=spec.input_names,
            output_names=spec.output_names,
            verbose=False,
        )
    program.save(path, external_data=external_data)
