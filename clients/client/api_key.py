"""The key that a gateway asks of its clients: from a file or from the environment, never from a command line."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import ClientError

#: Holds the key where none is given.
API_KEY_VARIABLE = "MPLUG_API_KEY"
API_KEY_HEADER = "x-api-key"
_LONGEST_KEY = 4096  # characters


def read_api_key(file: str | os.PathLike[str]) -> str:
    """Return the key that a file holds, and nothing beside it.

    Raises ClientError when it cannot be read, is open to every user of the machine, or does not hold one key.
    """
    path = Path(file)
    try:
        with path.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            content = opened.read(_LONGEST_KEY + 2)
    except OSError as error:
        raise ClientError(f"the API key file {path} cannot be read: {error.strerror}", "UNREADABLE") from error
    if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
        raise ClientError(
            f"the API key file {path} is open to every user of this machine: chmod o= {path}", "UNREADABLE"
        )
    return _checked(content.decode("latin-1").strip(), f"the API key file {path}")


def api_key_headers(key: str | None) -> dict[str, str]:
    """Return the header of requests that carry `key`, by default the environment's; none where there is no key.

    Raises ClientError when it cannot stand in a header. No message says the key.
    """
    if key is None:
        key, source = os.environ.get(API_KEY_VARIABLE, ""), f"the API key in ${API_KEY_VARIABLE}"
    else:
        source = "the API key"
    return {API_KEY_HEADER: _checked(key, source)} if key else {}


def _checked(key: str, source: str) -> str:
    if not 0 < len(key) <= _LONGEST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
        raise ClientError(f"{source} is not one word of up to {_LONGEST_KEY} ASCII characters")
    return key
