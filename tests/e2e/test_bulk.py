"""Whole corpora on Ray Data: what every input's row says, what survives which death, and what is refused.

The commands run in their own environment, .venv/bulk, on a Ray cluster of 4 CPUs that the module starts.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from wheel_environment import environment_with

from mplug.pipeline import Pipeline

CHECKOUT = Path(__file__).resolve().parents[2]
PYTHON = Path(sys.prefix) / "bulk" / "bin" / "python"
SCENES = sorted((CHECKOUT / "examples").glob("scene-*"))[:6]
CPUS = 4
SLOW_VARIABLE = "MPLUG_TEST_SLOW"  # set, tests run that continuous integration has no time for
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no environment for bulk work: `make bulk` makes it")

#: Prints the rows of a folder of parquet files as JSON, and writes parquet files from JSON with pictures as hex.
_ROWS = """
import json, sys, pyarrow.parquet as pq
table = pq.read_table(sys.argv[1])
types = {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types)}
print(json.dumps({"rows": table.to_pylist(), "types": types}))
"""
_PARQUET = """
import json, sys, pyarrow as pa, pyarrow.parquet as pq
rows = json.load(sys.stdin)
for row in rows: row["image"] = row["image"] and bytes.fromhex(row["image"])
pq.write_table(pa.Table.from_pylist(rows), sys.argv[1], row_group_size=2)
"""


#: Runs commands by turns and prints a line for each: exit code, standard output, standard error.
_REFUSED = """
import contextlib, functools, importlib, io, json, sys
from bulk.command import run
for script, *arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(functools.partial(importlib.import_module(f"bulk.{script}").main, arguments))
        except SystemExit as left:
            code = left.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
_FAILED = """
import ray.exceptions as errors
from bulk.engine import reason
text = "Traceback (most recent call last):\\n  File x\\nmplug.pipeline.RepositoryError: there are no stages\\n"
failed = errors.ActorDiedError(errors.RayTaskError("__init__", text, None))
print(reason(failed))
died = errors.RayActorError(None, "The actor died. Worker exit type: SYSTEM_ERROR Worker exit detail: killed\\n")
died.__cause__ = None
print(reason(died))
"""


