"""The TensorRT runtime's buffers, copies and recorded graphs, on a device that is faked (`tensorrt_fakes`)."""

from __future__ import annotations

import threading
from shutil import which
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from decoder_requests import (
    CLS,
    SEP,
    SLOTS,
    assert_same_choices,
    begin,
    golden,
    mixed_requests,
    network_of,
    search,
)
from tensorrt_fakes import FakeCuda, FakeTensorRT, Memory, compiled_copy_rows, copy_rows

from mplug.network.graphs import graphs_of
from mplug.runtime.gpu import cuda as device_cuda
from mplug.runtime.gpu import engine, tensorrt
from mplug.runtime.gpu.array import DeviceArray
from mplug.runtime.gpu.dlpack import CPU, borrow
from mplug.runtime.interface import RuntimeUnavailable, StageInfo
from mplug.runtime.room import Room
from mplug.runtime.search_state import new_search
from mplug.runtime.torch import eager_decoder
from tests.parity.golden import vision_inputs

MOST = {"B": 4, "L": 40, "S": SLOTS, "M": 16, "T": 40, "C": 16, "A": 128}


@pytest.fixture
def open_fake(monkeypatch, tmp_path):
    """Opens a golden case's stages on a fake device; returns (fake CUDA, fake TensorRT, its StageInfo)."""

    def open_case(case: str, caches: str = "FLOAT"):
        network = network_of(case)
        text, cuda = network.config.text, FakeCuda()
        graphs = {spec.name: (spec, graph.eval()) for spec, graph in graphs_of(network, SEP)}
        fixed = {
            "W": text.hidden_size,
            "H": text.heads,
            "D": text.head_width,
            "E": network.config.embed_dim,
            "R": network.config.vision.image_size,
            "N": network.config.vision.tokens,
        }
        trt = FakeTensorRT(cuda, graphs, MOST, fixed, caches)
        monkeypatch.setattr(device_cuda, "_load", lambda name: cuda)
        monkeypatch.setattr(engine, "_package", lambda target: trt)
        for name in graphs:
            (tmp_path / f"{name}.tensorrt.plan").write_text(name)
        sizes = {
            "layers": text.text_decode_layers,
            "heads": text.heads,
            "head_width": text.head_width,
            "hidden_size": text.hidden_size,
        }
        return cuda, trt, StageInfo(tmp_path, "tensorrt", "fp16", sizes, {})

    return open_case


def test_searches_give_the_tokens_of_the_host_decoder(open_fake):
    """In-flight batching, growing room, moves, admissions between steps: token for token, score for score."""
    cuda, _, info = open_fake("caption")
    network = network_of("caption")
    found = search(tensorrt.open_decoder(info), network, mixed_requests())
    expected = search(eager_decoder(network, SEP), network, mixed_requests())
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert [ids for ids, _ in one] == [ids for ids, _ in other], f"request {index}"
        np.testing.assert_allclose([score for _, score in one], [score for _, score in other], rtol=1e-4)
    assert cuda.launches > cuda.recordings > 0


def test_steps_launched_behind_each_other_choose_what_single_ones_do(open_fake):
    """Choices are read late; a search that ended before the last step stays as it ended."""
    _, _, info = open_fake("caption")
    decoder, host = tensorrt.open_decoder(info), eager_decoder(network_of("caption"), SEP)
    for one in (decoder, host):
        begin(one, 3, 5, Room(4, 24, 5, 32))
        short = new_search(
            prefix=[CLS, 200],
            encoder_mask=np.ones(17, np.int32),
            beams=2,
            min_length=1,
            max_length=2,
            token_range=(0, 900),
        )
        one.load(2, short)
    for count in (4, 1, 3):
        for choices in decoder.step(3, 5, count):
            expected = host.step(3, 5, 1)[0]
            assert_same_choices(*(type(expected)(*(part[:2] for part in each)) for each in (choices, expected)))
            np.testing.assert_array_equal(choices.over, expected.over)
    assert choices.over.tolist() == [0, 0, 1]


