"""The stage `text_decoder` without Triton: tensors in, a search, a ranking or a withdrawal, tensors out.

The served model and `mplug.pipeline` are its two users.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mplug.contract import Value, Values
from mplug.decoding.candidate_scores import CandidateScores, open_score_graph
from mplug.decoding.loop import DecodeLoop, DecodeRequest
from mplug.decoding.request import DecodeRequestParser, to_outputs
from mplug.errors import InvalidRequest
from mplug.runtime import Decoder, Graph, open_decoder
from mplug.runtime.interface import ANY_DEVICE

#: Asking Triton whether a client has gone is a round trip between processes, too long for the decode thread.
POLL_SECONDS = 0.05
#: Answer to a CANCEL request.
WITHDRAWN: Values = {"TOKEN_IDS": np.zeros((1, 1), np.int32), "SCORE": np.zeros(1, np.float32)}


Answered = Callable[[Callable[[], Values]], None]
Failed = Callable[[BaseException], None]


class DecoderService:
    """Answers requests of the stage `text_decoder`; see `mplug.contract.TEXT_DECODER_MODEL` for tensors."""

    def __init__(self, parser: DecodeRequestParser, loop: DecodeLoop, score_graph: Graph | None) -> None:
        """`score_graph` is None where the checkpoint ranks no candidates."""
        self._parser, self._loop, self._score_graph = parser, loop, score_graph
        self._answers = ThreadPoolExecutor(1, thread_name_prefix="answers")  # sending may block; decoding must not
        self._watch = _ClientWatch()
        self._tags: dict[bytes, threading.Event] = {}

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        device: str = ANY_DEVICE,
        max_cache_mb: int = 4096,
        wrap: Callable[[Decoder], Decoder] = lambda decoder: decoder,
        **options: Any,
    ) -> DecoderService:
        """Open a built stage's version folder on a device; other options are those of `DecodeLoop`.

        `device`: see `mplug.runtime.open_graph`. `wrap` may replace the decoder, to time it for example.
        """
        loop = DecodeLoop(wrap(open_decoder(folder, device)), max_cache_bytes=max_cache_mb << 20, **options)
        return cls(DecodeRequestParser.of_stage(folder), loop, open_score_graph(folder, device))

    def submit(
        self,
        inputs: Mapping[str, Value],
        answer: Callable[[Values], None],
        fail: Callable[[BaseException], None],
        client_gone: Callable[[], bool] | None = None,
    ) -> None:
        """Take over a request; exactly one of `answer` and `fail` is called later, from a thread of its own.

        Raises InvalidRequest for wrong inputs and Unavailable when too many requests wait.
        """
        if "CANCEL" in inputs:
            flag = self._tags.get(_key(inputs["CANCEL"]))
            if flag is not None:  # else it has been answered already
                flag.set()
            answer(WITHDRAWN)
            return
        withdrawn = threading.Event()
        tag = _key(inputs["TAG"]) if "TAG" in inputs else None

        def forget() -> None:
            self._tags.pop(tag, None)
            self._watch.remove(withdrawn)

        def deliver(callback: Callable[[Any], None], outcome: Any) -> None:
            forget()
            try:
                callback(outcome() if callable(outcome) else outcome)
            except Exception as error:  # of one request's answer; the others go on
                traceback.print_exception(error, file=sys.stderr)

        def answered(outputs: Callable[[], Values]) -> None:
            self._answers.submit(deliver, answer, outputs)

        def failed(error: BaseException) -> None:
            self._answers.submit(deliver, fail, error)

        # Before the request is queued, for it may be answered at once.
        if tag is not None:
            self._tags[tag] = withdrawn
        if client_gone is not None:
            self._watch.add(withdrawn, client_gone)
        try:
            if "CANDIDATE_IDS" in inputs:
                self._loop.submit_job(self._ranking(inputs, answered, failed, withdrawn.is_set))
            else:
                self._loop.submit(self._search(inputs, answered, failed, withdrawn.is_set))
        except BaseException:
            forget()
            raise

    def _search(
        self, inputs: Mapping[str, Value], answered: Answered, failed: Failed, cancelled: Callable[[], bool]
    ) -> DecodeRequest:
        request = self._parser.parse(inputs)
        request.done = lambda found: answered(lambda: to_outputs(request, found))
        request.failed, request.cancelled = failed, cancelled
        return request

    def _ranking(
        self, inputs: Mapping[str, Value], answered: Answered, failed: Failed, cancelled: Callable[[], bool]
    ) -> CandidateScores:
        if self._score_graph is None:
            raise InvalidRequest("CANDIDATE_IDS: this deployment was built without the ranking of given answers")
        states, mask = self._parser.encoder_inputs(inputs)
        ids = self._parser.candidates(inputs)
        return CandidateScores(
            self._score_graph,
            states,
            mask,
            ids,
            done=lambda scores: answered(lambda: {"TOKEN_IDS": ids, "SCORE": scores}),
            failed=failed,
            cancelled=cancelled,
            first_token_weight=self._parser.first_token_weight(inputs),
        )

    def close(self) -> None:
        """Fail what is left with Unavailable, deliver every answer, and end all threads."""
        self._loop.stop()
        self._answers.shutdown(wait=True)
        self._watch.stop()


class _ClientWatch:
    """Sets a request's flag once its client has gone, from a thread of its own."""

    def __init__(self) -> None:
        self._checks: dict[threading.Event, Callable[[], bool]] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, flag: threading.Event, check: Callable[[], bool]) -> None:
        with self._lock:
            self._checks[flag] = check
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="client-watch", daemon=True)
                self._thread.start()

    def remove(self, flag: threading.Event) -> None:
        with self._lock:
            self._checks.pop(flag, None)

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            with self._lock:
                checks = list(self._checks.items())
            for flag, check in checks:
                try:
                    if not flag.is_set() and check():
                        flag.set()
                except Exception as error:  # it must not end the watch
                    traceback.print_exception(error, file=sys.stderr)


def _key(tag: Value) -> bytes:
    return bytes(tag[0])
