"""The pure parts of the benchmarks: figures, windows, goals, tables, requests. No server, no baseline."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random

import numpy as np
import pytest

from benchmarks import report
from benchmarks.measure import floors, machine
from benchmarks.measure.figures import (
    Answered,
    goal,
    goal_in_words,
    growth,
    in_window,
    load_figures,
    median_interval,
    paired,
    percentile,
    summary,
)
from benchmarks.measure.load import Load, run_load
from benchmarks.measure.machine import Limits
from benchmarks.measure.mixed_requests import BAD, KINDS, OK, draw, good_options
from benchmarks.measure.pictures import Pictures, picture
from benchmarks.measure.server_metrics import Metrics, mean_batch
from benchmarks.parts import decode_steps, one_caption, soak, tasks, throughput
from benchmarks.parts.part import PARTS, add_common, precision_of
from benchmarks.presets import PRESETS
from benchmarks.run import run_limited
from benchmarks.workspace import ROOT, Workspace, with_parameter
from mplug.inputs.images import decode_image

METRICS = """
# HELP mplug_decode_steps_total Steps
mplug_decode_steps_total{model="text_decoder"} 10
mplug_decode_sequence_steps_total{model="text_decoder"} 40
# HELP nv_cache_num_hits_per_model Number of cache hits per model
# TYPE nv_cache_num_hits_per_model counter
nv_cache_num_hits_per_model{model="vision_encoder",version="1"} 7
nv_cache_num_hits_per_model{model="text_encoder",version="1"} 2
nv_energy_consumption 1.5e+03
"""
MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "A CPU",
    "cores": 2,
    "memory_gib": 23.5,
    "python": "3.11.7",
    "cpu_features": ["avx2"],
    "versions": {"openvino": "1", "torch": "2"},
}
LIMITS = Limits(20e9, 10e9, 15e9, 200e9, 1e12, 2e12)
HEAD = {
    "machine": MACHINE,
    "precision": "bf16",
    "preset": "base",
    "seconds": 12.0,
    "settings": json.loads(json.dumps(PRESETS["base"].settings())),
}


def answers(*times: float, sent: float = 0.0, tokens: int = 10) -> list[Answered]:
    return [Answered(sent, time, tokens) for time in times]


@pytest.mark.parametrize("percent", [0, 5, 50, 90, 95, 99, 100])
def test_percentile_is_numpys(percent: float) -> None:
    values = np.random.default_rng(0).random(37)
    assert percentile(values.tolist(), percent) == pytest.approx(np.percentile(values, percent))


def test_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_summary() -> None:
    found = summary([3.0, 1.0, 2.0])
    assert (found["count"], found["median"], found["best"], found["worst"]) == (3, 2.0, 1.0, 3.0)


def test_window_holds_whole_batches() -> None:
    # Batches of eight at 5, 15, 25 and 35 s: 0.8 captions a second, wherever between two the window opens.
    times = [start + 0.01 * place for start in (5, 15, 25, 35) for place in range(8)]
    for opened in (6.0, 9.0, 14.9):
        assert load_figures(answers(*times), opened)["captions_per_second"] == pytest.approx(0.8, rel=0.01)


def test_window_of_a_steady_stream() -> None:
    times = [index / 8 for index in range(400)]  # eight a second
    counted, seconds = in_window(answers(*times), 10.0)
    assert len(counted) / seconds == pytest.approx(8.0, rel=0.01)
    assert min(answer.answered for answer in counted) > 10.0


def test_window_without_answers() -> None:
    assert in_window(answers(1.0, 2.0), 5.0) == ([], 0.0)
    with pytest.raises(ValueError, match="2 were in all"):
        load_figures(answers(1.0, 2.0), 5.0)


def test_growth() -> None:
    assert growth([1, 5, 10, 10, 10, 10, 10, 10], 0.25) == 0.0
    assert growth([1, 1, 100, 100, 100, 110, 110, 110], 0.25) == pytest.approx(0.1)
    assert growth([1.0], 0.5) == 0.0


def test_closed_loop_keeps_its_clients_busy_and_mixes_lengths() -> None:
    in_flight, most, asked = 0, 0, []

    async def ask(image: bytes, tokens: int) -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        asked.append(tokens)
        await asyncio.sleep(0.01)
        in_flight -= 1

    load = Load(clients=3, lengths=(8, 9, 10), warm=0.05, window=0.2, least=5, longest=5.0)
    opened = []
    result = asyncio.run(run_load(load, ask, Pictures(2), on_open=lambda: opened.append(len(asked))))
    assert most == 3 and set(asked) == {8, 9, 10} and opened[0] > 0
    assert len(in_window(result.answers, result.opened)[0]) >= 5


def test_closed_loop_raises_what_a_request_raises() -> None:
    async def ask(image: bytes, tokens: int) -> None:
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        asyncio.run(run_load(Load(2, (8,), warm=5.0, window=5.0), ask, Pictures(1)))


def test_pictures_differ_and_decode() -> None:
    pictures = Pictures(3)
    first = [pictures.next() for _ in range(4)]
    assert len(set(first)) == 3 and first[3] == first[0]
    assert decode_image(picture(5)).size == (480, 360)


def test_metrics() -> None:
    metrics = Metrics.parse(METRICS)
    assert metrics.total("nv_cache_num_hits_per_model") == 9
    assert metrics.total("nv_cache_num_hits_per_model", model="vision_encoder") == 7
    assert metrics.total("nv_energy_consumption") == 1500 and metrics.total("absent") == 0
    nothing = Metrics(())
    assert mean_batch(nothing, metrics) == 4.0 and mean_batch(metrics, metrics) is None


def test_one_slot_is_one_changed_parameter() -> None:
    config = (ROOT / "model_repository" / "text_decoder" / "config.pbtxt").read_text()
    changed = with_parameter(config, "max_slots", "1")
    different = [pair for pair in zip(config.splitlines(), changed.splitlines(), strict=True) if pair[0] != pair[1]]
    assert len(different) == 1 and '"max_slots"' in different[0][1] and 'string_value: "1"' in different[0][1]
    with pytest.raises(ValueError, match="no_such"):
        with_parameter(config, "no_such", "1")


def test_requests_of_all_kinds_again_from_their_seed() -> None:
    requests = draw(400, 1, [picture(0)])
    assert {request.kind for request in requests} == set(KINDS)
    again = draw(400, 1, [picture(0)])
    assert [(one.kind, one.protocol, one.after) for one in requests] == [(o.kind, o.protocol, o.after) for o in again]
    assert all(request.protocol == "grpc" for request in requests if request.kind in ("cancelled", "impatient"))
    assert {name for name, _ in (bad(picture(0)) for bad in BAD)} >= {"IMAGE", "NUM_BEAMS", "MAX_LENGTH", "PROMPT"}


def test_good_options_are_good() -> None:
    chance = random.Random(0)
    for _ in range(200):
        options = good_options(chance)
        assert 0 <= options["min_length"] <= options["max_length"]
        assert 1 <= options.get("num_return", 1) <= options["num_beams"]


def test_outcomes_that_are_wrong_are_told() -> None:
    requests = draw(100, 2, [picture(0)])
    good = next(request for request in requests if request.kind == "good")
    bad = next(request for request in requests if request.kind == "bad")
    fine = [{"status": OK, "message": ""}, {"status": "INVALID_ARGUMENT", "message": f"{bad.names}: is wrong"}]
    assert soak.wrong_outcomes([good, bad], fine) == []
    silent = soak.wrong_outcomes([bad], [{"status": "INVALID_ARGUMENT", "message": "something is wrong"}])
    lost = soak.wrong_outcomes([good, bad], [{"status": "LOST"}, {"status": OK, "message": ""}])
    assert len(silent) == 1 and bad.names in silent[0]
    assert len(lost) == 2 and "LOST" in lost[0]


def caption_document() -> dict:
    taken = {
        "triton": [0.4, 0.41, 0.42],
        "in_process": [0.4, 0.4, 0.4],
        "triton_int8": [0.3, 0.3, 0.3],
        "blip": [1.28, 1.3, 1.1],
        "uncached": [13.0],
    }
    alone = {"triton": [0.4, 0.41, 0.44, 0.408], "in_process": [0.4, 0.4, 0.4, 0.4]}
    preset = PRESETS["base"]
    found = one_caption.outcome(taken, alone, preset.sizes, "bf16", LIMITS, {"blip": "bf16", "uncached": ""})
    return HEAD | {"part": "one_caption"} | found


def throughput_document() -> dict:
    def at(clients: int, rate: float, latency: float, batch: float | None = None) -> dict:
        figures = {
            "clients": clients,
            "captions": 9,
            "captions_per_second": rate,
            "tokens_per_second": rate * 14,
            "latency_p50": latency,
            "latency_p95": latency * 1.5,
        }
        return figures if batch is None else figures | {"mean_decode_batch": batch}

    series = {
        "ours": [at(1, 2.0, 0.5, 1.0), at(16, 5.0, 3.0, 9.0)],
        "ours_one_slot": [],
        "ours_int8": [at(1, 3.0, 0.3, 1.0), at(16, 2.0, 8.0, 9.0)],
        "ours_repeated_pictures": [at(32, 7.0, 4.0, 25.0)],
        "litserve_blip": [at(1, 1.25, 1.0), at(16, 0.5, 20.0)],
    }
    errors = ["LitServe, 32 clients: out of time"]
    return HEAD | {"part": "throughput"} | throughput.outcome(series, errors, PRESETS["base"], "bf16", LIMITS)


def steps_document() -> dict:
    preset = PRESETS["base"]
    captions = [{"parse": 0.004, "vision_encoder": 0.16, "prefill": 0.02, "step": 0.25, "rest": 0.01, "whole": 0.444}]
    steps = [{"batch": 1, "position": 3, **summary([0.0126])}, {"batch": 16, "position": 20, **summary([0.096])}]
    return HEAD | {"part": "decode_steps"} | decode_steps.outcome(preset, "bf16", LIMITS, captions, steps)


def soak_document() -> dict:
    requests = draw(50, 3, [picture(0)])
    outcomes = [{"status": request.expected[0], "message": request.names, "seconds": 0.1} for request in requests]
    samples = [
        {
            "second": float(second),
            "resident_mib": 100.0,
            "processes": {"text_decoder 7": 100.0},
            "decode_batch": 3.0,
            "waiting": 0.0,
            "in_flight": 4.0,
        }
        for second in range(8)
    ]
    after = Metrics.parse(METRICS + 'nv_inference_request_success{model="caption"} 50\n')
    found = soak.outcome(requests, outcomes, samples, Metrics(()), after, 5.0)
    return HEAD | {"part": "soak", "repository": "demo"} | found


def tasks_document() -> dict:
    taken = {name: {"ours": [0.2, 0.21, 0.2], "pytorch": [0.8, 0.9, 0.7]} for name in tasks.REQUESTS}
    further = {
        "first": [0.3, 0.3],
        "further": [0.1, 0.1],
        "runs": {"vision_encoder": 0, "text_encoder": 2, "fusion_encoder": 2},
    }
    batched = {"vision_encoder": 1.0, "text_encoder": 1.0, "fusion_encoder": 1.0, "seconds": 0.3}
    return HEAD | {"part": "tasks"} | tasks.outcome(taken, further, batched, 2.0)


def documents() -> dict[str, dict]:
    return {
        "one_caption": caption_document(),
        "decode_steps": steps_document(),
        "throughput": throughput_document(),
        "soak": soak_document(),
        "tasks": tasks_document(),
    }


def goal_of(document: dict, name: str) -> dict:
    return next(goal for goal in document["goals"] if goal["goal"] == name)


def goals_of(document: dict) -> dict[str, tuple[float, bool]]:
    return {goal["goal"]: (goal["measured"], goal["reached"]) for goal in document["goals"]}


def test_median_lies_in_its_interval() -> None:
    assert median_interval([5.0]) == (5.0, 5.0) and median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    # Tables of the sign test at 95 %: of 12 the third and tenth, of 24 the seventh and eighteenth.
    for count, ranks in ((8, (1, 8)), (9, (2, 8)), (12, (3, 10)), (24, (7, 18)), (30, (10, 21))):
        assert median_interval(range(1, count + 1)) == ranks


def test_median_interval_holds_the_median_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).exponential(size=(2000, 12))  # the median is ln 2
    held = [low <= np.log(2) <= high for low, high in map(median_interval, draws.tolist())]
    assert 0.95 <= np.mean(held) <= 0.98


def test_ratios_are_taken_within_a_round() -> None:
    found = paired([1.0, 2.0, 10.0], [2.0, 6.0, 40.0])
    assert found == {"median": 3.0, "interval": [2.0, 4.0], "rounds": 3}
    assert paired([1.0, 1.0, 1.0], [32.0])["rounds"] == 1


def test_goals_of_one_caption() -> None:
    document = caption_document()
    found = goals_of(document)
    assert found["one caption, times faster than BLIP"] == (pytest.approx(1.3 / 0.41, rel=1e-3), True)
    assert found["one caption in int8, times faster than BLIP"] == (pytest.approx(1.28 / 0.3, rel=1e-3), True)
    assert found["one caption in int8, times faster than without a cache"] == (pytest.approx(13 / 0.3, rel=1e-3), True)
    assert found["overhead of Triton and BLS, percent"] == (pytest.approx(2.5), True)
    assert goal_of(document, "overhead of Triton and BLS, percent")["interval"] == pytest.approx([0.0, 10.0])
    bounded = goal_of(document, "one caption in int8, times faster than BLIP")
    floor = floors.caption_seconds(PRESETS["base"].sizes, "int8", LIMITS, beams=5, tokens=20)
    assert bounded["allows"] == pytest.approx(1.28 / floor, rel=1e-3) and f"{1000 * floor:.0f} ms" in bounded["floor"]
    assert document["results"]["contenders"]["blip"]["title"] == "BLIP, transformers, bf16"


def test_goal_of_a_step() -> None:
    document = steps_document()
    (found,) = document["goals"]
    read = document["results"]["steps"][0]["megabytes"] * 1e6 / LIMITS.read_bandwidth
    assert found["measured"] == pytest.approx(0.0126 / read, abs=0.01) and found["reached"]


def test_goals_in_words() -> None:
    found = goal("speed", "at least 3", 2.5, False, interval=(2.4, 2.61), floor="the floor of 9 ms", allows=2.75)
    told = "speed: 2.5 (2.4 to 2.61), at least 3: missed; the floor of 9 ms allows 2.75"
    assert goal_in_words(found) == told
    assert goal_in_words(goal("errors", "0", 0, True)) == "errors: 0, 0: reached"
    assert f"Missed here:\n\n- {told}." in report.goals_table([{"goals": [found]}])


def test_emulated_instruction_sets_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert machine.describe()["emulated"] == ""
    for name, value in machine.AVX2_ALONE.items():
        monkeypatch.setenv(name, value)
    assert machine.describe()["emulated"] == "AVX2" and machine.environment().items() >= machine.AVX2_ALONE.items()
    document = caption_document()
    assert "products limited to AVX2" in report.provenance(document | {"machine": MACHINE | {"emulated": "AVX2"}})


def test_runs_as_avx2_are_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    add_common(parser)
    for name in machine.AVX2_ALONE:
        monkeypatch.setenv(name, "")  # restored afterwards, for precision_of sets it
    assert precision_of(parser.parse_args([])) == "auto" and not machine.limited_to_avx2()
    assert precision_of(parser.parse_args(["--as-avx2"])) == "fp32" and machine.limited_to_avx2()
    assert precision_of(parser.parse_args(["--as-avx2", "--precision", "int8"])) == "int8"


def test_series_that_are_not_measured_again_are_kept(tmp_path) -> None:
    path = tmp_path / "throughput.json"
    assert throughput._earlier(path) == {"series": {name: [] for name in throughput.TITLES}}
    path.write_text(json.dumps(throughput_document()))
    assert throughput._earlier(path)["series"]["ours"] == throughput_document()["results"]["series"]["ours"]
    workspace = Workspace(tmp_path, PRESETS["quick"], series=("no_such",))
    with pytest.raises(ValueError, match="no series no_such; there are ours, "):
        throughput.measure(workspace)


def test_goals_of_the_tasks() -> None:
    found = goals_of(tasks_document())
    assert found["every task, times faster than PyTorch"] == (4.0, True)
    assert found["runs of the vision encoder for further questions"] == (0, True)
    assert found["a further question, share of the first one's time"] == (pytest.approx(1 / 3, abs=1e-3), True)
    assert found["runs of the fusion encoder for 16 texts"] == (1, True)
    assert tasks_document()["results"]["match"]["times_faster"] == 10.0


def test_goals_of_throughput() -> None:
    found = goals_of(throughput_document())
    assert found["captions/s at 16 clients, times LitServe's"] == (10.0, True)
    assert found["captions/s at 16 clients, times LitServe's best"] == (4.0, True)
    assert found["captions/s in int8 at 16 clients, times LitServe's"] == (4.0, False)
    assert found["captions/s in int8 at 16 clients, times LitServe's best"] == (1.6, False)
    assert found["our p95 latency at 16 clients over LitServe's median"] == (0.225, True)
    assert found["mean decode batch with 32 requests in flight"] == (25.0, True)
    none = {name: [] for name in throughput.TITLES}
    assert throughput.outcome(none, [], PRESETS["base"], "bf16", LIMITS)["goals"] == []
    bounded = goal_of(throughput_document(), "captions/s at 16 clients, times LitServe's")
    most = floors.captions_per_second(PRESETS["base"].sizes, "bf16", LIMITS, beams=5, tokens=14, sequences=16)
    assert bounded["allows"] == pytest.approx(most / 0.5, rel=1e-3)


def test_goals_of_the_soak_are_its_checks() -> None:
    document = soak_document()
    assert all(goal["reached"] for goal in document["goals"]), document["goals"]
    assert json.loads(json.dumps(document)) == document


def test_stages_stand_beside_their_floors() -> None:
    results = steps_document()["results"]
    assert results["stages"]["step"]["bound_by"] == "memory" and results["stages"]["vision_encoder"]["floor"] > 0
    assert "floor" not in results["stages"]["parse"]
    assert results["stages"]["whole"]["floor"] == pytest.approx(
        sum(results["stages"][name]["floor"] for name in ("vision_encoder", "prefill", "step")), rel=1e-3
    )
    assert results["steps"][1]["per_sequence"] == pytest.approx(0.006)


def test_page_is_filled_and_its_text_kept() -> None:
    page = report.PAGE.read_text()
    filled = report.fill(page, documents())
    assert "Not measured yet" not in filled
    for text in (
        "| one caption, times faster than BLIP | at least 3 | 3.171 (2.62 to 3.2) | ",
        "A CPU (avx2), 2 cores",
        "Failed: LitServe, 32 clients: out of time",
        "| 16 | 20 | 96.0 ms | 6.00 ms |",
        "## Run them again",
    ):
        assert text in filled
    assert report.fill(filled, documents()) == filled
    assert report.fill(filled, {}) == filled


def test_page_has_a_place_for_every_part() -> None:
    page = report.PAGE.read_text()
    for name in ("goals", *PARTS):
        assert f"<!-- generated: {name} -->" in page
        assert name == "goals" or f"results/{name}.png" in page
    with pytest.raises(ValueError, match="nonsense"):
        report.fill("<!-- generated: nonsense -->\n<!-- end -->", {})


def test_plots_are_drawn(tmp_path) -> None:
    plots = pytest.importorskip("benchmarks.plots")
    for name, document in documents().items():
        plots.draw(document, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_part_that_takes_too_long_is_ended() -> None:
    assert run_limited(["sleep", "60"], 0.2) == "took longer than 0.2 s; give it more time with --limit SECONDS"
    assert run_limited(["false"], 5) == "exit code 1"
    assert run_limited(["true"], 5) == ""


def test_seconds_have_three_digits() -> None:
    shown = {0.0004: "0.40 ms", 0.0126: "12.6 ms", 0.164: "164 ms", 2.5: "2.50 s"}
    assert {seconds: report._seconds(seconds) for seconds in shown} == shown


def test_lengths_in_turn_meet_every_length() -> None:
    from benchmarks.measure.load import _in_turn

    for lengths in (tuple(range(8, 21)), (1,), (1, 2, 3, 4, 5)):
        assert set(itertools.islice(_in_turn(lengths), len(lengths))) == set(lengths)
