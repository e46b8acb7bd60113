"""A decoder that computes nothing: what it answers tells whose caches a slot holds, and it waits to be let go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mplug.decoding.beam_search import Hypothesis, SearchOptions
from mplug.decoding.loop import DecodeLoop, DecodeRequest
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
class FakeDecoder:
    """Of `mplug.runtime.interface.Decoder`. The first encoder state names the request."""

    spare_bytes = 0

    free: bool = True  #: steps run at once; else each waits for `let`
    admitted: list[int] = field(default_factory=list)  #: names, in order
    moves: list[tuple[int, int]] = field(default_factory=list)
    rooms: list[Room] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)  #: names in the slots, by step
    fail_step: BaseException | None = None  #: raised by the next step
    fail_admit: dict[int, BaseException] = field(default_factory=dict)
    fail_reserve: BaseException | None = None  #: raised by the next reservation

    def __post_init__(self) -> None:
        self._slots: list[tuple[int, list[int]]] = []  # name, and the tokens fed so far of the first beam
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
        self._slots = (self._slots + [(-1, [])] * room.slots)[: room.slots]

    def admit(self, slot: int, encoder_states: np.ndarray) -> None:
        name = int(encoder_states[0, 0])
        if name in self.fail_admit:
            raise self.fail_admit[name]
        self.admitted.append(name)
        self._slots[slot] = (name, [])

    def move(self, source: int, target: int) -> None:
        self.moves.append((source, target))
        self._slots[target] = self._slots[source]
        self._slots[source] = (-1, [])

    def step(self, tokens, positions, ancestry, encoder_mask, end_blocked, token_range):
        if not self.free:
            assert self._gate.acquire(timeout=SECONDS)
        if self.fail_step is not None:
            error, self.fail_step = self.fail_step, None
            raise error
        slots, beams = tokens.shape
        room = self.rooms[-1]
        assert ancestry.shape == (slots, beams, room.positions) and beams <= room.columns
        assert encoder_mask.shape == (slots, room.states)
        self.batches.append([name for name, _ in self._slots[:slots]])
        next_tokens = np.zeros((slots, beams, CANDIDATES), np.int32)
        for slot in range(slots):
            name, fed = self._slots[slot]
            fed.append(int(tokens[slot, 0]))
            # Caches that belong to another request, or to nobody, would be shorter or longer than this.
            assert positions[slot] == len(fed) - 1, f"slot {slot} holds {len(fed) - 1} tokens of request {name}"
            assert encoder_mask[slot].sum() == name % 5 + 1
            next_tokens[slot] = script(name, 1, len(fed))[0] + np.arange(CANDIDATES)
        log_probabilities = np.broadcast_to(-1.0 - np.arange(CANDIDATES), next_tokens.shape).astype(np.float32)
        return next_tokens, log_probabilities


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
