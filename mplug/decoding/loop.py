"""In-flight batching: many requests share every step of one decoder.

A thread of its own steps all active requests, each at its own position; requests are admitted between two
steps and removed after the step that ends them. `submit` only queues.

A request occupies a slot. The slots in use are a prefix of all, because the compiled step reads a prefix of
the caches in place; when a request is removed, the last one moves into its slot.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mplug.decoding.beam_search import Ancestry, BeamSearch, Hypothesis, SearchOptions
from mplug.errors import Cancelled, InvalidRequest, StageError, Unavailable
from mplug.runtime.interface import Decoder
from mplug.runtime.room import Room

#: Requests admitted between two steps: admission computes cross-attention keys, and the active requests
#: wait for it.
ADMISSIONS_PER_STEP = 4
#: A score that is no number is never an answer.
NOT_A_NUMBER = "the decoder computed NaN for this request; its encoder states may be out of range"


@dataclass
class DecodeRequest:
    """One search to run. Answered through exactly one of `done` and `failed`, from the loop's thread."""

    encoder_states: np.ndarray  #: `[A, W]`
    encoder_mask: np.ndarray  #: `[A]` int32
    prefix: list[int]  #: ids that are decoded first: `[CLS]`, and a prompt's
    options: SearchOptions
    token_range: tuple[int, int]  #: first and one past the last id that may be chosen
    done: Callable[[list[Hypothesis]], None]
    failed: Callable[[BaseException], None]
    cancelled: Callable[[], bool] = field(default=lambda: False)
    queued_at: float = 0.0  #: seconds of the monotonic clock; set by `DecodeLoop.submit`

    @property
    def positions(self) -> int:
        """Tokens whose keys are cached: all but the last one chosen."""
        return len(self.prefix) + self.options.max_length - 1


class Job(Protocol):
    """Other work for the decoder, done piece by piece between two steps, so that no request waits long."""

    failed: Callable[[BaseException], None]
    cancelled: Callable[[], bool]

    def advance(self) -> bool:
        """Do one piece, from the loop's thread; True when it was the last and the job has been answered."""


class _Running:
    """A request in a slot."""

    def __init__(self, request: DecodeRequest) -> None:
        self.request = request
        self.search = BeamSearch(request.options)
        self.ancestry = Ancestry.empty(request.options.num_beams, request.positions)
        self.position = 0  # of the tokens that the next step feeds
        self.tokens = np.full(request.options.num_beams, request.prefix[0], np.int32)

    @property
    def in_prefix(self) -> bool:
        """Whether the next step's output is ignored, because more of the prefix follows."""
        return self.position < len(self.request.prefix) - 1

    def advance(self, next_tokens: np.ndarray, log_probabilities: np.ndarray) -> bool:
        """Process a step's output `[beams, K]`; True when the search is over."""
        self.ancestry.write(self.position)
        if self.in_prefix:
            self.position += 1
            self.tokens[:] = self.request.prefix[self.position]
            return False
        continuation = self.search.advance(next_tokens, log_probabilities)
        self.position += 1
        if continuation is None:
            return True
        self.ancestry.follow(continuation.parents)
        self.tokens = continuation.tokens
        return False


@dataclass
class LoopStatistics:
    """Counts since the start; read by metrics and tests."""

    steps: int = 0
    sequence_steps: int = 0  #: active requests, summed over steps: / steps = mean batch
    tokens: int = 0
    admitted: int = 0
    finished: int = 0
    cancelled: int = 0
    refused: int = 0
    failed: int = 0
    queue_seconds: float = 0.0  #: from queueing to admission, summed over requests


