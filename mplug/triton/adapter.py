"""Between Triton's Python backend and logic that knows no Triton: the one file that imports its module.

Three bases for the class that the Python backend looks for in a `1/model.py`:

    class TritonPythonModel(TaskModel):          # a public model: calls stages, many requests side by side
        def create(self, context):
            return CaptionTask(context.folder)

    class TritonPythonModel(StageModel):         # a batched stage: one numpy batch in, one out
        def create(self, context):
            return open_stage(context.folder)    # a callable dict -> dict

    class TritonPythonModel(DeferredModel):      # answers later, from a thread of its own (the decoder)
        def admit(self, pending):
            self.loop.submit(pending)

Whatever happens, each request is answered exactly once. `mplug.errors.ServingError` keeps its code and
message; any other exception is a bug: logged with its traceback, and INTERNAL with one line for the client.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mplug.errors import CODES, Cancelled, InvalidRequest, ServingError, StageError, Unavailable, error_of_code
from mplug.runtime import batch as triton_batch
from mplug.runtime.gpu.array import DeviceArray
from mplug.triton.drain import IN_FLIGHT_METRIC, draining, dropping
from mplug.triton.protocol import RETRY_INPUT, Forwarded, ModelContext, Stage, Task, Value, Values

BLS_THREADS = 128  # asyncio's default executor holds cores + 4, and every stage call in flight blocks one
PARSE_THREADS = max(2, os.cpu_count() or 2)  # decoding images is bound by the cores
MAX_PENDING = 1024  # requests that wait in a task model, each maybe an image of megabytes; then UNAVAILABLE
MAX_ATTEMPTS = 64  # places in the response cache at which a stage is asked, where each holds a failure
WATCH_SECONDS = 0.2  # how often requests in flight are looked after: has the client gone, is there time left
CANCELLED = "the client cancelled the request"
SHUTTING_DOWN = "the server is shutting down; try again or another server"

# What a model prints is to show at once, not when the process ends; PYTHONUNBUFFERED has no effect in a stub.
sys.stdout.reconfigure(line_buffering=True)


# Tensors


def to_value(tensor: Any) -> Value:
    """A Triton tensor as an array (a copy of its own), or for BYTES, as a flat list of bytes.

    What lies on a GPU stays there. Raises InvalidRequest for BF16, which numpy has not.
    """
    try:
        if not tensor.is_cpu():
            return DeviceArray.received(tensor.to_dlpack())
        array = tensor.as_numpy()
    except Exception as error:
        raise InvalidRequest(f"{tensor.name()}: cannot be read as an array: {_one_line(error)}") from error
    if array.dtype == np.object_:
        return list(array.reshape(-1))
    return array


def to_tensor(name: str, value: Value) -> Any:
    """An array, or a list of bytes or str for BYTES, as a Triton tensor."""
    if isinstance(value, list | tuple):
        array = np.empty(len(value), np.object_)
        for index, item in enumerate(value):
            if not isinstance(item, bytes | str):
                raise TypeError(f"{name}: a list holds bytes, not {type(item).__name__}")
            array[index] = item.encode() if isinstance(item, str) else item
        return pb_utils.Tensor(name, array)
    if isinstance(value, DeviceArray):
        return pb_utils.Tensor.from_dlpack(name, value.__dlpack__())
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: not an array or a list of bytes but {type(value).__name__}")
    return pb_utils.Tensor(name, np.ascontiguousarray(value))


def read_inputs(request: Any, context: ModelContext) -> Values:
    """The inputs that a request has. Raises InvalidRequest when one is missing.

    Triton has checked names, dtypes and shapes against config.pbtxt. Of the inputs that are not optional it
    has only counted how many there are, and an optional one passes for one of them.
    """
    values = {tensor.name(): to_value(tensor) for tensor in request.inputs()}
    for name in context.required_inputs:
        if name not in values:
            raise InvalidRequest(f"{name}: missing; required: {', '.join(context.required_inputs)}")
    return values


def to_response(outputs: Mapping[str, Value]) -> Any:
    """A response with these outputs."""
    return pb_utils.InferenceResponse([to_tensor(name, value) for name, value in outputs.items()])


def to_error_response(error: BaseException, lead_with_code: bool = False) -> Any:
    """A response with this error; a bug is logged with its traceback and told in one line.

    `lead_with_code`: the message of a stage begins with `[CODE]`, because Triton gives every error of a model
    that another model calls the code INTERNAL. `call_stage` takes it off again.
    """
    if isinstance(error, ServingError):
        code, message = error.code, str(error)
    else:
        traceback.print_exception(error, file=sys.stderr)  # Triton's logger would put it all into one line
        code, message = "INTERNAL", f"internal error: {_one_line(error)}"
    if lead_with_code:
        message = f"[{code}] {message}"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# Calls to stages


async def call_stage(name: str, inputs: Mapping[str, Value], outputs: Sequence[str], *, on_gpu: bool = False) -> Values:
    """Run another model of this server on `inputs` and return the named outputs, by choice in the memory of the GPU.

    Raises the stage's error with its code, its message led by the stage's name.

    Triton's response cache keeps errors too, and gives them back as successes without outputs. Such an answer is
    asked for again at the next place in the cache: the stage runs, and this place keeps what it gives.
    """
    tensors = [to_tensor(key, value) for key, value in inputs.items()]
    rows = len(next(iter(inputs.values()), []))
    for attempt in range(MAX_ATTEMPTS):
        retry = [to_tensor(RETRY_INPUT, np.full((rows, 1), attempt, np.int32))] if attempt else []
        request = pb_utils.InferenceRequest(
            model_name=name,
            requested_output_names=list(outputs),
            inputs=[*tensors, *retry],
            preferred_memory=pb_utils.PreferredMemory(
                pb_utils.TRITONSERVER_MEMORY_GPU if on_gpu else pb_utils.TRITONSERVER_MEMORY_CPU, 0
            ),
        )
        response = await request.async_exec()
        if response.has_error():
            message = response.error().message()
            if attempt and RETRY_INPUT in message:
                break  # no stage of ours, or one that does not cache: it has no other place to ask at
            raise _stage_error(name, message)
        found = {tensor.name(): to_value(tensor) for tensor in response.output_tensors()}
        if found:
            return found
    raise StageError(f"{name}: answered without its outputs")


def _stage_error(name: str, message: str) -> ServingError:
    led = re.match(r"\[([A-Z_]+)\] ", message)
    code = led.group(1) if led and led.group(1) in CODES else "INTERNAL"
    message = message.removeprefix(f"[{code}] ").split("\n\nAt:")[0].strip()  # a plain model's traceback
    return error_of_code(code, f"{name}: {message}")


# Metrics


class Metric:
    """One custom metric of the server's /metrics, with these labels: `counter`, `gauge` or `histogram`.

    A server without custom metrics makes this a no-op: a metric is never a reason to fail. Any thread may use
    it: the lock is there because Triton's own object writes its message into memory of the object, and two
    threads at it make tritonserver crash. So use this class, and one object for one set of labels, not
    `pb_utils.MetricFamily`.
    """

    _families: dict[str, Any] = {}  # a family must outlive its metrics  # noqa: RUF012

    def __init__(
        self, kind: str, name: str, description: str, labels: Mapping[str, str], buckets: Sequence[float] = ()
    ) -> None:
        self._lock = threading.Lock()
        self._metric = None
        family_class = getattr(pb_utils, "MetricFamily", None)
        kind_value = getattr(family_class, kind.upper(), None)
        if kind_value is None:
            return
        if name not in self._families:
            self._families[name] = family_class(name=name, description=description, kind=kind_value)
        extra = {"buckets": list(buckets)} if kind == "histogram" else {}
        self._metric = self._families[name].Metric(labels=dict(labels), **extra)

    def add(self, amount: float = 1) -> None:
        """Increment a counter or a gauge."""
        self._do("increment", amount)

    def set(self, value: float) -> None:
        """Set a gauge."""
        self._do("set", value)

    def observe(self, value: float) -> None:
        """Add to a histogram."""
        self._do("observe", value)

    def _do(self, method: str, value: float) -> None:
        if self._metric is not None:
            try:
                with self._lock:
                    getattr(self._metric, method)(value)
            except Exception as error:
                pb_utils.Logger.log_warn(f"metric not updated: {_one_line(error)}")


def _in_flight_metric(context: ModelContext) -> Metric:
    return Metric("gauge", IN_FLIGHT_METRIC, "Requests being answered", {"model": context.name})


# Models that answer later


class Pending:
    """A request that was admitted and waits for its one answer. Methods may be called from any thread."""

    def __init__(self, sender: Any, answered: Callable[[Pending], None], lead_with_code: bool) -> None:
        self.inputs: Values = {}
        self._sender = sender
        self._answered = answered
        self._lead_with_code = lead_with_code
        self._lock = threading.Lock()
        self._done = False

    def cancelled(self) -> bool:
        """Whether the client has cancelled or gone; Triton notices that over gRPC only."""
        with self._lock:  # an answered sender must not be asked
            return not self._done and self._sender.is_cancelled()

    def send(self, outputs: Mapping[str, Value]) -> None:
        """Answer with outputs. A second answer is ignored."""
        try:
            response = to_response(outputs)
        except Exception as error:
            response = to_error_response(error, self._lead_with_code)
        self._answer(response)

    def fail(self, error: BaseException) -> None:
        """Answer with an error. A second answer is ignored."""
        if not self._done:
            self._answer(to_error_response(error, self._lead_with_code))

    def _answer(self, response: Any) -> None:
        with self._lock:
            if self._done:
                return
            self._done = True
        try:
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:
            pb_utils.Logger.log_error(f"answer not sent: {_one_line(error)}")
        finally:
            self._answered(self)


class DeferredModel(ABC):
    """Base of a model whose `execute` only admits requests, and which answers each later.

    Its config.pbtxt is that of an ordinary model (not decoupled): plain HTTP and unary gRPC work.
    """

    lead_with_code = True  # see to_error_response; tasks call this model

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton."""
        self.context = ModelContext.of_arguments(args)
        self._pending: set[Pending] = set()
        self._pending_lock = threading.Lock()
        self._in_flight = _in_flight_metric(self.context)
        self.open(self.context)

    @abstractmethod
    def open(self, context: ModelContext) -> None:
        """Load what the model needs. Raise to fail the load: the message is what the operator reads."""

    @abstractmethod
    def admit(self, pending: Pending) -> None:
        """Take over a request; `send` or `fail` it some time. An exception raised here answers it."""

    def close(self) -> None:
        """Stop; runs after the last answer when the server ends or the model is unloaded."""

    def execute(self, requests: Sequence[Any]) -> None:
        """Called by Triton with what its scheduler has; returns at once."""
        for request in requests:
            pending = Pending(request.get_response_sender(), self._forget, self.lead_with_code)
            with self._pending_lock:
                self._pending.add(pending)
            self._in_flight.add(1)
            try:
                pending.inputs = read_inputs(request, self.context)
                self.admit(pending)
            except Exception as error:
                pending.fail(error)

    def finalize(self) -> None:
        """Called by Triton: nobody will answer any more, so tell those who wait."""
        for pending in self.pending():
            pending.fail(Unavailable(SHUTTING_DOWN))
        self.close()

    def pending(self) -> list[Pending]:
        """The requests that wait for their answer."""
        with self._pending_lock:
            return list(self._pending)

    def _forget(self, pending: Pending) -> None:
        with self._pending_lock:
            self._pending.discard(pending)
        self._in_flight.add(-1)


