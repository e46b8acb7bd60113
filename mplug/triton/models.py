"""Base classes of the served models, for the class that the Python backend looks for in a `1/model.py`.

    class TritonPythonModel(TaskModel):          # a public model: calls stages, many requests concurrently
        pass                                     # its task is named in its version folder

    class TritonPythonModel(EncoderModel):       # a batched stage: NumPy batches in and out
        stage = "vision_encoder"

    class TritonPythonModel(DeferredModel):      # answers later, from a thread of its own (the decoder)
        def admit(self, pending):
            self.loop.submit(pending)

Each request is answered exactly once, whatever happens. A `mplug.errors.ServingError` keeps its code and message. Any
other exception is a bug: it is logged with its traceback, and the client gets INTERNAL and one line.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mplug.contract import RETRY_INPUT, Forwarded, Stage, Value, Values
from mplug.errors import Cancelled, InvalidRequest, Unavailable
from mplug.runtime import open_graph
from mplug.runtime.batch import groups, run_as_one
from mplug.runtime.stage_inputs import StageInputs, check_finite
from mplug.tasks.interface import Task
from mplug.tasks.table import open_task
from mplug.tracing import NO_SPAN, NoSpan, open_tracer
from mplug.triton.calls import call_stage
from mplug.triton.context import ModelContext
from mplug.triton.drain import draining, dropping
from mplug.triton.metrics import in_flight_metric
from mplug.triton.tensors import headers_of, one_line, read_inputs, to_error_response, to_response

BLS_THREADS = 128  # each stage call in flight blocks one; asyncio's default executor has only cores + 4
PARSE_THREADS = max(2, os.cpu_count() or 2)  # decoding images keeps a core busy
MAX_PENDING = 1024  # requests in a task model, each perhaps an image of megabytes; more get UNAVAILABLE
WATCH_SECONDS = 0.2  # between checks whether clients of requests in flight have gone, or the server is to stop
CANCELLED = "the client cancelled the request"
SHUTTING_DOWN = "the server is shutting down; try again or another server"

# So that prints appear at once, not when the process ends: PYTHONUNBUFFERED has no effect in a backend stub.
sys.stdout.reconfigure(line_buffering=True)


class Pending:
    """An admitted request that has not been answered. Its methods may be called from any thread."""

    def __init__(self, sender: Any, answered: Callable[[Pending], None], lead_with_code: bool) -> None:
        self.inputs: Values = {}
        self.span: NoSpan = NO_SPAN
        self._sender = sender
        self._answered = answered
        self._lead_with_code = lead_with_code
        self._lock = threading.Lock()
        self._done = False

    def cancelled(self) -> bool:
        """Return whether the client has cancelled or disconnected; Triton notices that over gRPC only."""
        with self._lock:  # `is_cancelled` must not be called after the answer
            return not self._done and self._sender.is_cancelled()

    def send(self, outputs: Mapping[str, Value]) -> None:
        """Answer with outputs. A second answer is ignored."""
        try:
            response = to_response(outputs)
        except Exception as error:
            self._note(error)
            response = to_error_response(error, self._lead_with_code)
        self._answer(response)

    def fail(self, error: BaseException) -> None:
        """Answer with an error. A second answer is ignored."""
        if not self._done:
            self._note(error)
            self._answer(to_error_response(error, self._lead_with_code))

    def _note(self, error: BaseException) -> None:
        """Add the error to the trace, and the trace's id to the log."""
        self.span.fail(error)
        if self.span.trace_id is not None:
            print(f"warning: {one_line(error)} trace_id={self.span.trace_id}", file=sys.stderr, flush=True)

    def _answer(self, response: Any) -> None:
        with self._lock:
            if self._done:
                return
            self._done = True
        try:
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:
            pb_utils.Logger.log_error(f"answer not sent: {one_line(error)}")
        finally:
            self.span.end()
            self._answered(self)


