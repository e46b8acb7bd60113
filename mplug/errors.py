"""Errors a served model answers with.

Task and stage logic raises these and knows nothing of Triton; `mplug.triton.tensors` turns each into a Triton
error of the code named here, and a stage's error back into one of these on the way up. Anything else that is
raised inside a served model is a bug and reaches the client as INTERNAL with one line.

The message is what the client reads: it names the input, says what was wrong and what to do next.
"""

from __future__ import annotations


class ServingError(Exception):
    """An answer to the client that is not a result.

    `code` is the name of a Triton error code: one of `CODES`.
    """

    code: str = "INTERNAL"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class InvalidRequest(ServingError):
    """The request itself is wrong: INVALID_ARG (gRPC INVALID_ARGUMENT, HTTP 400)."""

    code = "INVALID_ARG"


class Unavailable(ServingError):
    """This server cannot answer now, a later or another one may: UNAVAILABLE (HTTP 503)."""

    code = "UNAVAILABLE"


class Cancelled(ServingError):
    """The client has gone or has cancelled the request: CANCELLED (HTTP 499)."""

    code = "CANCELLED"


class NotServed(ServingError):
    """There is no model of this name, or the repository does not hold it: NOT_FOUND (HTTP 404)."""

    code = "NOT_FOUND"


class StageError(ServingError):
    """A stage answered with an error of another code, which is passed on as it is."""


#: Triton's error codes, as `triton_python_backend_utils.TritonError` names them.
CODES = (
    "UNKNOWN",
    "INTERNAL",
    "NOT_FOUND",
    "INVALID_ARG",
    "UNAVAILABLE",
    "UNSUPPORTED",
    "ALREADY_EXISTS",
    "CANCELLED",
)

_CLASS_OF_CODE = {error.code: error for error in (InvalidRequest, Unavailable, Cancelled, NotServed)}


def error_of_code(code: str, message: str) -> ServingError:
    """Return the exception for an error code of `CODES`; an unknown code becomes INTERNAL."""
    if code not in CODES:
        code = "INTERNAL"
    return _CLASS_OF_CODE.get(code, StageError)(message, code)
