"""Training on a real GPU: weights as on the CPU, every precision, and a run that goes on from its state."""

from __future__ import annotations

import json

import pytest
import torch

from builders.train import run_state
from builders.train.engine import CPU, Trainer
from mplug.runtime.torch_device import sum_in_fp32
from tests.unit.builders.train.training_fixtures import (
    TOLERANCE,
    answering,
    assert_equal,
    assert_trained,
    pretraining,
    settings,
    step_plainly,
    weights,
    write_vocabulary,
)

GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def kept(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that a state keeps in tensors."""
    found = weights(trainer)
    for number, tensors in enumerate(trainer.optimiser.state[p] for p in trainer.learner.parameters()):
        found |= {f"optimiser.{number}.{name}": tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
    return found | {"random": torch.cuda.get_rng_state(GPU)}


def test_a_run_ends_where_the_cpu_s_does(vocabulary, tmp_path):
    """In steps that draw nothing at random: a GPU draws other numbers than a CPU."""
    sum_in_fp32()
    there, here = (
        step_plainly(answering(vocabulary, tmp_path / device.type, settings(steps=3), device=device))
        for device in (GPU, CPU)
    )
    before = weights(here)
    for trainer in (there, here):
        trainer.run()
    assert_trained(before, weights(here))
    assert_equal(weights(there), weights(here), TOLERANCE)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_goes_on_from_its_state(precision, checkpointing, vocabulary, tmp_path):
    """All that a state holds comes back as it was; what follows may differ in last bits, as sums on a GPU do."""
    options = settings(accumulate=2, precision=precision, checkpointing=checkpointing, log_every=1, muon=2.0)
    begun = pretraining(vocabulary, tmp_path, options, device=GPU)
    before = weights(begun)
    begun.run(until=3)
    stopped = kept(begun)
    assert sum(name.startswith("optimiser.") for name in stopped) > 100
    torch.cuda.manual_seed(99)  # whatever happened to the generator meanwhile
    rest = pretraining(vocabulary, tmp_path, options, run_state.find(tmp_path, "latest"), GPU)
    assert rest.step == 3
    assert_equal(stopped, kept(rest))
    rest.run()
    assert all(parameter.is_cuda for parameter in rest.learner.parameters())
    assert_trained(before, weights(rest))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "losses" in record] == [1, 2, 3, 4, 5, 6]
    assert set(records[-1]["metrics"]) == {"text R@1", "image R@1", "texts written exactly"}
