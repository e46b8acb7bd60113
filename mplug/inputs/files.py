"""A whole file out of what was sent: bytes, or a data URI of them."""

from __future__ import annotations

import base64
import binascii

from mplug.errors import InvalidRequest

_DATA_URI = b"data:"


def file_bytes(data: bytes, most: int, name: str) -> bytes:
    """A whole file from what was sent: its bytes, or a data URI of them (RFC 2397, base64).

    JSON carries text alone, so `data:image/png;base64,…` is how a picture travels in it. `most` bytes are
    taken, `name` is the input's name for messages. Raises `InvalidRequest`, for a long text before it is decoded.
    """
    if data.startswith(_DATA_URI):
        header, _, text = data.partition(b",")
        if not header.endswith(b";base64"):
            raise InvalidRequest(f"{name} is a data URI without base64 in it: send data:image/png;base64,…")
        if len(text) // 4 * 3 > most + 2:  # 2: what its padding may stand for
            raise InvalidRequest(f"{name} has {len(text) // 4 * 3:,} bytes, at most {most:,} are taken")
        try:
            data = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise InvalidRequest(f"{name} is a data URI whose base64 is damaged ({error})") from error
    if len(data) > most:
        raise InvalidRequest(f"{name} has {len(data):,} bytes, at most {most:,} are taken: send a smaller file")
    return data
