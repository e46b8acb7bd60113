"""Tensors of the stage `text_decoder` to requests: every option, its default, its limits, and its refusal by name."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mplug.config import GenerationConfig
from mplug.contract import MAX_BEAMS, TEXT_DECODER_MODEL
from mplug.decoding.beam_search import Hypothesis
from mplug.decoding.request import DecodeRequestParser, parse_search_options, to_outputs
from mplug.errors import InvalidRequest, Unavailable
from mplug.runtime.interface import StageInfo
from mplug.tasks.stages import decode

START, END = 101, 102
GENERATION = GenerationConfig(num_beams=5, min_length=8, max_length=25)
PARSER = DecodeRequestParser(
    hidden_size=4, vocab_size=900, max_positions=64, max_states=20, start_id=START, end_id=END, generation=GENERATION
)
STATES = np.arange(12, dtype=np.float32).reshape(3, 4)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def parse(**inputs: Any):
    return PARSER.parse({"ENCODER_STATES": STATES, **inputs})


def options(**inputs: Any):
    arrays = {name: value if isinstance(value, np.ndarray) else integers(value) for name, value in inputs.items()}
    return parse_search_options(arrays, GENERATION, END)


def test_defaults_are_the_checkpoints() -> None:
    request = parse()
    search = request.options
    assert (search.num_beams, search.min_length, search.max_length) == (5, 8, 25)
    assert (search.num_return, search.length_penalty, search.end_id) == (1, 0.6, END)
    assert request.prefix == [START]
    assert request.token_range == (0, 900)
    assert request.encoder_mask.tolist() == [1, 1, 1]
    assert request.encoder_states.tolist() == STATES.tolist()
    assert not request.cancelled()
    assert request.positions == 25


def test_every_option_is_taken() -> None:
    request = parse(
        ENCODER_MASK=integers(1, 1, 0),
        PROMPT_IDS=integers(START, 7, 8),
        NUM_BEAMS=integers(3),
        MIN_LENGTH=integers(2),
        MAX_LENGTH=integers(9),
        NUM_RETURN=integers(2),
        LENGTH_PENALTY=np.array([-1.5], np.float32),
        TOKEN_RANGE=integers(10, 20),
    )
    search = request.options
    assert (search.num_beams, search.min_length, search.max_length) == (3, 2, 9)
    assert (search.num_return, search.length_penalty) == (2, -1.5)
    assert request.prefix == [START, 7, 8]
    assert request.token_range == (10, 20)
    assert request.encoder_mask.tolist() == [1, 1, 0]
    assert request.positions == 3 + 9 - 1


@pytest.mark.parametrize(
    ("asked", "lengths"),
    [
        ({}, (8, 25)),
        ({"MAX_LENGTH": 3}, (3, 3)),  # below the default MIN_LENGTH, which gives way
        ({"MAX_LENGTH": 30}, (8, 30)),
        ({"MIN_LENGTH": 40}, (40, 40)),  # above the default MAX_LENGTH, which gives way
        ({"MIN_LENGTH": 0}, (0, 25)),
        ({"MIN_LENGTH": 4, "MAX_LENGTH": 4}, (4, 4)),
        ({"MIN_LENGTH": 0, "MAX_LENGTH": 1}, (0, 1)),
    ],
)
def test_the_length_that_was_not_asked_for_gives_way(asked: dict[str, int], lengths: tuple[int, int]) -> None:
    search = options(**asked)
    assert (search.min_length, search.max_length) == lengths


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"NUM_BEAMS": 0}, "NUM_BEAMS: 0 is not between 1 and 16"),
        ({"NUM_BEAMS": -1}, "NUM_BEAMS: -1 is not between 1 and 16"),
        ({"NUM_BEAMS": MAX_BEAMS + 1}, "NUM_BEAMS: 17 is not between 1 and 16"),
        ({"NUM_BEAMS": integers(3, 4)}, "NUM_BEAMS: [3, 4] is not between 1 and 16"),
        ({"NUM_BEAMS": integers()}, "NUM_BEAMS: [] is not between 1 and 16"),
        ({"MIN_LENGTH": -1}, "MIN_LENGTH: -1 is not at least 0"),
        ({"MAX_LENGTH": 0}, "MAX_LENGTH: 0 is not at least 1"),
        ({"MIN_LENGTH": 5, "MAX_LENGTH": 4}, "MIN_LENGTH: 5 is more than MAX_LENGTH 4"),
        ({"NUM_RETURN": 0}, "NUM_RETURN: 0 is not between 1 and 5"),
        ({"NUM_RETURN": 6}, "NUM_RETURN: 6 is not between 1 and 5"),
        ({"NUM_RETURN": 4, "NUM_BEAMS": 3}, "NUM_RETURN: 4 is not between 1 and 3"),
        ({"LENGTH_PENALTY": np.array([np.nan])}, "LENGTH_PENALTY: nan is not between -10 and 10"),
        ({"LENGTH_PENALTY": np.array([-np.inf])}, "LENGTH_PENALTY: -inf is not between -10 and 10"),
        ({"LENGTH_PENALTY": np.array([10.5])}, "LENGTH_PENALTY: 10.5 is not between -10 and 10"),
        ({"LENGTH_PENALTY": np.array([])}, "LENGTH_PENALTY: [] is not between -10 and 10"),
    ],
)
def test_options_that_cannot_be(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        options(**asked)
    assert str(caught.value) == message
    assert caught.value.code == "INVALID_ARG"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"ENCODER_STATES": STATES[0]}, "ENCODER_STATES: shape [4], but must be [1…20, 4]"),
        ({"ENCODER_STATES": STATES[:, :3]}, "ENCODER_STATES: shape [3, 3]"),
        ({"ENCODER_STATES": STATES[:0]}, "ENCODER_STATES: shape [0, 4]"),
        ({"ENCODER_STATES": np.zeros((21, 4), np.float32)}, "ENCODER_STATES: shape [21, 4]"),
        ({"ENCODER_STATES": STATES * np.float32(np.nan)}, "ENCODER_STATES: holds NaN or infinite values"),
        ({"ENCODER_STATES": STATES + np.float32(np.inf)}, "ENCODER_STATES: holds NaN or infinite values"),
        ({"ENCODER_MASK": integers(1, 1)}, "ENCODER_MASK: must hold 3 ones and zeros"),
        ({"ENCODER_MASK": integers(1, 2, 0)}, "ENCODER_MASK: must hold 3 ones and zeros"),
        ({"ENCODER_MASK": integers(0, 0, 0)}, "ENCODER_MASK: must hold 3 ones and zeros, and at least one 1"),
        ({"PROMPT_IDS": integers(START, 900)}, "PROMPT_IDS: ids must be 0…899"),
        ({"PROMPT_IDS": integers(-1)}, "PROMPT_IDS: ids must be 0…899"),
        ({"TOKEN_RANGE": integers(5, 5)}, "TOKEN_RANGE: [5, 5] is not a range within 900 token ids"),
        ({"TOKEN_RANGE": integers(-1, 5)}, "TOKEN_RANGE: [-1, 5] is not a range"),
        ({"TOKEN_RANGE": integers(0, 901)}, "TOKEN_RANGE: [0, 901] is not a range"),
        ({"TOKEN_RANGE": integers(5)}, "TOKEN_RANGE: [5] is not a range"),
        ({"MAX_LENGTH": integers(64)}, "MAX_LENGTH 64 plus a 1-token prompt exceeds the checkpoint's 64 positions"),
        ({"MIN_LENGTH": integers(2**31 - 1)}, "MIN_LENGTH 2147483647 plus a 1-token prompt"),
        ({"MAX_LENGTH": integers(63), "PROMPT_IDS": integers(START, 7)}, "MAX_LENGTH 63 plus a 2-token prompt"),
        ({"PROMPT_IDS": integers(*[7] * 60)}, "MAX_LENGTH 25 plus a 60-token prompt"),
    ],
)
def test_tensors_that_cannot_be(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**inputs)
    assert message in str(caught.value)


def test_states_are_needed() -> None:
    with pytest.raises(InvalidRequest, match="ENCODER_STATES: is missing"):
        PARSER.parse({})


def test_what_stands_right_beside_a_refusal() -> None:
    assert parse(MAX_LENGTH=integers(63)).positions == 63
    assert parse(PROMPT_IDS=integers(START, 7, 8), MAX_LENGTH=integers(61)).positions == 63
    assert parse(NUM_BEAMS=integers(MAX_BEAMS), NUM_RETURN=integers(MAX_BEAMS)).options.num_return == MAX_BEAMS
    assert parse(LENGTH_PENALTY=np.array([-10], np.float32)).options.length_penalty == -10
    assert parse(ENCODER_STATES=np.zeros((20, 4), np.float32)).encoder_states.shape == (20, 4)
    assert parse(PROMPT_IDS=integers()).prefix == [START]
    assert parse(TOKEN_RANGE=integers(899, 900)).token_range == (899, 900)


def test_states_are_contiguous_single_precision() -> None:
    """The compiled prefill reads them in place."""
    request = parse(ENCODER_STATES=np.asfortranarray(STATES.astype(np.float64)))
    assert request.encoder_states.dtype == np.float32
    assert request.encoder_states.flags.c_contiguous
    assert request.encoder_mask.dtype == np.int32


def test_answers_are_padded_with_zeros_behind_the_prefix() -> None:
    request = parse(PROMPT_IDS=integers(START, 7))
    answer = to_outputs(request, [Hypothesis((5, 6, END), -1.5), Hypothesis((END,), -2.5)])
    assert answer["TOKEN_IDS"].tolist() == [[START, 7, 5, 6, END], [START, 7, END, 0, 0]]
    assert answer["SCORE"].tolist() == [-1.5, -2.5]
    dtypes = {name: array.dtype.name for name, array in answer.items()}
    assert dtypes == {"TOKEN_IDS": "int32", "SCORE": "float32"}
    assert answer.keys() == TEXT_DECODER_MODEL["outputs"].keys()


def test_a_parser_of_a_built_stage(tmp_path: Path) -> None:
    sizes = {"hidden_size": 4, "vocab_size": 900, "max_positions": 64, "max_states": 20, "start_id": 101, "end_id": 102}
    defaults = {"num_beams": 3, "min_length": 1, "max_length": 10, "length_penalty": 0.6}
    StageInfo(tmp_path, "openvino", "fp32", sizes | {"layers": 2}, defaults).write()
    assert json.loads((tmp_path / "stage.json").read_text())["precision"] == "fp32"
    parser = DecodeRequestParser.of_stage(tmp_path)
    assert (parser.vocab_size, parser.max_states) == (900, 20)
    assert parser.parse({"ENCODER_STATES": STATES}).options.num_beams == 3


@pytest.mark.parametrize("decoder_is_there", [True, False])
def test_who_is_cancelled_withdraws_the_search(decoder_is_there: bool) -> None:
    """Also when cancelled again meanwhile, as clients that have gone are, and when the decoder cannot be told."""
    calls: list[dict[str, Any]] = []
    complaints: list[dict[str, Any]] = []

    async def call_stage(name: str, inputs: dict[str, Any], outputs: Any) -> dict[str, Any]:
        calls.append(inputs)
        if "CANCEL" not in inputs:
            await asyncio.sleep(20)
        await asyncio.sleep(0.02)
        if not decoder_is_there:
            raise Unavailable("it has gone")
        return {}

    async def cancel() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        search = asyncio.create_task(decode(call_stage, {"ENCODER_STATES": STATES}))
        await asyncio.sleep(0)
        for _ in range(2):
            search.cancel()
            await asyncio.sleep(0.001)
        with pytest.raises(asyncio.CancelledError):
            await search
        await asyncio.sleep(0.05)

    asyncio.run(cancel())
    gc.collect()
    assert [sorted(call) for call in calls] == [["ENCODER_STATES", "TAG"], ["CANCEL"]]
    assert calls[0]["TAG"] == calls[1]["CANCEL"]
    assert complaints == []
