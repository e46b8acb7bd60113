"""Every public model besides `caption`, on a real server: golden answers, limits, and what is refused.

The stages run in PyTorch here, which builds in seconds; that compiled stages compute the same is the builder's own
comparison. Questions are asked of compiled stages too.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from wire import Wire, connect, hypotheses

from builders.build import build
from clients.client import Client
from mplug.checkpoint import load_checkpoint, read_state_dict
from mplug.config import read_config
from mplug.inputs.images import decode_image
from mplug.inputs.pixels import pixel_values
from mplug.inputs.tokenizer import Tokenizer
from mplug.network import MPlug
from mplug.server.command import TritonServer

GOLDEN = Path(__file__).parents[1] / "parity" / "data"
SCORE_TOLERANCE = 1e-3
TOLERANCE = 1e-4  # relative to the largest magnitude of the reference


def expected(case: str) -> dict[str, Any]:
    return json.loads((GOLDEN / case / "expected.json").read_text())


def tensors(case: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / case / "tensors.npz") as archive:
        return dict(archive)


def pictures(case: str, name: str = "image") -> list[bytes]:
    return [path.read_bytes() for path in sorted((GOLDEN / case).glob(f"{name}*.png"))]


def assert_close(actual: np.ndarray, reference: np.ndarray) -> None:
    assert actual.shape == reference.shape
    assert np.abs(actual - reference).max() / np.abs(reference).max() < TOLERANCE


def assert_golden(answer: dict[str, np.ndarray], reference: list[dict[str, Any]]) -> None:
    found = hypotheses(answer)
    assert [ids for ids, _ in found] == [entry["ids"] for entry in reference]
    scores = [entry["score"] for entry in reference]
    np.testing.assert_allclose([score for _, score in found], scores, rtol=0, atol=SCORE_TOLERANCE)


@contextmanager
def serving(repository: Path) -> Iterator[Wire]:
    with TritonServer(repository) as server, connect(server, "grpc") as wire:
        yield wire


@pytest.fixture(scope="module", params=["openvino", "torch"])
def vqa_server(
    request: pytest.FixtureRequest, built: Callable[..., Path], serve: Callable[..., TritonServer]
) -> TritonServer:
    """Compiled stages alone, and PyTorch's beside other checkpoints'."""
    return serve(built("vqa")) if request.param == "openvino" else request.getfixturevalue("several_server")


@pytest.fixture(scope="module")
def vqa(vqa_server: TritonServer) -> Iterator[Wire]:
    with connect(vqa_server, "grpc") as wire:
        yield wire


@pytest.fixture(scope="module")
def retrieval(several_server: TritonServer) -> Iterator[tuple[Wire, TritonServer]]:
    with connect(several_server, "grpc") as wire:
        yield wire, several_server


@pytest.fixture(scope="module")
def grounding(several_server: TritonServer) -> Iterator[Wire]:
    with connect(several_server, "grpc") as wire:
        yield wire


@pytest.fixture(scope="module")
def video(built: Callable[..., Path]) -> Iterator[Wire]:
    with serving(built("video", "--target", "torch")) as wire:
        yield wire


# ---------------------------------------------------------------------------------------------- questions


def test_golden_answers(vqa: Wire) -> None:
    golden = expected("vqa")
    for search in golden["beam_search"]:
        beams = search["num_beams"]
        for image, question, reference in zip(pictures("vqa"), golden["questions"], search["nbest"], strict=True):
            answer = vqa.ask(
                "vqa",
                IMAGE=image,
                QUESTION=question,
                NUM_BEAMS=beams,
                NUM_RETURN=beams,
                MIN_LENGTH=search["min_length"],
                MAX_LENGTH=search["max_length"],
                LENGTH_PENALTY=float(search["length_penalty_alpha"]),
            )
            assert_golden(answer, reference)


def candidates() -> tuple[list[str], list[list[int]]]:
    """The golden answers as texts, and their ids without padding."""
    tokenizer = Tokenizer(GOLDEN / "vqa" / "vocab.txt")
    ids = [[index for index in row if index] for row in expected("vqa")["answer_ids"]]
    return [tokenizer.decode(row[1:]) for row in ids], ids


def test_candidates_are_ranked(vqa: Wire) -> None:
    """Their likelihoods themselves are held against the golden ones below, where ids can be sent."""
    golden = expected("vqa")
    texts, ids = candidates()
    images = pictures("vqa")
    tokenizer = Tokenizer(GOLDEN / "vqa" / "vocab.txt")
    usable = [index for index, text in enumerate(texts) if tokenizer.pieces(text) == ids[index][1:-1]]
    assert usable, "no golden answer survives being written out and read again"
    for index in usable:
        ask = {"IMAGE": images[index], "QUESTION": golden["questions"][index]}
        answer = vqa.ask("vqa", **ask, CANDIDATES=[texts[other].encode() for other in usable])
        assert sorted(answer["ANSWER"].tolist()) == sorted(texts[other].encode() for other in usable)
        assert (np.diff(answer["SCORE"]) <= 0).all()
        assert answer["SCORE"].sum() == pytest.approx(1, abs=1e-5)
        best = vqa.ask("vqa", **ask, CANDIDATES=[texts[other].encode() for other in usable], NUM_RETURN=1)
        assert best["ANSWER"].tolist() == answer["ANSWER"][:1].tolist()


def test_the_stage_scores_candidates_as_published(vqa: Wire, vqa_server: TritonServer) -> None:
    golden, data = expected("vqa"), tensors("vqa")
    decoder = json.loads((vqa_server.repository / "vqa" / "1" / "stages.json").read_text())["text_decoder"]
    for index, (ids, negative) in enumerate(zip(golden["answer_ids"], golden["answer_nll_sum"], strict=True)):
        mask = data["attention_mask"][index].astype(np.int32)
        states = np.concatenate([data["fused_image"][index], data["fused_text"][index]])
        read = np.concatenate([np.ones(len(data["fused_image"][index]), np.int32), mask])
        rows = np.array([ids, golden["answer_ids"][0]], np.int32)
        found = vqa.ask(decoder, ENCODER_STATES=states, ENCODER_MASK=read, CANDIDATE_IDS=rows)
        assert found["SCORE"][0] == pytest.approx(-negative, abs=SCORE_TOLERANCE)


def test_of_many_candidates_those_with_the_best_first_token_are_kept(vqa: Wire) -> None:
    words = (GOLDEN / "vqa" / "vocab.txt").read_text().splitlines()
    several = [f"{word} {word}".encode() for word in words if word.isalnum()][:300]
    assert len(several) > 128
    answer = vqa.ask("vqa", IMAGE=pictures("vqa")[0], QUESTION="w1 w2", CANDIDATES=several)
    assert len(answer["ANSWER"]) == 128
    assert answer["SCORE"].sum() == pytest.approx(1, abs=1e-4)


def test_words_behind_the_question_are_read(vqa: Wire) -> None:
    ask = {"IMAGE": pictures("vqa")[0], "QUESTION": "w1 w2"}
    alone = vqa.ask("vqa", **ask)["SCORE"]
    assert abs(vqa.ask("vqa", **ask, OCR=[b"w7", b"w9"])["SCORE"] - alone).max() > 1e-4
    assert abs(vqa.ask("vqa", **ask, OBJECTS=[b"w11"])["SCORE"] - alone).max() > 1e-4


def test_bad_questions(vqa: Wire) -> None:
    image = pictures("vqa")[0]
    for name, complaint, inputs in [
        ("QUESTION", "missing", {"IMAGE": image}),
        ("QUESTION", "empty", {"IMAGE": image, "QUESTION": " "}),
        ("IMAGE", "missing", {"QUESTION": "w1"}),
        ("CANDIDATES", "empty", {"IMAGE": image, "QUESTION": "w1", "CANDIDATES": [b"w1", b""]}),
        ("NUM_BEAMS", "CANDIDATES", {"IMAGE": image, "QUESTION": "w1", "CANDIDATES": [b"w1"], "NUM_BEAMS": 2}),
        ("NUM_RETURN", "between", {"IMAGE": image, "QUESTION": "w1", "CANDIDATES": [b"w1"], "NUM_RETURN": 2}),
        ("OCR", "UTF-8", {"IMAGE": image, "QUESTION": "w1", "OCR": [b"\xff"]}),
        ("NUM_BEAMS", "between", {"IMAGE": image, "QUESTION": "w1", "NUM_BEAMS": 0}),
        ("MAX_LENGTH", "positions", {"IMAGE": image, "QUESTION": "w1", "MAX_LENGTH": 100_000}),
    ]:
        vqa.assert_refused(name, complaint, model="vqa", **inputs)


# ---------------------------------------------------------------------------------------------- retrieval


def test_golden_retrieval(retrieval: tuple[Wire, TritonServer]) -> None:
    """Embedding first and matching then also shows that the response cache never gives too few outputs."""
    wire, _ = retrieval
    golden, texts = tensors("retrieval"), expected("retrieval")["texts"]
    for index, image in enumerate(pictures("retrieval")):
        assert_close(wire.ask("embed_image", IMAGE=image)["FEATURE"], golden["image_feat"][index])
        answer = wire.ask("match", IMAGE=image, TEXT=[text.encode() for text in texts])
        assert_close(answer["SCORE"], golden["itm_logits"][index, :, 1])
        assert_close(answer["SIMILARITY"], golden["itc_similarity"][index])
    for index, text in enumerate(texts):
        assert_close(wire.ask("embed_text", TEXT=text)["FEATURE"], golden["text_feat"][index])


def test_projections_of_frames_are_averaged_before_they_are_normalised(retrieval: tuple[Wire, TritonServer]) -> None:
    wire, _ = retrieval
    images = pictures("retrieval")[:3]
    feature = wire.ask("embed_image", IMAGE=images)["FEATURE"]
    assert np.linalg.norm(feature) == pytest.approx(1, abs=1e-5)
    assert abs(feature - wire.ask("embed_image", IMAGE=images[0])["FEATURE"]).max() > 1e-4


def test_many_texts_are_matched_in_pieces(retrieval: tuple[Wire, TritonServer]) -> None:
    wire, _ = retrieval
    texts = [f"w{index % 50} w{index % 7}".encode() for index in range(150)]
    answer = wire.ask("match", IMAGE=pictures("retrieval")[0], TEXT=texts)
    assert answer["SCORE"].shape == answer["SIMILARITY"].shape == (150,)
    some = wire.ask("match", IMAGE=pictures("retrieval")[0], TEXT=texts[140:])
    np.testing.assert_allclose(some["SCORE"], answer["SCORE"][140:], rtol=1e-4, atol=1e-5)


def test_bad_texts(retrieval: tuple[Wire, TritonServer]) -> None:
    wire, _ = retrieval
    image = pictures("retrieval")[0]
    for model, name, complaint, inputs in [
        ("match", "TEXT", "1 to 256", {"IMAGE": image, "TEXT": [b"w1"] * 257}),
        ("match", "TEXT[1]", "empty", {"IMAGE": image, "TEXT": [b"w1", b""]}),
        ("match", "IMAGE", "known format", {"IMAGE": b"nonsense", "TEXT": [b"w1"]}),
        ("embed_text", "TEXT", "no words", {"TEXT": "?!"}),
        ("embed_image", "IMAGE", "empty", {"IMAGE": b""}),
        ("embed_image", "IMAGE", "16 frames", {"IMAGE": [image] * 17}),
    ]:
        wire.assert_refused(name, complaint, model=model, **inputs)


def test_the_client_reads_what_is_served(retrieval: tuple[Wire, TritonServer]) -> None:
    _, server = retrieval
    golden, texts = tensors("retrieval"), expected("retrieval")["texts"]
    for protocol, url in (("grpc", server.grpc_url), ("http", server.http_url)):
        with Client(url, protocol) as client:
            image = pictures("retrieval")[0]
            assert_close(client.embed_image(image), golden["image_feat"][0])
            assert_close(client.embed_text(texts[0]), golden["text_feat"][0])
            matches = client.match(image, texts)
            assert_close(np.array([match.score for match in matches]), golden["itm_logits"][0, :, 1])


# ---------------------------------------------------------------------------------------------- grounding


def test_golden_boxes(grounding: Wire) -> None:
    golden = expected("grounding")
    boxes = zip(golden["box_tokens"], golden["box_cxcywh_normalised"], strict=True)
    cases = zip(pictures("grounding"), golden["texts"], boxes, strict=True)
    for image, text, (tokens, (x, y, width, height)) in cases:
        answer = grounding.ask("ground", IMAGE=image, EXPRESSION=text)
        assert answer["BOX_TOKENS"].tolist() == tokens
        columns, rows = Image.open(io.BytesIO(image)).size
        side = max(columns, rows)  # the canvas, in pixels of the image
        left, top = (side - columns) / 2, (side - rows) / 2
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        wanted = np.clip(np.array(corners) * side - [left, top, left, top], 0, [columns, rows, columns, rows])
        # The image lies on the canvas in whole pixels of the canvas.
        np.testing.assert_allclose(answer["BOX"], wanted, atol=1.5 * side / 56)


def test_bad_expressions(grounding: Wire) -> None:
    grounding.assert_refused("EXPRESSION", "empty", model="ground", IMAGE=pictures("grounding")[0], EXPRESSION="")
    grounding.assert_refused("IMAGE", "known format", model="ground", IMAGE=b"nonsense", EXPRESSION="w1")


# --------------------------------------------------------------------------------------------- judgements


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden VQA checkpoint with random heads for NLVR2 and entailment, under our names."""
    folder = tmp_path_factory.mktemp("judged") / "checkpoint"
    folder.mkdir()
    source = GOLDEN / "vqa"
    document = yaml.safe_load((source / "config.yaml").read_text())
    del document["task"]
    document["tasks"] = ["nlvr2", "visual-entailment"]
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    for name in ("config_bert.json", "vocab.txt"):
        shutil.copy(source / name, folder / name)
    weights = read_state_dict(source / "pytorch_model.bin")
    config = read_config(folder / "config.yaml", folder / "config_bert.json")
    heads = MPlug(config, parts=("nlvr_head", "entail_head"))
    heads.initialise(seed=3)
    torch.save({**weights, **{key: 20 * value for key, value in heads.state_dict().items()}}, folder / "weights.bin")
    return folder


