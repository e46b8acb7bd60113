"""The soak of hostile requests and the faults: what is counted as a failure, and how the page is rewritten."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.page import write_section
from benchmarks.parts import faults, hostile_soak


def soak(**changes: object) -> dict[str, dict[str, object]]:
    result = {"outcomes": {"torn picture": {"refused": 3}}, "fault": None, "growth": 0.01, "seconds": 2.0}
    return {"gateway": result | changes, "bare server": result}


def test_what_is_not_as_it_should_be() -> None:
    assert hostile_soak.failures(soak()) == []
    assert hostile_soak.failures(soak(growth=0.2)) == ["gateway: memory grew by 20.0% in the second half"]
    assert hostile_soak.failures(soak(fault="it died")) == ["gateway: it died"]
    found = hostile_soak.failures(soak(outcomes={"torn picture": {"refused": 2, "lost": 1}}))
    assert found == ["gateway, torn picture: 1 x lost"]


def test_the_soak_sends_what_ends_a_server_to_the_gateway_alone() -> None:
    ends = {kind.name for kind in hostile_soak.kinds([bytes(100)]) if kind.ends}
    assert {"million brackets", "gzip of 100 MB"} <= ends
    assert "not sent: ends it" in hostile_soak.table(
        {
            "gateway": soak()["gateway"] | {"outcomes": {"million brackets": {"refused": 1}}},
            "bare server": soak()["gateway"],
        }
    )


def test_a_row_of_the_table_of_faults() -> None:
    counts = {"sent": 9, "right": 6, "errors": Counter(reset=2), "wrong": 1, "lost": 0, "slowest": 1.25}
    lines = faults.table([{"fault": "SIGKILL, launcher", "grpc": counts, "http": counts}]).splitlines()
    assert lines[2] == "| SIGKILL, launcher | gRPC | 9 | 6 | 3 | 0 | 1.2 s |"
    assert len({fault.name for fault in faults.faults()}) == len(faults.faults()) >= 16


def test_a_section_of_a_page_is_rewritten(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- soak -->\nold\n<!-- /soak -->\nafter\n")
    write_section(page, "soak", "new")
    assert page.read_text() == "before\n<!-- soak -->\n\nnew\n\n<!-- /soak -->\nafter\n"
    with pytest.raises(ValueError, match="has no section between <!-- faults -->"):
        write_section(page, "faults", "new")
