"""The PyTorch runtime as it works on a GPU, on the CPU: its decoder with recordings replaced by direct calls."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from decoder_requests import (
    CLS,
    SEP,
    assert_same_choices,
    begin,
    decoder_as_on_a_gpu,
    golden,
    mixed_requests,
    network_of,
    search,
    sizes_of,
)

from builders.build import main as build
from mplug.contract import MAX_MAGNITUDE
from mplug.errors import InvalidRequest
from mplug.pipeline import Pipeline
from mplug.runtime import open_decoder, open_graph, torch_decoder
from mplug.runtime import torch as torch_runtime
from mplug.runtime.gpu.cuda import DeviceLost
from mplug.runtime.interface import RuntimeUnavailable, StageInfo
from mplug.runtime.room import Room, step_slots
from mplug.runtime.torch import eager_decoder
from mplug.runtime.torch_decoder import TorchDecoder

CPU = torch.device("cpu")


class Recorder:
    """In place of CUDA graphs: calls the work again, and counts what it was asked to record."""

    def __init__(self, error: Exception | None = None) -> None:
        self.recorded = self.replayed = 0
        self._error = error

    def __call__(self, work):
        if self._error is not None:
            raise self._error
        self.recorded += 1

        def replay():
            self.replayed += 1
            work()

        return replay


@pytest.mark.parametrize("as_on_a_gpu", [True, False], ids=["recorded, four steps ahead", "called"])
def test_searches_give_the_tokens_of_the_host_decoder(as_on_a_gpu: bool) -> None:
    """In-flight batching, growing room, moves, admissions between chunks: token for token, score for score."""
    network, recorder = network_of("caption"), Recorder()
    decoder = decoder_as_on_a_gpu(recorder)
    if not as_on_a_gpu:
        decoder = TorchDecoder(decoder._prefill, decoder._step, sizes_of(network), CPU)
        assert (decoder.chunk, decoder.spare_bytes) == (1, 0)
    found = search(decoder, network, mixed_requests())
    expected = search(eager_decoder(network, SEP), network, mixed_requests())
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert [ids for ids, _ in one] == [ids for ids, _ in other], f"request {index}"
        np.testing.assert_allclose([score for _, score in one], [score for _, score in other], rtol=1e-4)
    assert not as_on_a_gpu or recorder.replayed > recorder.recorded > 0


def test_recordings_of_a_room_hold_when_it_comes_again() -> None:
    recorder = Recorder()
    decoder, host = decoder_as_on_a_gpu(recorder), eager_decoder(network_of("caption"), SEP)
    large, small = Room(4, 24, 5, 32), Room(2, 24, 5, 32)
    for one in (decoder, host):
        begin(one, 2, 5, large)
        one.step(2, 5, 1)
        one.step(2, 5, 1)
    memory = decoder._memory.data_ptr()
    for _ in range(2):
        for room in (small, large):
            for one in (decoder, host):
                one.reserve(room)
                one.move(1, 0)
            for _ in range(2):
                assert_same_choices(decoder.step(2, 5, 1)[0], host.step(2, 5, 1)[0])
    assert recorder.recorded == 3  # a step in either room, and an admission in the large one
    assert decoder._memory.data_ptr() == memory
    for one in (decoder, host):
        one.reserve(Room(8, 24, 5, 32))
    assert not decoder._steps and not decoder._admissions
    assert len(decoder._inputs) == 2  # of the room before, and of this one
    assert_same_choices(decoder.step(2, 5, 1)[0], host.step(2, 5, 1)[0])


def test_steps_are_of_few_sizes() -> None:
    assert [step_slots(slots, 32) for slots in (1, 2, 3, 4, 5, 17, 30, 32)] == [1, 2, 4, 4, 8, 20, 32, 32]
    assert step_slots(3, 3) == 3


def test_a_step_that_cannot_be_recorded_runs_plainly() -> None:
    decoder, host = (
        decoder_as_on_a_gpu(Recorder(RuntimeError("not permitted"))),
        eager_decoder(network_of("caption"), SEP),
    )
    for one in (decoder, host):
        begin(one, 1, 5, Room(1, 24, 5, 32))
    assert_same_choices(decoder.step(1, 5, 1)[0], host.step(1, 5, 1)[0])
    with pytest.warns(UserWarning, match="steps of 1 slots run without a CUDA graph, slower: not permitted"):
        second = decoder.step(1, 5, 1)[0]
    assert_same_choices(second, host.step(1, 5, 1)[0])
    assert_same_choices(decoder.step(1, 5, 1)[0], host.step(1, 5, 1)[0])


def test_recordings_are_dropped_when_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one used longest ago goes, and what it read, if no other reads it; it is made again when it is needed."""
    monkeypatch.setattr(torch_decoder, "MOST_RECORDINGS", 2)
    decoder, host = decoder_as_on_a_gpu(Recorder()), eager_decoder(network_of("caption"), SEP)
    for positions in (48, 40, 32, 24, 48):
        room = Room(2, positions, 5, 32)
        for one in (decoder, host):
            begin(one, 2, 5, room)
        assert_same_choices(decoder.step(2, 5, 1)[0], host.step(2, 5, 1)[0])
    assert [room.positions for room, _ in decoder._steps] == [24, 48]
    assert [room.positions for room, _ in decoder._admissions] == [24, 48]
    assert {room.positions for room in decoder._inputs} == {24, 48}