def test_judgements_are_those_of_the_network(judged: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    build(judged, repository, target="torch")
    network, _ = load_checkpoint(judged)
    images, text = pictures("vqa")[:2], "w1 w2 w3"
    ids, mask = Tokenizer(judged / "vocab.txt").encode(text, network.config.max_text_length)
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack([pixel_values(decode_image(image), 64) for image in images]))
        mask = torch.from_numpy(mask)[None]
        text_states = network.text_encoder(torch.from_numpy(ids)[None], mask)
        _, fused = network.fusion_encoder(
            network.vision_encoder(pixels), text_states.expand(2, -1, -1), mask.expand(2, -1)
        )
        pair = network.nlvr_head(fused[:, 0].reshape(1, -1)).softmax(-1)[0].numpy()
        single = network.entail_head(fused[:1, 0]).softmax(-1)[0].numpy()
    with serving(repository) as wire:
        answer = wire.ask("nlvr", IMAGE=images, STATEMENT=text)
        assert answer["LABEL"].tolist() == [[b"false", b"true"][pair.argmax()]]
        np.testing.assert_allclose(answer["PROBABILITY"], [pair.max()], atol=1e-4)
        answer = wire.ask("entail", IMAGE=images[0], HYPOTHESIS=text)
        assert answer["LABEL"].tolist() == [[b"contradiction", b"neutral", b"entailment"][single.argmax()]]
        np.testing.assert_allclose(answer["PROBABILITY"], single, atol=1e-4)
        wire.assert_refused("STATEMENT", "no words", model="nlvr", IMAGE=images, STATEMENT="?")
        wire.assert_refused("IMAGE[1]", "known format", model="nlvr", IMAGE=[images[0], b"x"], STATEMENT=text)
        wire.assert_refused("HYPOTHESIS", "empty", model="entail", IMAGE=images[0], HYPOTHESIS="")


