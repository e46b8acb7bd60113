"""The training loop: resumed, accumulated, checkpointed and distributed runs end where the plain one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from errno import ENOSPC
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.api import CheckpointException
from training_fixtures import (
    TOLERANCE,
    answering,
    assert_equal,
    assert_trained,
    caption_records,
    maker_of,
    pretraining,
    question_records,
    settings,
    small_network,
    step_plainly,
    weights,
    write_vocabulary,
)
from two_processes import main as train_contrast

from builders.data.streams import ShuffledRecords
from builders.train import run_state
from builders.train.batches import TaskBatches, question_batch
from builders.train.best_weights import BestWeights
from builders.train.engine import Learner, Trainer, TrainingError
from builders.train.gradient_checkpointing import checkpoint_blocks
from builders.train.learners import AnswerLearner
from builders.train.schedule import cosine_with_warmup, new_optimiser

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Path:
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(vocabulary, tmp_path):
    options = settings(accumulate=2, validate_every=2, log_every=1, precision="bf16")
    whole = pretraining(vocabulary, tmp_path / "whole", options)
    whole.run()
    begun = pretraining(vocabulary, tmp_path / "parts", options)
    begun.run(until=3)
    torch.manual_seed(99)  # whatever happened to the generators meanwhile
    rest = pretraining(vocabulary, tmp_path / "parts", options, run_state.find(tmp_path / "parts", "latest"))
    assert rest.step == 3
    rest.run()
    assert_equal(weights(whole), weights(rest))
    states = [run_state.find(tmp_path / name, "latest") for name in ("whole", "parts")]
    one, other = (stored_tensors(path) for path in states)
    assert {"learner.contrast.text_queue", "generator.cpu.0"} < one.keys()
    assert sum(name.startswith("optimiser.network.") for name in one) > 100
    assert_equal(one, other)
    one, other = (json.loads((path / run_state.STATE).read_text()) for path in states)
    assert one == other and one["step"] == 6
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert logs[0] == logs[1] and {"losses", "metrics"} <= {key for record in logs[0] for key in record}
    assert set(logs[0][0]["losses"]) == {"contrast", "matching", "masked language", "prefix language"}
    for artefact in ("training.png", "tensorboard"):
        assert (tmp_path / "parts" / artefact).exists()


def test_only_what_belongs_to_a_run_resumes_it(vocabulary, tmp_path):
    options = settings(steps=2)
    with pytest.raises(run_state.ResumeError, match="start without --resume"):
        run_state.find(tmp_path, "latest")
    pretraining(vocabulary, tmp_path, options).run(until=1)
    state = run_state.find(tmp_path, "latest")
    with pytest.raises(run_state.ResumeError, match=r"learning_rate was 0\.001, now 0\.5"):
        pretraining(vocabulary, tmp_path, replace(options, learning_rate=0.5), state)
    weights_file = next(state.glob("*.safetensors"))
    whole = weights_file.read_bytes()
    for damaged in (whole[:1000], whole[:-1000], b""):
        weights_file.write_bytes(damaged)
        with pytest.raises(run_state.ResumeError, match="damaged"):
            pretraining(vocabulary, tmp_path, options, state)
    weights_file.write_bytes(whole)
    with pytest.raises(run_state.ResumeError, match=r"belongs to another network; .* weights differ, such as learner"):
        answering(vocabulary, tmp_path, options, resume=state)
    (state / run_state.STATE).write_text("{")
    with pytest.raises(run_state.ResumeError, match="damaged"):
        pretraining(vocabulary, tmp_path, options, state)
    with pytest.raises(run_state.ResumeError, match="no state of a run"):
        run_state.find(tmp_path, str(tmp_path))


def stored_tensors(state: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in state.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_accumulated_batches_are_one_large_batch(vocabulary, tmp_path):
    large = step_plainly(answering(vocabulary, tmp_path / "large", settings(steps=3, batch_size=8)))
    small = step_plainly(answering(vocabulary, tmp_path / "small", settings(steps=3, batch_size=4, accumulate=2)))
    before = weights(large)
    large.run()
    small.run()
    assert large.samples == small.samples == 24
    assert_trained(before, weights(large))
    assert_equal(weights(large), weights(small), TOLERANCE)


def test_gradient_checkpointing_changes_nothing(vocabulary):
    def gradients(*, checkpointing: bool) -> dict[str, torch.Tensor]:
        network = small_network(vocabulary, dropout=0.1)
        maker = maker_of(network, vocabulary)
        learner = AnswerLearner(network, maker.tokenizer, alpha=0.4).train()
        if checkpointing:
            checkpoint_blocks(learner)
        torch.manual_seed(0)  # of what is dropped out
        learner(question_batch(question_records(4), maker, Random(0)), 0.5)["answer"].backward()
        return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    assert_equal(gradients(checkpointing=False), gradients(checkpointing=True))


def test_gradient_checkpointing_keeps_less(vocabulary):
    def kept(network) -> int:
        batch = question_batch(question_records(4), maker_of(network, vocabulary), Random(0))
        sizes: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t)
        with hooks:
            AnswerLearner(network, maker_of(network, vocabulary).tokenizer, alpha=0.0)(batch, 0.0)
        return sum(sizes)

    plain, saving = small_network(vocabulary), small_network(vocabulary)
    checkpoint_blocks(saving)
    assert kept(saving) < 0.6 * kept(plain)


def test_two_processes_are_one_with_twice_the_batch(vocabulary, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = [str(HERE / "two_processes.py"), str(vocabulary), str(tmp_path / "two"), "4"]
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[3]}:{HERE}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *worker], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    train_contrast(vocabulary, tmp_path / "one", 8)
    two, one = (torch.load(tmp_path / name / "learner.pt", weights_only=True) for name in ("two", "one"))
    begun = small_network(vocabulary).state_dict()
    assert_trained(begun, {name: one[f"network.{name}"] for name in begun})
    assert_equal(two, one, TOLERANCE)
    assert one["contrast.enqueued"] == 48
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("two", "one")]
    for first, second in zip(*logs, strict=True):
        first, second = json.loads(first), json.loads(second)
        assert first["samples"] == second["samples"]
        assert first["losses"]["contrast"] == pytest.approx(second["losses"]["contrast"], rel=1e-4)


def test_a_loss_that_is_no_number_ends_the_run(vocabulary, tmp_path):
    class Broken(Learner):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, batch, done):
            return {"answer": self.weight * float("nan")}

    maker = maker_of(small_network(vocabulary), vocabulary)
    batches = TaskBatches("vqa", ShuffledRecords(question_records(8), 4), maker)
    with pytest.raises(TrainingError, match="step 1: the loss answer is no longer a number"):
        Trainer(Broken(), batches, settings(), tmp_path, progress=False).run()


def test_half_precision_that_needs_a_gpu(vocabulary, tmp_path):
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        answering(vocabulary, tmp_path, settings(precision="fp16"))


# Schedule and optimiser


def test_schedule():
    factors = [cosine_with_warmup(step / 100, step, 10) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == factors[9]
    assert factors[50] == pytest.approx(0.505) and factors[100] == pytest.approx(0.01)
    assert all(a > b for a, b in pairwise(factors[10:]))


def test_two_learning_rates_and_what_decays(vocabulary):
    network = small_network(vocabulary)
    network.match_head.requires_grad_(False)
    groups = {}
    for group in new_optimiser([network], 1e-4, 1e-5).param_groups:
        for parameter in group["params"]:
            groups[id(parameter)] = (group["full_rate"], group["weight_decay"])
    assert groups[id(network.vision_encoder.blocks[0].expand.weight)] == (1e-5, 0.02)
    assert groups[id(network.vision_encoder.norm_in.weight)] == (1e-5, 0.0)
    assert groups[id(network.text_decoder.layers[0].feed_forward.expand.weight)] == (1e-4, 0.02)
    assert groups[id(network.text_decoder.head_bias)] == (1e-4, 0.0)
    assert id(network.match_head.weight) not in groups


def test_muon_steps_the_matrices_of_layers_alone(vocabulary):
    network = small_network(vocabulary)
    muon = new_optimiser([network], 1e-3, 5e-4, muon=2.0).parts[1]
    rates = {id(parameter): group["full_rate"] for group in muon.param_groups for parameter in group["params"]}
    assert rates[id(network.vision_encoder.blocks[0].expand.weight)] == 1e-3
    assert rates[id(network.text_decoder.layers[0].feed_forward.expand.weight)] == 2e-3
    others = (network.text_encoder.embeddings.word.weight, network.vision_encoder.patch_embedding.weight)
    assert not rates.keys() & {id(parameter) for parameter in others}
    # The step has all singular values near one, whatever the gradient's are: of a square matrix, 0.2 √n of the rate.
    weight = network.vision_encoder.blocks[0].output.weight
    before = weight.detach().clone()
    weight.grad = torch.outer(torch.arange(1.0, 65.0), torch.ones(64)) + 10 * torch.eye(64)
    muon.step()
    moved = (weight.detach() - before * (1 - 1e-3 * 0.02)) / (1e-3 * 0.2 * 8)
    assert torch.linalg.svdvals(moved).min() > 0.3 and torch.linalg.svdvals(moved).max() < 1.5


# Streams


def test_a_stream_of_records_can_be_entered_anywhere():
    records = caption_records(22)
    streams = [ShuffledRecords(records, 5, rank=rank, world=2) for rank in range(2)]
    epoch = [record.key for index in range(2) for stream in streams for record in stream.batch(index)]
    assert len(set(epoch)) == 20, "no picture twice in an epoch, none in both processes"
    late = [record.key for record in ShuffledRecords(records, 5, rank=1, world=2).batch(3)]
    for index in range(4):
        sequential = [record.key for record in streams[1].batch(index)]
    assert late == sequential
    assert late != [record.key for record in streams[1].batch(1)], "another order in the next epoch"
    with pytest.raises(ValueError, match="fewer than a batch"):
        ShuffledRecords(records, 23)


def test_the_best_weights_are_kept_and_an_unknown_metric_is_told(tmp_path):
    network = torch.nn.Linear(1, 1)
    best = BestWeights(network, tmp_path, "right")
    for step, value in enumerate((0.4, 0.6, 0.6, 0.5), start=1):
        torch.nn.init.constant_(network.weight, step)
        best.offer(step, {"right": value})
    assert (best.step, best.value) == (2, 0.6), "equal values keep the earlier weights"
    best.restore()
    assert network.weight.item() == 2
    again = [BestWeights(network, tmp_path, "right", resumed_at=step).value for step in (1, 2)]
    assert again == [float("-inf"), 0.6], "what came after the state will come again"
    with pytest.raises(ValueError, match="--keep-best 'luck' is no metric of this task; measured are right"):
        BestWeights(network, tmp_path, "luck").offer(1, {"right": 1.0})


def test_a_full_disk_is_told_as_such(tmp_path, monkeypatch):
    def full(*arguments: object, **options: object) -> None:
        raise CheckpointException("save", {0: (OSError(ENOSPC, "No space left on device"), None)})

    monkeypatch.setattr(run_state.checkpoint, "save", full)
    network = torch.nn.Linear(1, 1)
    with pytest.raises(OSError, match="No space left on device"):
        run_state.save(tmp_path, 1, network, torch.optim.AdamW(network.parameters()), torch.amp.GradScaler("cpu"), {})
    assert run_state.newest(tmp_path) is None
