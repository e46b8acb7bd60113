"""A checkpoint's public models in this process, run by PyTorch: what a server answers, without a server.

The served tasks, the stages' graphs and the decode loop are those of a repository built for the `torch` target;
only Triton is left out. So both roads of an evaluation give the same answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import sys
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from builders.build import build
from clients.calls import Call, ClientError
from mplug.contract import Value, Values
from mplug.decoding.candidate_scores import CandidateScores, open_score_graph
from mplug.decoding.loop import DecodeLoop, DecodeRequest
from mplug.decoding.request import DecodeRequestParser, to_outputs
from mplug.errors import InvalidRequest, ServingError
from mplug.runtime import open_decoder, open_graph
from mplug.runtime.batch import groups, run_as_one
from mplug.runtime.interface import Graph
from mplug.tasks.caption import CaptionTask
from mplug.tasks.ground import GroundTask
from mplug.tasks.interface import Task
from mplug.tasks.judgement import EntailTask, NlvrTask
from mplug.tasks.retrieval import EmbedImageTask, EmbedTextTask, MatchTask
from mplug.tasks.vqa import VqaTask

T = TypeVar("T")

TASKS = {
    "caption": CaptionTask,
    "vqa": VqaTask,
    "embed_image": EmbedImageTask,
    "embed_text": EmbedTextTask,
    "match": MatchTask,
    "ground": GroundTask,
    "nlvr": NlvrTask,
    "entail": EntailTask,
}
ENCODERS = ("vision_encoder", "text_encoder", "fusion_encoder")
#: Pictures whose states are kept, so that one asked about again is not encoded again: 50 kB each for the demo, 1.8 MB
#: at base size.
KEPT_PICTURES = 2048


class Asked(Protocol):
    """Whoever answers the calls of `clients.calls`: a client of a server, or a model in this process."""

    async def infer(self, call: Call[T]) -> T:
        """The answer. Raises ClientError."""

    async def is_ready(self, model: str | None = None) -> bool:
        """Whether it answers at all, or has this public model."""


@contextlib.asynccontextmanager
async def open_checkpoint(checkpoint: Path, task: str | None = None) -> AsyncIterator[InProcess]:
    """Build a checkpoint for PyTorch in a scratch folder and open it. Raises what `builders.build.build` raises."""
    with tempfile.TemporaryDirectory(prefix="mplug-evaluation-") as scratch:
        repository = Path(scratch) / "repository"
        with contextlib.redirect_stdout(sys.stderr):  # standard output belongs to the table
            build(checkpoint, repository, target="torch", task=task)
        async with InProcess(repository) as model:
            yield model


class InProcess:
    """The public models of a built repository, on one thread for the encoders and one for the decoder."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._tasks: dict[str, Task] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="stages")
        self._stages = {
            name: _Stage(open_graph(repository / name / "1", name), _most_rows(repository / name), self._worker)
            for name in ENCODERS
            if (repository / name).exists()
        }
        self._states = _Cache(KEPT_PICTURES)
        self._parser = None
        decoder = repository / "text_decoder" / "1"
        if decoder.exists():
            self._parser = DecodeRequestParser.of_stage(decoder)
            self._score_graph = open_score_graph(decoder)
            self._loop = DecodeLoop(open_decoder(decoder), max_queue=sys.maxsize)

    async def __aenter__(self) -> InProcess:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._worker.shutdown()
        if self._parser is not None:
            self._loop.stop()

    async def is_ready(self, model: str | None = None) -> bool:
        """See `Asked.is_ready`."""
        return model is None or (model in TASKS and (self._repository / model).exists())

    async def infer(self, call: Call[T]) -> T:
        """See `Asked.infer`."""
        task = self._task(call.model)
        inputs = {name: array.tolist() if array.dtype == object else array for name, array in call.inputs.items()}
        try:
            outputs = await task.run(task.parse(inputs), self._call_stage)
        except InvalidRequest as error:
            raise ClientError(f"{call.model}: {error}") from None
        except ServingError as error:
            raise ClientError(f"{call.model}: {error}", error.code) from None
        return call.parse({name: _tensor(value) for name, value in outputs.items()})

    def _task(self, model: str) -> Task:
        if model not in self._tasks:
            if model not in TASKS or not (self._repository / model).exists():
                raise ClientError(f"the checkpoint does not serve {model}", "NOT_FOUND")
            self._tasks[model] = TASKS[model].of_folder(self._repository / model / "1")
        return self._tasks[model]

    async def _call_stage(self, name: str, inputs: Mapping[str, Value], outputs: Sequence[str]) -> Values:
        if name == "text_decoder":
            return await self._decode(inputs)
        if name != "vision_encoder":
            return await self._stages[name](inputs)
        key = hashlib.blake2b(np.ascontiguousarray(inputs["PIXEL_VALUES"])).digest()
        # A task, not its result, is kept: who asks about the same picture at the same time waits for it too.
        encoding = self._states.get(key)
        if encoding is None:
            encoding = asyncio.ensure_future(self._stages[name](inputs))
            self._states.put(key, encoding)
        return dict(await asyncio.shield(encoding))

    async def _decode(self, inputs: Mapping[str, Value]) -> Values:
        if "CANCEL" in inputs:
            return {}  # an evaluation that is broken off ends with the process
        events = asyncio.get_running_loop()
        answer: asyncio.Future[Values] = events.create_future()

        def settle(outcome: Values | BaseException) -> None:
            if not answer.done():
                failed = isinstance(outcome, BaseException)
                answer.set_exception(outcome) if failed else answer.set_result(outcome)

        def deliver(outcome: Values | BaseException) -> None:  # from the decode loop's thread
            events.call_soon_threadsafe(settle, outcome)

        if "CANDIDATE_IDS" in inputs:
            states, mask = self._parser.encoder_inputs(inputs)
            ids = self._parser.candidates(inputs)
            job = CandidateScores(
                self._score_graph,
                states,
                mask,
                ids,
                done=lambda scores: deliver({"TOKEN_IDS": ids, "SCORE": scores}),
                failed=deliver,
                first_token_weight=self._parser.first_token_weight(inputs),
            )
            self._loop.submit_job(job)
        else:
            request: DecodeRequest = self._parser.parse(inputs)
            request.done = lambda found: deliver(to_outputs(request, found))
            request.failed = deliver
            self._loop.submit(request)
        return await answer