def test_half_precision_caches_are_half_the_bytes(open_fake):
    """fp16 rows are moved as they are; the search ends as with fp32 caches on this checkpoint."""
    cuda, _, info = open_fake("caption", caches="HALF")
    network = network_of("caption")
    decoder = tensorrt.open_decoder(info)
    found = search(decoder, network, mixed_requests()[:6])
    expected = search(eager_decoder(network, SEP), network, mixed_requests()[:6])
    assert [ids for answer in found for ids, _ in answer[:1]] == [ids for answer in expected for ids, _ in answer[:1]]
    room = decoder._room
    assert decoder._cross_offset(room) == 2 * 2 * room.slots * 2 * room.positions * room.columns * 64 * 2
    assert cuda.launches


def test_a_step_moves_small_tensors_alone_between_host_and_device(open_fake):
    """No cache crosses the bus, and no search: per step its choices come down, and nothing goes up."""
    cuda, _, info = open_fake("caption")
    decoder = tensorrt.open_decoder(info)
    begin(decoder, 1, 5, Room(4, 24, 5, 32))
    before = cuda.uploaded, cuda.downloaded
    decoder.step(1, 5, 3)
    # Nothing goes up; choices come down, each tensor of a few bytes in a piece of 256.
    assert cuda.uploaded == before[0] and cuda.downloaded - before[1] <= 3 * 4 * 256
    assert decoder._memory.size > 500_000


def test_one_recording_per_size_and_none_after_growth(open_fake):
    """Slots round up to a multiple of four; the first run of a size is not recorded, the second is."""
    cuda, trt, info = open_fake("caption")
    decoder = tensorrt.open_decoder(info)
    begin(decoder, 4, 5, Room(8, 24, 5, 32))
    for slots in (3, 3, 4, 4, 3):
        decoder.step(slots, 5, 1)
    assert cuda.recordings == 1 and cuda.launches == 4
    contexts = trt.contexts
    decoder.reserve(Room(8, 32, 5, 32))
    assert not cuda.graphs
    decoder.step(4, 5, 1)
    assert trt.contexts == contexts + 1


def test_recordings_of_a_room_hold_when_it_comes_again(open_fake):
    """A shorter request, then one as before: nothing is recorded twice, and the searches go on."""
    cuda, trt, info = open_fake("caption")
    decoder, host = tensorrt.open_decoder(info), eager_decoder(network_of("caption"), SEP)
    large, small = Room(4, 24, 5, 32), Room(2, 16, 5, 32)
    for one in (decoder, host):
        begin(one, 2, 5, large)
        one.step(2, 5, 1)
        one.step(2, 5, 1)
    contexts, recordings = trt.contexts, cuda.recordings
    for room in (small, large, small, large):
        for one in (decoder, host):
            one.reserve(room)
            if room == small:
                one.load(0, short_search())
        assert_same_choices(decoder.step(2, 5, 1)[0], host.step(2, 5, 1)[0])
    assert (trt.contexts, cuda.recordings) == (contexts + 1, recordings + 1)  # those of the small room, once
    held = cuda.device.held
    decoder.reserve(Room(8, 24, 5, 32))
    assert not cuda.graphs and len(decoder._searches) == 1
    assert cuda.device.held < 3 * held


def short_search():
    """A search of 3 tokens."""
    return new_search(
        prefix=[CLS], encoder_mask=np.ones(17, np.int32), beams=5, min_length=3, max_length=3, token_range=(0, 900)
    )


def test_growth_keeps_what_is_held_and_frees_the_rest(open_fake):
    cuda, _, info = open_fake("caption")
    network = network_of("caption")
    decoder, host = tensorrt.open_decoder(info), eager_decoder(network, SEP)
    for one in (decoder, host):
        begin(one, 2, 3, Room(2, 24, 3, 32))
        for _ in range(3):
            one.step(2, 3, 1)
    for one in (decoder, host):
        one.reserve(Room(4, 40, 5, 96))
        one.move(1, 0)
    for _ in range(2):
        assert_same_choices(decoder.step(2, 3, 1)[0], host.step(2, 3, 1)[0])
    held = decoder._memory.size
    assert held <= cuda.device.held < 1.5 * held  # the smaller caches are gone


