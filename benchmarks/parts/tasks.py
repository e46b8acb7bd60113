"""Every task but captioning: ours through Triton beside the same network in PyTorch, and what the cache spares.

    python -m benchmarks.parts.tasks [--preset base|quick] [--result FILE]

In each round every task is asked once of either, by turns first, about a picture and in words that come once;
PyTorch runs in a process of its own. Then a further question is put about each picture, and the server's counters
say which stages ran for it, and how often the fusion encoder ran for all texts of a `match`.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Any

import numpy as np

from benchmarks.measure.figures import goal, summary
from benchmarks.measure.pictures import Pictures
from benchmarks.measure.server_metrics import Metrics
from benchmarks.parts import part
from benchmarks.presets import BEAMS
from benchmarks.workspace import Workspace, say
from clients.client import Client
from mplug.server.command import TritonServer

#: What the measured checkpoint is for.
TASKS = ("visual-question-answering", "image-text-retrieval", "visual-grounding", "nlvr2", "visual-entailment")
#: Tokens of an answer: all answers are as long, so that everyone does the same work.
ANSWER_TOKENS = 4
TEXTS = [f"word{first} word{second} word{first + second}" for first in range(4) for second in range(4)]
QUESTION, FURTHER = "word1 word2 word3", "word4 word5 word6"
WARM_ROUNDS = 2
#: Least cosine of the embeddings of either: ours may be half precision.
ALIKE = 0.98


@dataclass(frozen=True)
class Request:
    """One task: what is sent besides the pictures, and how ours is asked."""

    title: str
    texts: list[str]
    ask: Callable[[Client, list[bytes], list[str]], Any]
    pictures: int = 1


def _question(client: Client, pictures: list[bytes], texts: list[str]) -> Any:
    return client.vqa(pictures[0], texts[0], num_beams=BEAMS, min_length=ANSWER_TOKENS, max_length=ANSWER_TOKENS)


REQUESTS = {
    "embed_image": Request("embed a picture", [], lambda client, pictures, _: client.embed_image(pictures[0])),
    "embed_text": Request("embed a text", TEXTS[:1], lambda client, _, texts: client.embed_text(texts[0])),
    "match": Request(
        f"match {len(TEXTS)} texts", TEXTS, lambda client, pictures, texts: client.match(pictures[0], texts)
    ),
    "vqa": Request(f"a question, an answer of {ANSWER_TOKENS} tokens", [QUESTION], _question),
    "ground": Request("find a box", [QUESTION], lambda client, pictures, texts: client.ground(pictures[0], texts[0])),
    "nlvr": Request(
        "judge two pictures",
        [QUESTION],
        lambda client, pictures, texts: client.nlvr((pictures[0], pictures[1]), texts[0]),
        pictures=2,
    ),
    "entail": Request(
        "judge a picture", [QUESTION], lambda client, pictures, texts: client.entail(pictures[0], texts[0])
    ),
}
_turn = itertools.count()
FURTHER_TITLE = "a further question about the same picture"
STAGES = ("vision_encoder", "text_encoder", "fusion_encoder")


def of_all_tasks(workspace: Workspace) -> Workspace:
    """Return the workspace whose checkpoint serves what is measured here."""
    return replace(workspace, tasks=TASKS)


def measure(workspace: Workspace) -> dict[str, Any]:
    """Run all rounds; `results` per task, what the counters say, and the goals."""
    workspace = of_all_tasks(workspace)
    rounds = workspace.preset.rounds
    each = sum(request.pictures for request in REQUESTS.values())
    pictures = Pictures((rounds + WARM_ROUNDS) * 2 * each + 2)
    process = ProcessPoolExecutor(1, get_context("spawn"), initializer=_load, initargs=(workspace,))
    with process, TritonServer(workspace.repository) as server, Client(server.grpc_url, timeout=600.0) as client:

        def ours(name: str, shown: list[bytes], texts: list[str]) -> Any:
            return REQUESTS[name].ask(client, shown, texts)

        def eager(name: str, shown: list[bytes], texts: list[str]) -> Any:
            return process.submit(_ask, name, shown, texts, ANSWER_TOKENS).result()

        say("warming up: ours, PyTorch")
        for _ in range(WARM_ROUNDS):
            for name, request in REQUESTS.items():
                for asked in (ours, eager):
                    asked(name, [pictures.next() for _ in range(request.pictures)], _new(request.texts))
        _check_alike(ours, eager, pictures.next())
        taken = _rounds({"ours": ours, "pytorch": eager}, pictures, rounds)
        further = _further(client, server.metrics_url, pictures, rounds)
        batched = _counted(server.metrics_url, lambda: ours("match", [pictures.next()], _new(TEXTS)))
        singly = _timed(lambda picture: [client.match(picture, [text]) for text in _new(TEXTS)], pictures, rounds=3)
    return outcome(taken, further, batched, singly)


def _new(texts: list[str]) -> list[str]:
    """Return these texts with another word appended each time, so that none is in the cache."""
    word = next(_turn)
    return [f"{text} word{word}" for text in texts]


def _load(workspace: Workspace) -> None:
    from benchmarks.contenders import eager  # PyTorch is loaded in its own process alone

    eager.load(workspace.checkpoint)


def _ask(*arguments: Any) -> list[float]:
    from benchmarks.contenders import eager

    return eager.ask(*arguments)


def _check_alike(ours: Callable[..., Any], eager: Callable[..., Any], picture: bytes) -> None:
    for name in ("embed_image", "embed_text"):
        cosine = float(np.dot(ours(name, [picture], TEXTS[:1]), eager(name, [picture], TEXTS[:1])))
        if cosine < ALIKE:
            raise RuntimeError(f"{name}: ours and PyTorch's differ, their cosine is {cosine:.3f}")


def _rounds(asked: dict[str, Callable[..., Any]], pictures: Pictures, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return seconds per task and contender."""
    taken = {name: {who: [] for who in asked} for name in REQUESTS}
    for number in range(rounds):
        order = list(asked) if number % 2 else list(reversed(asked))
        for name, request in REQUESTS.items():
            for who in order:
                shown, texts = [pictures.next() for _ in range(request.pictures)], _new(request.texts)
                began = time.perf_counter()
                asked[who](name, shown, texts)
                taken[name][who].append(time.perf_counter() - began)
        latest = {name: " / ".join(f"{seconds[-1]:.3f}" for seconds in times.values()) for name, times in taken.items()}
        say(f"round {number + 1} of {rounds}, ours / PyTorch, s: {latest}")
    return taken


