"""Every command of `clients/` but caption.py, on a real server: what it prints, and its options at their limits."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import client_files
import numpy as np
import pytest
from PIL import Image
from wire import PROTOCOLS

from clients.client import Client
from mplug.server.command import TritonServer

Run = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures and a video."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        client_files.noise(number).save(folder / f"{number}.png")
    client_files.film(folder / "clip.mp4")
    return folder


@pytest.fixture
def client(every_task_server: TritonServer) -> Iterator[Client]:
    with Client(every_task_server.grpc_url) as client:
        yield client


@pytest.fixture
def run(
    every_task_server: TritonServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """`run(command, *arguments, protocol=)`: exit code, lines of standard output, and of standard error."""
    monkeypatch.chdir(folder)

    def run(command: str, *arguments: str, protocol: str = "grpc") -> tuple[int, list[str], list[str]]:
        url = every_task_server.grpc_url if protocol == "grpc" else every_task_server.http_url
        module = importlib.import_module(f"clients.{command}")
        try:
            code = module.main([*arguments, "--url", url, "--protocol", protocol])
        except SystemExit as left:
            code = int(left.code or 0)
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return run


def test_videos_are_matched_with_texts(run: Run, client: Client) -> None:
    """The score of a video has its similarity in it: with one frame it is what the picture gets, and that."""
    still, moving = (
        client.match(**visual, texts=["a dog", "two cats"])
        for visual in ({"image": "0.png"}, {"image": ["0.png", "0.png"]})
    )
    for one, two in zip(still, moving, strict=True):
        assert two.similarity == pytest.approx(one.similarity, abs=2e-2)
        assert two.score != pytest.approx(one.score, abs=1e-3)
    wanted = client.match(video="clip.mp4", frames=2, texts=["a dog", "two cats"])
    code, lines, _ = run("match", "a dog", "two cats", "--video", "clip.mp4", "--num-frames", "2", "--json")
    found = json.loads(lines[0])
    assert code == 0 and found["image"] == "clip.mp4"
    assert [each["score"] for each in found["matches"]] == pytest.approx([each.score for each in wanted], abs=1e-3)


def test_videos_of_a_folder_are_found(run: Run, tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    assert run("retrieve", "index", ".", "--output", index)[1] == [f"3 pictures: {index}"]
    assert run("retrieve", "index", ".", "--output", index, "--videos")[1] == [f"4 pictures: {index}"]
    code, lines, _ = run("retrieve", "search", index, "a dog", "--json", "--html", str(tmp_path / "found.html"))
    assert code == 0
    assert sorted(Path(json.loads(line)["image"]).name for line in lines) == ["0.png", "1.png", "2.png", "clip.mp4"]
    page = (tmp_path / "found.html").read_text()
    assert page.count("<img") == 3 and "clip.mp4" in page
    code, lines, _ = run("retrieve", "search", index, "--image", "clip.mp4", "--top", "1", "--json")
    best = json.loads(lines[0])
    assert Path(best["image"]).name == "clip.mp4" and best["similarity"] == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_questions(run: Run, client: Client, protocol: str) -> None:
    wanted = client.vqa("0.png", "what is it", num_beams=2)[0].text
    assert run("ask", "0.png", "--num-beams", "2", "what is it", protocol=protocol) == (0, [wanted], [])
    code, lines, errors = run("ask", "0.png", "1.png", "what is it", "--num-beams", "2", "--shared-memory")
    assert (code, errors) == (0, []) and lines[0] == f"0.png\t{wanted}" and lines[1].startswith("1.png\t")
    code, lines, _ = run("ask", "0.png", "is it", "--candidates", "red", "two", "--json", protocol=protocol)
    document = json.loads(lines[0])
    assert code == 0 and document["image"] == "0.png" and document["question"] == "is it"
    assert {answer["text"] for answer in document["answers"]} == {"red", "two"}
    code, lines, _ = run("ask", "0.png", "is it", "--candidates", "red", "two", protocol=protocol)
    scores = [(f"{answer['score']:.3f}", answer["text"]) for answer in document["answers"]]
    assert [tuple(line.split("\t")) for line in lines] == scores


def test_videos(run: Run, client: Client) -> None:
    wanted = client.caption(video="clip.mp4", num_beams=1, frames=2)[0].text
    assert run("caption", "--video", "clip.mp4", "--num-frames", "2", "--num-beams", "1") == (0, [wanted], [])
    wanted = client.vqa(["0.png", "1.png"], "what is it", num_beams=1)[0].text
    assert run("ask", "what is it", "--frames", "0.png", "1.png", "--num-beams", "1") == (0, [wanted], [])
    code, lines, _ = run("embed", "--video", "clip.mp4", "--num-frames", "1", "--json")
    feature = client.embed_image(video="clip.mp4", frames=1)
    np.testing.assert_allclose(json.loads(lines[0])["feature"], feature, atol=1e-5)
    assert code == 0 and json.loads(lines[0])["image"] == "clip.mp4"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_matches(run: Run, client: Client, protocol: str) -> None:
    texts = ["a dog", "a red apple", "two wolves"]
    matches = client.match("0.png", texts)
    code, lines, _ = run("match", "0.png", *texts, "--json", protocol=protocol)
    found = json.loads(lines[0])["matches"]
    assert code == 0 and [match["text"] for match in found] == texts
    assert [match["score"] for match in found] == pytest.approx([match.score for match in matches], abs=1e-4)
    _, lines, _ = run("match", "0.png", *texts, protocol=protocol)
    ranked = sorted(found, key=lambda match: -match["score"])
    assert [line.split("\t")[2] for line in lines] == [match["text"] for match in ranked]
    assert [float(line.split("\t")[1]) for line in lines] == pytest.approx([m["similarity"] for m in ranked], abs=1e-3)


def test_embeddings_are_written(run: Run, client: Client, tmp_path: Path) -> None:
    wanted = np.stack([client.embed_image("0.png"), client.embed_image("1.png"), client.embed_text("a dog")])
    arguments = ["0.png", "1.png", "--texts", "a dog", "--output"]
    assert run("embed", *arguments, str(tmp_path / "a.npy")) == (0, [], [])
    features = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, wanted, atol=1e-5)
    assert run("embed", *arguments, str(tmp_path / "a.json"), protocol="http") == (0, [], [])
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [(row.get("image"), row.get("text")) for row in rows] == [("0.png", None), ("1.png", None), (None, "a dog")]
    np.testing.assert_allclose([row["feature"] for row in rows], wanted, atol=1e-5)
    code, lines, errors = run("embed", "0.png", "absent.png", "--output", str(tmp_path / "b.npy"))
    assert (code, lines) == (1, []) and errors == ["error: absent.png cannot be read: No such file or directory"]
    assert not (tmp_path / "b.npy").exists()  # a row that is missing would shift the others
    code, _, errors = run("embed", "0.png", "--output", "/nowhere/a.npy")
    assert code == 1 and errors == ["error: /nowhere/a.npy cannot be written: No such file or directory"]


@pytest.mark.parametrize("orientation", [1, 6])
def test_boxes_are_drawn_on_the_upright_image(run: Run, client: Client, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture, output = tmp_path / "photo.jpg", tmp_path / "found.png"
    Image.new("RGB", (320, 160), (120, 120, 120)).save(picture, exif=exif)
    upright = (320, 160) if orientation == 1 else (160, 320)
    box = client.ground(picture, "the dog").box
    code, lines, errors = run("ground", str(picture), "the dog", "--output", str(output))
    assert (code, lines, errors) == (0, [" ".join(f"{edge:.1f}" for edge in box)], [])
    drawn = Image.open(output)
    assert drawn.size == upright
    assert 0 <= box[0] <= box[2] <= upright[0] and 0 <= box[1] <= box[3] <= upright[1]
    middle = (min(round(box[0]), upright[0] - 1), min(round((box[1] + box[3]) / 2), upright[1] - 1))
    assert drawn.getpixel(middle) in ((0xE6, 0x19, 0x4B), (255, 255, 255))  # the line, or its casing at the edge
    code, lines, _ = run("ground", str(picture), "the dog", "a wolf", "--json", protocol="http")
    assert code == 0 and [json.loads(line)["expression"] for line in lines] == ["the dog", "a wolf"]
    assert json.loads(lines[0])["box"] == pytest.approx(box)
    code, _, errors = run("ground", str(picture), "the dog", "--output", "/nowhere/found.png")
    assert code == 1 and errors == ["error: /nowhere/found.png cannot be written: No such file or directory"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_judgements(run: Run, client: Client, protocol: str) -> None:
    verdict = client.nlvr(("0.png", "1.png"), "both show a dog")
    line = f"{verdict.label}\t{verdict.probability:.3f}"
    assert run("nlvr", "0.png", "1.png", "both show a dog", protocol=protocol) == (0, [line], [])
    code, lines, _ = run("nlvr", "0.png", "1.png", "both show a dog", "a wolf", "--json", protocol=protocol)
    first = json.loads(lines[0])
    assert code == 0 and (first["statement"], first["label"]) == ("both show a dog", verdict.label)
    entailed = client.entail("0.png", "a dog")
    line = f"{entailed.label}\t{max(entailed.probabilities):.3f}"
    assert run("entail", "0.png", "a dog", protocol=protocol) == (0, [line], [])
    code, lines, _ = run("entail", "0.png", "a dog", "a wolf", "--json", protocol=protocol)
    first = json.loads(lines[0])
    assert code == 0 and list(first["probabilities"]) == ["contradiction", "neutral", "entailment"]
    assert sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        ["caption", "0.png", "--num-beams", "16", "--num-return", "16", "--max-length", "4"],
        ["caption", "0.png", "--num-beams", "1", "--min-length", "0", "--max-length", "1", "--length-penalty", "-10"],
        ["caption", "--frames", *["0.png"] * 16, "--num-beams", "1", "--max-length", "2"],
        ["caption", "--video", "clip.mp4", "--num-frames", "16", "--num-beams", "1", "--max-length", "2"],
        ["ask", "0.png", "x" * 2000, "--length-penalty", "10", "--max-length", "2"],
        ["ask", "0.png", "what", "--ocr", *["dog"] * 28, "--max-length", "2"],
        ["match", "0.png", *["a dog"] * 256],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_options_at_their_limits(run: Run, arguments: list[str]) -> None:
    code, lines, errors = run(*arguments)
    assert code == 0 and lines and errors == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["caption", "0.png", "--num-beams", "17"], "0.png: NUM_BEAMS: 17 is not between 1 and 16"),
        (["caption", "0.png", "--num-beams", "2", "--num-return", "3"], "NUM_RETURN: 3 is not between 1 and 2"),
        (["caption", "0.png", "--length-penalty", "10.5"], "LENGTH_PENALTY: 10.5"),
        (["caption", "0.png", "--max-length", "0"], "MAX_LENGTH: 0"),
        (["caption", "--frames", *["0.png"] * 17], "IMAGE: holds 17 elements"),
        (["caption", "--video", "clip.mp4", "--num-frames", "17"], "clip.mp4: FRAMES: [17]"),
        (["caption", "--video", "clip.mp4", "--num-frames", "0"], "clip.mp4: FRAMES: [0]"),
        (["caption", "--video", "0.png"], "0.png: VIDEO"),
        (["ask", "0.png", "x" * 2001], "0.png: QUESTION"),
        (["ask", "0.png", ""], "0.png: QUESTION is empty"),
        (["ask", "0.png", "what", "--ocr", *["word"] * 257], "OCR: holds 257 texts"),
        (["ask", "0.png", "what", "--candidates", "a", "--num-beams", "2"], "NUM_BEAMS: has no meaning"),
        (["match", "0.png", *["a dog"] * 257], "TEXT: holds 257 texts"),
        (["match", "clip.mp4", "a dog"], "clip.mp4: IMAGE is not an image"),
        (["embed", "--texts", "?!"], "?!: TEXT: holds no words"),
        (["ground", "0.png", ""], ": EXPRESSION is empty"),
        (["nlvr", "0.png", "absent.png", "a dog"], "absent.png cannot be read: No such file"),
        (["entail", "0.png", "?"], "?: HYPOTHESIS: holds no words"),
        (["match", "0.png", "a dog", "--checkpoint", "other"], "other_match at"),
        (["match", "0.png", "a dog", "--timeout", "0"], "timeout is 0.0 s, it must be positive"),
        (["match", "0.png", "a dog", "--timeout", "0.0001"], "no answer from"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_options_beyond_their_limits(run: Run, arguments: list[str], complaint: str) -> None:
    code, lines, errors = run(*arguments)
    assert (code, lines) == (1, [])
    assert len(errors) == 1 and errors[0].startswith("error: ") and complaint in errors[0], errors


def test_failures_are_objects_too(run: Run) -> None:
    code, lines, errors = run("ask", "absent.png", "0.png", "what", "--json", "--num-beams", "1")
    assert code == 1 and len(errors) == 1
    failed, answered = map(json.loads, lines)
    assert failed == {"image": "absent.png", "error": "absent.png cannot be read: No such file or directory"}
    assert answered["image"] == "0.png" and answered["answers"]