def test_long_requests_run_in_the_profile_for_few(open_fake):
    """Too long for many at once: few at once; longer still, or many of them, is said to take more than any memory."""
    _, _, info = open_fake("caption")
    network = network_of("caption")
    decoder, host = tensorrt.open_decoder(info), eager_decoder(network, SEP)
    assert decoder.cache_bytes(Room(2, 60, 5, 17)) == host.cache_bytes(Room(2, 60, 5, 17))
    assert decoder.cache_bytes(Room(4, 60, 5, 17)) > 1 << 60 < decoder.cache_bytes(Room(1, 24, 5, 700))
    for one in (decoder, host):
        one.reserve(Room(1, 24, 5, 32))
        begin(one, 2, 5, Room(2, 60, 5, 32))
    assert_same_choices(decoder.step(2, 5, 1)[0], host.step(2, 5, 1)[0])


def test_a_device_that_cannot_record_runs_every_step_plainly(open_fake):
    cuda, _, info = open_fake("caption")
    cuda.fail_capture = True
    decoder = tensorrt.open_decoder(info)
    host = eager_decoder(network_of("caption"), SEP)
    for one in (decoder, host):
        begin(one, 1, 5, Room(1, 24, 5, 32))
    assert_same_choices(decoder.step(1, 5, 1)[0], host.step(1, 5, 1)[0])
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        second = decoder.step(1, 5, 1)[0]
    assert_same_choices(second, host.step(1, 5, 1)[0])
    assert not cuda.launches


def test_an_engine_that_refuses_to_be_recorded_runs_every_step_plainly(open_fake):
    """The refusal comes inside the capture, which has to end: the next step is another call on the same stream."""
    cuda, trt, info = open_fake("caption")
    trt.refuses_capture = True
    decoder, host = tensorrt.open_decoder(info), eager_decoder(network_of("caption"), SEP)
    for one in (decoder, host):
        begin(one, 1, 5, Room(1, 24, 5, 32))
    assert_same_choices(decoder.step(1, 5, 1)[0], host.step(1, 5, 1)[0])
    with pytest.warns(UserWarning, match="without a CUDA graph, slower: text_decoder_step: TensorRT refuses"):
        second = decoder.step(1, 5, 1)[0]
    assert_same_choices(second, host.step(1, 5, 1)[0])
    assert_same_choices(decoder.step(1, 5, 1)[0], host.step(1, 5, 1)[0])
    assert cuda.recording is None and not cuda.captured and not cuda.graphs and not cuda.launches


@pytest.mark.parametrize("inside", [True, False], ids=["in a capture", "outside"])
def test_a_refusal_because_the_device_is_lost_says_so(open_fake, inside):
    """TensorRT gives no reason; CUDA's last error does. Without it the process would refuse every request for ever."""
    cuda, trt, info = open_fake("caption")
    decoder = tensorrt.open_decoder(info)
    begin(decoder, 1, 5, Room(1, 24, 5, 32))
    decoder.step(1, 5, 1)
    trt.refuses_capture, trt.refuses, cuda.last_error = inside, not inside, 719
    with pytest.raises(device_cuda.DeviceLost, match="719"):
        decoder.step(1, 5, 1)


def test_lost_devices_are_recognised_whoever_reports_them(open_fake):
    """CUDA's runtime, its driver, and PyTorch, whose errors bear the code."""
    cuda, _, _ = open_fake("caption")
    device = device_cuda.Device()
    for code, kind in ((700, device_cuda.DeviceLost), (214, device_cuda.DeviceLost), (2, device_cuda.DeviceError)):
        cuda.cudaMalloc = lambda size, code=code: (code, None)
        with pytest.raises(device_cuda.DeviceError) as found:
            device.allocate(4)
        assert type(found.value) is kind
    device.copy_rows(  # compiles the kernel
        0, 0, rows=(0, 0, 0), row_bytes=16, target_strides=(0, 0, 0), source_strides=(0, 0, 0)
    )
    cuda.cuLaunchKernel = lambda *_: (700,)
    with pytest.raises(device_cuda.DeviceLost, match="cuLaunchKernel"):
        device.copy_rows(0, 0, rows=(1, 1, 1), row_bytes=16, target_strides=(0, 0, 0), source_strides=(0, 0, 0))
    error = RuntimeError("CUDA error: unspecified launch failure\nadvice")
    error.error_code = 719
    wrapper = ValueError("a stage failed")
    wrapper.__cause__ = error
    with pytest.raises(device_cuda.DeviceLost, match=r"unspecified launch failure$"):
        device_cuda.raise_if_lost(wrapper)
    error.error_code = 2
    device_cuda.raise_if_lost(wrapper)


