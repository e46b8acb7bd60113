"""A small collector of traces, to look at and for tests: OTLP over HTTP in, each trace printed as a tree.

    python deploy/tracing/collector.py [--port 4318]

Keeps nothing. Production wants a real one, such as Jaeger or the OpenTelemetry Collector (docs/deployment.md).
"""

from __future__ import annotations

import argparse
import gzip
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PATH = "/v1/traces"
MAX_BYTES = 16 << 20  # of one request
QUIET_SECONDS = 2.0  # a trace is printed when so long nothing has come for it


@dataclass(frozen=True)
class Span:
    """One span as it was received."""

    trace_id: str
    span_id: str
    parent_id: str  #: empty for the first of a trace
    name: str
    start: int  #: nanoseconds since 1970
    seconds: float
    failed: bool
    attributes: dict[str, str | int]
    resource: dict[str, str | int]  #: attributes of the process


class Collector:
    """Listens on HOST:PORT from a thread; as a context manager it stops. Port 0 is any free one."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.spans: list[Span] = []
        self.last = time.monotonic()  # when spans last came
        self._server = ThreadingHTTPServer((host, port), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, name="collector", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The endpoint, for `--trace-endpoint`."""
        host, port = self._server.server_address[:2]
        return f"http://{host}:{port}{PATH}"

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, spans: Iterable[Span]) -> None:
        """Add spans; any thread may."""
        self.spans += spans
        self.last = time.monotonic()


def tree(spans: Iterable[Span]) -> str:
    """Return the spans of one trace as indented lines with their milliseconds, in the order in which they began."""
    spans = sorted(spans, key=lambda span: span.start)
    known = {span.span_id for span in spans}
    children: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        children[span.parent_id if span.parent_id in known else ""].append(span)

    def lines(parent: str, depth: int) -> Iterator[str]:
        for span in children[parent]:
            details = [f"{name.removeprefix('mplug.')} {value}" for name, value in span.attributes.items()]
            details = [*details, *(["failed"] if span.failed else [])]
            label = "  " * depth + span.name
            yield f"{label:32} {span.seconds * 1e3:9.1f} ms  {', '.join(details)}".rstrip()
            yield from lines(span.span_id, depth + 1)

    return "\n".join(lines("", 0))


def _read(body: bytes) -> Iterator[Span]:
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _values(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield Span(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    name=span.name,
                    start=span.start_time_unix_nano,
                    seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    attributes=_values(span.attributes),
                    resource=resource,
                )


def _values(attributes: Iterable) -> dict[str, str | int]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            if self.path != PATH or not 0 < size <= MAX_BYTES:
                self._answer(404 if self.path != PATH else 413)
                return
            body = self.rfile.read(size)
            try:
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(list(_read(body)))
            except Exception as error:
                print(f"error: not OTLP: {error}", file=sys.stderr, flush=True)
                self._answer(400)
                return
            self._answer(200)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Spans come twice a second; that is not logged."""

    return Handler


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Print traces that come over OTLP/HTTP, each as a tree.")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=4318, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        collector = Collector(arguments.host, arguments.port)
    except OSError as error:
        print(f"error: port {arguments.port} on {arguments.host}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"ready: {collector.url}", flush=True)
    with collector:
        try:
            while True:
                time.sleep(0.2)
                if collector.spans and time.monotonic() - collector.last > QUIET_SECONDS:
                    spans, collector.spans = collector.spans, []
                    for trace_id in dict.fromkeys(span.trace_id for span in spans):
                        print(f"\n{trace_id}\n{tree(span for span in spans if span.trace_id == trace_id)}", flush=True)
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())
