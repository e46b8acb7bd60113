"""The one exception that the clients raise."""

from __future__ import annotations


class ClientError(Exception):
    """A request that got no result. The message is one line, fit to be shown as it is.

    `status`: INVALID_ARGUMENT (the request is wrong), NOT_FOUND (no such model), UNAVAILABLE (not ready or
    too busy), DEADLINE_EXCEEDED (timeout), INTERNAL and the other gRPC code names, the same over HTTP;
    and two of our own, UNREACHABLE (no server answers there) and UNREADABLE (a local file).
    """

    def __init__(self, message: str, status: str = "INVALID_ARGUMENT") -> None:
        super().__init__(" ".join(message.split()))
        self.status = status
