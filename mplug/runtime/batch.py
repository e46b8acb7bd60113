"""Several requests as one batch, and the batch as several answers; imports no Triton.

Triton's dynamic batcher hands a served stage its requests; in a process of its own, `BatchingStage` gathers them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mplug.contract import Stage
from mplug.runtime.stage_inputs import check_finite

Arrays = Mapping[str, np.ndarray]


def groups(requests: Mapping[int, Arrays]) -> list[list[int]]:
    """Return the indices of the requests that can be one batch: the same inputs, and all axes but the first agree.

    `requests`: by index, each with its inputs; the first axis of an input is that request's batch.
    """
    by_signature: dict[tuple[object, ...], list[int]] = {}
    for index, inputs in requests.items():
        signature = tuple((name, array.dtype, array.shape[1:]) for name, array in sorted(inputs.items()))
        by_signature.setdefault(signature, []).append(index)
    return list(by_signature.values())


def run_as_one(stage: Stage, requests: Sequence[Arrays]) -> list[dict[str, np.ndarray]]:
    """Run `stage` once over requests of one group and return the outputs of each, in order.

    Raises ValueError when the stage's outputs have not one row per row of its inputs.
    """
    sizes = [next(iter(inputs.values())).shape[0] for inputs in requests]
    if len(requests) == 1:
        batch = dict(requests[0])  # no copy
    else:
        batch = {name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]}
    outputs = stage(batch)
    for name, array in outputs.items():
        if array.shape[:1] != (sum(sizes),):
            raise ValueError(f"output {name} of shape {array.shape} for a batch of {sum(sizes)}")
    ends = np.cumsum(sizes)
    return [
        {name: array[end - size : end] for name, array in outputs.items()}
        for end, size in zip(ends, sizes, strict=True)
    ]


class BatchingStage:
    """A stage on a worker thread: runs, as one batch, what arrived while it ran before. One event loop calls it."""

    def __init__(self, stage: Stage, max_batch_size: int, worker: ThreadPoolExecutor) -> None:
        """Take `max_batch_size` in rows, as in config.pbtxt."""
        self._stage, self._max_batch_size, self._worker = stage, max_batch_size, worker
        self._waiting: list[tuple[Arrays, asyncio.Future[dict[str, np.ndarray]]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Return the outputs of one request's rows. Raises what the stage raises."""
        answer: asyncio.Future[dict[str, np.ndarray]] = asyncio.get_running_loop().create_future()
        # One picture repeated for many texts is a view that may not be written to, which torch warns of.
        inputs = {name: array if array.flags.writeable else array.copy() for name, array in inputs.items()}
        self._waiting.append((inputs, answer))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        events = asyncio.get_running_loop()
        while self._waiting:
            batch = self._take_batch()
            try:
                results = await events.run_in_executor(
                    self._worker, run_as_one, self._stage, [inputs for inputs, _ in batch]
                )
            except Exception as error:  # answered to those it concerns; the others go on
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), result in zip(batch, results, strict=True):
                if answer.done():  # the caller was cancelled
                    continue
                try:
                    check_finite("a stage", result)
                    # Rows of a batch are views that would keep the whole batch alive.
                    rows = {name: array.copy() for name, array in result.items()}
                except Exception as error:  # whatever it is, somebody waits for an answer
                    answer.set_exception(error)
                else:
                    answer.set_result(rows)

    def _take_batch(self) -> list[tuple[Arrays, asyncio.Future[dict[str, np.ndarray]]]]:
        """Remove and return requests of one shape, the longest waiting first, up to the batch size."""
        self._waiting = [item for item in self._waiting if not item[1].done()] or self._waiting[:1]
        first = groups({index: inputs for index, (inputs, _) in enumerate(self._waiting)})[0]
        chosen: list[int] = []
        rows = 0
        for index in first:
            rows += len(next(iter(self._waiting[index][0].values())))
            if chosen and rows > self._max_batch_size:
                break
            chosen.append(index)
        batch = [self._waiting[index] for index in chosen]
        for index in reversed(chosen):
            del self._waiting[index]
        return batch
