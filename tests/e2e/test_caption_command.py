"""`python clients/caption.py` as scripts call it, against a real server and against none."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from wire import PROTOCOLS

from mplug.server.command import TritonServer

CHECKOUT = Path(__file__).resolve().parents[2]
GOLDEN = CHECKOUT / "tests" / "parity" / "data" / "caption"
SEARCHES = json.loads((GOLDEN / "expected.json").read_text())["beam_search"]
VOCABULARY = (GOLDEN / "vocab.txt").read_text().splitlines()


def run(*arguments: str | Path, cwd: Path = CHECKOUT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CHECKOUT / "clients" / "caption.py", *arguments]
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=120)


def text_of(ids: list[int]) -> str:
    words = [VOCABULARY[index] for index in ids[1:]]
    end = words.index("[SEP]") if "[SEP]" in words else len(words)
    return " ".join(words[:end]).replace(" ##", "")


def best(image: int, search: int = 0) -> str:
    return text_of(SEARCHES[search]["nbest"][image][0]["ids"])


def assert_one_error(errors: str, *fragments: str) -> None:
    """One line, in the form that every failure has."""
    assert re.fullmatch(r"error: [^\n]+\n", errors), errors
    for fragment in fragments:
        assert fragment in errors


@pytest.fixture(params=PROTOCOLS)
def address(request: pytest.FixtureRequest, caption_server: TritonServer) -> list[str]:
    """The arguments that name the running server."""
    url = caption_server.grpc_url if request.param == "grpc" else caption_server.http_url
    return ["--url", url, "--protocol", request.param]


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nothing listens, held so that nobody else takes it meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def test_a_caption_is_all_that_is_printed(address: list[str], tmp_path: Path) -> None:
    done = run(GOLDEN / "image1.png", *address, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, best(1) + "\n", "")


def test_options_reach_the_search(caption_server: TritonServer) -> None:
    search = SEARCHES[3]
    done = run(
        GOLDEN / "image1.png",
        GOLDEN / "image5.png",
        "--url",
        caption_server.grpc_url,
        "--num-beams",
        str(search["num_beams"]),
        "--min-length",
        str(search["min_length"]),
        "--max-length",
        str(search["max_length"]),
        "--num-return",
        str(search["num_beams"]),
        "--json",
    )
    assert (done.returncode, done.stderr) == (0, "")
    for index, line in zip((1, 5), done.stdout.splitlines(), strict=True):
        answer = json.loads(line)
        assert answer["image"] == str(GOLDEN / f"image{index}.png")
        reference = search["nbest"][index]
        assert [caption["token_ids"] for caption in answer["captions"]] == [entry["ids"] for entry in reference]
        assert [caption["text"] for caption in answer["captions"]] == [text_of(e["ids"]) for e in reference]
        scores = [caption["score"] for caption in answer["captions"]]
        assert scores == pytest.approx([entry["score"] for entry in reference], abs=1e-3)


def test_what_fails_is_told_and_the_others_are_captioned(address: list[str], tmp_path: Path) -> None:
    noise = tmp_path / "noise.jpg"
    noise.write_bytes(b"not a picture")
    good, absent = GOLDEN / "image0.png", tmp_path / "absent.png"
    done = run(noise, good, absent, tmp_path, GOLDEN / "image2.png", *address)
    assert done.returncode == 1
    assert done.stdout == f"{good}\t{best(0)}\n{GOLDEN / 'image2.png'}\t{best(2)}\n"
    lines = done.stderr.splitlines()
    assert [line.startswith(f"error: {path}") for line, path in zip(lines, (noise, absent, tmp_path), strict=True)]
    assert "IMAGE is not an image" in lines[0]
    assert "No such file" in lines[1]
    assert "Is a directory" in lines[2]


def test_json_tells_of_failures_too(address: list[str], tmp_path: Path) -> None:
    absent = tmp_path / "absent.png"
    done = run(absent, GOLDEN / "image3.png", "--json", *address)
    assert done.returncode == 1
    assert_one_error(done.stderr, str(absent))
    failed, captioned = map(json.loads, done.stdout.splitlines())
    assert failed["image"] == str(absent) and "No such file" in failed["error"]
    assert captioned["captions"][0]["text"] == best(3)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--num-beams", "0"], "NUM_BEAMS: 0 is not between 1 and 16"),
        (["--num-beams", "1000"], "NUM_BEAMS: 1000 is not between 1 and 16"),
        (["--min-length", "9", "--max-length", "3"], "MIN_LENGTH: 9 is more than MAX_LENGTH 3"),
        (["--num-return", "9"], "NUM_RETURN: 9 is not between 1 and 5"),
        (["--length-penalty", "nan"], "LENGTH_PENALTY: nan"),
        (["--prompt", ""], "PROMPT is empty"),
        (["--num-beams", "99999999999"], "num_beams is 99999999999"),
    ],
)
def test_a_wrong_option_is_one_line(caption_server: TritonServer, arguments: list[str], complaint: str) -> None:
    done = run(GOLDEN / "image0.png", *arguments, "--url", caption_server.grpc_url)
    assert (done.returncode, done.stdout) == (1, "")
    assert_one_error(done.stderr, complaint)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_is_away_is_one_line(nobody: str, protocol: str) -> None:
    images = [GOLDEN / "image0.png", GOLDEN / "image1.png"]
    done = run(*images, "--url", nobody, "--protocol", protocol)
    assert (done.returncode, done.stdout) == (1, "")
    assert_one_error(done.stderr, "no Triton server answers", nobody)


def test_the_other_protocols_port_is_one_line(caption_server: TritonServer) -> None:
    for protocol, url in (("grpc", caption_server.http_url), ("http", caption_server.grpc_url)):
        done = run(GOLDEN / "image0.png", "--url", url, "--protocol", protocol, "--timeout", "20")
        assert (done.returncode, done.stdout) == (1, "")
        assert_one_error(done.stderr, url)


@pytest.mark.parametrize("arguments", [[], ["--num-beams", "three", "a.png"], ["a.png", "--url", "nonsense"]])
def test_wrong_usage_is_one_line(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert_one_error(done.stderr)
