"""Caption a picture and see where the time went: one trace from this program to each stage of the server and back.

pip install -r deploy/tracing/requirements.txt
python -m mplug.server build/demo --trace-endpoint http://127.0.0.1:4318          # in one terminal
python examples/traced_caption.py PICTURE [--url localhost:8001]                  # in another

The collector is in this program; with one of your own, leave `Collector` away and give its URL to both.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from clients.client import Client
from deploy.tracing.collector import Collector, tree

WAIT_SECONDS = 10.0  # for the server's spans, which it sends twice a second


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--url", default="localhost:8001", help="the server's gRPC port (default: %(default)s)")
    parser.add_argument("--port", type=int, default=4318, help="of the collector (default: %(default)s)")
    options = parser.parse_args()

    with Collector(port=options.port) as collector:
        provider = TracerProvider(resource=Resource.create({"service.name": "traced_caption"}))
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=collector.url)))
        trace.set_tracer_provider(provider)
        # The client sends the current span along; the server's become its children.
        with trace.get_tracer("example").start_as_current_span("traced_caption") as span, Client(options.url) as client:
            captions = client.caption(options.picture)
        print(captions[0].text)
        trace_id = f"{span.get_span_context().trace_id:032x}"
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            spans = [one for one in collector.spans if one.trace_id == trace_id]
            if {"caption", "text_decoder"} <= {one.name for one in spans}:
                print(tree(spans))
                return 0
            time.sleep(0.1)
    print("error: no spans came from the server; is it started with --trace-endpoint?", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
