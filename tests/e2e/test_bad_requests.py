"""Wrong options, prompts and tensors at a real server: each is refused by name, and the next request is answered."""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from wire import INVALID, PROTOCOLS, Tensor, Wire, as_array, connect, hypotheses

from mplug.server.command import TritonServer

GOLDEN = Path(__file__).parents[1] / "parity" / "data" / "caption"
GOOD = (GOLDEN / "image4.png").read_bytes()
GOOD_IDS = json.loads((GOLDEN / "expected.json").read_text())["beam_search"][0]["nbest"][4][0]["ids"]
POSITIONS = json.loads((GOLDEN / "config_bert.json").read_text())["max_position_embeddings"]
LARGEST = 2**31 - 1  # of INT32


@pytest.fixture(params=PROTOCOLS)
def wire(request: pytest.FixtureRequest, caption_server: TritonServer) -> Iterator[Wire]:
    """A connection whose server still answers rightly when the test is over."""
    with connect(caption_server, request.param) as wire:
        yield wire
        assert [ids for ids, _ in hypotheses(wire.ask(IMAGE=GOOD))] == [GOOD_IDS]


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


WRONG_VALUES: list[tuple[str, str, dict[str, Tensor]]] = [
    ("NUM_BEAMS", "0 is not between 1 and 16", {"NUM_BEAMS": 0}),
    ("NUM_BEAMS", "1000 is not between", {"NUM_BEAMS": 1000}),
    ("NUM_BEAMS", "-1 is not between", {"NUM_BEAMS": -1}),
    ("NUM_BEAMS", "17 is not between", {"NUM_BEAMS": 17}),
    ("MIN_LENGTH", "-1 is not at least 0", {"MIN_LENGTH": -1}),
    ("MAX_LENGTH", "0 is not at least 1", {"MAX_LENGTH": 0}),
    ("MAX_LENGTH", "-5 is not at least 1", {"MAX_LENGTH": -5}),
    ("MIN_LENGTH", "9 is more than MAX_LENGTH 4", {"MIN_LENGTH": 9, "MAX_LENGTH": 4}),
    ("MAX_LENGTH", f"{POSITIONS} positions", {"MAX_LENGTH": POSITIONS}),
    ("MAX_LENGTH", f"{POSITIONS} positions", {"MAX_LENGTH": LARGEST}),
    ("MIN_LENGTH", f"{POSITIONS} positions", {"MIN_LENGTH": LARGEST}),
    ("MAX_LENGTH", "3-token prompt", {"MAX_LENGTH": POSITIONS - 2, "PROMPT": "w1 w2"}),
    ("NUM_RETURN", "6 is not between 1 and 5", {"NUM_RETURN": 6}),
    ("NUM_RETURN", "3 is not between 1 and 2", {"NUM_RETURN": 3, "NUM_BEAMS": 2}),
    ("NUM_RETURN", "0 is not between", {"NUM_RETURN": 0}),
    ("LENGTH_PENALTY", "nan is not between", {"LENGTH_PENALTY": float("nan")}),
    ("LENGTH_PENALTY", "inf is not between", {"LENGTH_PENALTY": float("inf")}),
    ("LENGTH_PENALTY", "1000.0 is not between", {"LENGTH_PENALTY": 1000.0}),
    ("PROMPT", "is empty", {"PROMPT": ""}),
    ("PROMPT", "is empty", {"PROMPT": " \t\n"}),
    ("PROMPT", "is empty", {"PROMPT": b"\0"}),
    ("PROMPT", "is empty", {"PROMPT": "\u0301"}),
    ("PROMPT", "is empty", {"PROMPT": "\ufe0f"}),
    ("PROMPT", "holds no words", {"PROMPT": "\ufffd"}),
    ("PROMPT", "24 tokens exceed the 23 that the checkpoint reads", {"PROMPT": "w1 " * 24}),
    ("PROMPT", "100,000 characters", {"PROMPT": "a" * 100_000}),
    ("PROMPT", "not UTF-8", {"PROMPT": b"a \xff\xfe cat"}),
    ("IMAGE", "holds 0 elements", {"IMAGE": np.empty(0, np.object_)}),
    ("IMAGE", "holds 17 elements", {"IMAGE": [GOOD] * 17}),
    ("IMAGE", r"IMAGE\[1\] is not an image", {"IMAGE": [GOOD, b"not a picture", GOOD]}),
    ("VIDEO", "beside IMAGE", {"VIDEO": GOOD}),
    ("FRAMES", "0", {"FRAMES": 0}),
    ("FRAMES", "17", {"FRAMES": 17}),
]

WRONG_TENSORS: list[tuple[str, str, dict[str, Tensor]]] = [
    ("IMAGE", "shape", {"IMAGE": as_array(GOOD).reshape(1, 1)}),
    ("IMAGE", "INT32", {"IMAGE": 3}),
    ("NUM_BEAMS", "INT64", {"NUM_BEAMS": np.array([5], np.int64)}),
    ("NUM_BEAMS", "FP32", {"NUM_BEAMS": 5.0}),
    ("NUM_BEAMS", "BYTES", {"NUM_BEAMS": "5"}),
    ("NUM_BEAMS", "shape", {"NUM_BEAMS": integers(5, 5)}),
    ("NUM_BEAMS", "shape", {"NUM_BEAMS": integers()}),
    ("MAX_LENGTH", "shape", {"MAX_LENGTH": integers(5).reshape(1, 1)}),
    ("LENGTH_PENALTY", "FP64", {"LENGTH_PENALTY": np.array([0.6])}),
    ("PROMPT", "shape", {"PROMPT": [b"a", b"b"]}),
    ("WHAT", "unexpected", {"WHAT": 1}),
]


