"""A repository in one process beside the same repository behind tritonserver, and without one."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from wire import connect

from mplug.errors import InvalidRequest, NotServed, Unavailable
from mplug.inputs.images import decode_image
from mplug.pipeline import Pipeline, RepositoryError, encoded
from mplug.server.command import TritonServer

CHECKOUT = Path(__file__).resolve().parents[2]
GOLDEN = CHECKOUT / "tests" / "parity" / "data"
SCENES = sorted((CHECKOUT / "examples").glob("scene-*.png"))[:4]
TOLERANCE = 1e-4  # the same graphs in fp32; only what shares a batch may differ, and with it the order of sums


@pytest.fixture(scope="module")
def every_task_pipeline(every_task_server: TritonServer) -> Iterator[Pipeline]:
    with Pipeline.open(every_task_server.repository) as pipeline:
        yield pipeline


def test_golden_captions(built: Callable[..., Path]) -> None:
    search, *_ = json.loads((GOLDEN / "caption" / "expected.json").read_text())["beam_search"]
    options = {name: search[name] for name in ("num_beams", "min_length", "max_length")}
    with Pipeline.open(built("caption")) as mplug:
        assert mplug.models == ("caption",)
        for number, hypotheses in enumerate(search["nbest"]):
            found = mplug.caption(
                GOLDEN / "caption" / f"image{number}.png",
                num_return=len(hypotheses),
                length_penalty=search["length_penalty_alpha"],
                **options,
            )
            assert [one.token_ids for one in found] == [one["ids"] for one in hypotheses]
            np.testing.assert_allclose(
                [one.score for one in found], [one["score"] for one in hypotheses], rtol=0, atol=1e-3
            )


REQUESTS = [
    ("caption", {"IMAGE": 1, "NUM_RETURN": np.array([3], np.int32)}),
    ("caption", {"IMAGE": 3}),
    ("vqa", {"IMAGE": 1, "QUESTION": [b"what is this?"]}),
    ("vqa", {"IMAGE": 1, "QUESTION": [b"what is this?"], "CANDIDATES": [b"a wolf", b"a bee", b"two cats"]}),
    ("embed_image", {"IMAGE": 1}),
    ("embed_text", {"TEXT": [b"a wolf"]}),
    ("match", {"IMAGE": 1, "TEXT": [b"a wolf", b"two bees"]}),
    ("match", {"IMAGE": 3, "TEXT": [b"a wolf", b"two bees"], "FRAMES": np.array([2], np.int32)}),
    ("ground", {"IMAGE": 1, "EXPRESSION": [b"the wolf"]}),
    ("nlvr", {"IMAGE": 2, "STATEMENT": [b"both show a wolf"]}),
    ("entail", {"IMAGE": 1, "HYPOTHESIS": [b"there is a wolf"]}),
]


@pytest.mark.parametrize(("model", "inputs"), REQUESTS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(REQUESTS)])
def test_every_model_answers_as_the_server_does(
    every_task_pipeline: Pipeline, every_task_server: TritonServer, model: str, inputs: dict
) -> None:
    if "IMAGE" in inputs:
        inputs = inputs | {"IMAGE": [scene.read_bytes() for scene in SCENES[: inputs["IMAGE"]]]}
    found = every_task_pipeline.infer(model, inputs)
    with connect(every_task_server, "grpc") as wire:
        served = wire.ask(model, **inputs)
    assert set(found) == set(served)
    for name, expected in served.items():
        value = found[name]
        if isinstance(value, list):
            assert value == list(expected.reshape(-1))
        elif value.dtype == np.int32:
            assert value.tolist() == expected.tolist()
        else:
            np.testing.assert_allclose(value, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_pictures_come_as_paths_bytes_and_images(every_task_pipeline: Pipeline) -> None:
    path = SCENES[0]
    answers = {
        every_task_pipeline.caption(picture)[0].text
        for picture in (path, str(path), path.read_bytes(), Image.open(path), Image.open(path).convert("RGBA"))
    }
    assert len(answers) == 1


def test_a_video_is_matched(every_task_pipeline: Pipeline) -> None:
    texts = ["a wolf", "two bees"]
    moving = every_task_pipeline.match(texts=texts, video=CHECKOUT / "examples" / "video-01.mp4", frames=2)
    still = every_task_pipeline.match(SCENES[0], texts)
    assert [len(found) for found in (moving, still)] == [2, 2]
    assert moving[0].score != still[0].score


def test_deep_grey_in_memory_is_what_its_file_is(tmp_path: Path) -> None:
    samples = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    deep = Image.fromarray(samples)
    swapped = Image.frombytes("I;16B", deep.size, samples.astype(">u2").tobytes())
    deep.save(tmp_path / "deep.png")
    expected = np.asarray(decode_image((tmp_path / "deep.png").read_bytes()))
    for image in (deep, swapped, Image.fromarray(samples.astype(np.int32))):
        np.testing.assert_array_equal(np.asarray(decode_image(encoded(image))), expected)
    assert expected.max() == 255 and len(np.unique(expected)) == 256


def test_many_at_once_answer_as_one_by_one_and_in_order(every_task_pipeline: Pipeline) -> None:
    alone = [every_task_pipeline.caption(scene)[0].token_ids for scene in SCENES]
    together = [found[0].token_ids for found in every_task_pipeline.map("caption", SCENES * 5)]
    assert together == alone * 5
    asked = list(every_task_pipeline.map("entail", [(scene, "there is a wolf") for scene in SCENES]))
    assert [one.label for one in asked] == [every_task_pipeline.entail(s, "there is a wolf").label for s in SCENES]


def test_bad_requests_are_the_servers_errors_and_harm_no_other(every_task_pipeline: Pipeline) -> None:
    good = every_task_pipeline.submit("caption", {"IMAGE": [SCENES[0].read_bytes()]})
    with pytest.raises(InvalidRequest, match=r"^IMAGE"):
        every_task_pipeline.caption(b"no picture")
    with pytest.raises(InvalidRequest, match="NUM_BEAMS"):
        every_task_pipeline.caption(SCENES[0], num_beams=99)
    with pytest.raises(TypeError, match="beams'; known: num_beams"):
        every_task_pipeline.caption(SCENES[0], beams=3)
    with pytest.raises(NotServed, match=r"does not serve 'poem'; it serves caption, "):
        every_task_pipeline.infer("poem", {})
    with pytest.raises(FileNotFoundError):
        every_task_pipeline.caption("nowhere.png")
    assert good.result(60)["CAPTION"]


def test_a_folder_that_was_not_built_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RepositoryError, match=r"builders/build\.py CHECKPOINT --output"):
            Pipeline.open(folder)


def test_closing_fails_what_is_in_flight_and_ends_its_threads(every_task_server: TritonServer) -> None:
    before = set(threading.enumerate())
    pipeline = Pipeline.open(every_task_server.repository)
    picture = SCENES[0].read_bytes()
    pipeline.infer("caption", {"IMAGE": [picture]})
    in_flight = [
        pipeline.submit("caption", {"IMAGE": [picture], "MIN_LENGTH": np.array([20], np.int32)}) for _ in range(20)
    ]
    pipeline.close()
    for future in in_flight:  # each ended, with its answer or with the reason
        with contextlib.suppress(Unavailable, CancelledError):
            assert future.result(0)["CAPTION"]
    with pytest.raises(Unavailable, match="closed"):
        pipeline.caption(picture)
    pipeline.close()
    ours = ("pipeline", "decode", "answers", "parse", "stages", "client-watch")
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith(ours)]
    assert left == []


def test_an_openvino_repository_needs_neither_torch_nor_builders(built: Callable[..., Path]) -> None:
    program = f"""
import sys
from mplug.pipeline import Pipeline
with Pipeline.open({str(built("caption"))!r}) as mplug:
    print(mplug.caption({str(SCENES[0])!r})[0].text)
forbidden = {{"torch", "builders", "clients", "demo", "triton_python_backend_utils", "tritonclient"}}
assert not forbidden & set(sys.modules), forbidden & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_picture_asked_about_again_is_encoded_once(every_task_server: TritonServer) -> None:
    runs: list[str] = []

    def count(name, call):
        runs.append(name)
        return call()

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (10, 200, 30)).save(buffer, "PNG")
    with Pipeline.open(every_task_server.repository, timer=count) as pipeline:
        for question in ("what is this?", "what colour is it?"):
            pipeline.vqa(buffer.getvalue(), question)
    assert runs.count("vision_encoder") == 1
    assert runs.count("text_encoder") == 2
