"""Memory that the decoder's caches leave behind goes back to the system."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from decoder_requests import SEP, network_of

from mplug.runtime import freed_memory
from mplug.runtime.room import Room
from mplug.runtime.torch import eager_decoder


def test_it_may_be_returned_whenever_the_caches_change_size(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(freed_memory, "trim", lambda: calls.append(1))
    decoder = eager_decoder(network_of("caption"), SEP)
    for room, times in ((Room(2, 8, 3, 32), 1), (Room(2, 8, 3, 32), 1), (Room(4, 8, 3, 32), 2), (Room(1, 8, 3, 32), 3)):
        decoder.reserve(room)
        assert len(calls) == times


class CLibrary:
    """Counts trims."""

    def __init__(self) -> None:
        self.trims = 0

    def malloc_trim(self, pad: ctypes.c_size_t) -> int:
        self.trims += 1
        return 1


def test_it_is_returned_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Giving back and asking again at once would cost more than it saves."""
    library, now = CLibrary(), [1000.0]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(freed_memory.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(freed_memory, "_last", 0.0)
    for seconds, trims in ((0.0, 1), (1.0, 1), (freed_memory.INTERVAL - 2, 1), (1.0, 2), (0.5, 2)):
        now[0] += seconds
        freed_memory.trim()
        assert library.trims == trims


def test_what_is_in_use_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory, "_last", -freed_memory.INTERVAL)
    array = np.arange(1 << 20)
    freed_memory.trim()
    assert (array == np.arange(1 << 20)).all()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory, "_last", -freed_memory.INTERVAL)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    freed_memory.trim()
