"""Checkpoints in the caches of download tools, laid out as these leave them, and what a broken download is told."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import scan_cache_dir
from safetensors.torch import save_file

from builders import build as builder
from mplug.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, read_state_dict
from mplug.hub import CacheError, find_snapshot, impostor, incomplete

GOLDEN = Path(__file__).parents[2] / "parity" / "data" / "caption"
FILES = ("config.yaml", "config_bert.json", "vocab.txt", "pytorch_model.bin")
COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


def hugging_face_cache(root: Path, commit: str = COMMIT, name: str = "models--someone--mplug-caption") -> Path:
    """The golden captioner as huggingface_hub caches it: blobs by hash, links from the snapshot."""
    model = root / name
    snapshot, blobs = model / "snapshots" / commit, model / "blobs"
    for folder in (snapshot, blobs, model / "refs", model / ".no_exist" / commit):
        folder.mkdir(parents=True, exist_ok=True)
    (model / "refs" / "main").write_text(commit)
    for file in FILES:
        content = (GOLDEN / file).read_bytes()
        if file == "pytorch_model.bin":
            digest = hashlib.sha256(content).hexdigest()
        else:
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (blobs / digest).write_bytes(content)
        (snapshot / file).symlink_to(Path("../../blobs") / digest)
    return model


def modelscope_cache(root: Path) -> Path:
    """The same as ModelScope caches it; the pickles would fail any reader."""
    model = root / "hub" / "models" / "iic" / "mplug_image-captioning_coco_base_en"
    shutil.copytree(GOLDEN, model)
    (model / ".mv").write_text("Revision:v1.0.1,CreatedAt:1666172087")
    for name in (".msc", ".mdl"):
        (model / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (root / "hub" / "models" / "._____temp").mkdir()
    return model


def test_the_cache_is_laid_out_as_hugging_face_lays_it_out(tmp_path: Path) -> None:
    hugging_face_cache(tmp_path)
    scanned = scan_cache_dir(tmp_path)
    assert not scanned.warnings
    (repository,) = scanned.repos
    (revision,) = repository.revisions
    assert (repository.repo_id, revision.commit_hash, revision.refs) == ("someone/mplug-caption", COMMIT, {"main"})
    assert {file.file_name for file in revision.files} == set(FILES)


@pytest.mark.parametrize("below", ["", f"snapshots/{COMMIT}"])
def test_a_cache_of_hugging_face_is_a_checkpoint(tmp_path: Path, below: str) -> None:
    files = find_checkpoint(hugging_face_cache(tmp_path) / below)
    assert files.name == f"someone/mplug-caption@{COMMIT[:12]}"
    assert files.weights.name == "pytorch_model.bin"
    assert files.sha256() == hashlib.sha256((GOLDEN / "pytorch_model.bin").read_bytes()).hexdigest()


def build_info(checkpoint: Path, output: Path) -> dict[str, Any]:
    """Build a repository with the torch target and return what it says of itself."""
    assert builder.main([str(checkpoint), "--output", str(output), "--target", "torch"]) == 0
    assert not [path for path in output.rglob("*") if path.is_symlink()]
    return json.loads((output / "build_info.json").read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the golden captioner's own folder is built into."""
    return build_info(GOLDEN, tmp_path_factory.mktemp("plain") / "repository")


@pytest.mark.parametrize(
    ("lay_out", "name"),
    [
        (hugging_face_cache, f"someone/mplug-caption@{COMMIT[:12]}"),
        (modelscope_cache, "iic/mplug_image-captioning_coco_base_en@v1.0.1"),
    ],
)
def test_building_from_a_cache_gives_what_the_folder_gives(
    tmp_path: Path, lay_out: Callable[[Path], Path], name: str, plain: dict[str, Any]
) -> None:
    built = build_info(lay_out(tmp_path), tmp_path / "repository")
    assert built["weights_sha256"] == plain["weights_sha256"] and built["stages"] == plain["stages"]
    assert (built["checkpoint"], plain["checkpoint"]) == (name, "caption")


def test_main_chooses_among_snapshots(tmp_path: Path) -> None:
    hugging_face_cache(tmp_path, OTHER)
    model = hugging_face_cache(tmp_path, COMMIT)
    assert find_snapshot(model).folder.name == COMMIT
    (model / "refs" / "main").unlink()
    with pytest.raises(
        CacheError, match=rf"several snapshots and no refs/main; name one of them: .*{COMMIT}, .*{OTHER}"
    ):
        find_snapshot(model)
    shutil.rmtree(model / "snapshots" / OTHER)
    assert find_snapshot(model).folder.name == COMMIT
    shutil.rmtree(model / "snapshots" / COMMIT)
    with pytest.raises(CacheError, match="holds no snapshot; the download did not finish"):
        find_snapshot(model)


