"""Traces of requests: OpenTelemetry spans of a public model and of its stages, sent to a collector over OTLP.

Off unless `ENDPOINT_VARIABLE` is set, which the launcher does for `--trace-endpoint`; nothing of OpenTelemetry is
imported then. A request continues its client's trace where it carries a W3C `traceparent` header; a stage gets the
header from the public model that calls it. What else there is to set are OpenTelemetry's own variables, such as
OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME and OTEL_EXPORTER_OTLP_HEADERS.
"""

from __future__ import annotations

import os
import socket
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mplug.errors import ServingError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

ENDPOINT_VARIABLE = "MPLUG_TRACE_ENDPOINT"  # in the environment of the served models
SERVICE_NAME = "mplug"
TRACES_PATH = "/v1/traces"  # of OTLP over HTTP
HEADERS = ("traceparent", "tracestate")  # https://www.w3.org/TR/trace-context/
SEND_MILLISECONDS = "500"  # between batches of spans, for OpenTelemetry's OTEL_BSP_SCHEDULE_DELAY
ATTRIBUTE = "mplug."  # before the names of attributes of ours


class TracingError(ValueError):
    """Traces cannot be sent as asked; the message says why."""


class NoSpan:
    """The span of a request that is not traced: does nothing."""

    trace_id: str | None = None

    def child(self, name: str) -> AbstractContextManager[NoSpan]:
        """Return a context for a part of the request."""
        return nullcontext(self)

    def headers(self) -> dict[str, str]:
        """Return what a request carries so that its spans become children of this one."""
        return {}

    def fail(self, error: BaseException) -> None:
        """Note the error that the request is answered with."""

    def end(self) -> None:
        """Take the time; the span is sent in the background."""


class RequestSpan(NoSpan):
    """A span of OpenTelemetry, from now to `end`."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer, self._span = tracer, span

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, as collectors and logs write it."""
        return f"{self._span.get_span_context().trace_id:032x}"

    @contextmanager
    def child(self, name: str) -> Iterator[RequestSpan]:
        """Measure a part of the request. An exception marks it as failed and is raised again."""
        from opentelemetry.trace import set_span_in_context

        span = RequestSpan(self._tracer, self._tracer.start_span(name, set_span_in_context(self._span)))
        try:
            yield span
        except BaseException as error:
            span.fail(error)
            raise
        finally:
            span.end()

    def headers(self) -> dict[str, str]:
        """Return `traceparent` and, where the client sent one, `tracestate`."""
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(self._span))
        return carrier

    def fail(self, error: BaseException) -> None:
        """Set the span's status, and the code by which the request is answered."""
        from opentelemetry.trace import StatusCode

        code = error.code if isinstance(error, ServingError) else "INTERNAL"
        self._span.set_attribute(f"{ATTRIBUTE}error_code", code)
        self._span.set_status(StatusCode.ERROR, str(error))

    def end(self) -> None:
        """Take the time; a second call is ignored."""
        self._span.end()


NO_SPAN = NoSpan()


class NoTracer:
    """Makes no spans."""

    enabled = False

    def begin(self, name: str, headers: Mapping[str, object], **attributes: int | str) -> NoSpan:
        """Return the span of a request to the model `name`, which came with these headers."""
        return NO_SPAN


class RequestTracer(NoTracer):
    """Makes spans and sends them to an OTLP endpoint, from a thread of this process."""

    enabled = True

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        os.environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", SEND_MILLISECONDS)
        os.environ.setdefault("OTEL_SERVICE_NAME", SERVICE_NAME)
        resource = Resource.create({"host.name": socket.gethostname(), "process.pid": os.getpid()})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("mplug")

    def begin(self, name: str, headers: Mapping[str, object], **attributes: int | str) -> RequestSpan:
        """Begin the span of a request; without a valid `traceparent` it is the first of a new trace."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {key.lower(): str(value) for key, value in headers.items() if key.lower() in HEADERS}
        parent = TraceContextTextMapPropagator().extract(carrier, Context())
        described = {f"{ATTRIBUTE}{key}": value for key, value in attributes.items()}
        return RequestSpan(self._tracer, self._tracer.start_span(name, parent, SpanKind.SERVER, described))


def open_tracer() -> NoTracer:
    """Return the tracer that the environment asks for; one that does nothing where it asks for none."""
    endpoint = os.environ.get(ENDPOINT_VARIABLE)
    return RequestTracer(endpoint) if endpoint else NoTracer()


def asked_endpoint(environment: Mapping[str, str]) -> str | None:
    """Return the endpoint that OpenTelemetry's variables name, for a command without `--trace-endpoint`."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    general = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or (
        general.rstrip("/") + TRACES_PATH if general else None
    )


def checked_endpoint(url: str) -> str:
    """Return an endpoint with its path, `TRACES_PATH` where it has none.

    Raises TracingError for what is no HTTP URL, and where OpenTelemetry is not installed.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        known = False
    if not known:
        raise TracingError(
            f"{url!r} is no endpoint for traces; one is http://127.0.0.1:4318{TRACES_PATH} (OTLP over HTTP)"
        )
    for name in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.exporter.otlp"):
        if find_spec(name) is None:
            raise TracingError(f"traces need {name}: pip install 'mplug-triton[trace]'")
    return url if parts.path.strip("/") else parts._replace(path=TRACES_PATH).geturl()
