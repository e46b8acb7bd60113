"""Ours as it is served: the public model `caption` of a running server, over gRPC."""

from __future__ import annotations

from benchmarks.presets import BEAMS
from clients.client import Client


class TritonCaptioner:
    """A `Captioner` that asks a server; `url` is HOST:PORT of its gRPC port."""

    def __init__(self, url: str) -> None:
        self._client = Client(url, timeout=600.0)

    def caption(self, picture: bytes, tokens: int) -> list[int]:
        """See `Captioner.caption`."""
        best = self._client.caption(picture, num_beams=BEAMS, min_length=tokens, max_length=tokens)[0]
        return best.token_ids

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