def test_an_admission_leaves_nothing_of_the_one_before() -> None:
    """Neither a longer request's states nor those of one that was refused: a recording reads past the shorter ones."""
    states = golden("caption")["image_embeds"]
    decoder, host = decoder_as_on_a_gpu(Recorder()), eager_decoder(network_of("caption"), SEP)
    for one in (decoder, host):
        begin(one, 2, 5, Room(2, 24, 5, 32), states)
    spoilt = torch.full((17, states.shape[-1]), torch.nan)
    with pytest.raises(InvalidRequest, match="holds NaN"):
        decoder.admit(0, SimpleNamespace(__dlpack__=spoilt.__dlpack__, __dlpack_device__=lambda: (2, 0)))
    for one in (decoder, host):
        begin(one, 2, 5, Room(2, 24, 5, 32), [states[0][:9], states[1][:5]])
    read = decoder._inputs[decoder._room].states[0]
    assert (read[:5] == torch.from_numpy(states[1][:5])).all() and not read[5:].any()
    for _ in range(2):
        assert_same_choices(decoder.step(2, 5, 1)[0], host.step(2, 5, 1)[0])


def test_a_lost_device_is_told_as_such() -> None:
    """PyTorch's error bears CUDA's code."""
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    error.error_code = 700
    decoder = decoder_as_on_a_gpu(Recorder(error))
    begin(decoder, 1, 5, Room(1, 24, 5, 32))
    decoder.step(1, 5, 1)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        decoder.step(1, 5, 1)


def test_states_on_a_gpu_are_taken_from_there_and_checked() -> None:
    """A tensor that offers DLPack on a GPU is read in place; those from the host were checked at the door."""
    states = torch.from_numpy(golden("caption")["image_embeds"][0].copy())
    decoder = decoder_as_on_a_gpu(Recorder())
    begin(decoder, 2, 5, Room(2, 24, 5, 32))
    decoder.admit(1, SimpleNamespace(__dlpack__=states.__dlpack__, __dlpack_device__=lambda: (2, 0)))
    choices = decoder.step(2, 5, 1)[0]
    np.testing.assert_array_equal(choices.tokens[0], choices.tokens[1])
    for value, message in ((np.nan, "holds NaN"), (2 * MAX_MAGNITUDE, "exceeds the limit")):
        states[0, 0] = value
        with pytest.raises(InvalidRequest, match=message):
            decoder.admit(1, SimpleNamespace(__dlpack__=states.__dlpack__, __dlpack_device__=lambda: (2, 0)))


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A golden checkpoint in both half precisions."""
    found = {}
    for precision in ("fp16", "bf16"):
        found[precision] = tmp_path_factory.mktemp("torch") / precision
        arguments = ["--output", str(found[precision]), "--target", "torch", "--precision", precision]
        assert build([str(Path(__file__).parents[3] / "parity" / "data" / "vqa"), *arguments]) == 0
    return found


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_stages_are_compared_in_the_precision_that_a_gpu_computes_in(repositories, precision: str) -> None:
    """Every stage of a checkpoint, also the ranking of answers; the errors are those of half precision."""
    information = json.loads((repositories[precision] / "build_info.json").read_text())
    assert (information["target"], information["precision"]) == ("torch", precision)
    errors = information["relative_errors"]
    assert {name.split(".")[0] for name in errors} >= {
        "vision_encoder",
        "text_encoder",
        "fusion_encoder",
        "text_decoder",
    }
    assert all(1e-5 < error < information["tolerance"] for error in errors.values()), errors


def test_a_cpu_serves_every_precision_in_fp32(repositories, tmp_path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, which computes in the precision that was built")
    picture = golden_picture(tmp_path)
    answers = []
    for folder in repositories.values():
        decoder = open_decoder(folder / "text_decoder" / "1")
        assert decoder._dtype == torch.float32
        with Pipeline.open(folder) as pipeline:
            answers.append(pipeline.vqa(picture, "what is it?"))
    assert answers[0] == answers[1] and answers[0][0].token_ids


def golden_picture(folder: Path) -> Path:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder / "picture.png"


def test_half_precision_decodes_on_the_device_that_is_named(repositories) -> None:
    """Caches and products in half precision, the search in fp32; on a GPU the same with another device."""
    info = StageInfo.read(repositories["bf16"] / "text_decoder" / "1")
    decoder = torch_runtime.open_decoder(info, "cpu", torch.bfloat16)
    states = golden("vqa")["image_embeds"][0]
    decoder.reserve(Room(1, 24, 5, 32))
    assert decoder.cache_bytes(Room(1, 24, 5, 32)) * 2 == open_decoder(info.folder).cache_bytes(Room(1, 24, 5, 32))
    begin(decoder, 1, 5, Room(1, 24, 5, 32), [states])
    choices = decoder.step(1, 5, 1)[0]
    assert choices.scores.dtype == np.float32 and np.isfinite(choices.scores).all()


def test_a_device_that_is_not_there_is_refused_in_words(repositories) -> None:
    folder = repositories["fp16"] / "vision_encoder" / "1"
    count = torch.cuda.device_count()
    with pytest.raises(RuntimeUnavailable, match=f"cuda:{count}: PyTorch .* sees {count} GPUs here"):
        open_graph(folder, "vision_encoder", f"cuda:{count}")
    with pytest.raises(RuntimeUnavailable, match="device 'gpu' is not a GPU: name one as cuda:N"):
        open_graph(folder, "vision_encoder", "gpu")
    assert CLS == 101