# ------------------------------------------------------------------------------------------------- video


def test_golden_video(video: Wire) -> None:
    golden, frames = expected("video"), pictures("video", "frame")
    limits = {"NUM_BEAMS": 5, "NUM_RETURN": 5, "MIN_LENGTH": 1, "MAX_LENGTH": 10}
    for indices, question, answer, caption in zip(
        golden["videos"], golden["questions"], golden["answer"], golden["caption_from_frames_alone"], strict=True
    ):
        images = [frames[index] for index in indices]
        found = hypotheses(video.ask("vqa", IMAGE=images, QUESTION=question, **limits))
        assert [ids for ids, _ in found][: len(answer)] == [entry["ids"] for entry in answer][:5]
        found = hypotheses(video.ask("caption", IMAGE=images, **limits))
        assert [ids for ids, _ in found][: len(caption)] == [entry["ids"] for entry in caption][:5]


def encoded_video(images: list[Image.Image], kind: str = "mp4", codec: str = "mpeg4") -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def test_an_encoded_video(video: Wire) -> None:
    images = [Image.new("RGB", (96, 64), (index * 8, 255 - index * 8, 90)) for index in range(30)]
    data = encoded_video(images)
    four = video.ask("caption", VIDEO=data, FRAMES=4)
    assert four["CAPTION"].shape == (1,)
    assert abs(four["SCORE"] - video.ask("caption", VIDEO=data)["SCORE"]).max() > 0  # eight by default
    answer = video.ask("vqa", VIDEO=data, QUESTION="w1 w2", FRAMES=16)
    assert answer["ANSWER"].shape == (1,)


def test_bad_videos(video: Wire) -> None:
    image = pictures("video", "frame")[0]
    for name, complaint, inputs in [
        ("VIDEO", "empty", {"VIDEO": b""}),
        ("VIDEO", "cannot be decoded", {"VIDEO": b"nonsense" * 100}),
        ("VIDEO", "cannot be decoded", {"VIDEO": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n"}),
        ("VIDEO", "one of the two", {"VIDEO": b"x", "IMAGE": image}),
        ("FRAMES", "between 1 and 16", {"IMAGE": image, "FRAMES": 17}),
        ("FRAMES", "between 1 and 16", {"IMAGE": image, "FRAMES": 0}),
        ("IMAGE", "16 frames", {"IMAGE": [image] * 17}),
        ("IMAGE[1]", "known format", {"IMAGE": [image, b"nonsense"]}),
    ]:
        video.assert_refused(name, complaint, **inputs)
