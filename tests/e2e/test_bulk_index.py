"""From features to results: bulk/index.py with a repository's own features, searched by clients/retrieve.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import client_files
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bulk import index
from bulk.errors import BulkError
from clients import retrieve
from clients.client import Client
from mplug.pipeline import BUILD_INFO, Pipeline
from mplug.server.command import TritonServer

CHECKOUT = Path(__file__).resolve().parents[2]
BULK = Path(sys.prefix) / "bulk" / "bin" / "python"
WORDS = "a red apple to the left of a dog"


def write_features(folder: Path, photos: Path, names: list[str], repository: Path) -> Path:
    """Write what bulk/embed.py does, without Ray."""
    folder.mkdir()
    weights = json.loads((repository / BUILD_INFO).read_text())["weights_sha256"]
    manifest = {"format": "mplug-bulk", "version": 1, "task": "embed_image"}
    manifest |= {"input": str(photos), "weights_sha256": weights}
    (folder / "_mplug.json").write_text(json.dumps(manifest))
    with Pipeline.open(repository) as mplug:
        rows = [{"input": name, "feature": mplug.embed_image(photos / name)} for name in names]
    rows.insert(3, {"input": "torn.jpg", "error": "IMAGE cannot be decoded"})
    fields = [("input", pa.string()), ("key", pa.string()), ("error", pa.string()), ("feature", pa.list_(pa.float32()))]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), folder / "0.parquet")
    return folder


def search(capsys: pytest.CaptureFixture[str], url: str, path: Path, *arguments: str) -> list[dict[str, object]]:
    assert retrieve.main(["search", str(path), *arguments, "--url", url, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def failed(capsys: pytest.CaptureFixture[str], url: str, path: Path, *arguments: str) -> str:
    assert retrieve.main(["search", str(path), *arguments, "--url", url]) == 1
    printed = capsys.readouterr()
    assert not printed.out and printed.err.count("\n") == 1
    return printed.err


def test_it_is_searched_like_the_index_of_a_folder(
    every_task_server: TritonServer,
    caption_server: TritonServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By words with and without the matching head, by a picture, and where the pictures have moved."""
    photos, repository, url = tmp_path / "photos", every_task_server.repository, every_task_server.grpc_url
    names = client_files.fill(photos, 12, start=200)
    features = write_features(tmp_path / "features", photos, names, repository)
    path, folder = tmp_path / "index", tmp_path / "folder"
    command = [str(features), str(path), "--repository", str(repository), "--rows-per-shard", "5"]
    assert index.main(command) == 0
    assert "12 vectors in 3 shards, 1 rows with an error skipped, Flat" in capsys.readouterr().out
    assert retrieve.main(["index", str(photos), "--output", str(folder), "--url", url]) == 0
    capsys.readouterr()
    for arguments in (
        (WORDS, "--no-rerank", "--top", "5"),
        (WORDS, "--shortlist", "6", "--top", "4"),
        ("--image", str(photos / names[2]), "--top", "3"),
    ):
        found, expected = (search(capsys, url, each, *arguments) for each in (path, folder))
        assert [result["image"] for result in found] == [result["image"] for result in expected]
        for key in {"score", "similarity"} & set(expected[0]):
            assert [r[key] for r in found] == pytest.approx([r[key] for r in expected], abs=1e-4)

    photos.rename(tmp_path / "moved")
    assert f"are no files here ({photos}" in failed(capsys, url, path, WORDS)
    moved = search(capsys, url, path, WORDS, "--pictures", str(tmp_path / "moved"), "--top", "3")
    assert all(Path(str(result["image"])).exists() and "score" in result for result in moved)
    assert "takes no such setting" in failed(capsys, url, path, WORDS, "--search-settings", "nprobe=3")
    assert "are for indexes of bulk/index.py" in failed(capsys, url, folder, WORDS, "--search-settings", "nprobe=3")
    with pytest.raises(BulkError, match="features of another model than"):
        index.main([*command[:3], str(caption_server.repository)])
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["probe"]["feature"] = np.roll(manifest["probe"]["feature"], 1).tolist()
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert "made by another checkpoint than the server's" in failed(capsys, url, path, WORDS)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install faiss-cpu" in failed(capsys, url, path, WORDS)


@pytest.mark.skipif(not BULK.exists(), reason="no environment for bulk work: `make bulk` makes it")
def test_embedded_indexed_and_searched(
    built: Callable[..., Path],
    serve: Callable[..., TritonServer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The commands of docs/bulk.md one after the other; the nearest of each picture is itself."""
    photos, repository = tmp_path / "photos", built("retrieval")
    names = client_files.fill(photos, 6, start=300)
    for script, source, output in (
        ("embed", photos, tmp_path / "features"),
        ("index", tmp_path / "features", tmp_path / "index"),
    ):
        command = [BULK, CHECKOUT / "bulk" / f"{script}.py", source, output, "--repository", repository]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    server = serve(repository)
    for name in names:
        (found,) = search(capsys, server.grpc_url, tmp_path / "index", "--image", str(photos / name), "--top", "1")
        assert found == {"rank": 1, "image": str(photos / name), "similarity": pytest.approx(1, abs=1e-4)}
    with Client(server.grpc_url) as client:
        feature = client.embed_text("a dog")
        best = max(names, key=lambda name: float(client.embed_image(photos / name) @ feature))
    (found,) = search(capsys, server.grpc_url, tmp_path / "index", "a dog", "--no-rerank", "--top", "1")
    assert found["image"] == str(photos / best)
