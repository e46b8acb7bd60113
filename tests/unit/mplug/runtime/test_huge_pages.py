"""Large arrays on huge pages: which mappings are chosen, and that they hold what they held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mplug.runtime import huge_pages, openvino
from mplug.runtime.huge_pages import HUGE_PAGE
from mplug.runtime.interface import StageInfo

MEGABYTE = 1 << 20


def mapping(begin: int, size: int, resident: int, mode: str = "rw-p", name: str = "") -> str:
    """What the kernel tells of a mapping; sizes in MiB."""
    end = begin + size
    return (
        f"{begin * MEGABYTE:x}-{end * MEGABYTE:x} {mode} 00000000 00:00 0 {name}\n"
        f"Size: {size * 1024} kB\nRss: {resident * 1024} kB\nAnonHugePages: 0 kB\nVmFlags: rd wr\n"
    )


def test_arrays_in_memory_are_chosen_and_nothing_else() -> None:
    smaps = "".join(
        [
            mapping(101, 10, 10),  # whole huge pages of it: 102 to 110
            mapping(200, 10, 10, name="[heap]"),
            mapping(300, 8, 1, name=""),  # a thread's stack: filling it would take 7 MiB
            mapping(400, 10, 10, mode="r--p", name="/lib/libc.so.6"),
            mapping(500, 10, 10, mode="rw-p", name="/some/weights.bin"),
            mapping(600, 10, 10, mode="rw-p", name="[stack]"),
            mapping(701, 2, 2),  # holds no whole huge page
        ]
    )
    found = [(begin // MEGABYTE, end // MEGABYTE) for begin, end in huge_pages._large_arrays(smaps)]
    assert found == [(102, 110), (200, 210)]


def test_arrays_hold_what_they_held() -> None:
    array = np.arange(4 * HUGE_PAGE // 8)
    assert huge_pages.collapse() >= 0  # 0 where the kernel has no huge pages to give
    assert (array == np.arange(array.size)).all()


def test_a_system_without_smaps_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huge_pages, "SMAPS", tmp_path / "smaps")
    assert huge_pages.collapse() == 0


@pytest.mark.parametrize(("megabytes", "times"), [(1, 0), (64, 1)])
def test_large_weights_alone_and_once(
    megabytes: int, times: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(huge_pages, "collapse", lambda: calls.append(1))
    with (tmp_path / "stage.bin").open("wb") as file:
        file.truncate(megabytes * MEGABYTE)
    weights = openvino.LargeWeights(StageInfo(tmp_path, "openvino", "fp32", {}, {}), "stage")
    for _ in range(2):
        weights.after_run()
        huge_pages.wait()
    assert len(calls) == times
