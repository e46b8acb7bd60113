"""The interface of a public model's task, as `mplug.triton.models` and `mplug.pipeline` use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from mplug.contract import CallStage, Value


class Task(Protocol):
    """One public model's logic."""

    def parse(self, inputs: Mapping[str, Value]) -> Any:
        """Check the inputs and return a request; called from several threads at once. Raises InvalidRequest."""

    async def run(self, request: Any, call_stage: CallStage) -> Mapping[str, Value]:
        """Run the stages and return the outputs. Runs on the event loop, so it must not compute for long."""
