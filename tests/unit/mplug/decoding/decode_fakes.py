"""A decoder that computes nothing: what it answers tells whose caches a slot holds, and it waits to be let go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mplug.decoding.beam_search import Hypothesis, SearchOptions
from mplug.decoding.loop import DecodeLoop, DecodeRequest
from mplug.runtime.interface import StepChoices
from mplug.runtime.room import Room

START, END = 2, 1
VOCABULARY = 1000
CANDIDATES = 16
BYTES_PER_PLACE = 1000
SECONDS = 20  # that anything here may take


def script(name: int, length: int, behind: int = 1) -> tuple[int, ...]:
    """The tokens that request `name` gets behind a prefix of `behind`."""
    return tuple(100 + (37 * name + 11 * position) % 800 for position in range(behind - 1, behind - 1 + length))


@dataclass
class FakeSlot:
    """A request in the fake's slot: its name, its search, and the tokens fed so far of the first beam."""

    name: int = -1
    search: dict[str, np.ndarray] = field(default_factory=dict)
    fed: list[int] = field(default_factory=list)
    over: bool = False
    end_at: int = 0  #: the token, from 1, that is the end token instead

    def step(self, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """One step in plain numpy: parents, tokens and scores as wide as the caches."""
        prefix = self.search["PREFIX"]
        _, beams, _, most, _, _ = self.search["OPTIONS"].tolist()
        assert self.search["ENCODER_MASK"].sum() == self.name % 5 + 1
        self.fed.append(int(self.search["TOKENS"][0]))
        parents, tokens = np.arange(columns), np.full(columns, -7)
        scores = np.full(columns, -np.inf)
        length = len(self.fed) - len(prefix)
        if length < 0:
            tokens[:beams], scores[:beams] = prefix[len(self.fed)], self.search["SCORES"]
        else:
            offered = script(self.name, 1, len(self.fed))[0] + np.arange(CANDIDATES)
            totals = (self.search["SCORES"][:, None] - 1.0 - np.arange(CANDIDATES)).reshape(-1)
            best = np.argsort(-totals, kind="stable")[:beams]
            parents[:beams], tokens[:beams] = best // CANDIDATES, offered[best % CANDIDATES]
            scores[:beams] = totals[best]
            if length + 1 == self.end_at:
                tokens[0] = END
            self.over = tokens[0] == END or length + 1 == most
        self.search["TOKENS"], self.search["SCORES"] = tokens[:beams], scores[:beams]
        return parents, tokens, scores, self.over


@dataclass
class FakeDecoder:
    """Of `mplug.runtime.interface.Decoder`. The first encoder state names the request."""

    spare_bytes = 0

    free: bool = True  #: steps run at once; else each waits for `let`
    chunk: int = 1
    admitted: list[int] = field(default_factory=list)  #: names, in order
    moves: list[tuple[int, int]] = field(default_factory=list)
    rooms: list[Room] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)  #: names in the slots, by step
    ends: dict[int, int] = field(default_factory=dict)  #: by name, the token that is the end token, from 1
    idle: int = 0  #: steps of slots whose search was over
    fail_step: BaseException | None = None  #: raised by the next step
    fail_admit: dict[int, BaseException] = field(default_factory=dict)
    fail_reserve: BaseException | None = None  #: raised by the next reservation

    def __post_init__(self) -> None:
        self._slots: list[FakeSlot] = []
        self._gate = threading.Semaphore(0)

    def let(self, steps: int) -> None:
        """Let so many steps pass."""
        for _ in range(steps):
            self._gate.release()

    def cache_bytes(self, room: Room) -> int:
        return room.keys * BYTES_PER_PLACE

    def reserve(self, room: Room) -> None:
        if self.fail_reserve is not None:
            error, self.fail_reserve = self.fail_reserve, None
            raise error
        self.rooms.append(room)
        self._slots = (self._slots + [FakeSlot() for _ in range(room.slots)])[: room.slots]

    def admit(self, slot: int, encoder_states: np.ndarray) -> None:
        name = int(encoder_states[0, 0])
        if name in self.fail_admit:
            raise self.fail_admit[name]
        assert len(encoder_states) <= self.rooms[-1].states
        self.admitted.append(name)
        self._slots[slot] = FakeSlot(name, end_at=self.ends.get(name, 0))

    def load(self, slot: int, search) -> None:
        assert len(search["PREFIX"]) + search["OPTIONS"][3] - 1 <= self.rooms[-1].positions
        assert len(search["TOKENS"]) <= self.rooms[-1].columns
        self._slots[slot].search = dict(search)

    def move(self, source: int, target: int) -> None:
        self.moves.append((source, target))
        self._slots[target] = self._slots[source]
        self._slots[source] = FakeSlot()

    def step(self, slots: int, beams: int, count: int) -> list[StepChoices]:
        assert 1 <= count <= self.chunk
        return [self._one_step(slots, beams) for _ in range(count)]

    def _one_step(self, slots: int, beams: int) -> StepChoices:
        if not self.free:
            assert self._gate.acquire(timeout=SECONDS)
        if self.fail_step is not None:
            error, self.fail_step = self.fail_step, None
            raise error
        columns = self.rooms[-1].columns
        self.batches.append([slot.name for slot in self._slots[:slots]])
        choices = StepChoices(
            np.full((slots, columns), -1, np.int32),
            np.full((slots, columns), -1, np.int32),
            np.zeros((slots, columns), np.float32),
            np.ones(slots, np.int32),
        )
        for index, slot in enumerate(self._slots[:slots]):
            if slot.over:
                self.idle += 1
                continue
            assert len(slot.search["TOKENS"]) <= beams <= columns
            choices.parents[index], choices.tokens[index], choices.scores[index], choices.over[index] = slot.step(
                columns
            )
        return choices


class Outcome:
    """A request's one answer."""

    def __init__(self) -> None:
        self.answers: list[list[Hypothesis] | BaseException] = []
        self.gone = False
        self.request: DecodeRequest
        self._answered = threading.Event()

    def take(self, answer: list[Hypothesis] | BaseException) -> None:
        self.answers.append(answer)
        self._answered.set()

    @property
    def answered(self) -> bool:
        return self._answered.is_set()

    def wait(self, seconds: float = SECONDS) -> list[Hypothesis] | BaseException:
        assert self._answered.wait(seconds), "no answer"
        assert len(self.answers) == 1
        return self.answers[0]

    def tokens(self, seconds: float = SECONDS) -> tuple[int, ...]:
        """Of the best hypothesis; raises what the request was answered with otherwise."""
        answer = self.wait(seconds)
        if isinstance(answer, BaseException):
            raise answer
        return answer[0].token_ids


def ask(loop: DecodeLoop, name: int, length: int, *, beams: int = 1, prompt: tuple[int, ...] = ()) -> Outcome:
    """Submit a request that takes exactly `length` steps behind its prompt."""
    outcome = Outcome()
    states = np.zeros((name % 5 + 1, 4), np.float32)
    states[0, 0] = name
    outcome.request = DecodeRequest(
        encoder_states=states,
        encoder_mask=np.ones(len(states), np.int32),
        prefix=[START, *prompt],
        options=SearchOptions(beams, length, length, beams, 0.6, END),
        token_range=(0, VOCABULARY),
        done=outcome.take,
        failed=outcome.take,
        cancelled=lambda: outcome.gone,
    )
    loop.submit(outcome.request)
    return outcome


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)
