"""Names, types and shapes of every compiled graph and every stage model, once.

The exporter takes its input and output names and dynamic axes from here, the runtimes bind by these
names, and tests hold each `config.pbtxt` against them.

Axes, by the letters that name them:
    B batch · R image side, pixels · N image states · L text tokens · W hidden width · E width of the
    contrastive space · S slots · M beams · T positions that the cache holds · C cache columns per
    position · H heads · D head width · A all states that the decoder reads · P given texts that are
    scored · G tokens that are scored per place
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Most beams that a request may ask for. The step takes one candidate more of each beam: `[SEP]`, which may be blocked.
MAX_BEAMS = 16

#: Images that one request may bring as a video, whose states are laid side by side.
MAX_FRAMES = 16

#: Given answers that one request may have ranked (the published list has 3,129), and tokens of each, `[CLS]` and
#: `[SEP]` included. The engine that scores them is compiled for no more, and other runtimes hold to it, too.
MAX_CANDIDATES = 4096
MAX_CANDIDATE_TOKENS = 64

#: Largest magnitude of states that a stage takes. Normalised states of the largest published width stay below
#: sqrt(1024) = 32 times a gain of order one; half precision overflows at 65,504.
MAX_MAGNITUDE = 1000.0

#: What pixels are normalised with, in the order of the numbers that PIXEL_STATISTICS holds.
PIXEL_STATISTICS = ("clip", "imagenet")

#: Classes of the heads, in the order of their logits.
NLVR_LABELS = ("false", "true")
ENTAILMENT_LABELS = ("contradiction", "neutral", "entailment")

#: Outputs that go on to the decoder as they are, and stay on a GPU where the stages run on one. The encoders' own go
#: through the host: Triton's response cache, which spares the encoders, keeps nothing that lies elsewhere.
FORWARDED_OUTPUTS = ("FUSED_IMAGE_STATES", "FUSED_TEXT_STATES")

#: Types of tensors, by Triton's names.
NUMPY_TYPES = {"FP32": "float32", "INT32": "int32", "UINT8": "uint8"}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, its Triton type, and a letter or a number per axis."""

    name: str
    dtype: str
    axes: tuple[str | int, ...]

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """Axes that vary from run to run, by index."""
        return {index: axis for index, axis in enumerate(self.axes) if isinstance(axis, str) and axis in DYNAMIC}


#: Axes that vary from run to run; the others are fixed by the checkpoint.
DYNAMIC = frozenset("BLSMTCAPG")


