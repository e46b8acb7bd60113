"""Many requests to one server, a bounded number of them at a time."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from clients.client import ClientError

J = TypeVar("J")
R = TypeVar("R")

#: Concurrent requests. Four keep a server on two cores busy; more help only with more cores, or a GPU.
DEFAULT_CONCURRENCY = 8
MAX_CONCURRENCY = 128


def add_concurrency(parser: argparse.ArgumentParser) -> None:
    """Add the option --concurrency."""

    def number(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= MAX_CONCURRENCY:
            raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {MAX_CONCURRENCY}")
        return int(text)

    parser.add_argument(
        "--concurrency",
        type=number,
        default=DEFAULT_CONCURRENCY,
        metavar="N",
        help=f"concurrent requests, 1 to {MAX_CONCURRENCY}; default: {DEFAULT_CONCURRENCY}",
    )


async def answers(
    jobs: Iterable[J], ask: Callable[[J], Awaitable[R]], concurrency: int
) -> AsyncIterator[tuple[J, R | ClientError]]:
    """Yield every job with its answer or its error, as they arrive; a job is taken when there is room for it.

    Raises ClientError when the server cannot be reached, since no other job would be answered either.
    """
    waiting, asked = iter(jobs), {}
    try:
        while True:
            while len(asked) < concurrency:
                try:
                    job = next(waiting)
                except StopIteration:
                    break
                asked[asyncio.ensure_future(ask(job))] = job
            if not asked:
                return
            done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                job, error = asked.pop(task), task.exception()
                if error is not None and (not isinstance(error, ClientError) or error.status == "UNREACHABLE"):
                    raise error
                yield job, error or task.result()
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