def bulk(script: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [PYTHON, CHECKOUT / "bulk" / f"{script}.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def answered(script: str, *arguments: object, **options: Any) -> str:
    done = bulk(script, *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: object, script: str = "caption") -> str:
    done = bulk(script, *arguments)
    assert done.returncode == 1 and not done.stdout
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


def all_refused(commands: list[tuple[str, ...]]) -> list[str]:
    """What each command says that is run by its script and arguments: one after the other, in one process."""
    text = json.dumps([[script, *map(str, arguments)] for script, *arguments in commands])
    done = subprocess.run(
        [PYTHON, "-c", _REFUSED], input=text, cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(commands)
    for code, printed, error in found:
        assert code == 1 and not printed and re.fullmatch(r"error: [^\n]+\n", error), error
    return [error for _, _, error in found]


def table(output: Path) -> dict[str, Any]:
    return json.loads(subprocess.run([PYTHON, "-c", _ROWS, output], capture_output=True, check=True).stdout)


def rows(output: Path) -> dict[str, dict[str, Any]]:
    found = table(output)["rows"]
    assert Counter(row["input"] for row in found).most_common(1)[0][1] == 1
    return {row["input"]: row for row in found}


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[str]]:
    """Options of a command that join a cluster; it ends with the module, and its key and logs with it."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets have short paths only
    old, os.environ["HOME"] = os.environ.get("HOME"), folder  # `ray start` writes the cluster's key there
    command = [PYTHON.with_name("ray"), "start", "--head", "--block", "--port=0", f"--num-cpus={CPUS}"]
    command += ["--temp-dir", folder, "--include-dashboard=false", "--disable-usage-stats"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if found := re.search(r"--address='([\d.:]+)'", line):
            break
    yield ["--address", found[1], "--workers", "1"]
    for each in (
        *psutil.Process(process.pid).children(recursive=True),
        process,
    ):  # asked to end, Ray takes half a minute
        each.kill()
    process.communicate()
    os.environ["HOME"] = old or "/"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def captions(built: Callable[..., Path]) -> dict[str, str]:
    """What the pipeline says of each scene, by the name of its file."""
    with Pipeline.open(built("caption")) as mplug:
        return {path.name: found[0].text for path, found in zip(SCENES, mplug.map("caption", SCENES), strict=True)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Scenes, one of them below a folder, and files that are no pictures, each in its way."""
    corpus = tmp_path / "photos"
    (corpus / "below").mkdir(parents=True)
    for path in SCENES:
        shutil.copy(path, corpus if path != SCENES[0] else corpus / "below")
    (corpus / "text.jpg").write_text("no picture")
    (corpus / "torn.jpg").write_bytes(SCENES[2].read_bytes()[:2000])
    (corpus / "gone.png").symlink_to("nowhere.png")
    with (corpus / "huge.jpg").open("wb") as file:
        file.truncate(100_000_000)
    (corpus / "notes.txt").write_text("not read")
    return corpus


def test_a_folder(
    cluster: list[str], built: Callable[..., Path], captions: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    """One row an input, a relative OUTPUT, resumed with what is new; a retry answers what has been mended."""
    command = ("photos", "out", "--repository", built("caption"), *cluster)
    assert "10 rows, 4 of them with an error" in answered("caption", *command, cwd=tmp_path)
    found = rows(tmp_path / "out")
    names = {path.name for path in SCENES[1:]} | {f"below/{SCENES[0].name}"}
    assert {name: found[name]["caption"] for name in names} == {name: captions[Path(name).name] for name in names}
    errors = {name: row["error"] for name, row in found.items() if row["error"] is not None}
    assert set(errors) == {"text.jpg", "torn.jpg", "gone.png", "huge.jpg"}
    assert "not an image" in errors["text.jpg"] and "truncated" in errors["torn.jpg"]
    assert "no such file" in errors["gone.png"] and "100,000,000 bytes" in errors["huge.jpg"]
    assert all(found[name]["caption"] is None for name in errors)
    types = table(tmp_path / "out")["types"]
    assert types == {"input": "string", "key": "string", "error": "string", "caption": "string", "score": "float"}

    assert "10 inputs are answered already\n10 rows" in answered("caption", *command, cwd=tmp_path)
    shutil.copy(SCENES[1], folder / "torn.jpg")
    shutil.copy(SCENES[1], folder / "new.png")
    assert "11 rows, 3 of them with an error" in answered("caption", *command, "--retry", cwd=tmp_path)
    found = rows(tmp_path / "out")
    assert found["torn.jpg"]["caption"] == found["new.png"]["caption"] == captions[SCENES[1].name]


def shard(path: Path, scenes: list[Path], *, question: str) -> bytes:
    with tarfile.open(path, "w") as archive:
        for number, scene in enumerate(scenes):
            for suffix, data in (("txt", question.encode()), (scene.suffix[1:], scene.read_bytes()), ("json", b"{}")):
                member = tarfile.TarInfo(f"{number:05}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path.read_bytes()


def test_shards(cluster: list[str], built: Callable[..., Path], tmp_path: Path) -> None:
    """Pictures arrive encoded as they are; keys that repeat do no harm; a damaged shard is told of once."""
    corpus = tmp_path / "shards"
    corpus.mkdir()
    shard(corpus / "0.tar", SCENES[:3], question="what is this?")
    whole = shard(corpus / "1.tar", SCENES[3:], question="what colour is it?")
    (corpus / "2.tar").write_bytes(b"no archive" * 200)
    (corpus / "3.tar").write_bytes(whole[: whole.index(b"00001" + SCENES[4].suffix.encode()) + 1000])  # in its picture
    header = whole.index(b"00001.txt")
    (corpus / "4.tar").write_bytes(whole[:header] + b"U" * 512 + whole[header + 512 :])
    options = ("--repository", built("vqa"), "--question-column", "txt", "--question", "unused", *cluster)
    answered("ask", corpus, tmp_path / "out", *options)
    found = rows(tmp_path / "out")
    assert {name for name in found if name[0] in "01"} == {
        f"{file}.tar#{number}" for file in (0, 1) for number in range(3)
    }
    with Pipeline.open(built("vqa")) as mplug:
        for number, scene in enumerate(SCENES):
            row = found[f"{number // 3}.tar#{number % 3}"]
            question = ("what is this?", "what colour is it?")[number // 3]
            assert (row["key"], row["question"]) == (f"{number % 3:05}", question)
            assert row["answer"] == mplug.vqa(scene, question)[0].text
    assert "cannot be read beyond 0 inputs" in found["2.tar#0"]["error"]
    broken = [row["error"] for name, row in found.items() if name.startswith("3.tar") and row["error"]]
    assert len(broken) == 1 and "unexpected end" in broken[0]
    assert found["4.tar#0"]["answer"] == found["1.tar#0"]["answer"]
    assert "cannot be read beyond 1 inputs" in found["4.tar#1"]["error"] and "4.tar#2" not in found


def test_parquet_is_resumed_by_row(
    cluster: list[str], built: Callable[..., Path], captions: dict[str, str], tmp_path: Path
) -> None:
    """Rows are known by their place, whatever the key column holds; bytes and paths are read, URLs are not."""
    corpus, output = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    pictures = [{"image": path.read_bytes().hex(), "id": "same"} for path in SCENES]
    text = json.dumps([*pictures, {"image": None, "id": None}])
    subprocess.run([PYTHON, "-c", _PARQUET, corpus / "a.parquet"], input=text, text=True, check=True)
    command = (corpus, output, "--repository", built("caption"), "--key-column", "id", *cluster)
    assert "7 rows, 1 of them with an error" in answered("caption", *command)
    (corpus / "b.parquet").write_bytes(b"PAR1")
    assert "7 inputs are answered already\n8 rows, 2 of them" in answered("caption", *command)
    found = rows(output)
    assert [found[f"a.parquet#{number}"]["caption"] for number in range(6)] == [captions[path.name] for path in SCENES]
    assert {row["key"] for row in found.values()} == {"same", None}
    assert "no picture" in found["a.parquet#6"]["error"] and "b.parquet cannot be read" in found["b.parquet#0"]["error"]
    extended = json.dumps([*pictures, {"image": None, "id": None}, *pictures[:2]])
    subprocess.run([PYTHON, "-c", _PARQUET, corpus / "a.parquet"], input=extended, text=True, check=True)
    assert "8 inputs are answered already\n10 rows, 2 of them" in answered("caption", *command)
    assert rows(output)["a.parquet#8"]["caption"] == captions[SCENES[1].name]
    assert "has no column 'nothing'; it has" in refused(*command, "--picture-column", "nothing")


def test_everything_is_killed(built: Callable[..., Path], tmp_path: Path) -> None:
    """A worker, then the driver and all of Ray with it: each input once, and no file that is not whole."""
    corpus, output = tmp_path / "photos", tmp_path / "out"
    corpus.mkdir()
    for number in range(400):
        scene = SCENES[number % len(SCENES)]
        (corpus / f"{number:03}{scene.suffix}").symlink_to(scene)
    command = [PYTHON, "bulk/caption.py", corpus, output, "--repository", built("caption")]
    command += ["--workers", "1", "--rows-per-file", "40"]
    process = subprocess.Popen(command, cwd=CHECKOUT)
    children: list[psutil.Process] = []
    try:
        await_files(output, 1, process)
        children = psutil.Process(process.pid).children(recursive=True)
        worker = next(child for child in children if "MapWorker" in " ".join(child.cmdline()))
        worker.kill()
        await_files(output, 3, process)
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        for child in children:
            if child.is_running():
                child.kill()
        process.wait()
    kept = {path.name for path in output.glob("*.parquet")}
    (output / ".ffffffff-000000.parquet.00").write_bytes(b"torn")  # what a writer leaves that was killed
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0 and "400 rows, 0 of them" in done.stdout, done.stderr
    assert len(rows(output)) == 400 and kept < {path.name for path in output.glob("*.parquet")}
    assert not list(output.glob(".*.parquet.*"))


def await_files(output: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while len(list(output.glob("*.parquet"))) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(SLOW_VARIABLE not in os.environ, reason=f"takes most of a minute: set {SLOW_VARIABLE}=1")
def test_the_wheel_embeds_a_corpus(
    cluster: list[str], wheel: Path, built: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    """With what the extra `bulk` brings and nothing of the checkout; each worker gets the code with the job."""
    packages = next(PYTHON.parents[1].glob("lib/python*/site-packages"))
    environment = environment_with(wheel, packages, tmp_path / "environment")
    options = ("--repository", built("retrieval"), *cluster)
    assert "10 rows, 4 of them" in environment.run("mplug", "bulk-embed", folder, tmp_path / "out", *options).stdout
    found = rows(tmp_path / "out")
    with Pipeline.open(built("retrieval")) as mplug:
        for scene in SCENES[1:]:
            np.testing.assert_allclose(found[scene.name]["feature"], mplug.embed_image(scene), rtol=0, atol=1e-4)


def test_why_workers_end_is_told() -> None:
    """One that cannot start gives its reason, one that died what Ray knows of it."""
    done = subprocess.run([PYTHON, "-c", _FAILED], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    failed, died = done.stdout.splitlines()
    assert failed == "a worker cannot start: mplug.pipeline.RepositoryError: there are no stages"
    assert "give fewer --workers" in died and died.endswith("(SYSTEM_ERROR Worker exit detail: killed)")


def test_too_few_cpus_are_told_at_once(cluster: list[str], built: Callable[..., Path], tmp_path: Path) -> None:
    """Ray Data itself would wait for ever: workers take a CPU each, reading and writing two."""
    many = ("--workers", CPUS - 1)
    error = refused(SCENES[0].parent, tmp_path / "out", "--repository", built("caption"), *cluster, *many)
    assert f"has {CPUS} CPUs, {CPUS} of them free, and {CPUS + 1} are needed" in error and "--workers 2" in error


def test_what_is_refused(built: Callable[..., Path], tmp_path: Path) -> None:
    """Other results and others' files are kept; what cannot be read is named."""
    repository = ("--repository", built("caption"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    other = {"format": "mplug-bulk", "version": 1, "task": "embed_image"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "_mplug.json").write_text(json.dumps(other))
    examples, out = CHECKOUT / "examples", tmp_path / "out"
    cases = [
        (("caption", examples, tmp_path / "file", *repository), "is a file"),
        (("caption", examples, tmp_path / "mine", *repository), "did not write (a.txt"),
        (
            ("caption", examples, tmp_path / "other", *repository),
            'holds other results: task "embed_image" there, "caption" now',
        ),
        (("caption", examples, examples / "out", *repository), "lies inside INPUT"),
        (("caption", tmp_path / "nothing", out, *repository), "no such file or folder"),
        (("caption", tmp_path / "mine", out, *repository), "holds no pictures"),
        (("caption", examples, "gopher://x", *repository), "not a location that Arrow reads"),
        (("embed", examples, out, *repository), "does not serve embed_image; it serves caption"),
        (("caption", examples, out, "--repository", tmp_path), "is not a built repository"),
        (("caption", examples, out, *repository, "--address", "127.0.0.1:9"), "no Ray cluster answers"),
    ]
    for (command, message), said in zip(cases, all_refused([command for command, _ in cases]), strict=True):
        assert message in said, command
    assert not (examples / "out").exists() and (tmp_path / "mine" / "a.txt").read_text() == "mine"
    assert "give --question" in bulk("ask", examples, out).stderr
