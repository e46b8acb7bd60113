"""What bulk/export.py writes is what Milvus and Qdrant take, row for row; the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bulk import export
from bulk.errors import BulkError

COUNT, WIDTH = 25, 8
VECTORS = np.random.default_rng(0).normal(size=(COUNT, WIDTH)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
NAMES = [f'a/{number}, "ü".jpg' for number in range(COUNT)]


@pytest.fixture
def features(tmp_path: Path) -> Path:
    folder = tmp_path / "features"
    folder.mkdir()
    manifest = {"format": "mplug-bulk", "version": 1, "task": "embed_image", "input": "/p", "weights_sha256": "aa"}
    (folder / "_mplug.json").write_text(json.dumps(manifest))
    rows = [{"input": name, "feature": vector} for name, vector in zip(NAMES, VECTORS, strict=True)]
    rows.insert(0, {"input": "torn.jpg", "error": "IMAGE cannot be decoded"})
    fields = [("input", pa.string()), ("error", pa.string()), ("feature", pa.list_(pa.float32()))]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), folder / "0.parquet")
    return folder


def test_milvus(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert export.main([str(features), str(out), "--to", "milvus", "--rows-per-file", "10"]) == 0
    assert "25 vectors in 3 files, 1 rows with an error skipped" in capsys.readouterr().out
    table = pa.concat_tables(pq.read_table(path) for path in sorted(out.glob("*.parquet")))
    assert [str(field.type) for field in table.schema] == ["int64", "string", "list<element: float>"]
    assert table.column("id").to_pylist() == list(range(COUNT)) and table.column("input").to_pylist() == NAMES
    np.testing.assert_array_equal(np.array(table.column("feature").to_pylist(), np.float32), VECTORS)
    fields = json.loads((out / "schema.json").read_text())["schema"]["fields"]
    assert [field["fieldName"] for field in fields] == table.column_names
    assert fields[2]["elementTypeParams"] == {"dim": str(WIDTH)}


def test_qdrant(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export.main([str(features), str(out), "--to", "qdrant", "--rows-per-file", "10"]) == 0
    files = sorted(path for path in out.glob("0*.json"))
    points = [point for path in files for point in json.loads(path.read_text())["points"]]
    assert len(files) == 3 and [point["id"] for point in points] == list(range(COUNT))
    assert [point["payload"] for point in points] == [{"input": name} for name in NAMES]
    np.testing.assert_array_equal(np.array([point["vector"] for point in points], np.float32), VECTORS)
    made = json.loads((out / "collection.json").read_text())
    assert made["vectors"]["size"] == WIDTH and made["vectors"]["distance"] == "Dot"


def test_what_is_refused(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left behind, and nothing is written over."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    with pytest.raises(BulkError, match="is there: give a new OUTPUT"):
        export.main([str(features), str(tmp_path / "mine"), "--to", "milvus"])
    from bulk import database_files

    monkeypatch.setattr(database_files, "LONGEST_NAME", 3)
    with pytest.raises(BulkError, match="input 0 has a name of more than 3 bytes"):
        export.main([str(features), str(tmp_path / "out"), "--to", "milvus"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "mine"]