@pytest.mark.parametrize(
    ("commit", "complaint"),
    [(OTHER, "names the snapshot f{40}, which is missing"), ("../../x", "holds '../../x', not")],
)
def test_a_reference_that_leads_nowhere(tmp_path: Path, commit: str, complaint: str) -> None:
    model = hugging_face_cache(tmp_path)
    (model / "refs" / "main").write_text(commit)
    with pytest.raises(CheckpointError, match=complaint):
        find_checkpoint(model)


@pytest.mark.parametrize("lay_out", [hugging_face_cache, modelscope_cache])
def test_links_end_within_the_cache(tmp_path: Path, lay_out: Callable[[Path], Path]) -> None:
    folder = find_snapshot(lay_out(tmp_path / "cache")).folder
    secret = tmp_path / "secret.txt"
    secret.write_text("not yours")
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").symlink_to(secret)
    with pytest.raises(CheckpointError, match=rf"vocab.txt: is a link to {secret}, outside the cache"):
        find_checkpoint(folder)


def test_a_download_that_did_not_finish(tmp_path: Path) -> None:
    model = hugging_face_cache(tmp_path)
    weights = (model / "snapshots" / COMMIT / "pytorch_model.bin").resolve()
    weights.rename(weights.with_name(f"{weights.name}.incomplete"))
    with pytest.raises(
        CheckpointError, match=r"pytorch_model.bin: links to .*, which is missing; the download did not finish"
    ):
        find_checkpoint(model)


def test_the_root_of_a_cache_names_its_models(tmp_path: Path) -> None:
    hugging_face_cache(tmp_path / "hf")
    with pytest.raises(
        CacheError, match=r"a cache of several models; name the folder of one: .*models--someone--mplug-c"
    ):
        find_snapshot(tmp_path / "hf")
    model = modelscope_cache(tmp_path / "ms")
    for above in (model.parent, model.parents[1], model.parents[2]):
        with pytest.raises(CacheError, match=f"name the folder of one: {model}"):
            find_snapshot(above)
    assert find_snapshot(model).name == "iic/mplug_image-captioning_coco_base_en@v1.0.1"


def test_a_plain_folder_may_link_where_it_likes(tmp_path: Path) -> None:
    """As before: somebody's own folder is nobody's cache."""
    for name in FILES:
        (tmp_path / name).symlink_to(GOLDEN / name)
    assert load_checkpoint(tmp_path)[1].name == tmp_path.name


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2816000000\n",
            "git lfs pull (it has 2,816,000,000 bytes)",
        ),
        (b"\n <!DOCTYPE html><html><body>Sign in", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page or a site's error message"),
        (b'{"Code": 10010205001, "Message": "not found"}', "is a JSON message, not the weights"),
    ],
)
def test_what_sites_answer_in_place_of_weights(tmp_path: Path, content: bytes, told: str) -> None:
    for name in ("pytorch_model.bin", "mplug_base.pth", "model.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        assert told in (impostor(path) or "")
        with pytest.raises(CheckpointError, match=f"{name}: is a "):
            read_state_dict(path)


def test_files_that_end_too_early(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(1000.0)}
    torch.save(tensors, tmp_path / "a.bin")
    save_file(tensors, tmp_path / "a.safetensors")
    for name in ("a.bin", "a.safetensors"):
        path = tmp_path / name
        whole = path.read_bytes()
        assert impostor(path) is None and incomplete(path) is None
        for size in (len(whole) - 1, len(whole) // 2, 20, 5):
            path.write_bytes(whole[:size])
            told = incomplete(path)
            if size > 5 or name == "a.safetensors":  # five bytes of an archive are an archive, too
                assert told and "download it again" in told, (name, size)
        path.write_bytes(b"")
        assert "is empty" in incomplete(path)
    (tmp_path / "a.safetensors").write_bytes(whole + b"0")
    assert f"has {len(whole) + 1:,} bytes where its header states {len(whole):,}" in incomplete(
        tmp_path / "a.safetensors"
    )
    (tmp_path / "a.safetensors").write_bytes(b"\x02" + bytes(7) + b"[]")
    assert "no header" in incomplete(tmp_path / "a.safetensors")
