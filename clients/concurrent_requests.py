"""Many requests to one server, a bounded number of them at once."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from clients.client import ClientError

J = TypeVar("J")
R = TypeVar("R")

#: Requests at once. A server on two cores is busy with four; more only help one with more cores, or a GPU.
DEFAULT_CONCURRENCY = 8
MAX_CONCURRENCY = 128


def add_concurrency(parser: argparse.ArgumentParser) -> None:
    """The option, checked as it is read."""

    def number(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= MAX_CONCURRENCY:
            raise argparse.ArgumentTypeError(f"{text} is no number from 1 to {MAX_CONCURRENCY}")
        return int(text)

    parser.add_argument(
        "--concurrency",
        type=number,
        default=DEFAULT_CONCURRENCY,
        metavar="N",
        help=f"requests at once, 1 to {MAX_CONCURRENCY}; default: {DEFAULT_CONCURRENCY}",
    )


async def answers(
    jobs: Iterable[J], ask: Callable[[J], Awaitable[R]], concurrency: int
) -> AsyncIterator[tuple[J, R | ClientError]]:
    """Every job with its answer or with what went wrong, as they come; jobs are taken as there is room for them.

    Raises ClientError when the server has gone, since then no other job would be answered either.
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
