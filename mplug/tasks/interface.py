"""What every public model's task offers to the servers of it: Triton's models and `mplug.pipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from mplug.contract import CallStage, Value


class Task(Protocol):
    """One public model's logic."""

    def parse(self, inputs: Mapping[str, Value]) -> Any:
        """Inputs to a request object; runs in a thread, several at a time. Raises InvalidRequest."""

    async def run(self, request: Any, call_stage: CallStage) -> Mapping[str, Value]:
        """Request object to outputs; calls stages. Runs on the event loop: awaits, and computes little."""
