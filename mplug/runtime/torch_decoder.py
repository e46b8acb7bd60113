"""The decoder in PyTorch on one device: caches and searches stay there, a step is one launch.

On a GPU a step of S slots is recorded as a CUDA graph: the network, the search, the caches' new keys and the search's
next state, on a stream of the decoder's own. Nothing goes in from the host, so several steps are launched one behind
the other; each is followed by a copy of its choices into page-locked memory. An admission is a recording as well, which
reads its slot and its states from where they were copied: its operators, launched one by one, would keep the GPU
waiting for as long as a step takes. On a CPU the same work is called directly.

Caches of every size lie in one piece of memory, from its beginning, so that the recordings of a room hold when the
room is left and comes again; they are lost only when that memory is replaced. Shapes: `[2·layers, slots, H, T, C, D]`
and `[2·layers, slots, H, A, D]`, a key before a value. A slot's search is one row of 32-bit numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mplug.contract import SEARCH_STATE
from mplug.runtime.gpu.cuda import raise_if_lost
from mplug.runtime.gpu.dlpack import on_gpu
from mplug.runtime.interface import StepChoices
from mplug.runtime.room import STATE_MULTIPLE, Room, round_up, step_slots
from mplug.runtime.search_state import SEARCH_TENSORS, carry_over, empty_state, search_shapes, write_row
from mplug.runtime.stage_inputs import check_magnitude

#: Steps that are launched on a GPU before the first one's choices are read.
CHUNK = 4
#: On a GPU, memory for caches is kept up to this size: replacing it costs the recordings.
SPARE_BYTES = 1 << 30
#: Recordings of steps, and of admissions, that are kept; the one used longest ago goes first.
MOST_RECORDINGS = 40

T = TypeVar("T")
#: Makes of some work a call that does it again.
Record = Callable[[Callable[[], None]], Callable[[], None]]


class TorchDecoder:
    """`mplug.runtime.interface.Decoder`; calls come from one thread."""

    def __init__(
        self,
        prefill: nn.Module,
        step: nn.Module,
        sizes: Mapping[str, int],
        device: torch.device,
        *,
        chunk: int | None = None,
        record: Record | None = None,
    ) -> None:
        """Take the graphs `text_decoder_prefill` and `text_decoder_step`, whose weights lie on `device`.

        `sizes`: layers, heads, head_width. `chunk` and `record` are by default those of the device.
        """
        self._prefill, self._step, self._device = prefill, step, device
        self._dtype = next(step.parameters()).dtype
        self._arrays, self._heads, self._head_width = 2 * sizes["layers"], sizes["heads"], sizes["head_width"]
        on_cuda = device.type == "cuda"
        self.chunk = chunk or (CHUNK if on_cuda else 1)
        self.spare_bytes = SPARE_BYTES if on_cuda else 0
        self._stream = torch.cuda.Stream(device) if on_cuda else None
        self._record = record or (_CudaGraphs(self._stream) if on_cuda else None)
        self._room = Room()
        self._memory = torch.zeros(0, dtype=self._dtype, device=device)
        self._past, self._cross = self._laid_out(self._memory, self._room)
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)  # that is admitted to
        self._inputs = {self._room: self._new_inputs(_host_rows(self._room))}  # kept while recordings read them
        self._steps: dict[tuple[Room, int], _Step] = {}
        self._admissions: dict[tuple[Room, int], _Launch] = {}  # by states, rounded up

    def cache_bytes(self, room: Room) -> int:
        """See `Decoder.cache_bytes`."""
        return self._numbers(room) * self._dtype.itemsize

    def _numbers(self, room: Room) -> int:
        return self._arrays * self._heads * self._head_width * room.keys

    def _new_inputs(self, rows: np.ndarray) -> _Inputs:
        """Return what the recordings of this room read, with these searches."""
        states = torch.zeros((1, self._room.states, self._heads * self._head_width), device=self._device)
        return _Inputs(torch.from_numpy(rows).to(self._device), states)

    def _laid_out(self, memory: Tensor, room: Room) -> tuple[Tensor, Tensor]:
        """Return the caches of a room as views of memory."""
        past = (self._arrays, room.slots, self._heads, room.positions, room.columns, self._head_width)
        cross = (self._arrays, room.slots, self._heads, room.states, self._head_width)
        return memory[: prod(past)].view(past), memory[prod(past) :][: prod(cross)].view(cross)

    @torch.inference_mode()
    def reserve(self, room: Room) -> None:
        """See `Decoder.reserve`."""
        old = self._room
        if room == old:
            return
        with self._on_stream():
            kept = old.common(room)
            past = self._past[:, : kept.slots, :, : kept.positions, : kept.columns]
            cross = self._cross[:, : kept.slots, :, : kept.states]
            needed, held = self._numbers(room), self._memory.numel()
            if needed <= held and held * self._dtype.itemsize <= max(self.spare_bytes, self.cache_bytes(room)):
                past, cross = past.clone(), cross.clone()  # the new layout lies over the old one
                self._memory[:needed].zero_()
            else:
                self._steps.clear()
                self._admissions.clear()
                self._inputs = {old: self._inputs[old]}
                # Zeros, not whatever was in memory: a masked place counts 0 × what it holds.
                self._memory = torch.zeros(needed, dtype=self._dtype, device=self._device)
            self._past, self._cross = self._laid_out(self._memory, room)
            self._past[:, : kept.slots, :, : kept.positions, : kept.columns] = past
            self._cross[:, : kept.slots, :, : kept.states] = cross
            self._room = room
            self._carry_searches(old)

    def _carry_searches(self, old: Room) -> None:
        rows = _host_rows(self._room)
        carry_over(_views(self._inputs[old].rows.cpu().numpy(), old), _views(rows, self._room))
        if self._room in self._inputs:
            self._inputs[self._room].rows.copy_(torch.from_numpy(rows))
        else:
            self._inputs[self._room] = self._new_inputs(rows)

    @torch.inference_mode()
    def admit(self, slot: int, encoder_states: Any) -> None:
        """See `Decoder.admit`; states are an array `[A, W]`, or lie on the GPU. Raises InvalidRequest for NaN there."""
        with self._on_stream():
            here = self._inputs[self._room].states[0]
            forwarded = on_gpu(encoder_states)  # by another stage; those from the host were checked at the door
            if forwarded:
                states = torch.from_dlpack(encoder_states.__dlpack__())
            else:
                states = torch.from_numpy(np.ascontiguousarray(encoder_states))
            size = length = len(states)
            here[:length].copy_(states, non_blocking=True)
            if forwarded:
                # Waits for the copy, too: states from elsewhere are not ours any more after this.
                check_magnitude("ENCODER_STATES", states.abs().amax().cpu().numpy())
            if self._record is not None:  # rounded up, so that recordings are few
                size = min(round_up(length, STATE_MULTIPLE), len(here))
                here[length:size] = 0
            self._slot.fill_(slot)
            self._kept(self._admissions, size, self._new_admission).run()

    def _new_admission(self, size: int) -> _Launch:
        """Return what fills the slot `self._slot` of this room from `size` states."""
        past, cross, slot = self._past, self._cross, self._slot
        states = self._inputs[self._room].states[:, :size]

        def work() -> None:
            # What the last request left is masked, but a masked place counts 0 × what it holds, and 0 × NaN is NaN.
            past.index_fill_(1, slot, 0)
            cross[:, :, :, size:].index_fill_(1, slot, 0)
            for index, array in enumerate(self._prefill(states.to(self._dtype))):
                cross[index, :, :, :size].index_copy_(0, slot, array)

        return _Launch(work, self._record, f"admissions of {size} states")

    @torch.inference_mode()
    def load(self, slot: int, search: Mapping[str, np.ndarray]) -> None:
        """See `Decoder.load`; rows that are not named stay as they are."""
        with self._on_stream():
            target = self._inputs[self._room].rows[slot : slot + 1]
            whole = all(tensor.name in search for tensor in SEARCH_TENSORS)
            # Reading it back waits for all that was launched.
            row = np.empty(target.shape, np.int32) if whole else target.cpu().numpy()
            for name, view in _views(row, self._room).items():
                if name in search:
                    write_row(name, view, search[name])
            target.copy_(torch.from_numpy(row), non_blocking=True)

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """See `Decoder.move`."""
        with self._on_stream():
            for tensor in (self._past, self._cross):
                tensor[:, target] = tensor[:, source]
            rows = self._inputs[self._room].rows
            rows[target] = rows[source]

    @torch.inference_mode()
    def step(self, slots: int, beams: int, count: int = 1) -> list[StepChoices]:
        """See `Decoder.step`; choices are as wide as the caches."""
        assert count <= self.chunk, f"{count} steps at once, and there is room for the choices of {self.chunk}"
        size = slots
        if self._record is not None:  # rounded up, so that recordings are few
            size = step_slots(slots, self._room.slots)
        with self._on_stream():
            step = self._kept(self._steps, size, self._new_step)
            for index in range(count):
                step.launch.run()
                step.host[index].copy_(step.choices, non_blocking=True)
            self._synchronize()
        return [_choices(rows[:slots]) for rows in step.host[:count].numpy()]

    def _kept(self, kept: dict[tuple[Room, int], T], size: int, make: Callable[[int], T]) -> T:
        """Return what is kept for this room and size, made anew if need be; the one used longest ago may be dropped."""
        key = (self._room, size)
        kept[key] = found = kept.pop(key) if key in kept else make(size)  # last is the one used last
        if len(kept) > MOST_RECORDINGS:
            del kept[next(iter(kept))]
            rooms = {self._room, *(room for room, _ in [*self._steps, *self._admissions])}
            self._inputs = {room: inputs for room, inputs in self._inputs.items() if room in rooms}
        return found

    def _new_step(self, size: int) -> _Step:
        """Return one step of the first `size` slots of this room."""
        choices = torch.zeros((size, 3 * self._room.columns + 1), dtype=torch.int32, device=self._device)
        host = torch.zeros((self.chunk, *choices.shape), dtype=torch.int32, pin_memory=self._stream is not None)
        return _Step(_Launch(self._work_of(size, choices), self._record, f"steps of {size} slots"), choices, host)

    def _work_of(self, size: int, choices: Tensor) -> Callable[[], None]:
        """Return one step of the first `size` slots of this room, which writes what it chose to `choices`."""
        past, cross = self._past[:, :size], self._cross[:, :size]
        search = _views(self._inputs[self._room].rows[:size], self._room)
        inputs = [*(search[tensor.name] for tensor in SEARCH_TENSORS), *past.unbind(), *cross.unbind()]
        slots = torch.arange(size, device=self._device)

        def work() -> None:
            *following, parents, written = self._step(*inputs)
            # Written: `[2·layers, S, H, M, D]`, each slot's to its own position. Indices around a slice put S first.
            past[:, slots, :, search["POSITIONS"].long()] = written.transpose(0, 1)
            state = dict(zip((tensor.name for tensor in SEARCH_STATE), following, strict=True))
            chosen = (parents.int(), state["TOKENS"], state["SCORES"].view(torch.int32), state["OVER"][:, None])
            torch.cat(chosen, dim=1, out=choices)
            for name, value in state.items():
                search[name].copy_(value)

        return work

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


class _Inputs(NamedTuple):
    """What the host writes for the recordings of a room."""

    rows: Tensor  # searches, `[slots, n]` int32
    states: Tensor  # of the request that is admitted, `[1, A, W]` fp32


class _Launch:
    """Work that is done again and again in one room."""

    def __init__(self, work: Callable[[], None], record: Record | None, what: str) -> None:
        self._work, self._record, self._what = work, record, what
        self._replay: Callable[[], None] | None = None
        self._warm = False

    def run(self) -> None:
        """Launch it. The first time it is not recorded: libraries load their kernels then."""
        if self._replay is None and self._warm and self._record is not None:
            try:
                self._replay = self._record(self._work)
            except RuntimeError as error:
                raise_if_lost(error)
                warnings.warn(f"{self._what} run without a CUDA graph, slower: {error}", stacklevel=2)
                self._record = None
        (self._replay or self._work)()
        self._warm = True

    @property
    def is_recorded(self) -> bool:
        """Whether it is launched as one."""
        return self._replay is not None


class _Step(NamedTuple):
    """Steps of one size in one room."""

    launch: _Launch
    choices: Tensor  # `[S, 3·M + 1]`
    host: Tensor  # of as many steps as are launched at once, `[chunk, S, 3·M + 1]`


class _CudaGraphs:
    """Records work as CUDA graphs that share their scratch memory: they run one after the other."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream, self._pool = stream, torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads of this process may use the device meanwhile: what they call is not ours to forbid.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