def _further(client: Client, metrics_url: str, pictures: Pictures, rounds: int) -> dict[str, Any]:
    """Ask two questions about each picture; return seconds, and how often stages ran for the second ones."""
    first, further = [], []
    for _ in range(rounds):
        picture = [pictures.next()]
        for text, counts in ((QUESTION, first), (FURTHER, further)):
            counts.append(_counted(metrics_url, partial(_question, client, picture, _new([text]))))
    return {
        "first": [counted["seconds"] for counted in first],
        "further": [counted["seconds"] for counted in further],
        "runs": {stage: int(sum(counted[stage] for counted in further)) for stage in STAGES},
    }


def _counted(metrics_url: str, ask: Callable[[], Any]) -> dict[str, float]:
    """Return how often each stage ran for a request, a batch counting once, and its seconds."""
    before = Metrics.read(metrics_url)
    began = time.perf_counter()
    ask()
    seconds = time.perf_counter() - began
    after = Metrics.read(metrics_url)
    runs = {stage: after.since(before, "nv_inference_exec_count", model=stage) for stage in STAGES}
    return {**runs, "seconds": seconds}


def _timed(ask: Callable[[bytes], Any], pictures: Pictures, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        picture = pictures.next()
        began = time.perf_counter()
        ask(picture)
        times.append(time.perf_counter() - began)
    return median(times)


def outcome(
    taken: dict[str, dict[str, list[float]]], further: dict[str, Any], batched: dict[str, float], singly: float
) -> dict[str, Any]:
    """Turn the seconds of every round into the part's `results` and `goals`."""
    rows = {
        name: {
            "title": REQUESTS[name].title,
            **{who: summary(times) for who, times in contenders.items()},
            "times_faster": round(median(contenders["pytorch"]) / median(contenders["ours"]), 3),
        }
        for name, contenders in taken.items()
    }
    runs = {stage: int(batched[stage]) for stage in STAGES}
    first, again = median(further["first"]), median(further["further"])
    results = {
        "tasks": rows,
        "further": {
            "title": FURTHER_TITLE,
            "first": summary(further["first"]),
            "further": summary(further["further"]),
            "runs": further["runs"],
            "questions": len(further["further"]),
        },
        "match": {
            "texts": len(TEXTS),
            "runs": runs,
            "one_by_one": round(singly, 4),
            "times_faster": round(singly / median(taken["match"]["ours"]), 3),
        },
    }
    slowest = min(row["times_faster"] for row in rows.values())
    goals = [
        goal("every task, times faster than PyTorch", "at least 1", slowest, slowest >= 1),
        goal(
            "runs of the vision encoder for further questions",
            "0",
            further["runs"]["vision_encoder"],
            further["runs"]["vision_encoder"] == 0,
        ),
        goal("a further question, share of the first one's time", "below 1", again / first, again < first),
        goal(
            f"runs of the fusion encoder for {len(TEXTS)} texts",
            "1",
            runs["fusion_encoder"],
            runs["fusion_encoder"] == 1,
        ),
    ]
    return {"results": results, "goals": goals}


if __name__ == "__main__":
    sys.exit(part.main("tasks", measure, __doc__, repository_of=lambda workspace: of_all_tasks(workspace).prepare()))