class DeferredModel(ABC):
    """Base of a model whose `execute` only admits requests and which answers each later.

    Its config.pbtxt is that of an ordinary, not a decoupled model: plain HTTP and unary gRPC work.
    """

    lead_with_code = True  # see to_error_response; tasks call this model

    def initialize(self, args: Mapping[str, str]) -> None:
        """Create the model. Called by Triton."""
        self.context = ModelContext.of_arguments(args)
        self._pending: set[Pending] = set()
        self._pending_lock = threading.Lock()
        self._in_flight = in_flight_metric(self.context)
        self._tracer = open_tracer()
        self.open(self.context)

    @abstractmethod
    def open(self, context: ModelContext) -> None:
        """Load what the model needs. An exception fails the load; its message is what the operator reads."""

    @abstractmethod
    def admit(self, pending: Pending) -> None:
        """Take over a request, to `send` or `fail` it later. An exception raised here answers it."""

    def close(self) -> None:
        """Stop. Called after the last answer, when the server ends or the model is unloaded."""

    def execute(self, requests: Sequence[Any]) -> None:
        """Admit the scheduled requests and return at once. Called by Triton."""
        for request in requests:
            pending = Pending(request.get_response_sender(), self._forget, self.lead_with_code)
            with self._pending_lock:
                self._pending.add(pending)
            self._in_flight.add(1)
            if self._tracer.enabled:
                pending.span = self._tracer.begin(self.context.name, headers_of(request))
            try:
                pending.inputs = read_inputs(request, self.context)
                self.admit(pending)
            except Exception as error:
                pending.fail(error)

    def finalize(self) -> None:
        """Fail the unanswered requests and close. Called by Triton."""
        for pending in self.pending():
            pending.fail(Unavailable(SHUTTING_DOWN))
        self.close()

    def pending(self) -> list[Pending]:
        """Return the unanswered requests."""
        with self._pending_lock:
            return list(self._pending)

    def _forget(self, pending: Pending) -> None:
        with self._pending_lock:
            self._pending.discard(pending)
        self._in_flight.add(-1)


class TaskModel(DeferredModel):
    """Base of a public model: runs a `Task` per request, all concurrently on one event loop."""

    lead_with_code = False  # clients call this model

    def create(self, context: ModelContext) -> Task:
        """Return the task to serve. An exception fails the load; its message is what the operator reads."""
        return open_task(context.folder)

    def open(self, context: ModelContext) -> None:
        self._task = self.create(context)
        self._stages = context.stages
        self._gpus = {stage: context.gpu_of(stage) for stage in self._stages}
        self._parsers = ThreadPoolExecutor(PARSE_THREADS, thread_name_prefix="parse")
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(BLS_THREADS, thread_name_prefix="bls"))
        self._running: dict[Pending, asyncio.Task[None]] = {}  # used by the loop's thread alone
        self._thread = threading.Thread(target=self._loop.run_forever, name="tasks", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def admit(self, pending: Pending) -> None:
        if draining():
            raise Unavailable(SHUTTING_DOWN)
        if len(self._pending) > MAX_PENDING:
            raise Unavailable(f"more than {MAX_PENDING} requests are waiting; try again later")
        self._loop.call_soon_threadsafe(self._begin, pending)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._parsers.shutdown(wait=False, cancel_futures=True)

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, pending: Pending) -> None:
        task = self._loop.create_task(self._answer(pending))
        self._running[pending] = task
        task.add_done_callback(lambda _: self._ended(pending))

    def _ended(self, pending: Pending) -> None:
        del self._running[pending]
        pending.fail(Cancelled(CANCELLED))  # for a task cancelled before it began; others have been answered

    async def _answer(self, pending: Pending) -> None:
        try:
            with pending.span.child("parse"):
                request = await self._loop.run_in_executor(self._parsers, self._task.parse, pending.inputs)
            pending.inputs = {}  # an encoded image is not needed for as long as the search takes
            pending.send(await self._task.run(request, partial(self._call_stage, pending.span)))
        except asyncio.CancelledError:
            pending.fail(Cancelled(CANCELLED))
        except BaseException as error:
            pending.fail(error)

    async def _call_stage(self, span: NoSpan, name: str, inputs: Mapping[str, Value], outputs: Sequence[str]) -> Values:
        """Call the model that holds this checkpoint's stage `name`."""
        gpu = self._gpus.get(name) if isinstance(outputs, Forwarded) else None
        model = self._stages.get(name, name)
        with span.child(f"call {model}") as call:
            return await call_stage(model, inputs, outputs, gpu=gpu, headers=call.headers())

    async def _watch(self) -> None:
        """End tasks whose client has gone, and all tasks when the server stops waiting for them.

        A stage call that has begun runs to its end.
        """
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            running = list(self._running)
            if dropping():
                for pending in running:
                    pending.fail(Unavailable(SHUTTING_DOWN))
            try:
                cancelled = await self._loop.run_in_executor(None, _cancelled_of, running)
            except Exception as error:  # the watch must go on
                pb_utils.Logger.log_warn(f"checking for cancelled requests failed: {one_line(error)}")
                continue
            for pending in cancelled:
                if pending in self._running:
                    self._running[pending].cancel()


