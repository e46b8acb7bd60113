"""The decoder on a GPU: caches that never leave it, and a step that is one call.

A step of S slots is recorded once as a CUDA graph and then launched: run the engine, write its keys and
values into the caches, copy the searches' next state to where the next step reads it. Nothing goes in from
the host, so steps can be launched one behind the other; each is followed by a copy of its choices to the host.
Positions are data on the device, so the recording holds for every position. Addresses and shapes are part of it:
caches of every size lie in one piece of memory, from its beginning, so that the recordings of a room hold when the
room is left and comes again. They are dropped when that memory has to grow.

S is rounded up to a multiple of four, so that recordings are few. Slots beyond those in use compute on whatever
is there: their choices are not read, a search without a request is over at once or stays within its own
lengths, and a request that is admitted later overwrites what they wrote before it reads it.

Caches are `[2·layers, slots, H, T, C, D]` and behind them `[2·layers, slots, H, A, D]`, a key before a value. The
slots in use are a prefix of each layer's part, which the engine reads in place.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np

from mplug.contract import SEARCH_STATE, STEP_CHOICES, decoder_prefill, decoder_step
from mplug.runtime.gpu.cuda import ALIGNMENT, Buffer, Device, DeviceError, DeviceLost, Graph
from mplug.runtime.gpu.dlpack import Borrowed, borrow, on_gpu
from mplug.runtime.gpu.engine import Context, Engine, EngineRefused
from mplug.runtime.gpu.staging import StagedTensors
from mplug.runtime.interface import StepChoices
from mplug.runtime.room import Room, round_up, step_slots
from mplug.runtime.search_state import SEARCH_TENSORS, carry_over, empty_state, search_shapes, write_row

#: Memory for caches is kept up to this size: 32 slots of a base-size captioner take 0.9 GB. When it is replaced, the
#: recordings are lost, and made again in more time than many steps take.
SPARE_BYTES = 1 << 30
#: Reported size of caches that the engine was not built for; the decode loop then queues the request, or refuses it.
BEYOND = 1 << 62
#: Recordings that are kept; the one used longest ago goes first.
MOST_RECORDINGS = 40

#: Steps that are launched before the first one's choices are read. A request that ends in between is stepped in vain.
CHUNK = 4


class TensorRTDecoder:
    """`mplug.runtime.interface.Decoder`; calls come from one thread."""

    spare_bytes = SPARE_BYTES
    chunk = CHUNK

    def __init__(self, device: Device, prefill: Engine, step: Engine, sizes: Mapping[str, int]) -> None:
        self._device, self._step_engine = device, step
        self._heads, self._head_width, self._width = sizes["heads"], sizes["head_width"], sizes["hidden_size"]
        self._arrays = 2 * sizes["layers"]
        self._prefilled = decoder_prefill(sizes["layers"]).output_names
        cached = decoder_step(sizes["layers"]).input_names[len(SEARCH_TENSORS) :]
        self._past_names, self._cross_names = cached[: self._arrays], cached[self._arrays :]
        self._item_bytes = step.tensors[self._past_names[0]].item_bytes
        self._room = Room()
        self._memory = device.allocate(0)
        self._prefill_context = prefill.context()
        self._states: StagedTensors | None = None
        self._searches: dict[Room, StagedTensors] = {}  # kept for as long as the recordings that read them
        self._steps: dict[tuple[Room, int], _Step] = {}

    # Sizes in bytes, of the room that there is

    @property
    def _row(self) -> int:
        """One head's key, or value."""
        return self._head_width * self._item_bytes

    def _past_slot(self, room: Room) -> int:
        return self._heads * room.positions * room.columns * self._row

    def _cross_slot(self, room: Room) -> int:
        return self._heads * room.states * self._row

    def _cross_offset(self, room: Room) -> int:
        """Return where the cross caches of a room begin in the memory."""
        return round_up(self._arrays * room.slots * self._past_slot(room), ALIGNMENT)

    def _bytes(self, room: Room) -> int:
        return self._cross_offset(room) + self._arrays * room.slots * self._cross_slot(room)

    @property
    def _past_address(self) -> int:
        return self._memory.address

    @property
    def _cross_address(self) -> int:
        return self._memory.address + self._cross_offset(self._room)

    @property
    def _search(self) -> StagedTensors:
        return self._searches[self._room]

    def cache_bytes(self, room: Room) -> int:
        """See `Decoder.cache_bytes`; more than any memory for room that no profile of the engine holds."""
        if self._profile(room, room.slots, room.columns) is None:
            return BEYOND
        return self._arrays * self._heads * self._row * room.keys

    def reserve(self, room: Room) -> None:
        """See `Decoder.reserve`."""
        old, size = self._room, self._bytes(room)
        if room == old:
            return
        self._device.synchronize()
        # Zeros everywhere else, not whatever was in memory: a masked place counts 0 × what it holds.
        if size <= self._memory.size <= max(size, SPARE_BYTES):
            kept = old.common(room)  # set aside: the new layout lies over the old one
            aside = self._device.allocate(self._bytes(kept))
            self._copy_common(aside.address, kept, self._memory.address, old)
            self._device.zero(self._memory.address, size)
            self._copy_common(self._memory.address, room, aside.address, kept)
            self._device.synchronize()
            aside.free()
        else:
            self._drop_steps()
            memory = self._device.allocate(size)
            self._copy_common(memory.address, room, self._memory.address, old)
            self._device.synchronize()
            self._memory.free()
            self._memory = memory
        self._carry_searches(old, room)
        if room.states != old.states:
            if self._states is not None:
                self._states.free()
            shape = (1, room.states, self._width)
            self._states = StagedTensors(self._device, {"ENCODER_STATES": (shape, np.dtype(np.float32))})
            self._prefill_context.set_shape("ENCODER_STATES", shape)
        self._room = room

    def _carry_searches(self, old: Room, room: Room) -> None:
        """Give a room the searches' tensors, with what the old ones hold."""
        if room not in self._searches:
            self._searches[room] = StagedTensors(self._device, search_shapes(room))
        search = self._searches[room]
        for name, array in empty_state(room).items():
            search.arrays[name][...] = array
        if old in self._searches:
            self._searches[old].download()
            self._device.synchronize()
            carry_over(self._searches[old].arrays, search.arrays)
        search.upload()
        self._device.synchronize()
        self._free_searches(but=room)

    def _free_searches(self, but: Room) -> None:
        """Free the searches' tensors of rooms that have no recording."""
        recorded = {room for room, _ in self._steps} | {but}
        for room in set(self._searches) - recorded:
            self._searches.pop(room).free()

    def _copy_common(self, target: int, room: Room, source: int, old: Room) -> None:
        """Copy what two rooms have in common from the caches of one, at an address, into those of the other."""
        row, kept = self._row, old.common(room)
        if not kept.slots:
            return
        heads = kept.slots * self._heads

        def strides(of: Room) -> tuple[int, int, int]:
            return of.slots * self._past_slot(of), of.positions * of.columns * row, of.columns * row

        self._device.copy_rows(
            target,
            source,
            rows=(self._arrays, heads, kept.positions),
            row_bytes=kept.columns * row,
            target_strides=strides(room),
            source_strides=strides(old),
        )
        self._device.copy_rows(
            target + self._cross_offset(room),
            source + self._cross_offset(old),
            rows=(self._arrays, heads, 1),
            row_bytes=kept.states * row,
            target_strides=(room.slots * self._cross_slot(room), room.states * row, 0),
            source_strides=(old.slots * self._cross_slot(old), old.states * row, 0),
        )

    def admit(self, slot: int, encoder_states: Any) -> None:
        """See `Decoder.admit`; states are an array `[A, W]`, or lie on the GPU.

        They are padded to the room that there is, so that TensorRT writes keys and values where they stay.
        """
        assert self._states is not None
        self._device.synchronize()  # an admission before this one may still be reading
        with borrow(encoder_states) if on_gpu(encoder_states) else nullcontext() as borrowed:
            if borrowed is None:
                host = self._states.arrays["ENCODER_STATES"][0]
                host[: len(encoder_states)] = encoder_states
                host[len(encoder_states) :] = 0.0
                self._states.upload()
            else:
                self._take(borrowed)
            self._clear_past(slot)
            layer = self._room.slots * self._cross_slot(self._room)
            self._prefill_context.set_address("ENCODER_STATES", self._states.addresses["ENCODER_STATES"])
            for index, name in enumerate(self._prefilled):
                place = self._cross_address + index * layer + slot * self._cross_slot(self._room)
                self._prefill_context.set_address(name, place)
            self._prefill_context.run()
            if borrowed is not None:
                self._device.synchronize()  # the memory is not ours any more after this

    def _clear_past(self, slot: int) -> None:
        """Zero what the last request left: it is masked, but a masked place counts 0 × what it holds."""
        size = self._past_slot(self._room)
        for index in range(self._arrays):
            self._device.zero(self._past_address + (index * self._room.slots + slot) * size, size)

    def _take(self, borrowed: Borrowed) -> None:
        assert self._states is not None
        if borrowed.dtype != "float32" or borrowed.shape[-1] != self._width:
            raise ValueError(
                f"ENCODER_STATES: {borrowed.dtype} {list(borrowed.shape)} on the device instead of "
                f"float32 [A, {self._width}]"
            )
        address = self._states.addresses["ENCODER_STATES"]
        self._device.copy(address, borrowed.address, borrowed.size)
        self._device.zero(address + borrowed.size, self._room.states * self._width * 4 - borrowed.size)

    def move(self, source: int, target: int) -> None:
        """See `Decoder.move`: device to device, once per request."""
        for address, slot in (
            (self._past_address, self._past_slot(self._room)),
            (self._cross_address, self._cross_slot(self._room)),
        ):
            layer = self._room.slots * slot
            self._device.copy_rows(
                address + target * slot,
                address + source * slot,
                rows=(self._arrays, 1, 1),
                row_bytes=slot,
                target_strides=(layer, 0, 0),
                source_strides=(layer, 0, 0),
            )
        for name, array in self._search.arrays.items():
            size = array[0].nbytes
            address = self._search.addresses[name]
            self._device.copy(address + target * size, address + source * size, size)

    def load(self, slot: int, search: Mapping[str, np.ndarray]) -> None:
        """See `Decoder.load`; rows go up from page-locked memory of their own."""
        self._device.synchronize()  # rows that were loaded before may still be going up
        for name, value in search.items():
            row = self._search.arrays[name][slot : slot + 1]
            write_row(name, row, value)
            self._device.upload(self._search.addresses[name] + slot * row.nbytes, row)

    def step(self, slots: int, beams: int, count: int = 1) -> list[StepChoices]:
        """See `Decoder.step`; choices are as wide as the caches, so that the searches lie as the step reads them."""
        step = self._step_for(step_slots(slots, self._room.slots))
        for index in range(count):
            step.run()
            step.choices.download(index)
        self._device.synchronize()
        read = step.choices.copies[:count]
        return [StepChoices(*(copy[name][:slots] for name in STEP_CHOICES)) for copy in read]

    def _step_for(self, slots: int) -> _Step:
        key = (self._room, slots)
        if key in self._steps:
            self._steps[key] = self._steps.pop(key)  # last is the one used last
            return self._steps[key]
        if len(self._steps) >= MOST_RECORDINGS:
            self._device.synchronize()
            self._steps.pop(next(iter(self._steps))).free()
            self._free_searches(but=self._room)
        self._steps[key] = _Step(self, slots)
        return self._steps[key]

    def _drop_steps(self) -> None:
        self._device.synchronize()
        for step in self._steps.values():
            step.free()
        self._steps = {}

    def _profile(self, room: Room, slots: int, beams: int) -> int | None:
        """Return the engine's profile for steps of a size over caches of this room."""
        shapes = {"TOKENS": (slots, beams), "ENCODER_MASK": (slots, room.states)}
        shapes[self._past_names[0]] = (slots, self._heads, room.positions, room.columns, self._head_width)
        return self._step_engine.profile_of(shapes)

    def bind_caches(self, context: Context, slots: int) -> None:
        """Let a step read the first `slots` of the caches in place."""
        room = self._room
        past = (slots, self._heads, room.positions, room.columns, self._head_width)
        cross = (slots, self._heads, room.states, self._head_width)
        for index in range(self._arrays):
            for name, shape, address, size in (
                (self._past_names[index], past, self._past_address, self._past_slot(room)),
                (self._cross_names[index], cross, self._cross_address, self._cross_slot(room)),
            ):
                context.set_shape(name, shape)
                context.set_address(name, address + index * room.slots * size)

    def write(self, written: int, slots: int) -> None:
        """Copy WRITTEN `[2·layers, S, H, M, D]`, an address, to the columns of each slot's position."""
        room, row, heads, beams = self._room, self._row, self._heads, self._room.columns
        head = room.positions * room.columns * row
        self._device.copy_rows(
            self._past_address,
            written,
            rows=(self._arrays, slots, heads),
            row_bytes=beams * row,
            target_strides=(room.slots * self._past_slot(room), self._past_slot(room), head),
            source_strides=(slots * heads * beams * row, heads * beams * row, beams * row),
            positions=self.positions,
            position_bytes=room.columns * row,
        )

    def new_step(self, slots: int) -> tuple[Context, StagedTensors, StagedTensors, Buffer]:
        """Return a context for steps of so many slots, and the memory of its choices, other small outputs and keys."""
        room = self._room
        profile = self._profile(room, slots, room.columns)
        if profile is None:
            raise ValueError(f"the engine was not built for {slots} slots of {room}")
        context = self._step_engine.context(profile)
        for name, array in self._search.arrays.items():
            context.set_shape(name, (slots, *array.shape[1:]))
            context.set_address(name, self._search.addresses[name])
        self.bind_caches(context, slots)
        tensors = self._step_engine.tensors
        read = {name: (context.shape(name), tensors[name].numpy) for name in STEP_CHOICES}
        kept = {
            name: (context.shape(name), tensors[name].numpy)
            for name in (f"NEXT_{tensor.name}" for tensor in SEARCH_STATE)
            if name not in STEP_CHOICES
        }
        choices, others = StagedTensors(self._device, read, host_copies=CHUNK), StagedTensors(self._device, kept)
        for name, address in (choices.addresses | others.addresses).items():
            context.set_address(name, address)
        written = self._device.allocate(self._arrays * slots * self._heads * room.columns * self._row)
        context.set_address("WRITTEN", written.address)
        return context, choices, others, written

    def follow(self, outputs: Mapping[str, int], slots: int) -> None:
        """Copy a step's next search state, at these addresses, to where the next step reads it."""
        for tensor in SEARCH_STATE:
            size = self._search.arrays[tensor.name][:slots].nbytes
            self._device.copy(self._search.addresses[tensor.name], outputs[f"NEXT_{tensor.name}"], size)

    @property
    def positions(self) -> int:
        """Return the address of the slots' positions."""
        return self._search.addresses["POSITIONS"]

    @property
    def device(self) -> Device:
        return self._device


