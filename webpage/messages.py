"""What visitors read when something fails: the client's line in the page's words, and what they can do."""

from __future__ import annotations

import re

from clients.client import ClientError

#: Inputs of the served models, as messages name them, and what they are called on the page.
_NAMES = {
    "IMAGE": "the picture",
    "VIDEO": "the video",
    "QUESTION": "the question",
    "CANDIDATES": "the answers to choose from",
    "EXPRESSION": "what to find",
    "STATEMENT": "the statement",
    "HYPOTHESIS": "the statement",
    "TEXT": "the text",
    "NUM_BEAMS": "the number of beams",
    "FRAMES": "the number of frames",
}
_INPUT = re.compile(rf"\b({'|'.join(_NAMES)})\b")
_ADVICE = {
    "UNREACHABLE": "The server does not answer. Start it again; `make demo` starts server and page together.",
    "UNAVAILABLE": "The server is busy or starting. Try again in a moment.",
    "DEADLINE_EXCEEDED": "The server has not answered in time. Try again, with fewer beams or frames.",
    "NOT_FOUND": "The server no longer has the model for this. Reload the page to see what it serves.",
    "INTERNAL": "The server failed on this request. Its log says more.",
}


def readable(error: ClientError) -> str:
    """Return one line for a visitor."""
    if error.status in _ADVICE:
        return _ADVICE[error.status]
    line = _INPUT.sub(lambda found: _NAMES[found[1]], str(error))
    return line[:1].upper() + line[1:]
