"""Run each contender of `one_caption` in a process of its own.

Two frameworks in one process would fight over the cores: the threads of the one still spin, waiting for more
work, while the other computes.
"""

from __future__ import annotations

import importlib
import multiprocessing
import traceback
from multiprocessing.connection import Connection
from typing import Any, Protocol

from benchmarks.workspace import Workspace

#: Loading a framework and a model of base size on a busy machine.
START_SECONDS = 180.0


class Captioner(Protocol):
    """Captions one picture at a time."""

    def caption(self, picture: bytes, tokens: int) -> list[int]:
        """Return the ids of a caption of exactly `tokens` tokens, the start token first."""


class ContenderError(RuntimeError):
    """A contender could not be started or failed; the message is its traceback."""


class CaptionerProcess:
    """A captioner in a process of its own, which imports `module` and calls its `open_captioner(workspace)`."""

    def __init__(self, module: str, workspace: Workspace) -> None:
        # Spawned, not forked: a forked process inherits a broken copy of this one's threads.
        context = multiprocessing.get_context("spawn")
        self._connection, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(module, workspace, other_end), daemon=True)
        self._process.start()
        other_end.close()
        #: What the captioner says it computes in; empty where it does not.
        self.precision: str = "".join(self._answer(None, START_SECONDS))

    def caption(self, picture: bytes, tokens: int) -> list[int]:
        """See `Captioner.caption`. Raises ContenderError with what the process raised, or when it has ended."""
        return self._answer((picture, tokens))

    def close(self) -> None:
        """End the process: at once if it waits for a picture, by force if it is still computing after 10 s."""
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def _answer(self, request: tuple[bytes, int] | None, seconds: float | None = None) -> list[Any]:
        """Send a request, if there is one, and return the next answer; wait at most `seconds` for it."""
        try:
            if request is not None:
                self._connection.send(request)
            if seconds is not None and not self._connection.poll(seconds):
                raise ContenderError(f"was not ready after {seconds:.0f} s")
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            raise ContenderError("its process has ended") from None
        if isinstance(answer, str):
            raise ContenderError(answer)
        return answer


def _serve(module: str, workspace: Workspace, connection: Connection) -> None:
    """Caption until the other end is closed; runs in the contender's process."""
    try:
        captioner: Captioner = importlib.import_module(module).open_captioner(workspace)
        connection.send([getattr(captioner, "precision", "")])
        while True:
            connection.send(captioner.caption(*connection.recv()))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return  # the benchmark has ended, or was ended while a caption was being made
    except BaseException:
        connection.send(traceback.format_exc())
