"""Batches and indexes over folders with anything in them, killed in the middle and gone on with, on a real server."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import client_files
import numpy as np
import pytest

from clients import batch, retrieve
from clients.client import Client
from clients.retrieval_index import Index
from mplug.server.command import TritonServer

CHECKOUT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]
Indexed = tuple[Path, Path, list[str]]
COUNT = 24
QUICK = ["--num-beams", "1", "--max-length", "2"]


def requests(server: TritonServer, model: str) -> int:
    """How many requests the server has answered for a model."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=30) as response:
        text = response.read().decode()
    found = re.findall(rf'^nv_inference_request_success\{{model="{model}",[^}}]*\}} (\d+)', text, re.MULTILINE)
    return sum(map(int, found))


def lines_of(path: Path) -> list[dict[str, object]]:
    header, *entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert header == {"format": "mplug-batch", "version": 1}
    return entries


def kill_when(ready: Callable[[], bool], script: str, *arguments: str) -> None:
    """Run a command until something holds, then kill it: no handler of its own runs."""
    process = subprocess.Popen([sys.executable, CHECKOUT / "clients" / script, *arguments], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, f"it ended before it could be killed: {process.stderr.read()}"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert process.returncode == -signal.SIGKILL


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def count_embedded(path: Path) -> int:
    """How many pictures an indexing has embedded that goes on."""
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        return database.execute("SELECT count(*) FROM pending").fetchone()[0]


# ----------------------------------------------------------------------------------------------- batch


def test_a_killed_batch_goes_on(every_task_server: TritonServer, tmp_path: Path, capsys: Capture) -> None:
    names = client_files.fill(tmp_path / "photos", COUNT)
    output = tmp_path / "captions.jsonl"
    command = [str(tmp_path / "photos"), "--output", str(output), "--url", every_task_server.grpc_url, *QUICK]
    before = requests(every_task_server, "caption")
    kill_when(lambda: count_lines(output) >= 6, "batch.py", *command, "--concurrency", "2")
    with output.open("ab") as file:
        file.write(b'{"image": "below/0')  # as if killed in the middle of a line
    kept = output.read_text().splitlines()[1:-1]
    assert 5 <= len(kept) < COUNT
    assert batch.main([*command, "--concurrency", "2"]) == 0
    assert capsys.readouterr().out == f"{COUNT} of {COUNT} answered: {output}\n"
    found = lines_of(output)
    assert [entry["image"] for entry in found] == names  # one line each, in order
    assert set(kept) <= set(output.read_text().splitlines())
    asked = requests(every_task_server, "caption") - before
    assert asked <= COUNT + 2  # what was answered is not asked again, but for what was under way
    written = output.read_bytes()
    assert batch.main([*command, "--json"]) == 0
    summary = {"inputs": COUNT, "answered": COUNT, "failed": 0, "output": str(output)}
    assert json.loads(capsys.readouterr().out) == summary
    assert output.read_bytes() == written and requests(every_task_server, "caption") == before + asked
    with Client(every_task_server.grpc_url) as client:
        captions = client.caption(tmp_path / "photos" / names[7], num_beams=1, max_length=2)
    assert found[7]["captions"][0]["token_ids"] == captions[0].token_ids


def test_broken_files_harm_nobody(every_task_server: TritonServer, tmp_path: Path, capsys: Capture) -> None:
    photos, output = tmp_path / "photos", tmp_path / "captions.jsonl"
    names = client_files.fill(photos, 4)
    client_files.break_some(photos)
    command = [str(photos), "--output", str(output), "--url", every_task_server.http_url, "--protocol", "http", *QUICK]
    assert batch.main(command) == 1
    printed = capsys.readouterr()
    failed = len(client_files.BROKEN)
    assert printed.out == f"4 of {4 + failed} answered: {output}\n"
    assert printed.err.startswith(f"error: {failed} of {4 + failed} failed") and printed.err.count("\n") == 1
    found = {entry["image"]: entry for entry in lines_of(output)}
    assert sorted(found) == sorted([*names, *client_files.BROKEN])
    for name, reason in client_files.BROKEN.items():
        assert reason in found[name]["error"] and "captions" not in found[name], name
    for name in names:
        assert found[name]["captions"]
    before = requests(every_task_server, "caption")
    client_files.noise(9).save(photos / "empty.png")  # mended, and the same command again
    assert batch.main(command) == 1
    found = {entry["image"]: entry for entry in lines_of(output)}
    assert len(found) == 4 + failed and found["empty.png"]["captions"] and "error" in found["text.png"]
    assert requests(every_task_server, "caption") == before + 4  # it, and those that the server has to judge


def test_a_table_of_questions(every_task_server: TritonServer, tmp_path: Path) -> None:
    client_files.fill(tmp_path, 2)
    table, output = tmp_path / "table.csv", tmp_path / "answers.jsonl"
    rows = [
        "image,question,prompt,other",
        "001.jpg,what is it,,x",
        "001.jpg,what is it,,y",
        '"below/000.png",,how many,',
        "001.jpg,,,",
        ",what,,",
        "absent.jpg,what,,",
        "001.jpg,what,how,",
    ]
    table.write_text("\ufeff" + "\r\n".join(rows) + "\r\n", encoding="utf-8")
    command = [str(table), "--output", str(output), "--url", every_task_server.grpc_url, "--num-beams", "1"]
    assert batch.main(command) == 1
    found = lines_of(output)
    assert [(entry["image"], entry.get("question"), entry.get("prompt")) for entry in found] == [
        ("001.jpg", "what is it", None),
        ("001.jpg", "what is it", None),
        ("below/000.png", None, "how many"),
        ("001.jpg", None, None),
        ("", "what", None),
        ("absent.jpg", "what", None),
        ("001.jpg", "what", "how"),
    ]
    kinds = ["answers", "answers", "captions", "captions", "error", "error", "error"]
    assert [next(kind for kind in ("answers", "captions", "error") if kind in entry) for entry in found] == kinds
    reasons = [entry["error"] for entry in found[4:]]
    for reason, complaint in zip(reasons, ("no image", "No such file", "both a question and a prompt"), strict=True):
        assert complaint in reason
    with Client(every_task_server.grpc_url) as client:
        answer = client.vqa(tmp_path / "001.jpg", "what is it", num_beams=1)[0]
    assert found[0]["answers"][0]["text"] == found[1]["answers"][0]["text"] == answer.text


def test_half_a_question_is_not_answered(every_task_server: TritonServer, tmp_path: Path, capsys: Capture) -> None:
    client_files.fill(tmp_path, 2)
    table, output = tmp_path / "table.csv", tmp_path / "answers.jsonl"
    table.write_text("image,question\n001.jpg,what is it\n001.jpg,what is it, and where\n")
    command = [str(table), "--output", str(output), "--url", every_task_server.grpc_url, *QUICK]
    assert batch.main(command) == 1
    printed = capsys.readouterr()
    assert printed.out == f"1 of 2 answered: {output}\n" and f"{table} line 3 has 3 fields" in printed.err
    assert ["answers" in entry for entry in lines_of(output)] == [True, False]
    table.write_text('image,question\n001.jpg,what is it\n001.jpg,"what is it, and where"\n')
    assert batch.main(command) == 0
    assert [entry["question"] for entry in lines_of(output)] == ["what is it", "what is it, and where"]


def test_what_others_made_is_kept(every_task_server: TritonServer, tmp_path: Path, capsys: Capture) -> None:
    photos = tmp_path / "photos"
    client_files.fill(photos, 2)
    for name, content in {"pictures-2019.jsonl": "{}\n", "features-clip.faiss": "x", "index.json": '{"a": 1}'}.items():
        (photos / name).write_text(content)
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    server = ["--url", every_task_server.grpc_url]
    assert retrieve.main(["index", str(photos), "--output", str(photos), *server]) == 1
    assert "is a directory, and an index is one file" in capsys.readouterr().err
    for name in ("index.json", "pictures-2019.jsonl", "001.jpg"):
        assert retrieve.main(["index", str(photos), "--output", str(photos / name), *server]) == 1
        assert f"{name} is not an index: give another file, this one is kept" in capsys.readouterr().err
        assert batch.main([str(photos), "--output", str(photos / name), *server, *QUICK]) == 1
        assert f"{name} was not written by this command" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before


def test_other_options_do_not_mix(every_task_server: TritonServer, tmp_path: Path, capsys: Capture) -> None:
    names = client_files.fill(tmp_path / "photos", 3)
    output = tmp_path / "out.jsonl"
    command = [str(tmp_path / "photos"), "--output", str(output), "--url", every_task_server.grpc_url]
    assert batch.main([*command, *QUICK]) == 0
    written = output.read_bytes()
    capsys.readouterr()
    assert batch.main([*command, "--question", "what is it", *QUICK]) == 1
    assert "holds answers for other inputs or options: give another --output" in capsys.readouterr().err
    assert output.read_bytes() == written
    (tmp_path / "photos" / names[0]).unlink()
    assert batch.main([*command, *QUICK]) == 0
    assert "1 lines of inputs that are no longer there were dropped" in capsys.readouterr().err
    assert [entry["image"] for entry in lines_of(output)] == names[1:]


# ----------------------------------------------------------------------------------------------- index


def test_a_killed_index_goes_on(every_task_server: TritonServer, tmp_path: Path, capsys: Capture) -> None:
    photos, path = tmp_path / "photos", tmp_path / "index"
    names = client_files.fill(photos, COUNT)
    command = ["index", str(photos), "--output", str(path), "--url", every_task_server.grpc_url, "--concurrency", "2"]
    before = requests(every_task_server, "embed_image")
    kill_when(lambda: count_embedded(path) >= 6, "retrieve.py", *command)
    assert retrieve.main(["search", str(path), "a dog", "--url", every_task_server.grpc_url]) == 1
    assert "indexing was interrupted: index the folder again" in capsys.readouterr().err
    assert retrieve.main(command) == 0
    assert capsys.readouterr().out == f"{COUNT} pictures: {path}\n"
    assert requests(every_task_server, "embed_image") - before <= COUNT + 2
    index = Index.read(path)
    assert [picture.path for picture in index.pictures] == names
    with Client(every_task_server.grpc_url) as client:
        for row in (0, COUNT // 2, COUNT - 1):
            feature = client.embed_image(photos / names[row])
            np.testing.assert_allclose(index.features[row], feature, atol=1e-5)

    # Changed, gone, and new: only what is new or changed is embedded.
    before = requests(every_task_server, "embed_image")
    client_files.noise(1000).save(photos / names[0])
    (photos / names[1]).unlink()
    client_files.noise(1001).save(photos / "new.png")
    assert retrieve.main(command) == 0
    assert requests(every_task_server, "embed_image") == before + 2
    index = Index.read(path)
    assert [picture.path for picture in index.pictures] == sorted({*names, "new.png"} - {names[1]})
    with Client(every_task_server.grpc_url) as client:
        feature = client.embed_image(photos / names[0])
    assert index.nearest(feature, 1) == [(str(photos / names[0]), pytest.approx(1, abs=1e-4))]


@pytest.fixture(scope="module")
def indexed(every_task_server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    """A folder with broken files in it, its index, and the good pictures."""
    folder = tmp_path_factory.mktemp("indexed")
    names = client_files.fill(folder / "photos", 12, start=100)
    client_files.break_some(folder / "photos")
    command = ["index", str(folder / "photos"), "--output", str(folder / "index"), "--url", every_task_server.grpc_url]
    assert retrieve.main([*command, "--shared-memory"]) == 0
    return folder / "photos", folder / "index", names


def test_broken_files_are_skipped_with_their_reasons(
    every_task_server: TritonServer, indexed: Indexed, capsys: Capture
) -> None:
    photos, path, names = indexed
    assert [picture.path for picture in Index.read(path).pictures] == names
    before = requests(every_task_server, "embed_image")
    command = ["index", str(photos), "--output", str(path), "--url", every_task_server.grpc_url]
    assert retrieve.main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert (told["pictures"], told["skipped"]) == (12, len(client_files.BROKEN))
    lines = printed.err.splitlines()
    assert len(lines) == len(client_files.BROKEN)
    for name, reason in client_files.BROKEN.items():
        assert reason in told["reasons"][name]
        assert any(line.startswith(f"skipped: {photos / name}: ") and reason in line for line in lines)
    assert requests(every_task_server, "embed_image") == before  # what is known to be broken is not asked again


def search(
    capsys: Capture, server: TritonServer, path: Path, *arguments: str, code: int = 0
) -> list[dict[str, object]]:
    assert retrieve.main(["search", str(path), *arguments, "--url", server.grpc_url, "--json"]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_words_find_pictures_in_two_steps(
    every_task_server: TritonServer, indexed: Indexed, capsys: Capture, tmp_path: Path
) -> None:
    photos, path, names = indexed
    words = "a red apple to the left of a dog"
    with Client(every_task_server.grpc_url) as client:
        matches = {str(photos / name): client.match(photos / name, [words])[0] for name in names}
    similar = sorted(matches, key=lambda name: -matches[name].similarity)
    found = search(capsys, every_task_server, path, words, "--no-rerank", "--top", "5")
    assert [(result["rank"], result["image"]) for result in found] == list(enumerate(similar[:5], 1))
    assert [r["similarity"] for r in found] == pytest.approx([matches[n].similarity for n in similar[:5]], abs=1e-4)
    ranked = sorted(similar[:6], key=lambda name: -matches[name].score)
    page = tmp_path / "page.html"
    found = search(capsys, every_task_server, path, words, "--shortlist", "6", "--top", "4", "--html", str(page))
    assert [result["image"] for result in found] == ranked[:4]
    assert [r["score"] for r in found] == pytest.approx([matches[n].score for n in ranked[:4]], abs=1e-4)
    text = page.read_text()
    assert text.count("data:image/jpeg") == 4 and words in text and all(name in text for name in ranked[:4])
    # More than there are, and a picture that has gone since.
    gone = Path(ranked[0])
    hidden = gone.rename(tmp_path / "hidden")
    try:
        found = search(capsys, every_task_server, path, words, "--top", "1000", "--shortlist", "1000", code=1)
    finally:
        hidden.rename(gone)
    assert len(found) == len(names) - 1 and str(gone) not in [result["image"] for result in found]


def test_a_picture_finds_pictures_and_texts(
    every_task_server: TritonServer,
    indexed: Indexed,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos, path, names = indexed
    image = str(photos / names[5])
    found = search(capsys, every_task_server, path, "--image", image, "--top", "3")
    assert found[0] == {"rank": 1, "image": image, "similarity": pytest.approx(1, abs=1e-4)} and len(found) == 3
    texts = ["a dog", "a red apple", "two wolves", "a dog"]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(["", *texts, "  "]))
    with Client(every_task_server.grpc_url) as client:
        matches = dict(zip(texts[:3], client.match(image, texts[:3]), strict=True))
    found = search(capsys, every_task_server, path, "--image", image, "--texts", str(file))
    assert [result["text"] for result in found] == sorted(matches, key=lambda text: -matches[text].score)
    found = search(capsys, every_task_server, path, "--image", image, "--texts", str(file), "--no-rerank", "--top", "2")
    assert [r["text"] for r in found] == sorted(matches, key=lambda text: -matches[text].similarity)[:2]
    # More texts than one request of `match` takes: the similarity makes the shortlist.
    monkeypatch.setattr(retrieve, "TEXTS_PER_MATCH", 8)
    file.write_text("\n".join([f"{number} dogs" for number in range(9)]))
    limits = ("--shortlist", "4", "--top", "4")
    found = search(capsys, every_task_server, path, "--image", image, "--texts", str(file), *limits)
    assert len(found) == 4 and all("score" in result for result in found)


def test_a_search_that_cannot_be(
    every_task_server: TritonServer, indexed: Indexed, capsys: Capture, tmp_path: Path
) -> None:
    _, path, _ = indexed
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    image = str(CHECKOUT / "examples" / "scene-01.png")
    for arguments, complaint in [
        (["?!"], "TEXT: holds no words"),
        (["--image", "absent.png"], "absent.png cannot be read"),
        (["--image", image, "--texts", str(empty)], "holds no texts"),
        (["--image", image, "--texts", "absent.txt"], "absent.txt cannot be read"),
        (["--image", image, "--html", "/nowhere/page.html"], "/nowhere/page.html cannot be written"),
        (["dog", "--checkpoint", "other"], "other_embed_text at"),
    ]:
        assert retrieve.main(["search", str(path), *arguments, "--url", every_task_server.grpc_url]) == 1
        errors = capsys.readouterr().err
        assert errors.startswith("error: ") and errors.count("\n") == 1 and complaint in errors, errors
    assert retrieve.main(["search", str(path), "dog", "--url", "127.0.0.1:9"]) == 1
    assert "no Triton server answers" in capsys.readouterr().err