@pytest.mark.parametrize(("name", "complaint", "inputs"), WRONG_VALUES)
def test_a_wrong_value_is_refused_by_name(wire: Wire, name: str, complaint: str, inputs: dict[str, Tensor]) -> None:
    wire.assert_refused(name, complaint, **{"IMAGE": GOOD, **inputs})


@pytest.mark.parametrize(("name", "complaint", "inputs"), WRONG_TENSORS)
def test_a_wrong_tensor_is_refused_by_name(wire: Wire, name: str, complaint: str, inputs: dict[str, Tensor]) -> None:
    wire.assert_refused(f"'{name}'", complaint, **{"IMAGE": GOOD, **inputs})


def test_a_video_that_is_none_is_named(wire: Wire) -> None:
    for data in (b"", b"not a video", GOOD[:100]):
        wire.assert_refused("VIDEO", "VIDEO", VIDEO=data)


def test_several_images_are_frames(wire: Wire) -> None:
    """Their states lie side by side, so that one image twice is not that image alone."""
    once, twice = (hypotheses(wire.ask(IMAGE=[GOOD] * count, NUM_RETURN=5)) for count in (1, 2))
    assert once != twice
    assert hypotheses(wire.ask(IMAGE=[GOOD] * 16, FRAMES=1, NUM_RETURN=5)) == once


def test_a_missing_image_is_named(wire: Wire) -> None:
    wire.assert_refused("IMAGE", "missing")
    wire.assert_refused("IMAGE", "missing", NUM_BEAMS=3)


def test_values_at_the_limits_are_taken(wire: Wire) -> None:
    """What stands right beside a refusal above."""
    for options in (
        {"NUM_BEAMS": 16, "NUM_RETURN": 16},
        {"NUM_BEAMS": 1, "MIN_LENGTH": 0, "MAX_LENGTH": 1},
        {"MAX_LENGTH": POSITIONS - 1},
        {"MIN_LENGTH": POSITIONS - 1, "NUM_BEAMS": 2},
        {"MIN_LENGTH": 20},
        {"MAX_LENGTH": 2},
        {"LENGTH_PENALTY": -10.0},
        {"PROMPT": "w1 " * 23, "MAX_LENGTH": 4},
    ):
        answer = wire.ask(IMAGE=GOOD, **options)
        assert len(answer["CAPTION"]) == options.get("NUM_RETURN", 1), options
        assert np.isfinite(answer["SCORE"]).all(), options
    lengths = [len(ids) - 1 for ids, _ in hypotheses(wire.ask(IMAGE=GOOD, MIN_LENGTH=POSITIONS - 1))]
    assert lengths == [POSITIONS - 1]


def test_an_unknown_model(wire: Wire) -> None:
    status, message = wire.refusal("captions", IMAGE=GOOD)
    assert status == {"grpc": "StatusCode.NOT_FOUND", "http": "404"}[wire.protocol]
    assert "'captions'" in message


def test_an_unknown_output(wire: Wire) -> None:
    image = wire.api.InferInput("IMAGE", [1], "BYTES")
    image.set_data_from_numpy(as_array(GOOD))
    with pytest.raises(Exception, match="WHERE") as caught:
        wire.client.infer("caption", [image], outputs=[wire.api.InferRequestedOutput("WHERE")])
    assert caught.value.status() == INVALID[wire.protocol]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05",
        struct.pack("<I", 100) + b"abc",
        struct.pack("<I", 2**32 - 1) + b"abc",
        struct.pack("<I", 3) + b"abcdef",
        2 * (struct.pack("<I", 3) + b"abc"),
    ],
    ids=["nothing", "half a length", "too short", "far too short", "too long", "two elements"],
)
def test_bytes_that_are_packed_wrongly_over_grpc(caption_server: TritonServer, content: bytes) -> None:
    request = service_pb2.ModelInferRequest(model_name="caption")
    request.inputs.add(name="IMAGE", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(content)
    with grpc.insecure_channel(caption_server.grpc_url) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        with pytest.raises(grpc.RpcError) as caught:
            infer(request, timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "IMAGE" in caught.value.details()
    assert_answers(caption_server)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"inputs": 3}',
        b'{"inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [5]}]}',
        b'{"inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [9], "data": ["abc"]}]}',
        b'{"inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [1]}]}',
        b'{"inputs": [{"name": "IMAGE", "datatype": "NONSENSE", "shape": [1], "data": ["abc"]}]}',
    ],
)
def test_bodies_that_are_no_request_over_http(caption_server: TritonServer, body: bytes) -> None:
    """Triton itself answers these, with 400 or, for broken JSON, 500; what counts is that it goes on."""
    connection = http.client.HTTPConnection(caption_server.http_url, timeout=20)
    connection.request("POST", "/v2/models/caption/infer", body)
    response = connection.getresponse()
    assert response.status in (400, 500)
    assert json.loads(response.read())["error"]
    connection.close()
    assert_answers(caption_server)


def assert_answers(server: TritonServer) -> None:
    with connect(server, "grpc") as wire:
        assert [ids for ids, _ in hypotheses(wire.ask(IMAGE=GOOD))] == [GOOD_IDS]