@dataclass(frozen=True)
class GraphSpec:
    """One graph that is exported and compiled."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def input_names(self) -> list[str]:
        return [spec.name for spec in self.inputs]

    @property
    def output_names(self) -> list[str]:
        return [spec.name for spec in self.outputs]


VISION_ENCODER = GraphSpec(
    "vision_encoder",
    inputs=(
        TensorSpec("PIXELS", "UINT8", ("B", 3, "R", "R")),
        #: Left, top, right, bottom. The rest of the canvas is padding: zero once normalised, whatever PIXELS are there.
        TensorSpec("PICTURE_BOX", "INT32", ("B", 4)),
        #: Index into `PIXEL_STATISTICS`.
        TensorSpec("PIXEL_STATISTICS", "INT32", ("B", 1)),
    ),
    outputs=(TensorSpec("IMAGE_STATES", "FP32", ("B", "N", "W")), TensorSpec("IMAGE_PROJECTION", "FP32", ("B", "E"))),
)

TEXT_ENCODER = GraphSpec(
    "text_encoder",
    inputs=(TensorSpec("INPUT_IDS", "INT32", ("B", "L")), TensorSpec("ATTENTION_MASK", "INT32", ("B", "L"))),
    outputs=(TensorSpec("TEXT_STATES", "FP32", ("B", "L", "W")), TensorSpec("TEXT_PROJECTION", "FP32", ("B", "E"))),
)

FUSION_ENCODER = GraphSpec(
    "fusion_encoder",
    inputs=(
        TensorSpec("IMAGE_STATES", "FP32", ("B", "A", "W")),
        TensorSpec("TEXT_STATES", "FP32", ("B", "L", "W")),
        TensorSpec("ATTENTION_MASK", "INT32", ("B", "L")),
    ),
    outputs=(
        TensorSpec("FUSED_IMAGE_STATES", "FP32", ("B", "A", "W")),
        TensorSpec("FUSED_TEXT_STATES", "FP32", ("B", "L", "W")),
        TensorSpec("MATCH_LOGITS", "FP32", ("B", 2)),
    ),
)

#: Outputs that only checkpoints with the head behind them have.
OPTIONAL_OUTPUTS = {
    "IMAGE_PROJECTION": "vision_projection",
    "TEXT_PROJECTION": "text_projection",
    "MATCH_LOGITS": "match_head",
}

ENCODERS = {spec.name: spec for spec in (VISION_ENCODER, TEXT_ENCODER, FUSION_ENCODER)}


#: The fourth stage, a model that keeps its KV cache and is three graphs.
DECODER = "text_decoder"


def decoder_prefill(layers: int) -> GraphSpec:
    """Return the graph from encoder states to cross-attention keys and values of every layer, run once per request."""
    return GraphSpec(
        "text_decoder_prefill",
        inputs=(TensorSpec("ENCODER_STATES", "FP32", ("S", "A", "W")),),
        outputs=tuple(
            TensorSpec(f"CROSS_{kind}_{layer}", "FP32", ("S", "H", "A", "D"))
            for layer in range(layers)
            for kind in ("KEY", "VALUE")
        ),
    )


#: The search of every slot, as the step reads it; `mplug.network.beam_step` says how it goes on.
SEARCH_STATE = (
    #: Last token of each beam.
    TensorSpec("TOKENS", "INT32", ("S", "M")),
    #: Sum of each beam's log-probabilities.
    TensorSpec("SCORES", "FP32", ("S", "M")),
    #: Which column of the cache holds each beam's own past at each position; −1 where there is none.
    TensorSpec("ANCESTRY", "INT32", ("S", "M", "T")),
    #: Position of the last token, from 0.
    TensorSpec("POSITIONS", "INT32", ("S",)),
    #: 1 where the search has ended.
    TensorSpec("OVER", "INT32", ("S",)),
)
#: What a request asks of its search; the step only reads it.
SEARCH_OPTIONS = (
    TensorSpec("ENCODER_MASK", "INT32", ("S", "A")),
    #: Tokens that are decoded first, whatever is likeliest: `[CLS]` and a prompt.
    TensorSpec("PREFIX", "INT32", ("S", "T")),
    #: Length of the prefix, beams, least and most tokens behind the prefix, first and one past the last token that
    #: may be chosen.
    TensorSpec("OPTIONS", "INT32", ("S", 6)),
)
#: What places of the search state hold that no request uses; zero where it is not named.
SEARCH_FILL = {"SCORES": -1e30, "ANCESTRY": -1}
#: What a step chose, and all that the host reads of it: the beam that each beam continues, its token, its score.
STEP_CHOICES = ("PARENTS", "NEXT_TOKENS", "NEXT_SCORES", "NEXT_OVER")


def decoder_step(layers: int) -> GraphSpec:
    """Return the graph of one step of every slot's beam search; see `mplug.network.graphs.DecoderStepGraph`.

    Outputs named `NEXT_…` are the search state that the next step reads.
    """
    return GraphSpec(
        "text_decoder_step",
        inputs=(
            *SEARCH_STATE,
            *SEARCH_OPTIONS,
            *(
                TensorSpec(f"PAST_{kind}_{layer}", "FP32", ("S", "H", "T", "C", "D"))
                for layer in range(layers)
                for kind in ("KEY", "VALUE")
            ),
            *(
                TensorSpec(f"CROSS_{kind}_{layer}", "FP32", ("S", "H", "A", "D"))
                for layer in range(layers)
                for kind in ("KEY", "VALUE")
            ),
        ),
        outputs=(
            *(TensorSpec(f"NEXT_{tensor.name}", tensor.dtype, tensor.axes) for tensor in SEARCH_STATE),
            TensorSpec("PARENTS", "INT32", ("S", "M")),
            #: Keys and values of this step, layer by layer, key before value.
            TensorSpec("WRITTEN", "FP32", (2 * layers, "S", "H", "M", "D")),
        ),
    )


#: Log-probabilities of given tokens, one request's texts side by side: ranks the candidates of VQA.
DECODER_SCORE = GraphSpec(
    "text_decoder_score",
    inputs=(
        TensorSpec("TOKENS", "INT32", ("P", "L")),
        #: What is asked for behind each token.
        TensorSpec("TARGETS", "INT32", ("P", "L", "G")),
        TensorSpec("ENCODER_STATES", "FP32", (1, "A", "W")),
        TensorSpec("ENCODER_MASK", "INT32", (1, "A")),
    ),
    outputs=(TensorSpec("LOG_PROBABILITIES", "FP32", ("P", "L", "G")),),
)


#: What the served model `text_decoder` takes and gives; optional inputs end with a question mark.
TEXT_DECODER_MODEL = {
    "inputs": {
        "ENCODER_STATES?": ("FP32", [-1, -1]),
        "ENCODER_MASK?": ("INT32", [-1]),
        "PROMPT_IDS?": ("INT32", [-1]),
        "NUM_BEAMS?": ("INT32", [1]),
        "MIN_LENGTH?": ("INT32", [1]),
        "MAX_LENGTH?": ("INT32", [1]),
        "NUM_RETURN?": ("INT32", [1]),
        "LENGTH_PENALTY?": ("FP32", [1]),
        "TOKEN_RANGE?": ("INT32", [2]),
        #: Not a search: score these texts, each from `[CLS]` to `[SEP]`, padded with 0. TOKEN_IDS are then
        #: these, and SCORE the sum of their log-probabilities, −inf for those whose first token ranks too low.
        "CANDIDATE_IDS?": ("INT32", [-1, -1]),
        #: Beside CANDIDATE_IDS: how many times the log-probability of the first token counts, 1 (default) or 2.
        "FIRST_TOKEN_WEIGHT?": ("INT32", [1]),
        #: Names this request, so that a later one can withdraw it.
        "TAG?": ("BYTES", [1]),
        #: Alone: withdraw the request of this tag. Answered with one empty sequence.
        "CANCEL?": ("BYTES", [1]),
    },
    "outputs": {"TOKEN_IDS": ("INT32", [-1, -1]), "SCORE": ("FP32", [-1])},
}

#: A tensor between models: an array, or for BYTES a flat list.
Value = np.ndarray | list[bytes]
Values = dict[str, Value]

#: `await call_stage(name, inputs, output_names)` runs another model and returns its outputs.
CallStage = Callable[[str, Mapping[str, Value], Sequence[str]], Awaitable[Values]]

#: A batched stage: arrays whose first axis is the batch, in and out.
Stage = Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]


class Forwarded(tuple[str, ...]):
    """Names of outputs that only go on to another stage: they may come as a `DeviceArray`, where a GPU has them."""

    __slots__ = ()


#: Optional input of stages with a response cache, which no stage reads: it names another place in the cache.
RETRY_INPUT = "RETRY"

#: In a public model's version folder: names of the stages → models of this repository, where checkpoints differ.
STAGES_FILE = "stages.json"


def read_stages(path: Path) -> dict[str, str]:
    """Read a public model's STAGES_FILE: stage names to models; a stage that is not in it bears its own name."""
    return json.loads(path.read_text()) if path.exists() else {}