def _host_rows(room: Room) -> np.ndarray:
    """Return the searches of a room's slots, which hold no request, one row each: `[slots, n]` int32."""
    words = sum(prod(shape[1:]) for shape, _ in search_shapes(room).values())
    rows = np.zeros((room.slots, words), np.int32)
    for name, view in _views(rows, room).items():
        view[...] = empty_state(room)[name]
    return rows


def _views(rows: Any, room: Room) -> dict[str, Any]:
    """Return the search tensors in rows, an array or a tensor `[S, n]`: views, by name."""
    found, start = {}, 0
    for name, (shape, dtype) in search_shapes(room).items():
        width = prod(shape[1:])
        view = rows[:, start : start + width]
        if dtype == np.float32:
            view = view.view(torch.float32 if isinstance(rows, Tensor) else dtype)
        found[name] = view.reshape(len(rows), *shape[1:])
        start += width
    return found


def _choices(rows: np.ndarray) -> StepChoices:
    """Split `[S, 3·M + 1]` into what a step chose; see `TorchDecoder._work_of`."""
    beams = rows.shape[1] // 3
    parents, tokens, scores = (rows[:, index * beams : (index + 1) * beams] for index in range(3))
    return StepChoices(parents, tokens, scores.view(np.float32), rows[:, -1])