class DecodeLoop:
    """Owns a decoder; see the module's description."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_slots: int = 32,
        max_queue: int = 256,
        max_cache_bytes: int = 4 << 30,
        observer: Callable[[DecodeLoop], None] = lambda loop: None,
    ) -> None:
        """`observer` is called from the loop's thread after each round.

        All slots are as large as the largest active request. A request that would take the caches above
        `max_cache_bytes` stays queued until others have finished, and is refused if it would do so alone.
        """
        self._observer = observer
        self.statistics = LoopStatistics()
        self._decoder = decoder
        self._max_slots, self._max_queue, self._max_cache_bytes = max_slots, max_queue, max_cache_bytes
        self._queue: deque[DecodeRequest] = deque()
        self._jobs: deque[Job] = deque()
        self._running: list[_Running] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._room = Room()
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def submit(self, request: DecodeRequest) -> None:
        """Queue a request. Raises Unavailable when the queue is full or the loop has stopped."""
        request.queued_at = time.monotonic()
        self._enqueue(self._queue, request)

    def submit_job(self, job: Job) -> None:
        """Queue other work. Raises Unavailable when the queue is full or the loop has stopped."""
        self._enqueue(self._jobs, job)

    def _enqueue(self, queue: deque[Any], item: DecodeRequest | Job) -> None:
        with self._wake:
            if self._stopping:
                raise Unavailable("the decoder is shutting down; try again")
            if len(queue) >= self._max_queue:
                self.statistics.refused += 1
                raise Unavailable(f"the decoder's queue of {self._max_queue} requests is full; try again later")
            queue.append(item)
            self._wake.notify()

    @property
    def batch(self) -> int:
        """Return the number of active requests."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Return the number of queued requests."""
        return len(self._queue)

    def stop(self) -> None:
        """Fail all active and queued work with Unavailable, and end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._queue or self._running or self._jobs or self._stopping):
                    self._wake.wait()
                if self._stopping:
                    searches = [running.request for running in self._running]
                    unanswered = [*searches, *self._queue, *self._jobs]
                    self._running, self._queue, self._jobs = [], deque(), deque()
                    break
            self._admit()
            self._drop_cancelled()
            if self._running:
                self._step()
            if self._jobs:
                self._work()
            self._observer(self)
        for request in unanswered:
            _deliver(request.failed, Unavailable("the decoder is shutting down; try again"))

    def _admit(self) -> None:
        for _ in range(ADMISSIONS_PER_STEP):
            if not self._queue or len(self._running) >= self._max_slots:
                return
            request = self._queue[0]
            try:
                if request.cancelled():
                    self._answer_cancelled(request)
                elif self._make_room(request):
                    self._decoder.admit(len(self._running), request.encoder_states)
                    self._running.append(_Running(request))
                    self.statistics.admitted += 1
                    self.statistics.queue_seconds += time.monotonic() - request.queued_at
                else:
                    return  # first come, first served: later requests wait too
            except Exception as error:  # answered to this request alone
                self.statistics.failed += 1
                _deliver(request.failed, error)
            self._queue.popleft()

    def _make_room(self, request: DecodeRequest) -> bool:
        """Fit the caches to the active requests and one more; False if that has to wait."""
        room = self._room_for([*(running.request for running in self._running), request])
        needed = self._decoder.cache_bytes(room)
        if needed > self._max_cache_bytes:
            if self._running:
                return False
            raise InvalidRequest(
                f"the request needs {needed >> 20} MiB of KV cache, more than the {self._max_cache_bytes >> 20} "
                "allowed: ask for fewer beams, a shorter MAX_LENGTH or fewer frames"
            )
        self._decoder.reserve(room)
        self._room = room
        return True

    def _room_for(self, requests: list[DecodeRequest]) -> Room:
        """Return room for these requests: the present room where that serves them and is not far too large."""
        needed = Room.rounded(
            slots=len(requests),
            positions=max(request.positions for request in requests),
            columns=max(request.options.num_beams for request in requests),
            states=max(request.encoder_states.shape[0] for request in requests),
            max_slots=self._max_slots,
        )
        widened = needed.widened(self._room)
        spare = self._max_cache_bytes if len(requests) > 1 else self._decoder.spare_bytes
        return widened if self._decoder.cache_bytes(widened) <= spare else needed

    def _drop_cancelled(self) -> None:
        for slot in reversed(range(len(self._running))):
            request = self._running[slot].request
            if request.cancelled():
                self._remove(slot)
                self._answer_cancelled(request)

    def _answer_cancelled(self, request: DecodeRequest) -> None:
        self.statistics.cancelled += 1
        _deliver(request.failed, Cancelled("the client cancelled the request"))

    def _remove(self, slot: int) -> None:
        """Free a slot; the last request moves into it."""
        last = len(self._running) - 1
        if slot != last:
            self._decoder.move(last, slot)
            self._running[slot] = self._running[last]
        del self._running[last]

    def _step(self) -> None:
        running = self._running
        try:
            next_tokens, log_probabilities = self._decoder.step(*self._step_inputs(running))
        except Exception as error:
            self._running = []
            self.statistics.failed += len(running)
            for one in running:
                _deliver(one.request.failed, error)
            return
        self.statistics.steps += 1
        self.statistics.sequence_steps += len(running)
        over, broken = [], []
        for slot, one in enumerate(running):
            beams = one.request.options.num_beams
            if np.isnan(log_probabilities[slot, :beams]).any():
                broken.append(slot)
                continue
            self.statistics.tokens += not one.in_prefix
            if one.advance(next_tokens[slot, :beams], log_probabilities[slot, :beams]):
                over.append(slot)
        answers = [(running[slot].request, running[slot].search.best()) for slot in over]
        failures = [running[slot].request for slot in broken]
        for slot in sorted([*over, *broken], reverse=True):
            self._remove(slot)
        self.statistics.finished += len(over)
        self.statistics.failed += len(broken)
        for request, hypotheses in answers:
            _deliver(request.done, hypotheses)
        for request in failures:
            _deliver(request.failed, StageError(NOT_A_NUMBER))

    def _work(self) -> None:
        """Run one piece of the first job, then queue it last, so that a long job delays no short one."""
        job = self._jobs.popleft()
        try:
            if job.cancelled():
                self.statistics.cancelled += 1
                _deliver(job.failed, Cancelled("the client cancelled the request"))
            elif not job.advance():
                self._jobs.append(job)
        except Exception as error:  # answered to this request alone
            self.statistics.failed += 1
            _deliver(job.failed, error)

    def _step_inputs(self, running: list[_Running]) -> tuple[np.ndarray, ...]:
        slots, beams = len(running), max(one.request.options.num_beams for one in running)
        room = self._room
        tokens = np.zeros((slots, beams), np.int32)
        ancestry = np.full((slots, beams, room.positions), -1, np.int32)
        encoder_mask = np.zeros((slots, room.states), np.int32)
        for slot, one in enumerate(running):
            columns = one.ancestry.columns
            tokens[slot, : one.tokens.size] = one.tokens
            ancestry[slot, : columns.shape[0], : columns.shape[1]] = columns
            encoder_mask[slot, : one.request.encoder_mask.size] = one.request.encoder_mask
        return (
            tokens,
            np.array([one.position for one in running], np.int32),
            ancestry,
            encoder_mask,
            np.array([one.search.end_blocked for one in running], np.int32),
            np.array([one.request.token_range for one in running], np.int32),
        )


def _deliver(callback: Callable[[Any], None], answer: object) -> None:
    """Answer one request; log the error if that fails."""
    try:
        callback(answer)
    except Exception as error:
        traceback.print_exception(error, file=sys.stderr)
