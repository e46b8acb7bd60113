"""Arrays that stay on a GPU between stages, on a device that is faked (`tensorrt_fakes`)."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tensorrt_fakes import FakeCuda

from mplug.config import GenerationConfig
from mplug.contract import FORWARDED_OUTPUTS, STAGES_FILE, Forwarded
from mplug.decoding.request import DecodeRequestParser
from mplug.runtime import interface
from mplug.runtime.batch import BatchingStage
from mplug.runtime.gpu import array as device_array
from mplug.runtime.gpu import cuda as device_cuda
from mplug.runtime.gpu import dlpack as device_dlpack
from mplug.runtime.gpu.array import DeviceArray, concatenated
from mplug.runtime.gpu.dlpack import borrow, on_gpu
from mplug.tasks.stages import EncodedText, fuse_for_decoder
from mplug.triton.context import ModelContext

VALUES = np.arange(24, dtype=np.float32).reshape(4, 3, 2)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(device_cuda, "_load", lambda name: fake)
    device_array.own_device.cache_clear()
    yield fake
    device_array.own_device.cache_clear()


def on_device(cuda: FakeCuda, values: np.ndarray) -> DeviceArray:
    """What another model left there, taken over."""
    address = cuda.cudaMalloc(values.nbytes)[1]
    memory = cuda.device.view(address, values.nbytes)
    memory[:] = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    tensor = torch.from_numpy(memory.view(values.dtype).reshape(values.shape))
    array = DeviceArray.received(tensor.__dlpack__())
    cuda.cudaFree(address)  # whoever left it needs it no more
    return array


def test_what_is_received_is_a_copy_of_its_own(cuda: FakeCuda) -> None:
    before = cuda.uploaded, cuda.downloaded
    array = on_device(cuda, VALUES)
    assert (cuda.uploaded, cuda.downloaded) == before  # it crossed the bus neither way
    assert (array.shape, array.ndim, array.dtype, array.nbytes, len(array)) == ((4, 3, 2), 3, np.float32, 96, 4)
    np.testing.assert_array_equal(np.asarray(array), VALUES)
    assert cuda.downloaded == 96 and not cuda.host.pieces
    np.testing.assert_array_equal(np.asarray(on_device(cuda, VALUES.astype(np.int32))), VALUES)
    del array
    gc.collect()
    assert not cuda.device.pieces


def test_views(cuda: FakeCuda) -> None:
    array = on_device(cuda, VALUES)
    for view, wanted in (
        (array[1], VALUES[1]),
        (array[1:3], VALUES[1:3]),
        (array[3:9], VALUES[3:]),
        (array[None], VALUES[None]),
        (array.reshape(1, -1, 2), VALUES.reshape(1, -1, 2)),
        (array[2:][1][1:], VALUES[2:][1][1:]),
    ):
        assert view.shape == wanted.shape
        np.testing.assert_array_equal(np.asarray(view), wanted)
    for wrong in (lambda: array[4], lambda: array[::2], lambda: array[-1]):
        with pytest.raises(IndexError, match="on the device"):
            wrong()
    with pytest.raises(ValueError, match="cannot be reshaped to"):
        array.reshape(5, 5)


def test_a_copy_has_memory_of_its_own(cuda: FakeCuda) -> None:
    array = on_device(cuda, VALUES)
    before = cuda.uploaded, cuda.downloaded
    copy = array[1:3].copy()
    assert isinstance(copy, DeviceArray) and (cuda.uploaded, cuda.downloaded) == before
    del array
    gc.collect()
    np.testing.assert_array_equal(np.asarray(copy), VALUES[1:3])
    assert len(cuda.device.pieces) == 1  # what it was copied from is gone


def test_what_stays_on_the_device_leaves_a_batch_as_it_is(cuda: FakeCuda) -> None:
    """Each request's rows, from a stage that leaves its output there."""

    async def ask(stage: BatchingStage) -> list[dict]:
        return await asyncio.gather(*(stage({"X": VALUES[rows]}) for rows in (slice(0, 1), slice(1, 4))))

    with ThreadPoolExecutor(1) as worker:
        stage = BatchingStage(lambda inputs: {"Y": on_device(cuda, inputs["X"])}, 4, worker)
        first, second = asyncio.run(asyncio.wait_for(ask(stage), 60))
    assert isinstance(first["Y"], DeviceArray) and isinstance(second["Y"], DeviceArray)
    np.testing.assert_array_equal(np.asarray(first["Y"]), VALUES[:1])
    np.testing.assert_array_equal(np.asarray(second["Y"]), VALUES[1:])


def test_an_answer_that_cannot_be_handed_out_is_an_error() -> None:
    """The caller must not wait for ever."""

    class NoArray:
        shape = (1,)

        def __getitem__(self, rows: slice) -> NoArray:
            return self

    with ThreadPoolExecutor(1) as worker:
        stage = BatchingStage(lambda inputs: {"Y": NoArray()}, 4, worker)
        with pytest.raises(AttributeError, match="copy"):
            asyncio.run(asyncio.wait_for(stage({"X": VALUES[:1]}), 60))


