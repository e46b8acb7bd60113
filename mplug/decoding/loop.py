"""In-flight batching: many requests share every step of one decoder.

A thread of its own steps all active requests, each at its own position; requests are admitted between two
steps and removed after the step that ends them. `submit` only queues.

A request occupies a slot. The slots in use are a prefix of all, because the compiled step reads a prefix of
the caches in place; when a request is removed, the last one moves into its slot.

The searches run in the compiled step. The loop reads what each step chose, keeps it in a log, and puts a
request's sequences together when its search has ended. Where the decoder can, several steps are run before
the first one's choices are read; a request that ends among them is stepped idly up to the last.
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

from mplug.decoding.beam_search import Hypothesis, SearchOptions
from mplug.decoding.search_log import EndedSearch, SearchLog
from mplug.errors import Cancelled, InvalidRequest, StageError, Unavailable
from mplug.runtime.interface import Decoder, StepChoices
from mplug.runtime.room import Room
from mplug.runtime.search_state import new_search

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


#: Columns of the loop's table of active requests: the step that chooses a request's first token (those before it feed
#: its prefix), the step after its last possible one, and its positions, beams and encoder states.
FIRST, LIMIT, POSITIONS, BEAMS, STATES = range(5)


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
        self._running: list[DecodeRequest] = []  # by slot
        self._table = np.zeros((max_slots, 5), np.int64)  # of the same requests
        self._wake = threading.Condition()
        self._stopping = False
        self._room = Room()
        self._log = SearchLog()
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
                    unanswered = [*self._running, *self._queue, *self._jobs]
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
                    self._start(len(self._running), request)
                    self.statistics.admitted += 1
                    self.statistics.queue_seconds += time.monotonic() - request.queued_at
                else:
                    return  # first come, first served: later requests wait too
            except Exception as error:  # answered to this request alone
                self.statistics.failed += 1
                _deliver(request.failed, error)
            self._queue.popleft()

    def _start(self, slot: int, request: DecodeRequest) -> None:
        options = request.options
        self._decoder.admit(slot, request.encoder_states)
        search = new_search(
            prefix=request.prefix,
            encoder_mask=request.encoder_mask,
            beams=options.num_beams,
            min_length=options.min_length,
            max_length=options.max_length,
            token_range=request.token_range,
        )
        self._decoder.load(slot, search)
        first = self._log.steps + len(request.prefix) - 1
        self._table[slot] = (first, first + options.max_length, *_lengths(request))
        self._running.append(request)

    def _make_room(self, request: DecodeRequest) -> bool:
        """Fit the caches to the active requests and one more; False if that has to wait."""
        room = self._room_for(request)
        needed = self._decoder.cache_bytes(room)
        if needed > self._max_cache_bytes:
            if self._running:
                return False
            raise InvalidRequest(
                f"the request needs {needed >> 20} MiB of KV cache, more than the {self._max_cache_bytes >> 20} "
                "allowed: ask for fewer beams, a shorter MAX_LENGTH or fewer frames"
            )
        self._decoder.reserve(room)
        self._log.reserve(room, self._decoder.chunk)
        self._room = room
        return True

    def _room_for(self, request: DecodeRequest) -> Room:
        """Return room for the active requests and one more: the present one unless it is too small or far too large."""
        active = len(self._running)
        most = self._table[:active, POSITIONS:].max(0, initial=0).tolist()
        lengths = map(max, most, _lengths(request))
        needed = Room.rounded(active + 1, *lengths, max_slots=self._max_slots)
        widened = needed.widened(self._room)
        spare = self._max_cache_bytes if active else self._decoder.spare_bytes
        return widened if self._decoder.cache_bytes(widened) <= spare else needed

    def _drop_cancelled(self) -> None:
        for slot in reversed(range(len(self._running))):
            request = self._running[slot]
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
            self._log.move(last, slot)
            self._running[slot], self._table[slot] = self._running[last], self._table[last]
        del self._running[last]

    def _step(self) -> None:
        """Run one step, or several where the decoder gains by it and no request is kept waiting."""
        running, count = self._running, self._decoder.chunk
        if count > 1:
            admissible = self._queue and len(running) < self._max_slots
            soonest = int(self._table[: len(running), LIMIT].min()) - self._log.steps
            count = 1 if admissible else max(1, min(count, soonest))
        try:
            beams = int(self._table[: len(running), BEAMS].max())
            chosen = self._decoder.step(len(running), beams, count)
        except Exception as error:
            self._running = []
            self.statistics.failed += len(running)
            for request in running:
                _deliver(request.failed, error)
            return
        ended: dict[int, EndedSearch] = {}
        broken: set[int] = set()
        for choices in chosen:
            self._record(choices, ended, broken)
        if ended or broken:
            self._finish(ended, broken)

    def _record(self, choices: StepChoices, ended: dict[int, EndedSearch], broken: set[int]) -> None:
        """Log a step; add slots to those whose search it ended and those that it computed NaN for."""
        number, running, done = self._log.steps, self._running, len(ended) + len(broken)
        self._log.append(choices)
        self.statistics.steps += 1
        self.statistics.sequence_steps += len(running) - done
        self.statistics.tokens += int(np.count_nonzero(self._table[: len(running), FIRST] <= number)) - done
        unsound = np.isnan(choices.scores[:, 0])
        if unsound.any():
            broken.update(set(np.flatnonzero(unsound).tolist()) - ended.keys())
        if choices.over.any():
            for slot in np.flatnonzero(choices.over).tolist():
                if slot not in ended and slot not in broken:
                    ended[slot] = EndedSearch(slot, int(self._table[slot, FIRST]), number, running[slot].options)

    def _finish(self, ended: dict[int, EndedSearch], broken: set[int]) -> None:
        """Answer the requests in these slots, and free them."""
        found = self._log.best(list(ended.values())) if ended else []
        answers = [(self._running[slot], hypotheses) for slot, hypotheses in zip(ended, found, strict=True)]
        failures = [self._running[slot] for slot in broken]
        for slot in sorted([*ended, *broken], reverse=True):
            self._remove(slot)
        self.statistics.finished += len(ended)
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


def _lengths(request: DecodeRequest) -> tuple[int, int, int]:
    """Return what a request needs of the caches: positions, beams, encoder states."""
    return request.positions, request.options.num_beams, request.encoder_states.shape[0]


def _deliver(callback: Callable[[Any], None], answer: object) -> None:
    """Answer one request; log the error if that fails."""
    try:
        callback(answer)
    except Exception as error:
        traceback.print_exception(error, file=sys.stderr)
