"""The registry of data sources: what it offers, what it refuses, and that it imports nothing that is not asked for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from builders.data.readers.records import DatasetError
from builders.data.sources import SOURCES, SourceOptions, open_source, tasks_of

ROOT = Path(__file__).parents[4]


def test_an_unknown_source_is_refused_with_the_choices():
    with pytest.raises(DatasetError, match=r"--data imagenet: unknown; choose one of emoji, easy-vqa, coco, .*snli-ve"):
        tasks_of("imagenet")
    with pytest.raises(
        DatasetError, match="--data nlvr2 has nothing for pretrain; emoji, coco, webdataset, flickr30k have"
    ):
        open_source("nlvr2", SourceOptions(), "pretrain")
    with pytest.raises(DatasetError, match="--data vatex has nothing for caption; emoji, coco, webdataset"):
        open_source("vatex", SourceOptions(), "caption")  # videos are evaluated on, not trained on


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_opens_and_says_what_it_needs(name):
    source = open_source(name, SourceOptions())
    assert source.splits(None)
    if name not in ("emoji", "easy-vqa"):
        needed = "--images, the folder" if name == "webdataset" else "--annotations and --images"
        with pytest.raises(DatasetError, match=f"--data {name} needs {needed}"):
            source.records(tasks_of(name)[0], "test")
        with pytest.raises(DatasetError, match="--vocabulary is needed"):
            source.write_vocabulary(Path("vocab.txt"))
    if name not in ("easy-vqa", "video-qa"):
        with pytest.raises(DatasetError, match="closed list of answers"):
            source.answers()


def test_records_and_streams_of_files_and_of_scenes(tmp_path):
    entries = []
    for index in range(4):
        Image.new("RGB", (8, 8), (60 * index, 0, 0)).save(tmp_path / f"{index}.png")
        entries.append({"image": f"{index}.png", "caption": [f"picture {index}"]})
    (tmp_path / "test.json").write_text(json.dumps(entries))
    files = open_source("coco", SourceOptions(tmp_path / "test.json", tmp_path), "caption")
    assert [record.key for record in files.records("caption", None, 3)] == ["0", "1", "2"]
    assert {record.key for index in range(2) for record in files.stream("caption", None, 2).batch(index)} == set("0123")
    assert files.validation_stream("caption", None, 2) is None
    assert files.captions(None, 0) == [(f"picture {index}",) for index in range(4)]
    scenes = open_source("emoji", SourceOptions(texts=1), "vqa")
    assert len(scenes.records("vqa", "validation", 2)) == 2
    first, other = (scenes.stream("vqa", "train", 2, rank=rank).batch(0) for rank in range(2))
    assert len(first) == 2 and not (first[0].image == other[0].image).all()


def test_no_general_file_imports_the_demo():
    importing = re.compile(r"^\s*(?:from|import) demo\b", re.M)
    rooms = ("mplug", "model_repository", "builders", "clients", "benchmarks", "bulk", "webpage", "deploy")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 100
    assert [str(path) for path in files if importing.search(path.read_text())] == []


def test_evaluating_coco_imports_neither_the_demo_nor_opencv(tmp_path):
    """The whole command in a process of its own: pictures, the checkpoint in PyTorch, the table."""
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "COCO_val2014_000000000042.jpg")
    annotations = tmp_path / "captions.json"
    annotations.write_text(
        json.dumps([{"image": "COCO_val2014_000000000042.jpg", "caption": ["a red picture", "red"]}])
    )
    options = ["--data", "coco", "--task", "caption", "--annotations", str(annotations), "--images", str(tmp_path)]
    program = (
        "import sys\n"
        "from builders import evaluate\n"
        f"code = evaluate.main({[*options, '--checkpoint', str(ROOT / 'checkpoints/demo')]!r})\n"
        "wrong = [name for name in sys.modules if name == 'cv2' or name.split('.')[0] == 'demo']\n"
        "sys.exit(f'imported: {wrong}' if wrong else code)\n"
    )
    environment = {**os.environ, "PATH": os.path.dirname(sys.executable)}  # without Java, which starts slowly
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "CIDEr" in done.stdout


def test_a_package_without_the_demo_says_where_its_scenes_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel carries no `demo/`."""
    for name in [name for name in sys.modules if name.split(".")[0] == "demo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "demo", None)
    with pytest.raises(DatasetError, match=r"--data emoji is drawn by .* demo/, which is in the repository alone"):
        open_source("emoji", SourceOptions())
