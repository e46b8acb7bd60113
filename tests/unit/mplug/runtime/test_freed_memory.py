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


def test_it_is_returned_whenever_the_caches_change_size(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(freed_memory, "trim", lambda: calls.append(1))
    decoder = eager_decoder(network_of("caption"), SEP)
    for room, times in ((Room(2, 8, 3, 32), 1), (Room(2, 8, 3, 32), 1), (Room(4, 8, 3, 32), 2), (Room(1, 8, 3, 32), 3)):
        decoder.reserve(room)
        assert len(calls) == times


def test_what_is_in_use_stays() -> None:
    array = np.arange(1 << 20)
    freed_memory.trim()
    assert (array == np.arange(1 << 20)).all()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    freed_memory.trim()
