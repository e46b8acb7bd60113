"""Indexes of bulk/index.py: their neighbours beside the exact ones, what survives a death, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bulk import faiss_index, index, index_build
from bulk.errors import BulkError
from bulk.features import Features
from clients.client import ClientError
from clients.faiss_index import FaissIndex

ROOT = Path(__file__).parents[3]
RANDOM = np.random.default_rng(0)
COUNT, WIDTH, PER_FILE = 20_000, 32, 6000
MANIFEST = {"format": "mplug-bulk", "version": 1, "task": "embed_image", "input": "/photos", "weights_sha256": "aa"}
SCHEMA = pa.schema(
    [("input", pa.string()), ("key", pa.string()), ("error", pa.string()), ("feature", pa.list_(pa.float32()))]
)
# As images are: many topics, each with its variants.
TOPICS = RANDOM.normal(size=(400, WIDTH))
VECTORS = TOPICS[RANDOM.integers(400, size=COUNT)] + 0.5 * RANDOM.normal(size=(COUNT, WIDTH))
VECTORS = (VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)).astype(np.float32)
NAMES = [f"{number % 7}/{number:05}.jpg" for number in range(COUNT)]
PROBE = VECTORS[3]


def write(folder: Path, vectors: Any = VECTORS, *, failed: int = 0, first: int = 0, **manifest: Any) -> Path:
    """Write features as bulk/embed.py does, with rows in between that have an error."""
    folder.mkdir(exist_ok=True)
    (folder / "_mplug.json").write_text(json.dumps(MANIFEST | manifest))
    for number, start in enumerate(range(0, len(vectors), PER_FILE)):
        rows = [
            {"input": name, "feature": vector}
            for name, vector in zip(NAMES[first + start :], vectors[start : start + PER_FILE], strict=False)
        ]
        for place in range(failed):
            rows.insert(place * 3, {"input": f"torn-{number}-{place}.jpg", "error": "IMAGE cannot be decoded"})
        table = pa.Table.from_pylist(rows, SCHEMA)
        pq.write_table(table, folder / f"{first:06}-{number:06}.parquet", row_group_size=2500)
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("index") / "features", failed=4)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`made(features, folder, *options)`: the command, with the probe of no repository; returns what it prints."""
    monkeypatch.setattr(index_build, "_probe", lambda repository, features: PROBE)

    def run(*arguments: object) -> str:
        assert index.main([*map(str, arguments), "--threads", "1"]) == 0
        return capsys.readouterr().out

    return run


def recall(found: FaissIndex, count: int = 10) -> float:
    queries = VECTORS[RANDOM.integers(COUNT, size=50)] + 0.05 * RANDOM.normal(size=(50, WIDTH)).astype(np.float32)
    right = 0
    for query in queries:
        truth = {f"/photos/{NAMES[row]}" for row in np.argsort(-(VECTORS @ query))[:count]}
        right += len(truth & {name for name, _ in found.nearest(query, count)})
    return right / len(queries) / count


@pytest.mark.parametrize(
    ("factory", "least"),
    [
        ("Flat", 1.0),
        ("IVF64,SQ8", 0.9),
        ("IVF64,PQ16x4fs,Refine(SQ8)", 0.9),
    ],
)
def test_neighbours(factory: str, least: float, features: Path, tmp_path: Path, made: Callable[..., str]) -> None:
    """Three shards find what one search over all vectors does, under their own names."""
    said = made(features, tmp_path / "index", "--factory", factory, "--rows-per-shard", 7000)
    assert "20000 vectors in 3 shards, 16 rows with an error skipped" in said
    found = FaissIndex.read(tmp_path / "index")
    assert recall(found) >= least
    names = {name for name, _ in found.nearest(VECTORS[COUNT - 1], 3)}
    assert f"/photos/{NAMES[COUNT - 1]}" in names
    similarities = [similarity for _, similarity in found.nearest(VECTORS[0], 50)]
    assert similarities == sorted(similarities, reverse=True) and similarities[0] == pytest.approx(1, abs=0.1)
    assert len(FaissIndex.read(tmp_path / "index", pictures=Path("/new")).nearest(VECTORS[0], 30)) == 30