def _cancelled_of(pending: Iterable[Pending]) -> list[Pending]:
    return [one for one in pending if one.cancelled()]


class StageModel(ABC):
    """Base of a stage with `max_batch_size` > 0: the requests of a dynamic batch run as one.

    Inputs and outputs are arrays whose first axis is the batch.
    """

    @abstractmethod
    def create(self, context: ModelContext) -> Stage:
        """Return the stage to serve. An exception fails the load; its message is what the operator reads."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Create the model. Called by Triton."""
        self.context = ModelContext.of_arguments(args)
        self._stage = self.create(self.context)
        self._tracer = open_tracer()
        self._in_flight = in_flight_metric(self.context)

    def check(self, inputs: dict[str, np.ndarray]) -> None:
        """Raise InvalidRequest to refuse one request of a batch. The default accepts all."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return one response per request, in order. Called by Triton."""
        self._in_flight.add(len(requests))
        spans = self._spans(requests) if self._tracer.enabled else []
        responses: list[Any] = [None] * len(requests)
        accepted: dict[int, dict[str, np.ndarray]] = {}
        for index, request in enumerate(requests):
            try:
                inputs = _arrays(read_inputs(request, self.context))
                inputs.pop(RETRY_INPUT, None)  # only the response cache uses it
                self.check(inputs)
                accepted[index] = inputs
            except Exception as error:
                responses[index] = to_error_response(error, lead_with_code=True)
        for members in groups(accepted):
            try:
                outputs = run_as_one(self._stage, [accepted[index] for index in members])
                for index, output in zip(members, outputs, strict=True):
                    responses[index] = self._respond(output)
            except Exception as error:
                for index in members:
                    responses[index] = to_error_response(error, lead_with_code=True)
        for span in spans:
            span.end()
        self._in_flight.add(-len(requests))
        return responses

    def _spans(self, requests: Sequence[Any]) -> list[NoSpan]:
        name, batch = self.context.name, len(requests)
        return [self._tracer.begin(name, headers_of(request), batch=batch) for request in requests]

    def _respond(self, outputs: Mapping[str, np.ndarray]) -> Any:
        try:
            check_finite(self.context.name, outputs)
            return to_response(outputs)
        except Exception as error:
            return to_error_response(error, lead_with_code=True)

    def finalize(self) -> None:
        """Release nothing: the process ends. Called by Triton when the server ends or the model is unloaded."""


def _arrays(inputs: Values) -> dict[str, np.ndarray]:
    for name, value in inputs.items():
        if isinstance(value, list):
            raise InvalidRequest(f"{name}: is BYTES, which no encoder takes")
    return inputs


class EncoderModel(StageModel):
    """Base of a served encoder: runs the compiled graph of `stage` on dynamic batches."""

    stage: str  #: its name in `mplug.contract.ENCODERS`

    def create(self, context: ModelContext) -> Stage:
        """Open the stage's compiled graph."""
        self._inputs = StageInputs.of_stage(context.folder, self.stage)
        return open_graph(context.folder, self.stage, context.device)

    def check(self, inputs: dict[str, np.ndarray]) -> None:
        """Raise InvalidRequest for wrong shapes, values or token ids; see `StageInputs.check`."""
        self._inputs.check(inputs)
