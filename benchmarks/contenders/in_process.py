"""Our stages in one process, without Triton: `mplug.pipeline`, with a stopwatch at each stage.

What a caption takes here is what Triton and BLS add nothing to; the stopwatch tells where it goes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.workspace import Workspace
from mplug.pipeline import Pipeline
from mplug.runtime import Decoder

T = TypeVar("T")


class Stopwatch:
    """Seconds and calls per stage, since it was cleared."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def clear(self) -> None:
        """Forget what was measured."""
        self.seconds.clear()
        self.calls.clear()

    def run(self, stage: str, call: Callable[[], T]) -> T:
        """Call and add its time to `stage`."""
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
        """Time `Decoder.admit`."""
        return self._stopwatch.run("prefill", lambda: self._decoder.admit(*arguments, **named))

    def step(self, *arguments: Any, **named: Any) -> Any:
        """Time `Decoder.step`."""
        return self._stopwatch.run("step", lambda: self._decoder.step(*arguments, **named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)


def open_captioner(workspace: Workspace) -> InProcess:
    """Open the workspace's repository."""
    return InProcess(workspace.repository)


class InProcess:
    """The model `caption` of a built repository."""

    def __init__(self, repository: Path) -> None:
        self.stopwatch = Stopwatch()
        self._pipeline = Pipeline.open(
            repository,
            cache_mb=0,  # pictures are new each time on the server, too
            timer=self.stopwatch.run,
            wrap_decoder=lambda decoder: TimedDecoder(decoder, self.stopwatch),
        )

    def caption(self, picture: bytes, tokens: int) -> list[int]:
        """Return the ids from `[CLS]` of a caption of exactly `tokens` tokens of an encoded picture."""
        lengths = {name: np.array([tokens], np.int32) for name in ("MIN_LENGTH", "MAX_LENGTH")}
        return self._pipeline.infer("caption", {"IMAGE": [picture], **lengths})["TOKEN_IDS"][0].tolist()

    def close(self) -> None:
        """Stop the decode loop and end the pipeline's threads."""
        self._pipeline.close()
