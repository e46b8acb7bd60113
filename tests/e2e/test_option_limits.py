"""Every option of every public model at its limit, and right beyond it, on one server that serves them all.

What several models share stands once for each model. Search options of `caption` stand in `test_bad_requests`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from wire import PROTOCOLS, Tensor, Wire, connect

from mplug.contract import MAX_CANDIDATE_TOKENS, MAX_CANDIDATES
from mplug.server.command import TritonServer

TAKE_VIDEOS = ("caption", "vqa", "embed_image", "match")
READ = 30  # tokens of a text, [CLS] and [SEP] aside: the checkpoint's max_text_length is 32
POSITIONS = 64
NOTHING = np.empty(0, np.object_)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    blocks = np.random.default_rng(width).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


IMAGE = encoded(noise(96, 64))


def words(count: int) -> str:
    """Of one token each."""
    return " ".join(["dog"] * count)


@pytest.fixture(scope="module")
def wire(every_task_server: TritonServer) -> Iterator[Wire]:
    with connect(every_task_server, "grpc") as connection:
        yield connection


@pytest.fixture(scope="module", params=PROTOCOLS)
def either(request: pytest.FixtureRequest, every_task_server: TritonServer) -> Iterator[Wire]:
    """A connection over each protocol."""
    with connect(every_task_server, request.param) as connection:
        yield connection


#: Model, input, what is said of it, and the inputs that differ from a good request.
BEYOND: list[tuple[str, str, str, dict[str, Tensor]]] = [
    # Nothing of a text is cut off unsaid.
    ("caption", "PROMPT", "31 tokens exceed the 30", {"PROMPT": words(READ + 1)}),
    ("vqa", "QUESTION", "31 tokens exceed the 30", {"QUESTION": words(READ + 1)}),
    ("embed_text", "TEXT", "31 tokens exceed the 30", {"TEXT": words(READ + 1)}),
    ("match", r"TEXT[1]", "31 tokens exceed the 30", {"TEXT": [b"a dog", words(READ + 1).encode()]}),
    ("ground", "EXPRESSION", "31 tokens exceed the 30", {"EXPRESSION": words(READ + 1)}),
    ("nlvr", "STATEMENT", "31 tokens exceed the 30", {"STATEMENT": words(READ + 1)}),
    ("entail", "HYPOTHESIS", "31 tokens exceed the 30", {"HYPOTHESIS": words(READ + 1)}),
    *[
        (model, name, complaint, {name: text})
        for model, name in (
            ("vqa", "QUESTION"),
            ("embed_text", "TEXT"),
            ("match", "TEXT"),
            ("ground", "EXPRESSION"),
            ("nlvr", "STATEMENT"),
            ("entail", "HYPOTHESIS"),
        )
        for text, complaint in (
            ("", "is empty"),
            (" \n", "is empty"),
            (b"\xff", "not UTF-8"),
            ("a" * 2001, "2,001 characters"),
        )
    ],
    *[
        (model, name, "holds no words", {name: "?!"})
        for model, name in (("embed_text", "TEXT"), ("match", "TEXT"), ("nlvr", "STATEMENT"), ("entail", "HYPOTHESIS"))
    ],
    # How many there are.
    ("match", "TEXT", "holds 0 texts, but must hold 1 to 256", {"TEXT": NOTHING}),
    ("match", "TEXT", "holds 257 texts", {"TEXT": [b"a dog"] * 257}),
    ("vqa", "CANDIDATES", "holds 0 texts, but must hold 1 to 4096", {"CANDIDATES": NOTHING}),
    ("vqa", "CANDIDATES", "holds 4097 texts", {"CANDIDATES": [b"%d" % i for i in range(MAX_CANDIDATES + 1)]}),
    ("vqa", "CANDIDATES[2]", r"is the same answer as CANDIDATES\[0\]", {"CANDIDATES": [b"yes", b"no", b"yes"]}),
    ("vqa", "CANDIDATES[1]", "is empty", {"CANDIDATES": [b"yes", b""]}),
    ("vqa", "CANDIDATES[0]", "has 31 tokens, but must have 1 to 30", {"CANDIDATES": [words(READ + 1).encode()]}),
    ("vqa", "OCR", "holds 257 texts", {"OCR": [b"a"] * 257}),
    ("vqa", "OBJECTS", "holds 257 texts", {"OBJECTS": [b"a"] * 257}),
    ("vqa", "OBJECTS[1]", "is empty", {"OBJECTS": [b"dog", b""]}),
    ("vqa", "OCR[0]", "not UTF-8", {"OCR": [b"\xff"]}),
    # Pictures.
    ("nlvr", "IMAGE", r"shape", {"IMAGE": IMAGE}),
    ("nlvr", "IMAGE", r"shape", {"IMAGE": [IMAGE] * 3}),
    ("nlvr", "IMAGE[1]", "is empty", {"IMAGE": [IMAGE, b""]}),
    *[(model, "IMAGE", "shape", {"IMAGE": [IMAGE] * 2}) for model in ("ground", "entail")],
    *[(model, "IMAGE", "holds 17 elements", {"IMAGE": [IMAGE] * 17}) for model in TAKE_VIDEOS],
    *[(model, "IMAGE", "holds 0 elements", {"IMAGE": NOTHING}) for model in TAKE_VIDEOS],
    *[(model, "VIDEO", "beside IMAGE", {"VIDEO": b"x"}) for model in TAKE_VIDEOS],
    *[
        (model, "FRAMES", "not one number between 1 and 16", {"FRAMES": frames})
        for model in TAKE_VIDEOS
        for frames in (0, 17, -1)
    ],
    # Options of a search for an answer, and those that have no meaning with CANDIDATES.
    ("vqa", "NUM_BEAMS", "17 is not between 1 and 16", {"NUM_BEAMS": 17}),
    ("vqa", "NUM_RETURN", "3 is not between 1 and 2", {"NUM_BEAMS": 2, "NUM_RETURN": 3}),
    ("vqa", "MAX_LENGTH", f"{POSITIONS} positions", {"MAX_LENGTH": POSITIONS}),
    ("vqa", "LENGTH_PENALTY", "nan is not between", {"LENGTH_PENALTY": float("nan")}),
    ("vqa", "NUM_RETURN", "1 and 2, the number of CANDIDATES", {"CANDIDATES": [b"yes", b"no"], "NUM_RETURN": 3}),
    *[
        ("vqa", name, "no meaning with CANDIDATES", {"CANDIDATES": [b"yes"], name: value})
        for name, value in (("NUM_BEAMS", 2), ("MIN_LENGTH", 1), ("MAX_LENGTH", 4), ("LENGTH_PENALTY", 1.0))
    ],
]

GOOD: dict[str, dict[str, Tensor]] = {
    "caption": {"IMAGE": IMAGE},
    "vqa": {"IMAGE": IMAGE, "QUESTION": "how many dogs"},
    "embed_image": {"IMAGE": IMAGE},
    "embed_text": {"TEXT": "a dog"},
    "match": {"IMAGE": IMAGE, "TEXT": [b"a dog"]},
    "ground": {"IMAGE": IMAGE, "EXPRESSION": "the dog"},
    "nlvr": {"IMAGE": [IMAGE, IMAGE], "STATEMENT": "both show a dog"},
    "entail": {"IMAGE": IMAGE, "HYPOTHESIS": "there is a dog"},
}


@pytest.mark.parametrize(
    ("model", "name", "complaint", "inputs"), BEYOND, ids=[f"{model}-{name}" for model, name, *_ in BEYOND]
)
def test_beyond_a_limit(either: Wire, model: str, name: str, complaint: str, inputs: dict[str, Tensor]) -> None:
    either.assert_refused(name, complaint, model=model, **{**GOOD[model], **inputs})


def test_what_is_missing_is_named(wire: Wire) -> None:
    for model, good in GOOD.items():
        for name in good:
            rest = {other: value for other, value in good.items() if other != name}
            if rest:
                wire.assert_refused(name, "missing", model=model, **rest)


def test_texts_as_long_as_they_may_be(wire: Wire) -> None:
    longest = words(READ)
    for model, name in (
        ("caption", "PROMPT"),
        ("vqa", "QUESTION"),
        ("embed_text", "TEXT"),
        ("match", "TEXT"),
        ("ground", "EXPRESSION"),
        ("nlvr", "STATEMENT"),
        ("entail", "HYPOTHESIS"),
    ):
        answer = wire.ask(model, **{**GOOD[model], name: longest})
        shorter = wire.ask(model, **{**GOOD[model], name: words(READ - 1)})
        number = next(value for value in answer.values() if value.dtype == np.float32)
        assert not np.array_equal(number, next(value for value in shorter.values() if value.dtype == np.float32)) or (
            model == "ground"  # four tokens of a random network may well be the same
        )


def test_a_search_at_its_limits(wire: Wire) -> None:
    answer = wire.ask("vqa", **GOOD["vqa"], NUM_BEAMS=16, NUM_RETURN=16, MAX_LENGTH=3)
    assert answer["ANSWER"].shape == (16,) and answer["TOKEN_IDS"].shape[0] == 16
    assert wire.ask("vqa", **GOOD["vqa"], NUM_BEAMS=1, MIN_LENGTH=63)["TOKEN_IDS"].shape == (1, 64)


def test_one_candidate_and_as_many_as_there_may_be(wire: Wire) -> None:
    alone = wire.ask("vqa", **GOOD["vqa"], CANDIDATES=[b"two"])
    assert alone["ANSWER"].tolist() == [b"two"] and alone["SCORE"].tolist() == [1.0]
    many = [b"%d dogs" % index for index in range(MAX_CANDIDATES - 1)] + [words(READ).encode()]
    assert READ + 2 <= MAX_CANDIDATE_TOKENS
    answer = wire.ask("vqa", **GOOD["vqa"], CANDIDATES=many)
    assert len(answer["ANSWER"]) == 128 and answer["SCORE"].sum() == pytest.approx(1, abs=1e-4)


def test_the_decoder_takes_no_more_candidates_than_its_engine(wire: Wire) -> None:
    """The stage itself, which other models than `vqa` may ask."""
    states = np.zeros((5, 192), np.float32)
    for shape in ((1, MAX_CANDIDATE_TOKENS + 1), (MAX_CANDIDATES + 1, 4), (1, 1)):
        ids = np.full(shape, 101, np.int32)
        status, message = wire.refusal("text_decoder", ENCODER_STATES=states, CANDIDATE_IDS=ids)
        assert "CANDIDATE_IDS: shape" in message and "but must be [1…4096, 2…64]" in message, (status, message)


def pixels(
    height: int, width: int, box: tuple[int, int, int, int] = (0, 0, 128, 128), statistics: int = 0
) -> dict[str, np.ndarray]:
    """What `vision_encoder` takes: one black picture."""
    return {
        "PIXELS": np.zeros((1, 3, height, width), np.uint8),
        "PICTURE_BOX": np.array([box], np.int32),
        "PIXEL_STATISTICS": np.array([[statistics]], np.int32),
    }


def test_stages_refuse_what_they_cannot_read(wire: Wire) -> None:
    """Straight from a client; the next request is answered."""
    ids = np.full((1, 8), 101, np.int32)
    for stage, name, complaint, inputs in [
        ("vision_encoder", "PIXELS", "shape", pixels(96, 128)),
        ("vision_encoder", "PICTURE_BOX", "must be left, top, right, bottom", pixels(128, 128, box=(0, 0, 129, 1))),
        ("vision_encoder", "PIXEL_STATISTICS", r"must be one of 0 \(clip\)", pixels(128, 128, statistics=9)),
        ("text_encoder", "INPUT_IDS", "ids must be", {"INPUT_IDS": ids * 100, "ATTENTION_MASK": ids // 101}),
        ("text_encoder", "ATTENTION_MASK", "shape", {"INPUT_IDS": ids, "ATTENTION_MASK": ids[:, :7]}),
        (
            "text_encoder",
            "INPUT_IDS",
            "33 tokens",
            {name: np.ones((1, 33), np.int32) for name in ("INPUT_IDS", "ATTENTION_MASK")},
        ),
        (
            "fusion_encoder",
            "IMAGE_STATES",
            "shape",
            {
                "IMAGE_STATES": np.zeros((1, 65, 100), np.float32),
                "TEXT_STATES": np.zeros((1, 8, 192), np.float32),
                "ATTENTION_MASK": ids // 101,
            },
        ),
    ]:
        wire.assert_refused(name, complaint, model=stage, **inputs)
    assert wire.ask("text_encoder", INPUT_IDS=ids, ATTENTION_MASK=ids // 101)["TEXT_STATES"].shape == (1, 8, 192)


def test_words_behind_a_question_are_read_where_they_fit(wire: Wire) -> None:
    ask = {**GOOD["vqa"], "NUM_BEAMS": 1}
    fitting = [b"dog"] * 20
    answer = wire.ask("vqa", **ask, OCR=fitting)
    assert abs(answer["SCORE"] - wire.ask("vqa", **ask)["SCORE"]).max() > 0
    status, message = wire.refusal("vqa", **ask, OCR=[b"dog"] * 256)  # of which 30 are read
    assert "OCR: 36 tokens with the question exceed the 32 that" in message, (status, message)
    assert wire.ask("vqa", **ask, OCR=NOTHING)["SCORE"].tolist() == wire.ask("vqa", **ask)["SCORE"].tolist()


def test_one_text_and_a_shortlist(wire: Wire) -> None:
    """The same text twice is twice the same score."""
    texts = [b"a dog", *(b"%d red apples" % index for index in range(254)), b"a dog"]
    answer = wire.ask("match", IMAGE=IMAGE, TEXT=texts)
    assert answer["SCORE"].shape == answer["SIMILARITY"].shape == (256,)
    alone = wire.ask("match", IMAGE=IMAGE, TEXT="a dog")
    for name in ("SCORE", "SIMILARITY"):
        np.testing.assert_allclose(answer[name][[0, -1]], alone[name].repeat(2), atol=1e-4)


def test_frames_at_their_limits(wire: Wire) -> None:
    frames = [encoded(noise(64 + 8 * index, 64)) for index in range(16)]
    every = wire.ask("embed_image", IMAGE=frames)["FEATURE"]
    np.testing.assert_allclose(wire.ask("embed_image", IMAGE=frames, FRAMES=16)["FEATURE"], every, atol=1e-5)
    first = wire.ask("embed_image", IMAGE=frames, FRAMES=1)["FEATURE"]
    np.testing.assert_allclose(first, wire.ask("embed_image", IMAGE=frames[0])["FEATURE"], atol=1e-5)
    np.testing.assert_allclose(wire.ask("embed_image", IMAGE=frames[0], FRAMES=16)["FEATURE"], first, atol=1e-5)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_box_is_in_pixels_of_the_picture_as_viewers_show_it(wire: Wire, orientation: int) -> None:
    """A camera stores pixels as it was held and says in EXIF how to turn them; nobody sees them unturned."""
    shown = noise(120, 64)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(shown.transpose(undo), exif=exif)
    upright, turned = (wire.ask("ground", IMAGE=data, EXPRESSION="the dog") for data in (encoded(shown), stored))
    assert turned["BOX"].tolist() == upright["BOX"].tolist()
    assert turned["BOX"][2] <= 120 and turned["BOX"][3] <= 64