class TaskModel(DeferredModel):
    """Base of a public model: runs a `Task` per request, all of them side by side on one event loop."""

    lead_with_code = False  # clients call this model

    @abstractmethod
    def create(self, context: ModelContext) -> Task:
        """The task to serve. Raise to fail the load: the message is what the operator reads."""

    def open(self, context: ModelContext) -> None:
        self._task = self.create(context)
        self._stages = context.stages
        self._on_gpu = {stage for stage in self._stages if context.on_gpu(stage)}
        self._parsers = ThreadPoolExecutor(PARSE_THREADS, thread_name_prefix="parse")
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(BLS_THREADS, thread_name_prefix="bls"))
        self._running: dict[Pending, asyncio.Task[None]] = {}  # touched by the loop's thread alone
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
        pending.fail(Cancelled(CANCELLED))  # a task that was cancelled before it began; else a second answer

    async def _answer(self, pending: Pending) -> None:
        try:
            request = await self._loop.run_in_executor(self._parsers, self._task.parse, pending.inputs)
            pending.inputs = {}  # an encoded image is not needed for as long as the search takes
            pending.send(await self._task.run(request, self._call_stage))
        except asyncio.CancelledError:
            pending.fail(Cancelled(CANCELLED))
        except BaseException as error:
            pending.fail(error)

    async def _call_stage(self, name: str, inputs: Mapping[str, Value], outputs: Sequence[str]) -> Values:
        """`call_stage` of the model that this one's checkpoint has that stage in."""
        on_gpu = isinstance(outputs, Forwarded) and name in self._on_gpu
        return await call_stage(self._stages.get(name, name), inputs, outputs, on_gpu=on_gpu)

    async def _watch(self) -> None:
        """Ends tasks whose client has gone, and all when the server gives up waiting for them.

        What a stage is doing for them runs to its end.
        """
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            running = list(self._running)
            if dropping():
                for pending in running:
                    pending.fail(Unavailable(SHUTTING_DOWN))
            try:
                cancelled = await self._loop.run_in_executor(None, _cancelled_of, running)
            except Exception as error:  # it must not end the watch
                pb_utils.Logger.log_warn(f"cancellations not seen: {_one_line(error)}")
                continue
            for pending in cancelled:
                if pending in self._running:
                    self._running[pending].cancel()


