"""Tensors of the stage `text_decoder` ↔ requests of its decode loop; every option is checked here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mplug.config import GenerationConfig
from mplug.contract import MAX_BEAMS, MAX_CANDIDATE_TOKENS, MAX_CANDIDATES, Value
from mplug.decoding.beam_search import Hypothesis, SearchOptions
from mplug.decoding.loop import DecodeRequest
from mplug.errors import InvalidRequest
from mplug.runtime.gpu.array import DeviceArray, on_gpu
from mplug.runtime.interface import StageInfo
from mplug.runtime.stage_inputs import check_magnitude

MAX_LENGTH_PENALTY = 10.0


@dataclass(frozen=True)
class DecodeRequestParser:
    """What a checkpoint allows, and its defaults."""

    hidden_size: int
    vocab_size: int
    max_positions: int
    max_states: int  #: encoder states that one request may bring
    start_id: int
    end_id: int
    generation: GenerationConfig

    @classmethod
    def of_stage(cls, folder: Path) -> DecodeRequestParser:
        """Read the limits and defaults of a built stage from its version folder."""
        info = StageInfo.read(folder)
        sizes = info.sizes
        names = ("hidden_size", "vocab_size", "max_positions", "max_states", "start_id", "end_id")
        return cls(**{name: sizes[name] for name in names}, generation=GenerationConfig(**info.defaults))

    def parse(self, inputs: Mapping[str, Value]) -> DecodeRequest:
        """Check and complete a request; its callbacks are for the caller to set.

        Raises InvalidRequest naming the input.
        """
        states, mask = self.encoder_inputs(inputs)
        prompt = _array(inputs, "PROMPT_IDS").tolist() if "PROMPT_IDS" in inputs else []
        token_range = (0, self.vocab_size)
        if "TOKEN_RANGE" in inputs:
            token_range = tuple(_array(inputs, "TOKEN_RANGE").tolist())
        if len(token_range) != 2 or not 0 <= token_range[0] < token_range[1] <= self.vocab_size:
            raise InvalidRequest(f"TOKEN_RANGE: {list(token_range)} is not a range within {self.vocab_size} token ids")
        prefix = prompt or [self.start_id]
        if not all(0 <= token < self.vocab_size for token in prefix):
            raise InvalidRequest(f"PROMPT_IDS: ids must be 0…{self.vocab_size - 1}")
        options = parse_search_options(inputs, self.generation, self.end_id)
        check_positions(inputs, options, len(prefix), self.max_positions)
        return DecodeRequest(
            encoder_states=states,
            encoder_mask=mask,
            prefix=prefix,
            options=options,
            token_range=token_range,
            done=_unset,
            failed=_unset,
        )

    def candidates(self, inputs: Mapping[str, Value]) -> np.ndarray:
        """Check and return CANDIDATE_IDS `[n, L]`, int32. Raises InvalidRequest."""
        ids = _array(inputs, "CANDIDATE_IDS")
        longest = min(self.max_positions, MAX_CANDIDATE_TOKENS)
        if ids.ndim != 2 or not 1 <= ids.shape[0] <= MAX_CANDIDATES or not 2 <= ids.shape[1] <= longest:
            wanted = f"[1…{MAX_CANDIDATES}, 2…{longest}]"
            raise InvalidRequest(f"CANDIDATE_IDS: shape {list(ids.shape)}, but must be {wanted}")
        if (ids < 0).any() or (ids >= self.vocab_size).any():
            raise InvalidRequest(f"CANDIDATE_IDS: ids must be 0…{self.vocab_size - 1}")
        used = ids != 0
        if (ids[:, 0] != self.start_id).any() or not used[:, 1].all() or (~used[:, :-1] & used[:, 1:]).any():
            raise InvalidRequest(f"CANDIDATE_IDS: each row must be id {self.start_id}, a text, and then zeros alone")
        return np.ascontiguousarray(ids, np.int32)

    def first_token_weight(self, inputs: Mapping[str, Value]) -> int:
        """Return FIRST_TOKEN_WEIGHT, 1 where absent. Raises InvalidRequest."""
        return _whole(inputs, "FIRST_TOKEN_WEIGHT", 1, 1, 2)

    def encoder_inputs(self, inputs: Mapping[str, Value]) -> tuple[np.ndarray | DeviceArray, np.ndarray]:
        """Check and return states `[A, W]`, fp32, on the GPU if they come from there, and their mask `[A]`, int32.

        Raises InvalidRequest.
        """
        states = inputs.get("ENCODER_STATES")
        if not on_gpu(states):
            states = _array(inputs, "ENCODER_STATES")
        allowed = states.ndim == 2 and 1 <= states.shape[0] <= self.max_states
        if not allowed or states.shape[1] != self.hidden_size:
            wanted = f"[1…{self.max_states}, {self.hidden_size}]"
            raise InvalidRequest(f"ENCODER_STATES: shape {list(states.shape)}, but must be {wanted}")
        if isinstance(states, np.ndarray):  # on a GPU they are another stage's, and stay there
            check_magnitude("ENCODER_STATES", states)
            states = np.ascontiguousarray(states, np.float32)
        mask = _array(inputs, "ENCODER_MASK") if "ENCODER_MASK" in inputs else np.ones(len(states), np.int32)
        if mask.shape != (len(states),) or not np.isin(mask, (0, 1)).all() or not mask.any():
            raise InvalidRequest(f"ENCODER_MASK: must hold {len(states)} ones and zeros, and at least one 1")
        return states, mask.astype(np.int32)


def parse_search_options(inputs: Mapping[str, Value], generation: GenerationConfig, end_id: int) -> SearchOptions:
    """Read NUM_BEAMS, MIN_LENGTH, MAX_LENGTH, NUM_RETURN and LENGTH_PENALTY, with defaults where absent.

    A MAX_LENGTH below the default MIN_LENGTH, or the other way round, replaces the default that it
    contradicts. Raises InvalidRequest naming the input and what it may be.
    """
    num_beams = _whole(inputs, "NUM_BEAMS", generation.num_beams, 1, MAX_BEAMS)
    max_length = _whole(inputs, "MAX_LENGTH", generation.max_length, 1, None)
    min_length = _whole(inputs, "MIN_LENGTH", min(generation.min_length, max_length), 0, None)
    if "MAX_LENGTH" not in inputs:
        max_length = max(max_length, min_length)
    if min_length > max_length:
        raise InvalidRequest(f"MIN_LENGTH: {min_length} is more than MAX_LENGTH {max_length}")
    num_return = _whole(inputs, "NUM_RETURN", 1, 1, num_beams)
    length_penalty = generation.length_penalty
    if "LENGTH_PENALTY" in inputs:
        array = _array(inputs, "LENGTH_PENALTY").reshape(-1)
        length_penalty = float(array[0]) if array.size == 1 else math.nan
        if not abs(length_penalty) <= MAX_LENGTH_PENALTY:  # false for NaN too
            limits = f"between -{MAX_LENGTH_PENALTY:g} and {MAX_LENGTH_PENALTY:g}"
            raise InvalidRequest(f"LENGTH_PENALTY: {_shown(array)} is not {limits}")
    return SearchOptions(num_beams, min_length, max_length, num_return, length_penalty, end_id)


def check_positions(inputs: Mapping[str, Value], options: SearchOptions, prefix: int, max_positions: int) -> None:
    """Raise InvalidRequest when `prefix` tokens and the longest result exceed the decoder's positions."""
    if prefix + options.max_length <= max_positions:
        return
    # A MIN_LENGTH without MAX_LENGTH raises the longest length to it.
    name = "MIN_LENGTH" if "MIN_LENGTH" in inputs and "MAX_LENGTH" not in inputs else "MAX_LENGTH"
    raise InvalidRequest(
        f"{name} {options.max_length} plus a {prefix}-token prompt exceeds the checkpoint's {max_positions} positions"
    )


