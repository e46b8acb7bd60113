"""Which failed requests are sent again, how often, and after which pauses."""

from __future__ import annotations

import random
import time

from .errors import ClientError

#: Retries by status where none were asked for: the server was too busy or not ready; no server answered, or the
#: connection broke; the model is being taken out of a server that shuts down. Nothing else is retried.
DEFAULT_RETRIES = {"UNAVAILABLE": 5, "UNREACHABLE": 3, "NOT_FOUND": 5}
MAX_RETRIES = 100
FIRST_PAUSE = 0.1  # seconds before the first retry; doubles with each
_LONGEST_PAUSE = 5.0  # seconds


class RetryPolicy:
    """Retries of one client. `retries`: for each retryable status, by default `DEFAULT_RETRIES`; 0 for none."""

    def __init__(self, retries: int | None = None) -> None:
        if retries is not None and not 0 <= retries <= MAX_RETRIES:
            raise ClientError(f"retries is {retries}, it must be from 0 to {MAX_RETRIES}")
        self._most = DEFAULT_RETRIES if retries is None else dict.fromkeys(DEFAULT_RETRIES, retries)

    def pause(self, error: ClientError, attempt: int, deadline: float, *, vanished: bool = False) -> float:
        """Return the seconds to wait after attempt number `attempt` (from 0) failed; raises `error` if it was the last.

        `deadline` is in `time.monotonic()` seconds. `vanished`: a model that was not found had been served before, or
        its server is not ready; a model that a ready server does not have is not asked for again. Sending a request
        again is safe: requests change nothing.
        """
        most = self._most.get(error.status, 0) if vanished or error.status != "NOT_FOUND" else 0
        # Spread out, so that clients turned away together do not come back together.
        pause = min(_LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempt, 10)) * random.uniform(0.75, 1.25)
        if attempt >= most or time.monotonic() + pause >= deadline:
            raise error
        return pause