def test_more_lists_find_more(features: Path, tmp_path: Path, made: Callable[..., str]) -> None:
    made(features, tmp_path / "index", "--factory", "IVF64,SQ8")
    few, many = (recall(FaissIndex.read(tmp_path / "index", f"nprobe={lists}")) for lists in (1, 64))
    assert few < many and many > 0.9
    with pytest.raises(ClientError, match="takes no such setting"):
        FaissIndex.read(tmp_path / "index", "nothing=3")


def test_the_kind_is_chosen_by_the_number() -> None:
    assert faiss_index.choose(1_000_000, 256) == "Flat"
    assert faiss_index.choose(1_000_001, 256) == "IVF4000,SQ8"
    assert faiss_index.choose(5_000_000, 256) == "IVF8944_HNSW32,SQ8"
    assert faiss_index.choose(100_000_000, 256) == "IVF40000_HNSW32,PQ128x4fs,Refine(SQ8)"
    assert faiss_index.choose(100_000_000, 255) == "IVF40000_HNSW32,SQ8"
    recipe = faiss_index.plan(2_000_000, 16, None, None)
    assert recipe.train == 50 * 5657 and recipe.search == "nprobe=128,efSearch=128"


def test_a_finished_index_is_checked_and_a_larger_one_takes_its_place(tmp_path: Path, made: Callable[..., str]) -> None:
    source = write(tmp_path / "features", VECTORS[:500])
    made(source, tmp_path / "index")
    old = FaissIndex.read(tmp_path / "index")
    before = {path.name for path in (tmp_path / "index").iterdir()}
    assert "the index is complete" in made(source, tmp_path / "index")
    write(source, VECTORS[500:700], first=500)
    assert "700 vectors" in made(source, tmp_path / "index")
    after = {path.name for path in (tmp_path / "index").iterdir()}
    assert before & after == {"manifest.json", ".lock"} and len(after) == 4
    assert FaissIndex.read(tmp_path / "index").nearest(VECTORS[650], 1)[0][0] == f"/photos/{NAMES[650]}"
    assert old.nearest(VECTORS[0], 1)[0][0] == f"/photos/{NAMES[0]}"  # its files are gone, but they are open


