"""The signals that ask the launcher to end."""

from __future__ import annotations

import os
import select
import signal
import time


class Signals:
    """Counts SIGTERM, SIGINT and SIGHUP from the moment it is made; of the main thread."""

    def __init__(self) -> None:
        self._count = 0
        # A pipe and not an Event: the handler runs in the thread that waits, which may hold the Event's lock.
        self._reader, self._writer = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, self._received)

    def _received(self, number: int, frame: object) -> None:
        self._count += 1
        os.write(self._writer, b".")

    def any(self) -> bool:
        """Return whether there was a signal."""
        return self._count > 0

    def several(self) -> bool:
        """Return whether there was more than one: the rest is not to be waited for."""
        return self._count > 1

    def wait(self, seconds: float) -> None:
        """Wait for the first signal or so many seconds."""
        if self.any():
            time.sleep(seconds)
        else:
            select.select([self._reader], [], [], seconds)