class _Stage:
    """A graph that runs what has gathered while it ran before, as Triton's dynamic batcher does."""

    def __init__(self, graph: Graph, most_rows: int, worker: ThreadPoolExecutor) -> None:
        self._graph, self._most_rows, self._worker = graph, most_rows, worker
        self._waiting: list[tuple[Mapping[str, np.ndarray], asyncio.Future[Values]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def __call__(self, inputs: Mapping[str, np.ndarray]) -> Values:
        answer: asyncio.Future[Values] = asyncio.get_running_loop().create_future()
        # One picture repeated for many texts is a view that may not be written to, which torch warns of.
        inputs = {name: array if array.flags.writeable else array.copy() for name, array in inputs.items()}
        self._waiting.append((inputs, answer))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        events = asyncio.get_running_loop()
        while self._waiting:
            chosen = self._next()
            batch = [self._waiting[index] for index in chosen]
            self._waiting = [item for index, item in enumerate(self._waiting) if index not in set(chosen)]
            try:
                requests = [inputs for inputs, _ in batch]
                results = await events.run_in_executor(self._worker, run_as_one, self._graph, requests)
            except Exception as error:  # answered to those it concerns; the others go on
                for _, answer in batch:
                    answer.set_exception(error)
            else:
                for (_, answer), result in zip(batch, results, strict=True):
                    # Rows of a batch are views that would keep the whole batch alive.
                    answer.set_result({name: array.copy() for name, array in result.items()})

    def _next(self) -> list[int]:
        """Which of those who wait make the next batch: alike in shape, the longest waiting first."""
        first = next(iter(groups({index: inputs for index, (inputs, _) in enumerate(self._waiting)})))
        chosen, rows = [], 0
        for index in first:
            rows += len(next(iter(self._waiting[index][0].values())))
            if chosen and rows > self._most_rows:
                break
            chosen.append(index)
        return chosen


def _most_rows(model: Path) -> int:
    """Rows that the stage takes at once on a server, too."""
    return int(re.search(r"^max_batch_size: (\d+)", (model / "config.pbtxt").read_text(), re.M)[1])


class _Cache:
    """The encodings of the last pictures, by a digest of their pixels; the longest unused go first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[bytes, asyncio.Future[Values]] = OrderedDict()

    def get(self, key: bytes) -> asyncio.Future[Values] | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: bytes, encoding: asyncio.Future[Values]) -> None:
        self._kept[key] = encoding
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


def _tensor(value: Value) -> np.ndarray:
    """An output as a client has it: BYTES as an array of objects."""
    if isinstance(value, np.ndarray):
        return value
    tensor = np.empty(len(value), dtype=np.object_)
    tensor[:] = value
    return tensor