class _Step:
    """Steps of one size: their memory, and their recording."""

    def __init__(self, decoder: TensorRTDecoder, slots: int) -> None:
        self._decoder, self._slots = decoder, slots
        self._context, self.choices, self._others, self._written = decoder.new_step(slots)
        self._graph: Graph | None = None
        self._warm = self._refused = False

    def run(self) -> None:
        """Launch one step; its choices are on the device when the stream has come so far."""
        if self._graph is None and self._warm and not self._refused and self._context.recordable:
            try:
                self._graph = self._decoder.device.record(self._work)
            except DeviceLost:
                raise
            except (DeviceError, EngineRefused) as error:
                self._refused = True
                warnings.warn(f"steps of {self._slots} slots run without a CUDA graph, slower: {error}", stacklevel=2)
        if self._graph is not None:
            self._graph.launch()
        else:
            # The first run of a shape does work that cannot be recorded: TensorRT loads and may compile kernels.
            self._work()
            self._warm = True

    def _work(self) -> None:
        self._context.run()
        self._decoder.write(self._written.address, self._slots)
        self._decoder.follow(self.choices.addresses | self._others.addresses, self._slots)

    def free(self) -> None:
        """Give the memory back, after all work that uses it."""
        if self._graph is not None:
            self._graph.free()
        self.choices.free()
        self._others.free()
        self._written.free()
