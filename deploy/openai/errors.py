"""What goes wrong, in OpenAI's form: an HTTP status and an error object whose message says what to send instead."""

from __future__ import annotations

import logging
import re

from pydantic import ValidationError

from clients.client import ClientError

log = logging.getLogger("mplug.openai")

#: Names of Triton's inputs, as messages of the server use them: what they are called here, and OpenAI's parameter.
_PARAMETERS = {
    "IMAGE": ("the picture", "messages"),
    "VIDEO": ("the video", "messages"),
    "QUESTION": ("the question", "messages"),
    "TEXT": ("the text", "input"),
    "CANDIDATES": ("guided_choice", "guided_choice"),
    "NUM_RETURN": ("n", "n"),
    "NUM_BEAMS": ("num_beams", "num_beams"),
    "MIN_LENGTH": ("min_tokens", "min_tokens"),
    "MAX_LENGTH": ("max_tokens", "max_tokens"),
    "LENGTH_PENALTY": ("length_penalty", "length_penalty"),
}
_INPUT = re.compile(rf"\b({'|'.join(_PARAMETERS)})\b")
_PARTS = ("text", "image_url", "video_url")  # kinds of parts, as pydantic names them in places
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
#: Statuses of Triton that are nobody's fault here, and what is said of them.
_UNAVAILABLE = {
    "UNAVAILABLE": (503, "the model is busy or not ready; try again later"),
    "UNREACHABLE": (503, "the model's server does not answer; try again later"),
    "DEADLINE_EXCEEDED": (504, "the model has not answered in time; try again later"),
}


class ApiError(Exception):
    """An answer in OpenAI's form of an error."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def headers(self) -> dict[str, str]:
        """Return headers for the answer."""
        return {"Retry-After": "1"} if self.status == 503 else {}

    def document(self) -> dict[str, object]:
        """Return the JSON document."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def of_client(error: ClientError, place: str | None = None) -> ApiError:
    """Return what Triton, or the way to it, answered. `place`: of what was wrong, where it is known."""
    if error.status == "INVALID_ARGUMENT":
        found = _INPUT.search(str(error))
        message = _INPUT.sub(lambda name: place or _PARAMETERS[name[1]][0], str(error))
        param = place or (_PARAMETERS[found[1]][1] if found else None)
        return ApiError(400, message, param=param, code="invalid_value")
    if error.status in _UNAVAILABLE:
        log.warning("%s", error)
        return ApiError(*_UNAVAILABLE[error.status], code=error.status.lower())
    log.error("%s", error)
    return ApiError(500, "the model failed on this request; the endpoint's log says more", code="internal_error")


def of_validation(error: ValidationError) -> ApiError:
    """Return the first thing that is wrong with a request's body."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ""
    for before, part in zip((None, *first["loc"]), first["loc"], strict=False):
        if isinstance(before, int) and part in _PARTS:
            continue  # which kind of part it was taken for
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg'].partition(': ')[2]}", code="invalid_json")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_not_found":
        message = 'neither a text nor a part with a type, as {"type": "text", "text": "…"}'
    if first["type"] == "union_tag_invalid":
        message = f"parts of type {first['ctx']['tag']!r} are not read; send {first['ctx']['expected_tags']}"
    return ApiError(400, f"{place}: {message}" if place else message, param=place or None, code=code)
