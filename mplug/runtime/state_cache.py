"""States of pictures that were encoded lately, for one event loop: what Triton's response cache is to the server."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping

import numpy as np

Encoding = dict[str, np.ndarray]


class StateCache:
    """Encodings by stage and its inputs, at most so many bytes of them; those unused longest go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, bytes], asyncio.Task[Encoding]] = OrderedDict()

    async def get(
        self, key: tuple[str, Mapping[str, np.ndarray]], encode: Callable[[], Awaitable[Encoding]]
    ) -> Encoding:
        """Return the encoding of (stage, inputs of one set of shapes), from `encode` where it is not kept.

        Requests for the same picture at the same time share one run; a failure is kept for nobody.
        """
        stage, inputs = key
        content = hashlib.blake2b()
        for _, array in sorted(inputs.items()):
            content.update(np.ascontiguousarray(array))
        digest = (stage, content.digest())
        if digest in self._kept:
            self._kept.move_to_end(digest)
        else:
            task = self._kept[digest] = asyncio.ensure_future(encode())
            task.add_done_callback(lambda done: self._finished(digest, done))
        # A request that is cancelled does not end the run that others wait for.
        return dict(await asyncio.shield(self._kept[digest]))

    def _finished(self, digest: tuple[str, bytes], task: asyncio.Task[Encoding]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._kept.pop(digest, None)
            return
        self._bytes += _size(task)
        for key, kept in list(self._kept.items()):
            if self._bytes <= self._max_bytes:
                return
            if kept.done():
                del self._kept[key]
                self._bytes -= _size(kept)


def _size(task: asyncio.Task[Encoding]) -> int:
    return sum(array.nbytes for array in task.result().values())
