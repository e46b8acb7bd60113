"""Training on a real GPU: weights as on the CPU, every precision, and a run that goes on from its state."""

from __future__ import annotations

import json

import pytest
import torch

from builders.data.streams import ShuffledRecords
from builders.train import run_state
from builders.train.batches import TaskBatches, first_batches
from builders.train.engine import Trainer
from builders.train.learners import AnswerLearner, PretrainLearner
from mplug.runtime.torch_device import sum_in_fp32
from tests.unit.builders.train.training_fixtures import (
    TOLERANCE,
    assert_trained,
    caption_records,
    maker_of,
    question_records,
    settings,
    small_network,
    step_plainly,
    write_vocabulary,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def pretraining(vocabulary, output, device, options, resume=None) -> Trainer:
    """Every objective of pre-training, with dropout and a look at pictures held back."""
    network = small_network(vocabulary, dropout=0.1)
    maker = maker_of(network, vocabulary)
    batches = TaskBatches("pretrain", ShuffledRecords(caption_records(20), options.batch_size), maker)
    held_back = first_batches("pretrain", ShuffledRecords(caption_records(8), 4), maker, 2)
    learner = PretrainLearner(network, maker.tokenizer, queue_size=12)
    return Trainer(learner, batches, options, output, device=device, validation=held_back, resume=resume)


def answering(vocabulary, output, device) -> Trainer:
    """Three plain steps in which nothing is drawn at random: a GPU draws other numbers than a CPU."""
    options = settings(steps=3)
    network = small_network(vocabulary)
    maker = maker_of(network, vocabulary)
    batches = TaskBatches("vqa", ShuffledRecords(question_records(32), options.batch_size), maker)
    return step_plainly(
        Trainer(AnswerLearner(network, maker.tokenizer, alpha=0.0), batches, options, output, device=device)
    )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in trainer.learner.state_dict().items()}


def kept(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that a state keeps in tensors."""
    found = weights(trainer)
    for number, tensors in enumerate(trainer.optimiser.state[p] for p in trainer.learner.parameters()):
        found |= {f"optimiser.{number}.{name}": tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
    return found | {"random": torch.cuda.get_rng_state(GPU)}


def test_a_run_ends_where_the_cpu_s_does(vocabulary, tmp_path):
    sum_in_fp32()
    there, here = answering(vocabulary, tmp_path / "gpu", GPU), answering(vocabulary, tmp_path / "cpu", CPU)
    before = weights(here)
    for trainer in (there, here):
        trainer.run()
    assert_trained(before, weights(here))
    for name, tensor in weights(there).items():
        torch.testing.assert_close(tensor, weights(here)[name], rtol=TOLERANCE, atol=TOLERANCE, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_goes_on_from_its_state(precision, checkpointing, vocabulary, tmp_path):
    """All that a state holds comes back as it was; what follows may differ in last bits, as sums on a GPU do."""
    options = settings(accumulate=2, precision=precision, checkpointing=checkpointing, log_every=1, muon=2.0)
    begun = pretraining(vocabulary, tmp_path, GPU, options)
    before = weights(begun)
    begun.run(until=3)
    stopped = kept(begun)
    assert sum(name.startswith("optimiser.") for name in stopped) > 100
    torch.cuda.manual_seed(99)  # whatever happened to the generator meanwhile
    rest = pretraining(vocabulary, tmp_path, GPU, options, run_state.find(tmp_path, "latest"))
    restored = kept(rest)
    assert rest.step == 3 and stopped.keys() == restored.keys()
    for name, tensor in stopped.items():
        assert torch.equal(tensor, restored[name]), name
    rest.run()
    assert all(parameter.is_cuda for parameter in rest.learner.parameters())
    assert_trained(before, weights(rest))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "losses" in record] == [1, 2, 3, 4, 5, 6]
    assert set(records[-1]["metrics"]) == {"text R@1", "image R@1", "texts written exactly"}
