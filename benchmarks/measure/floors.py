"""The least that each stage must move and compute, from the sizes of the model: the floor under its time.

A stage takes at least max(bytes / bandwidth, operations / arithmetic). The bandwidth is a matrix-vector product's,
since a step of few sequences is a series of those; the arithmetic is that of square matrix products. Counted are
the matrices: weights once per run, caches once per run, activations not at all (they stay in the processor's
caches), a multiply-add as two operations; in int8 the products with weights are those of whole numbers, attention's
are bf16's. A floor of memory counts every weight as read from memory; a processor whose caches hold part of the model
from one step to the next can get below it.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measure.machine import Limits
from benchmarks.presets import ModelSizes

#: Bytes of one stored number by precision: weights, and the decoder's caches.
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
CACHE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 2}


@dataclass(frozen=True)
class Work:
    """What one run of a stage must do."""

    bytes: float
    operations: float  #: of products with weights
    attention: float = 0  #: operations of products of states with states, which are never those of whole numbers

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.operations + other.operations, self.attention + other.attention)

    def scaled(self, times: float) -> Work:
        """Return the work of `times` runs."""
        return Work(self.bytes * times, self.operations * times, self.attention * times)

    def seconds(self, limits: Limits, precision: str) -> float:
        """Return the least time that one run can take."""
        return max(self._reading(limits), self._computing(limits, precision))

    def bound_by(self, limits: Limits, precision: str) -> str:
        """Return which of the two limits, memory or arithmetic, takes longer."""
        return "memory" if self._reading(limits) >= self._computing(limits, precision) else "arithmetic"

    def _reading(self, limits: Limits) -> float:
        return self.bytes / limits.read_bandwidth

    def _computing(self, limits: Limits, precision: str) -> float:
        rest = "bf16" if precision == "int8" else precision
        return self.operations / limits.arithmetic(precision) + self.attention / limits.arithmetic(rest)


def vision_weights(sizes: ModelSizes) -> int:
    """Count the weights of the vision encoder: patches, attention, feed-forward of four widths."""
    width = sizes.vision_width
    return 3 * sizes.patch_size**2 * width + sizes.vision_layers * 12 * width**2


def step_weights(sizes: ModelSizes) -> int:
    """Count the weights of one decoder step.

    Per layer four matrices of self-attention, two of cross-attention (its keys and values are made before),
    two of feed-forward; then the head: its dense layer, and the word embedding.
    """
    width = sizes.hidden_size
    layer = 6 * width**2 + 2 * width * sizes.intermediate_size
    return sizes.decoder_layers * layer + width**2 + sizes.vocab_size * width


def prefill_weights(sizes: ModelSizes) -> int:
    """Count the weights that compute the keys and values of cross-attention."""
    return sizes.decoder_layers * 2 * sizes.hidden_size**2


def vision_work(sizes: ModelSizes, precision: str, images: int = 1) -> Work:
    """Return the work of the vision encoder on a batch of images."""
    tokens, width = sizes.image_tokens, sizes.vision_width
    weights = vision_weights(sizes)
    # Scores and their sum over values: two products of tokens × tokens × width in each layer.
    attention = sizes.vision_layers * 2 * tokens**2 * width
    return Work(weights * WEIGHT_BYTES[precision], 2 * images * tokens * weights, 2 * images * attention)


def prefill_work(sizes: ModelSizes, precision: str, states: int | None = None) -> Work:
    """Return the work of computing one request's cross-attention keys and values, which are written to the cache."""
    states = sizes.image_tokens if states is None else states
    weights = prefill_weights(sizes)
    written = sizes.decoder_layers * 2 * states * sizes.hidden_size
    return Work(weights * WEIGHT_BYTES[precision] + written * CACHE_BYTES[precision], 2 * states * weights)


def step_work(
    sizes: ModelSizes, precision: str, *, sequences: int, beams: int, position: int, states: int | None = None
) -> Work:
    """Return the work of a decoder step: `sequences` requests of `beams` beams, each at `position` (from 0).

    The beams of a request share the keys and values of its encoder states; of its own past a request reads
    every beam's columns, of which there are as many as beams.
    """
    states = sizes.image_tokens if states is None else states
    width, layers = sizes.hidden_size, sizes.decoder_layers
    weights = step_weights(sizes)
    cross, past = 2 * layers * states * width, 2 * layers * position * beams * width  # numbers per request
    read = weights * WEIGHT_BYTES[precision] + sequences * (cross + past) * CACHE_BYTES[precision]
    # Each query meets each key and each value once: as many multiply-adds as the keys and values have numbers.
    # Of its past a beam needs only its own ancestors' columns, 1 / beams of those that are held.
    attention = 2 * sequences * beams * (cross + past / beams)
    return Work(read, 2 * sequences * beams * weights, attention)


def caption_work(sizes: ModelSizes, precision: str, *, beams: int, tokens: int) -> dict[str, Work]:
    """Return the work of one caption alone in the decoder, by stage."""
    steps = [step_work(sizes, precision, sequences=1, beams=beams, position=position) for position in range(tokens)]
    return {
        "vision_encoder": vision_work(sizes, precision),
        "prefill": prefill_work(sizes, precision),
        "step": sum(steps, Work(0, 0)),
    }


def caption_seconds(sizes: ModelSizes, precision: str, limits: Limits, *, beams: int, tokens: int) -> float:
    """Return the least time that one caption can take."""
    works = caption_work(sizes, precision, beams=beams, tokens=tokens)
    return sum(work.seconds(limits, precision) for work in works.values())


def captions_per_second(
    sizes: ModelSizes, precision: str, limits: Limits, *, beams: int, tokens: float, sequences: int
) -> float:
    """Return the most captions per second: of `tokens` tokens, of all different pictures, `sequences` in every step."""
    position = round(tokens / 2)
    step = step_work(sizes, precision, sequences=sequences, beams=beams, position=position).seconds(limits, precision)
    once = vision_work(sizes, precision).seconds(limits, precision)
    once += prefill_work(sizes, precision).seconds(limits, precision)
    return 1 / (once + tokens * step / sequences)
