"""Our stages in one process, without Triton: the served task, graphs and decode loop, called directly.

What a caption takes here is what Triton and BLS add nothing to; a stopwatch at the stages tells where it goes.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mplug.contract import Value, Values
from mplug.decoding.loop import DecodeLoop
from mplug.decoding.request import DecodeRequestParser, to_outputs
from mplug.runtime import open_decoder, open_graph
from mplug.runtime.interface import Decoder
from mplug.tasks.caption import CaptionTask

T = TypeVar("T")
ENCODERS = ("vision_encoder", "text_encoder", "fusion_encoder")


class Stopwatch:
    """Seconds and calls per stage, since it was cleared."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def clear(self) -> None:
        self.seconds.clear()
        self.calls.clear()

    def run(self, stage: str, call: Callable[[], T]) -> T:
        """Call and count it to `stage`."""
        began = time.perf_counter()
        try:
            return call()
        finally:
            self.seconds[stage] += time.perf_counter() - began
            self.calls[stage] += 1


class TimedDecoder:
    """A decoder whose admissions (`prefill`) and steps (`step`) are timed; all else passes through."""

    def __init__(self, decoder: Decoder, stopwatch: Stopwatch) -> None:
        self._decoder, self._stopwatch = decoder, stopwatch

    def admit(self, *arguments: Any, **named: Any) -> Any:
        return self._stopwatch.run("prefill", lambda: self._decoder.admit(*arguments, **named))

    def step(self, *arguments: Any, **named: Any) -> Any:
        return self._stopwatch.run("step", lambda: self._decoder.step(*arguments, **named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)


class InProcess:
    """The model `caption` of a built repository."""

    def __init__(self, repository: Path) -> None:
        self.stopwatch = Stopwatch()
        self._task = CaptionTask.of_folder(repository / "caption" / "1")
        self._graphs = {
            name: open_graph(repository / name / "1", name) for name in ENCODERS if (repository / name).exists()
        }
        decoder = repository / "text_decoder" / "1"
        self._parser = DecodeRequestParser.of_stage(decoder)
        self._decode = DecodeLoop(TimedDecoder(open_decoder(decoder), self.stopwatch))
        self._events = asyncio.new_event_loop()

    def caption(self, picture: bytes, tokens: int) -> list[int]:
        """An encoded picture → ids from `[CLS]` of a caption of exactly `tokens` tokens."""
        lengths = {name: np.array([tokens], np.int32) for name in ("MIN_LENGTH", "MAX_LENGTH")}
        request = self.stopwatch.run("parse", lambda: self._task.parse({"IMAGE": [picture], **lengths}))
        outputs = self._events.run_until_complete(self._task.run(request, self._call_stage))
        return outputs["TOKEN_IDS"][0].tolist()

    async def _call_stage(self, name: str, inputs: Mapping[str, Value], outputs: Sequence[str]) -> Values:
        if name == "text_decoder":
            return await self._search(inputs)
        return self.stopwatch.run(name, lambda: self._graphs[name](inputs))

    async def _search(self, inputs: Mapping[str, Value]) -> Values:
        request = self._parser.parse(inputs)
        events = asyncio.get_running_loop()
        answer: asyncio.Future[Values] = events.create_future()
        # Called from the decode loop's thread.
        request.done = lambda found: events.call_soon_threadsafe(answer.set_result, to_outputs(request, found))
        request.failed = lambda error: events.call_soon_threadsafe(answer.set_exception, error)
        self._decode.submit(request)
        return await answer

    def close(self) -> None:
        self._decode.stop()
        self._events.close()
