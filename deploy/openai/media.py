"""Pictures and videos in a request: data URIs, decoded here; what they hold is judged by the server."""

from __future__ import annotations

import base64
import binascii
import re

from deploy.openai.errors import ApiError

_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[\w.+-]+)*);base64,", re.ASCII)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def decoded(url: str, kind: str, place: str) -> bytes:
    """Return the bytes of a data URI. `kind`: `image` or `video`; `place`: where in the request it stands.

    Raises ApiError for an address, which is never fetched, and for what is no base64.
    """
    example = f"send its bytes as data:{kind}/{'jpeg' if kind == 'image' else 'mp4'};base64,…"
    found = _DATA_URI.match(url[:200])
    if found is None:
        scheme = _ADDRESS.match(url[:40])
        if scheme and scheme[0].lower() != "data:":
            what = f"{scheme[0]} addresses are not fetched"
        else:
            what = "not a data URI in base64"
        raise ApiError(400, f"{place}: {what}; {example}", param=place, code="invalid_image_url")
    # Lines of 76 characters, as the command base64 breaks them, are still base64.
    text = re.sub(r"\s+", "", url[found.end() :])
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        reason = str(error).partition(":")[0].lower()
        raise ApiError(
            400, f"{place}: broken base64 ({reason}); {example}", param=place, code="invalid_base64"
        ) from error
    if not data:
        raise ApiError(400, f"{place}: the data URI is empty; {example}", param=place, code="invalid_image_url")
    return data