def test_an_interrupted_build_goes_on(
    features: Path, tmp_path: Path, made: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that are done stay as they are; nothing is searched before all are; another plan begins anew."""
    folder, command = tmp_path / "index", ("--factory", "IVF32,SQ8", "--rows-per-shard", 7000)
    real = index_build._build_shard

    def dies(source: Any, place: Any, trained: Path, factory: str, number: int, *more: Any) -> None:
        if number == 2:
            raise KeyboardInterrupt
        real(source, place, trained, factory, number, *more)

    monkeypatch.setattr(index_build, "_build_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        made(features, folder, *command)
    with pytest.raises(ClientError, match="indexing was interrupted"):
        FaissIndex.read(folder)
    shards = {path: path.stat().st_mtime_ns for path in folder.glob("*-0000[01].faiss")}
    assert len(shards) == 2
    torn = min(folder.glob("*-00001.sqlite"))
    torn.write_bytes(torn.read_bytes()[:-1])
    monkeypatch.setattr(index_build, "_build_shard", real)
    made(features, folder, *command)
    times = [path.stat().st_mtime_ns == before for path, before in sorted(shards.items())]
    assert times == [True, False] and recall(FaissIndex.read(folder)) > 0.8
    assert len(list(folder.iterdir())) == 8  # shards, manifest, lock

    monkeypatch.setattr(index_build, "_build_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        made(features, folder, "--factory", "SQ8", "--rows-per-shard", 7000)
    assert recall(FaissIndex.read(folder)) > 0.8  # the old one is searched meanwhile
    monkeypatch.setattr(index_build, "_build_shard", real)
    assert "were removed" in made(features, folder, "--factory", "Flat")
    assert len(list(folder.iterdir())) == 4 and recall(FaissIndex.read(folder)) == 1


_FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from bulk import command, index, index_build
import numpy as np
index_build._probe = lambda repository, features: np.eye(1, 32, dtype=np.float32)[0]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
command.run(index.main)
"""


@pytest.mark.parametrize("limit", [100, 1_000_000])
def test_a_full_disk(limit: int, features: Path, tmp_path: Path, made: Callable[..., str]) -> None:
    """In the plan, in a shard: one line, and the same command goes on."""
    command = [
        sys.executable,
        "-c",
        _FULL_DISK,
        str(limit),
        str(features),
        str(tmp_path / "index"),
        "--factory",
        "Flat",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot be written" in done.stderr and "the same command goes on" in done.stderr
    assert "20000 vectors" in made(features, tmp_path / "index", "--factory", "Flat")
    assert recall(FaissIndex.read(tmp_path / "index")) == 1


def refused(*arguments: object) -> str:
    with pytest.raises(BulkError) as caught:
        index.main([*map(str, arguments), "--threads", "1"])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_features_that_are_refused(tmp_path: Path, made: Callable[..., str]) -> None:
    """By file and row; the index that was there stays."""
    out = tmp_path / "index"
    assert "no such folder" in refused(tmp_path / "none", out)
    (tmp_path / "mine").mkdir()
    assert "has no _mplug.json" in refused(tmp_path / "mine", out)
    assert "holds answers of caption" in refused(write(tmp_path / "captions", task="caption"), out)
    failed = write(tmp_path / "failed", VECTORS[:1], failed=1)
    pq.write_table(pq.read_table(failed / "000000-000000.parquet").slice(0, 1), failed / "000000-000000.parquet")
    assert "holds no features: 1 rows, all with an error" in refused(failed, out)
    for name, vector, message in (
        ("nan", np.where(np.arange(WIDTH) == 5, np.nan, VECTORS[0]), "a feature of length nan, 1 is expected"),
        ("zero", np.zeros(WIDTH), "a feature of length 0, 1"),
        ("short", VECTORS[0][:16], "a feature of 16 numbers, 32 are expected"),
        ("null", None, "neither a feature nor an error"),
    ):
        source = write(tmp_path / name, [*VECTORS[:40], vector, *VECTORS[:40]])
        assert f"000000-000000.parquet, row 40: {message}" in refused(source, out)
    torn = write(tmp_path / "torn", VECTORS[:100])
    (torn / "000000-000000.parquet").write_bytes(b"PAR1")
    assert "cannot be read" in refused(torn, out)
    pq.write_table(pa.table({"input": ["a"], "feature": [[1.0]]}), torn / "000000-000000.parquet")
    assert "has no column error" in refused(torn, out)
    pq.write_table(pa.table({"input": ["a"], "error": [None], "feature": ["x"]}), torn / "000000-000000.parquet")
    assert "`feature` is string" in refused(torn, out)
    assert not list(out.glob("*.faiss"))


def test_factories_that_are_refused(features: Path, tmp_path: Path, made: Callable[..., str]) -> None:
    out = tmp_path / "index"
    for factory, message in (
        ("Nonsense", "could not parse index string Nonsense"),
        ("PQ7", "should be a multiple"),
        ("LSH", "FAISS refuses --factory LSH"),
        ("IDMap,Flat", "add does not make sense"),
        ("IVF2000,SQ8", "trains 2000 lists on 78000 vectors at least, and there are 20000: give one with at most 512"),
    ):
        assert message in refused(features, out, "--factory", factory, "--rows-per-shard", 7000)
        shutil.rmtree(out, ignore_errors=True)
    few = refused(features, out, "--factory", "IVF64,SQ8", "--train-size", 100)
    assert "--train-size 100: 64 lists need 2496 vectors at least" in few
    assert "INDEX is a folder of this machine" in refused(features, "s3://bucket/index")


def test_folders_that_are_refused(features: Path, tmp_path: Path, made: Callable[..., str]) -> None:
    """Another model's features, another corpus, files of others, another process."""
    out = tmp_path / "index"
    made(features, out, "--factory", "SQ8")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in out.iterdir() if path.name != ".lock")
    other = write(tmp_path / "other", VECTORS[:50], weights_sha256="bb")
    assert 'index of another model\'s features: weights_sha256 "aa" there, "bb" now' in refused(other, out)
    assert "index of another corpus" in refused(write(tmp_path / "moved", VECTORS[:50], input="/else"), out)
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refused(features, tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    assert "holds files of others (a.txt" in refused(features, tmp_path / "mine")
    with (out / ".lock").open() as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "is being written by another process" in refused(features, out)
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in out.iterdir() if path.name != ".lock")


@pytest.mark.parametrize("kind", ["faiss", "sqlite"])
@pytest.mark.parametrize("harm", ["cut", "flipped", "gone"])
def test_files_that_have_changed(kind: str, harm: str, tmp_path: Path, made: Callable[..., str]) -> None:
    out = tmp_path / "index"
    made(write(tmp_path / "features", VECTORS[:300]), out)
    path = min(out.glob(f"*.{kind}"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(data if harm == "flipped" else data[:-1])
    with pytest.raises(ClientError, match="the index is damaged") as caught:
        FaissIndex.read(out)
    assert "\n" not in str(caught.value)
    assert "is not as it was written" in refused(tmp_path / "features", out)


def test_a_manifest_that_is_none(tmp_path: Path, made: Callable[..., str]) -> None:
    out = tmp_path / "index"
    made(write(tmp_path / "features", VECTORS[:300]), out)
    manifest = json.loads((out / "manifest.json").read_text())
    name = next(iter(manifest["shards"][0]["files"]))
    escaping = json.loads(json.dumps(manifest).replace(name, f"../index/{name}"))
    for document in (
        "{",
        [],
        {},
        manifest | {"version": 9},
        manifest | {"vectors": 7},
        manifest | {"shards": 3},
        escaping,
    ):
        (out / "manifest.json").write_text(document if isinstance(document, str) else json.dumps(document))
        with pytest.raises(ClientError, match="the index is damaged"):
            FaissIndex.read(out)


def test_memory_is_bounded_by_a_shard(tmp_path: Path) -> None:
    """Eight shards of 10 MB take hardly more than two; of all of them, 60 MB more would be in memory."""
    code = """
import resource, sys, numpy as np
from pathlib import Path
from bulk import faiss_index, index_build
from bulk.features import Features
features = Features.open(sys.argv[1])
probe, recipe = np.eye(1, 256, dtype=np.float32)[0], faiss_index.Recipe("Flat", 0, "")
index_build.build(features, Path(sys.argv[2]), probe, recipe, 10_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for shards in (2, 8):
        vectors = RANDOM.normal(size=(10_000, 256)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        source = tmp_path / f"features-{shards}"
        source.mkdir()
        (source / "_mplug.json").write_text(json.dumps(MANIFEST))
        array = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 256)
        nothing = pa.nulls(len(vectors), pa.string())
        table = pa.table({"input": pa.array(NAMES[:10_000]), "error": nothing, "feature": array})
        for number in range(shards):
            pq.write_table(table, source / f"{number}.parquet", compression="none", use_dictionary=False)
        command = [sys.executable, "-c", code, str(source), str(tmp_path / f"index-{shards}")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]) << 10)
    assert peaks[1] - peaks[0] < 2 * vectors.nbytes


def test_the_same_features_give_the_same_numbers(features: Path) -> None:
    one, other = (
        [name for names, _ in Features.open(str(features)).batches(5990, 6020, WIDTH) for name in names]
        for _ in range(2)
    )
    assert one == other == NAMES[5990:6020]