def test_a_device_of_another_number_is_selected_in_every_thread(open_fake):
    """CUDA's selection is each thread's own: a model loads on one thread and decodes on another."""
    cuda, _, info = open_fake("caption")
    cuda.count = 2
    decoder = tensorrt.open_decoder(info, "cuda:1")
    thread = threading.Thread(target=lambda: begin(decoder, 1, 5, Room(1, 24, 5, 32)))
    thread.start()
    thread.join()
    assert list(cuda.selected.values()) == [1, 1]
    for device, message in (("cuda:2", "no GPU 2: this process sees 2"), ("cpu", "'cpu' is not a GPU")):
        with pytest.raises(RuntimeUnavailable, match=message):
            tensorrt.open_decoder(info, device)


def test_states_on_the_gpu_are_taken_from_there(open_fake):
    """A tensor that offers DLPack on a GPU crosses the bus neither way."""
    cuda, _, info = open_fake("caption")
    states = golden("caption")["image_embeds"][0]
    address = cuda.cudaMalloc(states.nbytes)[1]
    cuda.device.view(address, states.nbytes)[:] = np.ascontiguousarray(states).view(np.uint8).reshape(-1)
    on_device = torch.from_numpy(cuda.device.view(address, states.nbytes).view(np.float32).reshape(states.shape))
    tensor = SimpleNamespace(__dlpack__=on_device.__dlpack__, __dlpack_device__=lambda: (2, 0))
    decoder = tensorrt.open_decoder(info)
    begin(decoder, 2, 5, Room(2, 24, 5, 32))
    before = cuda.uploaded
    decoder.admit(1, tensor)
    assert cuda.uploaded == before
    _, tokens, scores, _ = decoder.step(2, 5, 1)[0]
    np.testing.assert_array_equal(tokens[0], tokens[1])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


def test_encoders_run_batches_of_any_size(open_fake):
    """Larger than the engine's batch: in parts; buffers grow and are used again."""
    _, trt, info = open_fake("caption")
    graph, case = tensorrt.open_graph(info, "vision_encoder"), golden("caption")
    pictures = {name: np.concatenate([array] * 2) for name, array in vision_inputs("caption").items()}
    states = np.concatenate([case["image_embeds"]] * 2)
    assert len(states) > MOST["B"]
    for count in (1, 3, len(states), 2):
        answers = graph({name: array[:count] for name, array in pictures.items()})
        assert np.abs(answers["IMAGE_STATES"] - states[:count]).max() < 1e-4 * np.abs(states).max()
    assert trt.profiles[:2] == [2, 0]  # one picture in the profile for one, three in that for many


def test_two_inputs_of_an_encoder(open_fake):
    _, _, info = open_fake("vqa")
    graph, case = tensorrt.open_graph(info, "text_encoder"), golden("vqa")
    ids, mask = case["input_ids"].astype(np.int64), case["attention_mask"].astype(np.int32)
    answers = graph({"INPUT_IDS": ids, "ATTENTION_MASK": mask})["TEXT_STATES"]
    assert np.abs(answers - case["text_embeds"]).max() < 1e-3 * np.abs(case["text_embeds"]).max()


def test_fused_states_stay_on_the_device(open_fake):
    """They go on to the decoder; a batch larger than the engine's is run in parts there, too."""
    cuda, _, info = open_fake("retrieval")
    graph, case = tensorrt.open_graph(info, "fusion_encoder"), golden("retrieval")
    texts = case["text_embeds"][: MOST["B"] + 1]
    inputs = {
        "IMAGE_STATES": np.repeat(case["image_embeds"][:1], len(texts), axis=0),
        "TEXT_STATES": texts,
        "ATTENTION_MASK": case["attention_mask"][: len(texts)].astype(np.int32),
    }
    network = network_of("retrieval")
    with torch.no_grad():
        wanted = network.fusion_encoder(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()))
        logits = network.match_head(wanted[1][:, 0])
    before = cuda.downloaded
    answers = graph(inputs)
    assert cuda.downloaded - before == logits.numel() * 4  # the logits alone leave it
    for name, states in zip(("FUSED_IMAGE_STATES", "FUSED_TEXT_STATES"), wanted, strict=True):
        assert isinstance(answers[name], DeviceArray) and answers[name].shape == tuple(states.shape)
        np.testing.assert_allclose(np.asarray(answers[name]), states.numpy(), atol=1e-4)
    np.testing.assert_allclose(answers["MATCH_LOGITS"], logits.numpy(), atol=1e-4)


