"""tritonserver's options where there is a GPU, and where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from mplug.runtime.interface import StageInfo
from mplug.server.gpu_memory import gpu_arguments


def write_model(repository: Path, name: str, target: str | None, instances: str) -> None:
    """A stage that was built for a target, or a public model."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text(f"instance_group [ {{ count: 1, {instances} }} ]\n")
    if target is not None:
        StageInfo(folder, target, "fp16", {}, {}).write()


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx", "torch"])
def test_every_gpu_that_a_stage_runs_on_has_a_pool_that_a_full_queue_fits(tmp_path: Path, target: str) -> None:
    """Triton's own 64 MB hold the states of 34 requests, and 32 decode while 256 wait."""
    driver, repository = tmp_path / "nvidiactl", tmp_path / "repository"
    driver.touch()
    write_model(repository, "text_decoder", target, "kind: KIND_CPU")
    write_model(repository, "fusion_encoder", target, "kind: KIND_GPU, gpus: [ 2 ]")
    write_model(repository, "caption", None, "kind: KIND_CPU")
    pools = [argument.partition("=")[::2] for argument in gpu_arguments(repository, driver)]
    assert [name for name, _ in pools] == ["--cuda-memory-pool-byte-size"] * 2
    sizes = dict(tuple(map(int, value.split(":"))) for _, value in pools)
    assert set(sizes) == {0, 2} and min(sizes.values()) > (32 + 256) * 602 * 768 * 4


def test_a_repository_for_the_cpu_asks_for_no_memory_of_a_gpu(tmp_path: Path) -> None:
    driver, repository = tmp_path / "nvidiactl", tmp_path / "repository"
    driver.touch()
    write_model(repository, "text_decoder", "openvino", "kind: KIND_CPU")
    assert gpu_arguments(repository, driver) == []


def test_without_a_driver_nothing_asks_for_one(tmp_path: Path) -> None:
    write_model(tmp_path, "text_decoder", "torch", "kind: KIND_CPU")
    absent = tmp_path / "nvidiactl"
    assert gpu_arguments(tmp_path, absent) == ["--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0"]
