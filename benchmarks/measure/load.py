"""A closed loop of clients: each sends its next request as soon as it has the answer to the last."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from benchmarks.measure.figures import Answered, in_window
from benchmarks.measure.pictures import Pictures

#: Sends a picture and asks for a caption of so many tokens; returns when it is there.
Ask = Callable[[bytes, int], Awaitable[None]]


@dataclass(frozen=True)
class Load:
    """One setting. Durations in seconds."""

    clients: int
    lengths: tuple[int, ...]  #: tokens asked for, in turn
    warm: float
    window: float
    #: The window goes on until so many answers have come in it, but no longer than `longest`.
    least: int = 1
    longest: float = 60.0


@dataclass
class LoadResult:
    """What came of it, by one clock."""

    opened: float
    closed: float
    answers: list[Answered]


async def run_load(
    load: Load,
    ask: Ask,
    pictures: Pictures,
    on_open: Callable[[], None] = lambda: None,
    on_close: Callable[[], None] = lambda: None,
) -> LoadResult:
    """Keep `load.clients` requests in flight; an error of any request ends the load and is raised.

    `on_open` and `on_close` are called when the window opens and closes, while requests are in flight.
    """
    answers: list[Answered] = []
    lengths = _in_turn(load.lengths)

    async def client() -> None:
        while True:
            tokens = next(lengths)
            sent = time.monotonic()
            await ask(pictures.next(), tokens)
            answers.append(Answered(sent, time.monotonic(), tokens))

    clients = [asyncio.create_task(client()) for _ in range(load.clients)]
    try:
        await _pass(clients, load.warm)
        on_open()
        opened = time.monotonic()
        while time.monotonic() - opened < load.longest:
            counted, _ = in_window(answers, opened)
            if time.monotonic() - opened >= load.window and len(counted) >= load.least:
                break
            await _pass(clients, 0.1)
        closed = time.monotonic()
        on_close()
    finally:
        for task in clients:
            task.cancel()
        for task in clients:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
    return LoadResult(opened, closed, answers)


async def _pass(clients: list[asyncio.Task[None]], seconds: float) -> None:
    """Let the time pass, and raise what a client raised in it."""
    done, _ = await asyncio.wait(clients, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


def _in_turn(lengths: tuple[int, ...]) -> Iterator[int]:
    """Yield lengths without end, in strides: neighbours differ, and any few in a row are a fair mix."""
    stride = next(prime for prime in (5, 7, 11, 13) if len(lengths) % prime)  # meets every length
    position = 0
    while True:
        yield lengths[position % len(lengths)]
        position += stride