def test_arrays_one_behind_the_other(cuda: FakeCuda) -> None:
    first, second = on_device(cuda, VALUES), on_device(cuda, VALUES[1:] + 100)
    before = cuda.uploaded, cuda.downloaded
    both = concatenated([first, second])
    assert isinstance(both, DeviceArray) and (cuda.uploaded, cuda.downloaded) == before
    np.testing.assert_array_equal(np.asarray(both), np.concatenate([VALUES, VALUES[1:] + 100]))
    mixed = concatenated([first, VALUES])
    assert isinstance(mixed, np.ndarray)
    np.testing.assert_array_equal(mixed, np.concatenate([VALUES, VALUES]))
    with pytest.raises(ValueError, match="cannot be concatenated"):
        concatenated([first, on_device(cuda, VALUES[0])])


def test_a_capsule_keeps_its_memory_until_it_is_given_back(cuda: FakeCuda) -> None:
    array = on_device(cuda, VALUES)
    capsule, address = array[1].__dlpack__(), array[1].address
    assert on_gpu(array) and not on_gpu(VALUES)
    del array
    gc.collect()
    with borrow(capsule) as borrowed:
        assert (borrowed.address, borrowed.shape, borrowed.dtype) == (address, (3, 2), "float32")
        assert borrowed.device == device_dlpack.CUDA
        np.testing.assert_array_equal(cuda.device.view(address, 24).view(np.float32).reshape(3, 2), VALUES[1])
    del capsule
    gc.collect()
    assert not cuda.device.pieces and not device_dlpack._given
    unused = on_device(cuda, VALUES).__dlpack__()  # nobody takes it
    assert device_dlpack._given
    del unused
    gc.collect()
    assert not cuda.device.pieces and not device_dlpack._given


def test_fused_states_reach_the_decoder_without_the_host(cuda: FakeCuda) -> None:
    image, words = VALUES[None, :, 0], VALUES[None, :2, 1] + 50
    asked = []

    async def call_stage(name, inputs, outputs):
        asked.append((name, outputs))
        return dict(zip(FORWARDED_OUTPUTS, (on_device(cuda, image), on_device(cuda, words)), strict=True))

    text = EncodedText(np.zeros((1, 2, 2), np.float32), np.array([[1, 0]], np.int32), None)
    before = cuda.uploaded, cuda.downloaded
    states, mask = asyncio.run(fuse_for_decoder(call_stage, image, text))
    assert asked == [("fusion_encoder", FORWARDED_OUTPUTS)] and isinstance(asked[0][1], Forwarded)
    assert mask.tolist() == [1, 1, 1, 1, 1, 0]
    parser = DecodeRequestParser(2, 10, 16, 8, 1, 2, GenerationConfig())
    read, _ = parser.encoder_inputs({"ENCODER_STATES": states, "ENCODER_MASK": mask})
    assert read is states and (cuda.uploaded, cuda.downloaded) == before
    np.testing.assert_array_equal(np.asarray(read), np.concatenate([image[0], words[0]]))


@pytest.mark.parametrize(("target", "there"), [("tensorrt", True), ("tensorrt-rtx", True), ("openvino", False)])
def test_a_model_knows_which_of_its_stages_are_on_a_gpu(tmp_path, target: str, there: bool) -> None:
    folder = tmp_path / "vqa" / "1"
    folder.mkdir(parents=True)
    (folder / STAGES_FILE).write_text('{"fusion_encoder": "fusion_encoder_2"}')
    stage = tmp_path / "fusion_encoder_2" / "1"
    stage.mkdir(parents=True)
    interface.StageInfo(stage, target, "fp16", {}, {}).write()
    (stage.parent / "config.pbtxt").write_text("instance_group [ { count: 1, kind: KIND_CPU } ]\n")
    context = ModelContext("vqa", folder, {})
    assert context.gpu_of("fusion_encoder") == (0 if there else None)
    assert context.gpu_of("text_decoder") is None  # is not there
    (stage.parent / "config.pbtxt").write_text("instance_group [ { count: 1, kind: KIND_GPU, gpus: [ 2 ] } ]\n")
    assert context.gpu_of("fusion_encoder") == (2 if there else None)


def test_an_instance_runs_on_the_gpu_that_triton_gives_it() -> None:
    arguments = {"model_name": "m", "model_repository": "/r/m", "model_version": "1", "model_config": "{}"}
    for kind, device in (("GPU", "cuda:3"), ("KIND_GPU", "cuda:3"), ("CPU", "auto")):
        given = arguments | {"model_instance_kind": kind, "model_instance_device_id": "3"}
        assert ModelContext.of_arguments(given).device == device
