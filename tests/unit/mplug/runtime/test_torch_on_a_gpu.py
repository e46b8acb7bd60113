"""What only shows on a GPU, without one: operators that a recording forbids, and tensors left on the host."""

from __future__ import annotations

import pytest
import torch
from decoder_requests import SEP, assert_same_choices, begin, decoder_as_on_a_gpu, network_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from builders.compile.export import example_inputs
from mplug.network.graphs import graphs_of
from mplug.runtime.room import Room
from mplug.runtime.torch import eager_decoder

aten = torch.ops.aten
#: They wait for the device, to see a value or to know how large their answer is: a stream that is recorded refuses.
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
}
#: Indexing by a mask looks for its places with `nonzero`.
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
#: How a list of numbers of Python becomes a tensor; on a GPU it is copied from memory that is not page-locked.
FROM_PYTHON = {aten.lift_fresh.default, aten.lift_fresh_copy.default}


class Rules(TorchDispatchMode):
    """Looks at every operator that is run, those that are made of others taken apart."""

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        with self:
            answer = operator.decompose(*arguments, **(keywords or {}))
        return self.judge(operator, arguments, keywords or {}) if answer is NotImplemented else answer


class RecordedStream(Rules):
    """Refuses what the capture of a CUDA graph refuses."""

    def judge(self, operator, arguments, keywords):
        masks = (torch.bool, torch.uint8)
        tensors = [value for value in tree_leaves((arguments, keywords)) if isinstance(value, torch.Tensor)]
        if (
            operator in WAITING | FROM_PYTHON
            or (operator in INDEXING and any(tensor.dtype in masks for tensor in tensors[1:]))
            or len({tensor.device for tensor in tensors if tensor.ndim}) > 1
        ):
            raise RuntimeError(f"operation not permitted when stream is capturing: {operator}")
        return operator(*arguments, **keywords)


class OneDevice(Rules):
    """Refuses an operator that reads or makes a tensor elsewhere; numbers without a dimension may be anywhere."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def judge(self, operator, arguments, keywords):
        answer = operator(*arguments, **keywords)
        for value in tree_leaves((arguments, keywords, answer)):
            if isinstance(value, torch.Tensor) and value.ndim and value.device != self._device:
                raise RuntimeError(f"{operator}: a tensor of shape {list(value.shape)} is on {value.device}")
        return answer


def record(work):
    """Record as `CUDAGraph` does: the work may be called now, under its rules."""
    with RecordedStream():
        work()
    return work


def test_steps_and_admissions_can_be_recorded():
    """Network, search and caches: nothing in them waits for the device or looks at the host."""
    decoder, host = decoder_as_on_a_gpu(record), eager_decoder(network_of("caption"), SEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda message, **_: pytest.fail(message))
        for one in (decoder, host):
            begin(one, 3, 5, Room(4, 24, 5, 32))
        assert_same_choices(decoder.step(3, 5, 1)[0], host.step(3, 5, 1)[0])
        decoder.step(3, 5, 1)
    for launch in (*decoder._admissions.values(), *(step.launch for step in decoder._steps.values())):
        assert launch.is_recorded


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda step: step.choices.sum().item(),
        lambda step: step.choices[step.choices > 0],
        lambda step: step.choices + torch.tensor([1, 2, 3])[:1],
    ],
    ids=["item", "mask", "list"],
)
def test_what_cannot_be_recorded_is_noticed(forbidden):
    """The rules of the test above, broken on purpose."""
    decoder = decoder_as_on_a_gpu(record)
    begin(decoder, 3, 5, Room(4, 24, 5, 32))
    decoder.step(3, 5, 1)
    (step,) = decoder._steps.values()
    plain = step.launch._work
    step.launch._work = lambda: (plain(), forbidden(step))
    with pytest.warns(UserWarning, match="not permitted when stream is capturing"):
        decoder.step(3, 5, 1)


@pytest.mark.parametrize("case", ["caption", "vqa", "retrieval"])
def test_every_stage_makes_its_tensors_where_its_weights_are(case):
    """PyTorch's `meta` device stands for the GPU: a constant that was made on the host would meet tensors there."""
    network, meta = network_of(case), torch.device("meta")
    for spec, graph in graphs_of(network, SEP):
        weights = {name: value.to(meta) for name, value in [*graph.named_parameters(), *graph.named_buffers()]}
        inputs = tuple(value.to(meta) for value in example_inputs(spec, network).values())
        with torch.inference_mode(), OneDevice(meta):
            outputs = torch.func.functional_call(graph, weights, inputs)
        assert {output.device for output in outputs} == {meta}
