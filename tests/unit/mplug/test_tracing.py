"""Traces: where they are sent, and that nothing of OpenTelemetry is touched while they are off."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mplug.server.command import _parse
from mplug.tracing import NO_SPAN, NoTracer, TracingError, asked_endpoint, checked_endpoint


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318/"}, "http://a:4318/v1/traces"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b/x"},
            "http://b/x",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_opentelemetrys_variables_say_where_traces_go(environment: dict[str, str], endpoint: str | None) -> None:
    assert asked_endpoint(environment) == endpoint


def test_an_endpoint_is_completed_or_refused() -> None:
    assert checked_endpoint("http://127.0.0.1:4318") == "http://127.0.0.1:4318/v1/traces"
    assert checked_endpoint("https://collector/own/path") == "https://collector/own/path"
    for wrong in ("127.0.0.1:4318", "grpc://a:4317", "http://", "http://a:port"):
        with pytest.raises(TracingError, match=r"is no endpoint for traces; one is http://127\.0\.0\.1:4318/v1/traces"):
            checked_endpoint(wrong)


def test_without_opentelemetry_the_launcher_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mplug.tracing.find_spec", lambda name: None if name == "opentelemetry.sdk" else True)
    with pytest.raises(SystemExit):
        _parse(["build/demo", "--trace-endpoint", "http://127.0.0.1:4318"])
    said = capsys.readouterr().err
    assert "traces need opentelemetry.sdk: pip install 'mplug-triton[trace]'" in said


def test_what_is_off_imports_nothing_and_sends_nothing() -> None:
    code = (
        "import sys\nfrom mplug.tracing import open_tracer\n"
        "span = open_tracer().begin('caption', {'traceparent': '00-1-1-01'})\n"
        "with span.child('parse') as part: assert part.headers() == {}\n"
        "span.end()\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert NoTracer().begin("caption", {}) is NO_SPAN and NO_SPAN.trace_id is None