def to_outputs(request: DecodeRequest, hypotheses: list[Hypothesis]) -> dict[str, Value]:
    """Return TOKEN_IDS `[n, L]` from `[CLS]`, padded with 0, and SCORE `[n]`."""
    prefix = np.asarray(request.prefix, np.int32)
    length = max(len(hypothesis.token_ids) for hypothesis in hypotheses)
    ids = np.zeros((len(hypotheses), len(prefix) + length), np.int32)
    for row, hypothesis in zip(ids, hypotheses, strict=True):
        row[: len(prefix)] = prefix
        row[len(prefix) : len(prefix) + len(hypothesis.token_ids)] = hypothesis.token_ids
    return {"TOKEN_IDS": ids, "SCORE": np.array([hypothesis.score for hypothesis in hypotheses], np.float32)}


def _array(inputs: Mapping[str, Value], name: str) -> np.ndarray:
    value = inputs.get(name)
    if not isinstance(value, np.ndarray):
        raise InvalidRequest(f"{name}: is missing")
    return value


def _whole(inputs: Mapping[str, Value], name: str, default: int, low: int, high: int | None) -> int:
    if name not in inputs:
        return default
    array = _array(inputs, name).reshape(-1)
    value = int(array[0]) if array.size == 1 else None
    if value is None or value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"between {low} and {high}"
        raise InvalidRequest(f"{name}: {_shown(array)} is not {limits}")
    return value


def _shown(array: np.ndarray) -> object:
    return array.item() if array.size == 1 else array.tolist()[:8]


def _unset(_: object) -> None:
    raise AssertionError("the request was submitted without callbacks")
