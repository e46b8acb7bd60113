"""Arguments of the client's methods → tensors, and tensors → answers; no server."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clients.client import calls
from clients.client.calls import Answer, Caption, ClientError, Entailment, Grounding, Match, Verdict


def words(*texts: str) -> np.ndarray:
    return np.array([text.encode() for text in texts], dtype=np.object_)


def test_what_is_left_out_is_not_sent() -> None:
    call = calls.caption(b"encoded")
    assert call.model == "caption"
    assert list(call.inputs) == ["IMAGE"]
    assert call.inputs["IMAGE"].shape == (1,) and call.inputs["IMAGE"][0] == b"encoded"


def test_every_option_has_its_type() -> None:
    call = calls.caption(b"\0\0", "a café", num_beams=3, min_length=2, max_length=9, num_return=2, length_penalty=0.5)
    assert call.inputs["IMAGE"][0] == b"\0\0"
    assert call.inputs["PROMPT"].tolist() == ["a café".encode()]
    sent = {name: (tensor.dtype.name, tensor.tolist()) for name, tensor in call.inputs.items()}
    assert sent["NUM_BEAMS"] == ("int32", [3])
    assert sent["MIN_LENGTH"] == ("int32", [2])
    assert sent["MAX_LENGTH"] == ("int32", [9])
    assert sent["NUM_RETURN"] == ("int32", [2])
    assert sent["LENGTH_PENALTY"] == ("float32", [0.5])


def test_a_path_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "not really a picture.jpg"
    file.write_bytes(b"whatever it is, the server judges it")
    for path in (file, str(file)):
        assert calls.caption(path).inputs["IMAGE"][0] == file.read_bytes()


@pytest.mark.parametrize("name, reason", [("missing.jpg", "No such file"), (".", "Is a directory")])
def test_unreadable_files(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ClientError, match=f"{tmp_path / name} cannot be read: {reason}") as caught:
        calls.caption(tmp_path / name)
    assert caught.value.status == "UNREADABLE"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_an_image_in_memory_is_sent_as_png(mode: str) -> None:
    image = Image.new("RGB", (3, 2), (200, 100, 50)).convert(mode)
    sent = Image.open(io.BytesIO(calls.match(image, ["a"]).inputs["IMAGE"][0]))
    assert sent.format == "PNG"
    assert sent.convert("RGB").tobytes() == image.convert("RGB").tobytes()


def test_an_image_in_memory_keeps_its_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "JPEG", exif=exif)
    sent = calls.ground(Image.open(buffer), "it").inputs["IMAGE"][0]
    assert Image.open(io.BytesIO(sent)).size == (2, 3)


def test_frames_and_videos(tmp_path: Path) -> None:
    assert calls.caption([b"1", b"2", b"3"]).inputs["IMAGE"].tolist() == [b"1", b"2", b"3"]
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"film")
    for call in (calls.caption(video=video, frames=4), calls.vqa(video=video, question="?", frames=4)):
        assert call.inputs["VIDEO"].tolist() == [b"film"]
        assert call.inputs["FRAMES"].tolist() == [4]
        assert "IMAGE" not in call.inputs
    for arguments in ({}, {"image": b"1", "video": b"2"}):
        with pytest.raises(ClientError, match=r"either an image .* or a video"):
            calls.embed_image(**arguments)


def test_inputs_of_the_other_models() -> None:
    vqa = calls.vqa(b"i", "what?", ["a", "b"]).inputs
    assert vqa["QUESTION"].tolist() == [b"what?"] and vqa["CANDIDATES"].tolist() == [b"a", b"b"]
    assert calls.embed_text("t").inputs["TEXT"].tolist() == [b"t"]
    assert calls.match(b"i", ["a", "b"]).inputs["TEXT"].tolist() == [b"a", b"b"]
    assert calls.ground(b"i", "the cat").inputs["EXPRESSION"].tolist() == [b"the cat"]
    nlvr = calls.nlvr((b"1", b"2"), "both").inputs
    assert nlvr["IMAGE"].tolist() == [b"1", b"2"] and nlvr["STATEMENT"].tolist() == [b"both"]
    assert calls.entail(b"i", "so").inputs["HYPOTHESIS"].tolist() == [b"so"]


def test_wrong_arguments() -> None:
    with pytest.raises(ClientError, match="num_beams is 4294967296, which does not fit"):
        calls.caption(b"i", num_beams=2**32)
    with pytest.raises(ClientError, match="prompt is not valid text"):
        calls.caption(b"i", "\udcff")
    with pytest.raises(ClientError, match="texts takes a list"):
        calls.match(b"i", "one text")
    with pytest.raises(ClientError, match="two images"):
        calls.nlvr((b"1",), "both")
    with pytest.raises(TypeError, match="beams"):
        calls.caption(b"i", beams=3)


def test_generated_answers() -> None:
    tensors = {
        "SCORE": np.array([-1.5, -2.0], np.float32),
        "TOKEN_IDS": np.array([[101, 7, 8, 102], [101, 7, 102, 0]], np.int32),
    }
    captions = calls.caption(b"i").parse({"CAPTION": words("a café", "a"), **tensors})
    assert captions == [
        Caption("a café", -1.5, [101, 7, 8, 102]),
        Caption("a", -2.0, [101, 7, 102]),
    ]
    answers = calls.vqa(b"i", "?").parse({"ANSWER": words("yes", "no"), **tensors})
    assert answers[1] == Answer("no", -2.0, [101, 7, 102])


def test_other_answers() -> None:
    feature = np.array([0.6, 0.8], np.float32)
    assert calls.embed_text("t").parse({"FEATURE": feature}) is feature
    assert calls.embed_image(b"i").parse({"FEATURE": feature}) is feature
    scores = {"SCORE": np.array([1.0, -1.0], np.float32), "SIMILARITY": np.array([0.5, 0.25], np.float32)}
    assert calls.match(b"i", ["a", "b"]).parse(scores) == [Match(1.0, 0.5), Match(-1.0, 0.25)]
    box = {"BOX": np.array([1, 2, 3, 4.5], np.float32), "BOX_TOKENS": np.array([5, 6, 7, 8], np.int32)}
    assert calls.ground(b"i", "it").parse(box) == Grounding((1.0, 2.0, 3.0, 4.5), [5, 6, 7, 8])
    verdict = {"LABEL": words("true"), "PROBABILITY": np.array([0.75], np.float32)}
    assert calls.nlvr((b"1", b"2"), "s").parse(verdict) == Verdict("true", 0.75)
    three = {"LABEL": words("neutral"), "PROBABILITY": np.array([0.25, 0.5, 0.25], np.float32)}
    assert calls.entail(b"i", "h").parse(three) == Entailment("neutral", (0.25, 0.5, 0.25))


def test_an_answer_off_the_contract_is_an_error() -> None:
    with pytest.raises(ClientError, match="the answer of caption has no SCORE"):
        calls.caption(b"i").parse({"CAPTION": words("a")})
    with pytest.raises(ClientError, match="the answer of ground cannot be read"):
        calls.ground(b"i", "it").parse({"BOX": np.zeros(3), "BOX_TOKENS": np.zeros(4)})
    with pytest.raises(ClientError, match="the answer of match cannot be read"):
        calls.match(b"i", ["a"]).parse({"SCORE": np.zeros(2), "SIMILARITY": np.zeros(1)})
