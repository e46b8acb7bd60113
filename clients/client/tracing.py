"""The trace that a request belongs to, as the W3C headers that go with it.

A program that uses OpenTelemetry has a current span: it is sent along. A program that only passes requests on, such as
the OpenAI-compatible endpoint, hands over the headers that it got with `forwarding`. Others send nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

NAMES = ("traceparent", "tracestate")  # https://www.w3.org/TR/trace-context/
_forwarded: ContextVar[dict[str, str] | None] = ContextVar("forwarded", default=None)


@contextmanager
def forwarding(headers: Mapping[str, str]) -> Iterator[None]:
    """Send the trace headers among `headers` with every request within; names are given in lower case."""
    token = _forwarded.set({name: headers[name] for name in NAMES if name in headers})
    try:
        yield
    finally:
        _forwarded.reset(token)


def trace_headers() -> dict[str, str] | None:
    """Return the headers of a request that is made now; None where there are none."""
    found = dict(_forwarded.get() or {})
    if "opentelemetry.trace" in sys.modules:  # whoever has a span has imported it
        from opentelemetry import propagate

        propagate.inject(found)
    return found or None
