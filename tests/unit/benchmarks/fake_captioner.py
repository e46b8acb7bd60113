"""A contender for `CaptionerProcess`: answers at once, slowly, or not at all, by what picture it is given."""

from __future__ import annotations

import time


class FakeCaptioner:
    def caption(self, picture: bytes, tokens: int) -> list[int]:
        if picture == b"broken":
            raise ValueError("no such picture")
        if picture == b"slow":
            time.sleep(1.0)
        return [101, *range(tokens)]


def open_captioner(workspace: object) -> FakeCaptioner:
    if workspace is None:
        raise RuntimeError("no workspace")
    return FakeCaptioner()