def test_shapes_beyond_the_engine_are_refused_in_words(open_fake):
    _, _, info = open_fake("vqa")
    graph = tensorrt.open_graph(info, "text_encoder")
    with pytest.raises(ValueError, match=r"INPUT_IDS of shape \[1, 41\].*at most \[4, 40\]"):
        graph({"INPUT_IDS": np.zeros((1, 41), np.int32), "ATTENTION_MASK": np.ones((1, 41), np.int32)})


def test_engines_that_are_missing_or_foreign_say_what_to_do(open_fake, tmp_path):
    _, _, info = open_fake("caption")
    (tmp_path / "vision_encoder.tensorrt.plan").write_text("of another version")
    with pytest.raises(RuntimeUnavailable, match="build it again here"):
        tensorrt.open_graph(info, "vision_encoder")
    (tmp_path / "vision_encoder.tensorrt.plan").unlink()
    with pytest.raises(RuntimeUnavailable, match="--target tensorrt"):
        tensorrt.open_graph(info, "vision_encoder")


@pytest.mark.skipif(which("c++") is None, reason="no C++ compiler to run the kernel's source on the host")
def test_the_kernels_source_does_what_the_fake_does(tmp_path):
    """The CUDA source itself, compiled for the host, on random sizes, strides and positions."""
    kernel, random = compiled_copy_rows(tmp_path), np.random.default_rng(0)
    for _ in range(20):
        rows, words = random.integers(1, 5, 3), int(random.integers(1, 4))
        steps = words + int(random.integers(0, 3))
        source_strides = [int(rows[1] * rows[2] * steps), int(rows[2] * steps), steps]
        shift = int(random.integers(1, 3)) * words
        room = steps + 4 * shift
        target_strides = [int(rows[1] * rows[2] * room), int(rows[2] * room), room]
        memory, results = Memory(), []
        source = memory.allocate(int(np.prod(rows)) * steps * 16)
        memory.pieces[source][:] = random.integers(0, 255, len(memory.pieces[source]))
        positions = memory.allocate(4 * int(rows[1]))
        memory.pieces[positions].view(np.int32)[:] = random.integers(0, 4, rows[1])
        numbers = (shift, *map(int, rows), words, *target_strides, *source_strides)
        for run in (
            lambda to: copy_rows(memory, to, source, positions, *numbers),  # noqa: B023
            lambda to: kernel(3, 7, to, source, positions, *numbers),  # noqa: B023
        ):
            target = memory.allocate(int(np.prod(rows)) * room * 16)
            run(target)
            results.append(memory.pieces[target])
        np.testing.assert_array_equal(*results)


def test_the_kernel_compiles_for_every_gpu_that_is_named():
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-python is not installed")
    try:
        binaries = [device_cuda.compile_kernel(device_cuda.COPY_ROWS, f"sm_{chip}") for chip in (75, 86, 90, 120)]
    except Exception as error:
        if "nvrtc" in str(error).lower() and "find" in str(error).lower():
            pytest.skip(f"NVRTC is not installed: {str(error).splitlines()[0]}")
        raise
    assert all(binary.startswith(b"\x7fELF") for binary in binaries)


def test_dlpack_is_read_as_it_was_written():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    with borrow(array) as borrowed:
        assert (borrowed.address, borrowed.shape, borrowed.dtype) == (array.ctypes.data, (3, 4), "float32")
        assert (borrowed.device, borrowed.size) == (CPU, 48)
    with pytest.raises(ValueError, match="not contiguous"), borrow(torch.zeros(4, 3).T):
        pass
    with pytest.raises(ValueError, match="is not supported"), borrow(torch.zeros(2, dtype=torch.uint8)):
        pass


def test_without_a_gpu_it_says_so():
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    if device_cuda.device_count():
        pytest.skip("there is a GPU here")
    with pytest.raises(RuntimeUnavailable, match=r"no GPU can be used here: cudaError\w+ \(\d+\)"):
        device_cuda.Device()
