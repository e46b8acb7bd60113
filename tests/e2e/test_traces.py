"""Traces of a real server: from the client through the public model to its stages; a collector here receives them."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from launcher import FREE_PORTS, Launched, launched
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import set_span_in_context, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from clients.client.connection import Connection, Endpoint
from clients.client.errors import ClientError
from clients.client.tracing import forwarding, trace_headers
from deploy.tracing.collector import Collector, Span, tree

KEY = "correct-horse-battery-staple"
PARENT = "b7ad6b7169203331"
SECONDS = 20.0  # for spans to arrive: they are sent twice a second


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def server(scratch_repository: Path, collector: Collector) -> Iterator[Launched]:
    with launched(scratch_repository, *FREE_PORTS, "--trace-endpoint", collector.url.removesuffix("/v1/traces")) as one:
        one.wait_ready()
        yield one


def ask(server: Launched, protocol: str, headers: dict[str, str], x: float = 1, steps: int = 1) -> float:
    url = server.grpc_url if protocol == "grpc" else server.http_url
    inputs = {"X": np.array([x], np.float32), "STEPS": np.array([steps], np.int32)}
    with forwarding(headers):
        return float(Connection(Endpoint(url, protocol, 30)).infer("relay", inputs, 30)["Y"][0])


def spans_of(collector: Collector, trace_id: str, count: int) -> list[Span]:
    deadline = time.monotonic() + SECONDS
    while len(found := [span for span in collector.spans if span.trace_id == trace_id]) < count:
        assert time.monotonic() < deadline, tree(found)
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_trace_goes_from_the_client_to_each_stage(server: Launched, collector: Collector, protocol: str) -> None:
    trace_id = {"grpc": "0af7651916cd43dd8448eb211c80319c", "http": "1af7651916cd43dd8448eb211c80319c"}[protocol]
    assert ask(server, protocol, {"traceparent": f"00-{trace_id}-{PARENT}-01"}, steps=2) == 3
    spans = spans_of(collector, trace_id, 6)
    by_id = {span.span_id: span for span in spans}
    (public,) = [span for span in spans if span.name == "relay"]
    assert public.parent_id == PARENT and public.resource["service.name"] == "mplug"
    calls = [span for span in spans if span.name == "call slow"]
    stages = [span for span in spans if span.name == "slow"]
    assert sorted(span.name for span in spans if span.parent_id == public.span_id) == ["call slow"] * 2 + ["parse"]
    assert {span.parent_id for span in stages} == {call.span_id for call in calls} and len(stages) == 2
    for stage in stages:  # a process of its own, and within its call
        call = by_id[stage.parent_id]
        assert stage.resource["process.pid"] != public.resource["process.pid"]
        assert stage.attributes == {"mplug.batch": 1}
        assert 0.2 <= stage.seconds <= call.seconds <= public.seconds
    assert not any(span.failed for span in spans)


def test_an_error_marks_its_trace_and_the_log_names_it(
    server: Launched, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And neither holds the API key that the request carried."""
    trace_id = "2af7651916cd43dd8448eb211c80319c"
    monkeypatch.setenv("MPLUG_API_KEY", KEY)
    with pytest.raises(ClientError, match="-1 is refused by the stage"):
        ask(server, "grpc", {"traceparent": f"00-{trace_id}-{PARENT}-01"}, x=-1)
    spans = {span.name: span for span in spans_of(collector, trace_id, 4)}
    for name in ("relay", "call slow"):
        assert spans[name].failed and spans[name].attributes["mplug.error_code"] == "INVALID_ARG"
    assert not spans["parse"].failed
    assert any("-1 is refused" in line and f"trace_id={trace_id}" in line for line in server.errors)
    assert KEY not in repr(collector.spans) + "".join(server.errors)


@pytest.mark.parametrize("header", ["00-short-1-01", "ff-" + "a" * 32 + "-" + "b" * 16 + "-01", "é" * 9, "0" * 5000])
def test_a_header_that_is_no_trace_begins_a_new_one(server: Launched, collector: Collector, header: str) -> None:
    before = len(collector.spans)
    assert ask(server, "http", {"traceparent": header.encode().decode("latin-1")}) == 2
    deadline = time.monotonic() + SECONDS
    while not (found := [span for span in collector.spans[before:] if span.name == "relay"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found[0].parent_id == ""


def test_the_clients_send_the_current_span(server: Launched, collector: Collector) -> None:
    assert trace_headers() is None
    span = TracerProvider().get_tracer("test").start_span("mine")
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    with use_span(span):
        assert trace_headers() == carrier
        ask(server, "grpc", {})
    trace_id = f"{span.get_span_context().trace_id:032x}"
    spans = spans_of(collector, trace_id, 4)
    assert f"{span.get_span_context().span_id:016x}" in {one.parent_id for one in spans if one.name == "relay"}
    with forwarding({"traceparent": "given", "host": "x"}):
        assert trace_headers() == {"traceparent": "given"}


def test_a_server_that_ends_sends_its_last_spans_first(server: Launched, collector: Collector) -> None:
    trace_id = "3af7651916cd43dd8448eb211c80319c"
    ask(server, "grpc", {"traceparent": f"00-{trace_id}-{PARENT}-01"})
    code, errors = server.end(signal.SIGTERM)
    assert code == 0 and "Traceback" not in errors, errors
    assert {"relay", "parse", "call slow", "slow"} == {one.name for one in collector.spans if one.trace_id == trace_id}


def test_a_collector_that_is_away_costs_no_answer(scratch_repository: Path, collector: Collector) -> None:
    with Collector() as gone:
        url = gone.url
    with launched(scratch_repository, *FREE_PORTS, "--trace-endpoint", url) as one:
        one.wait_ready()
        assert ask(one, "grpc", {}, steps=2) == 3
        code, errors = one.end(signal.SIGTERM)
    assert code == 0, errors