def _cancelled_of(pending: Iterable[Pending]) -> list[Pending]:
    return [one for one in pending if one.cancelled()]


# Batched stages


class StageModel(ABC):
    """Base of a stage with `max_batch_size` > 0: the requests that the dynamic batcher brings run as one.

    Inputs and outputs are arrays whose first axis is the batch.
    """

    @abstractmethod
    def create(self, context: ModelContext) -> Stage:
        """The stage to serve. Raise to fail the load: the message is what the operator reads."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton."""
        self.context = ModelContext.of_arguments(args)
        self._stage = self.create(self.context)
        self._in_flight = _in_flight_metric(self.context)

    def check(self, inputs: dict[str, np.ndarray]) -> None:
        """Refuse one request alone: raise InvalidRequest. The default accepts all."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Called by Triton: one response per request, in their order."""
        self._in_flight.add(len(requests))
        responses: list[Any] = [None] * len(requests)
        accepted: dict[int, dict[str, np.ndarray]] = {}
        for index, request in enumerate(requests):
            try:
                inputs = _arrays(read_inputs(request, self.context))
                inputs.pop(RETRY_INPUT, None)  # it is there for the response cache
                self.check(inputs)
                accepted[index] = inputs
            except Exception as error:
                responses[index] = to_error_response(error, lead_with_code=True)
        for members in triton_batch.groups(accepted):
            try:
                outputs = triton_batch.run_as_one(self._stage, [accepted[index] for index in members])
                for index, output in zip(members, outputs, strict=True):
                    responses[index] = to_response(output)
            except Exception as error:
                for index in members:
                    responses[index] = to_error_response(error, lead_with_code=True)
        self._in_flight.add(-len(requests))
        return responses

    def finalize(self) -> None:
        """Called by Triton when the server ends or the model is unloaded."""


def _arrays(inputs: Values) -> dict[str, np.ndarray]:
    for name, value in inputs.items():
        if isinstance(value, list):
            raise InvalidRequest(f"{name}: a stage takes no BYTES")
    return inputs
