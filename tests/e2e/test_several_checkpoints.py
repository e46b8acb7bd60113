"""Several published checkpoints in one repository: each public model answers from the weights of its own.

Retrieval and grounding are held to their golden cases in `test_public_models`, on the same server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from wire import Wire, connect, hypotheses, metric

from mplug.server.command import TritonServer

GOLDEN = Path(__file__).parents[1] / "parity" / "data"
SCORE_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def wire(several_server: TritonServer) -> Iterator[Wire]:
    with connect(several_server, "grpc") as connection:
        yield connection


@pytest.mark.parametrize(("model", "case"), [("caption", "caption"), ("again_caption", "caption"), ("vqa", "vqa")])
def test_golden_answers(wire: Wire, model: str, case: str) -> None:
    """Their stages are those of different checkpoints, with different vocabularies and image sizes beside them."""
    golden = json.loads((GOLDEN / case / "expected.json").read_text())
    images = [path.read_bytes() for path in sorted((GOLDEN / case).glob("image*.png"))]
    questions = golden.get("questions", [None] * len(images))
    for search in golden["beam_search"]:
        limits = {
            "NUM_BEAMS": search["num_beams"],
            "NUM_RETURN": search["num_beams"],
            "MIN_LENGTH": search["min_length"],
            "MAX_LENGTH": search["max_length"],
            "LENGTH_PENALTY": float(search["length_penalty_alpha"]),
        }
        for image, question, reference in zip(images, questions, search["nbest"], strict=True):
            asked = {"IMAGE": image} if question is None else {"IMAGE": image, "QUESTION": question}
            found = hypotheses(wire.ask(model, **asked, **limits))
            assert [ids for ids, _ in found] == [entry["ids"] for entry in reference]
            np.testing.assert_allclose(
                [score for _, score in found], [entry["score"] for entry in reference], rtol=0, atol=SCORE_TOLERANCE
            )


def test_a_stage_that_two_checkpoints_share_is_one_model(wire: Wire, several_server: TritonServer) -> None:
    """An image that one of them has encoded is not encoded again for the other."""
    numbered = {name for name in several_server.models if name.startswith("vision_encoder")}
    assert numbered == {"vision_encoder", "vision_encoder_2", "vision_encoder_3", "vision_encoder_4"}
    image = (GOLDEN / "grounding" / "image0.png").read_bytes()  # no other test shows it to the captioner
    first = wire.ask("caption", IMAGE=image)
    hits = metric(several_server, "nv_cache_num_hits_per_model")
    second = wire.ask("again_caption", IMAGE=image)
    assert metric(several_server, "nv_cache_num_hits_per_model") == hits + 1
    assert first["CAPTION"].tolist() == second["CAPTION"].tolist()
    wire.ask("vqa", IMAGE=image, QUESTION="w1")  # its vision encoder is another one
    assert metric(several_server, "nv_cache_num_hits_per_model") == hits + 1
