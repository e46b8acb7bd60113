"""The demo's batches, its losses and the measurements during training, small."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from builders.train.objectives.grounding import near_boxes
from builders.train.schedule import new_optimiser
from demo.scenes.generator import SceneGenerator
from demo.scenes.sprites import TRAIN_STYLES
from demo.texts.vocabulary import build_vocabulary
from demo.training import batches as batches_module
from demo.training.batches import DemoBatches, SceneTexts, normalise, object_patches
from demo.training.config import demo_config
from demo.training.learner import DemoLearner
from demo.training.legs import LEGS, Mixture
from demo.training.look import look
from demo.training.word_grounding import GuidedLooks
from mplug.inputs.pixels import pixel_values
from mplug.network import MPlug
from mplug.network.fusion_encoder import FusionEncoder

FEW = Mixture(
    captions=4, questions=6, expressions=4, hypotheses=4, statements=4, contrasted=6, matches=4, masked=4, prefixes=4
)


@pytest.fixture(scope="module")
def scenes():
    return SceneGenerator(TRAIN_STYLES, seed=5).batch(8, paired=True).scenes


@pytest.fixture(scope="module")
def batch(scenes):
    return SceneTexts(1).batch(scenes, FEW)


@pytest.fixture(scope="module")
def model() -> DemoLearner:
    network = MPlug(demo_config(128, len(build_vocabulary())))
    network.initialise(by_width=True)
    return DemoLearner(network, LEGS["tasks"])


def test_texts_are_the_vocabulary_s_own_words(batch):
    texts = SceneTexts(1)
    for name in (
        "captions",
        "question_ids",
        "expression_ids",
        "hypothesis_ids",
        "statement_ids",
        "wrong_ids",
        "answer_ids",
    ):
        rows = batch[name]
        assert (rows[:, 0] == texts.tokenizer.cls_id).all() and (rows == texts.tokenizer.sep_id).sum(1).eq(1).all()
        assert not (rows == texts.tokenizer.unk_id).any(), name
        assert rows.shape[1] <= demo_config(128, 2000).max_text_length


def test_texts_belong_to_their_images(batch, scenes):
    texts = SceneTexts(1)
    for row, index in zip(batch["expression_ids"].tolist(), batch["expression_image"].tolist(), strict=True):
        words = texts.tokenizer.decode(row[1:])
        assert any(group.name.split()[-1].rstrip("s")[:3] in words for group in scenes[index].groups), words
    boxes = texts.box_ids.boxes(batch["box_ids"])
    for box, index in zip(boxes, batch["expression_image"].tolist(), strict=True):
        places = [np.abs(np.array(o.box) - box.numpy()).max() for o in scenes[index].objects]
        places += [np.abs(np.array(g.box) - box.numpy()).max() for g in scenes[index].groups]
        assert min(places) <= 1.5
    assert batch["statement_other"].tolist() == [index ^ 1 for index in batch["statement_image"].tolist()]


def test_what_words_name_is_counted_and_found(batch, scenes):
    names = {tuple(pieces): index for pieces, index in SceneTexts(1).names.items()}
    rows = FEW.rows()
    assert sum(part.stop - part.start for part in rows.values()) == len(batch["row_ids"])
    assert torch.equal(
        batch["row_ids"][rows["questions"], : batch["question_ids"].shape[1]].count_nonzero(1),
        batch["question_ids"].count_nonzero(1),
    )
    named = batch["row_words"] > 0
    assert torch.equal(named, batch["row_counts"] >= 0) and named[rows["captions"]].any(1).all()
    for row, place in named.nonzero().tolist():
        label, scene = batch["row_words"][row, place].item(), scenes[batch["row_image"][row]]
        words = batch["row_ids"][row, : place + 1].tolist()
        assert any(names.get(tuple(words[start:])) == label for start in range(len(words)))
        found = [thing for thing in scene.objects if thing.class_index == label - 1]
        assert batch["row_counts"][row, place] == min(5, len(found))
        box = batch["row_boxes"][row, place]
        if len(found) == 1:
            x0, y0, x1, y1 = found[0].box
            wanted = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]) / 128
            torch.testing.assert_close(box, wanted, rtol=0, atol=1e-6)
        else:
            assert not box.any()
    assert (batch["row_counts"][rows["captions"]].amax(1) > 0).all()
    for counts, labels, scene in zip(batch["counts"], batch["labels"], scenes, strict=True):
        for label in labels.unique().tolist():
            of_class = sum(thing.class_index == label - 1 for thing in scene.objects)
            assert (counts[labels == label] == min(5, of_class)).all()


def test_words_that_look_everywhere_alike(model):
    """Without a preference, attention is spread evenly over the class token and all patches."""
    encoder = FusionEncoder(model.network.config.text)
    attention = encoder.layers[0].cross_attention
    torch.nn.init.zeros_(attention.query.weight)
    torch.nn.init.zeros_(attention.query.bias)
    looks = GuidedLooks(encoder)
    encoder(torch.randn(2, 10, 192), torch.randn(2, 4, 192), torch.ones(2, 4))
    labels = torch.tensor([[7, 7, 0, 0, 0, 0, 3, 0, 0], [5] * 9])  # of nine patches of two images
    words = torch.tensor([[0, 7, 0, 0], [0, 0, 3, 4]])  # the second text names what its image, the first, shows and not
    loss = looks.loss(words, torch.tensor([0, 0]), labels)
    assert loss.item() == pytest.approx(-(np.log(2 / 10) + np.log(1 / 10)) / 2, rel=1e-4)
    assert looks.loss(torch.zeros_like(words), torch.tensor([0, 0]), labels) == 0


def test_nearly_right_boxes_are_nearly_right():
    ids = SceneTexts(1).box_ids
    tokens = ids.tokens(torch.tensor([[10.0, 20.0, 50.0, 80.0], [0.0, 0.0, 2.0, 128.0]]))
    targets = near_boxes(tokens, ids, 1977, 2.0)
    torch.testing.assert_close(targets.sum(-1), torch.ones(2, 4))
    assert torch.equal(targets.argmax(-1), tokens[:, 1:])
    outside = torch.ones(1977, dtype=torch.bool)
    outside[ids.first_bin : ids.first_bin + ids.bins] = False
    assert not targets[..., outside].any()
    middle = tokens[0, 1].item()
    at, near = targets[0, 0, middle].item(), targets[0, 0, middle + 2].item()
    assert near == pytest.approx(at * np.exp(-0.5), rel=1e-4)


def test_training_sees_the_pixels_that_serving_sees(batch, scenes):
    served = pixel_values(Image.fromarray(scenes[0].image), 128)
    np.testing.assert_allclose(normalise(batch["images"])[0].numpy(), served, atol=1e-6)


def test_patches_that_are_worked_on_show_objects_first(batch):
    kept = object_patches(batch["labels"], 24)
    for row, grid in zip(kept, batch["labels"].flatten(1), strict=True):
        assert len(set(row.tolist())) == 24
        assert (grid[row] > 0).sum() == min(24, (grid > 0).sum())


def test_a_batch_is_the_same_whenever_it_is_drawn():
    leg = dataclasses.replace(LEGS["tasks"], batch_size=8, mixture=FEW)
    batches = DemoBatches(leg, seed=3)
    drawn = [batches[index] for index in range(3)]
    late = DemoBatches(leg, seed=3)[2]
    for name, tensor in drawn[2].items():
        assert torch.equal(tensor, late[name]), name
    assert torch.equal(batches[0]["row_ids"], drawn[0]["row_ids"]), "back to an earlier one"
    for other in (drawn[1], DemoBatches(leg, seed=4)[2], DemoBatches(leg, seed=3, rank=1)[2]):
        assert not torch.equal(other["images"], late["images"])


def test_scenes_of_a_block_are_seen_a_second_time(monkeypatch):
    monkeypatch.setattr(batches_module, "REUSED_AFTER", 4)
    leg = dataclasses.replace(LEGS["patches"], batch_size=8)
    batches = DemoBatches(leg, seed=3)
    first, second = batches[0]["images"], batches[1]["images"]
    again = sum(any(torch.equal(image, other) for other in first) for image in second)
    assert again == 4, "two pairs of scenes"
    assert torch.equal(DemoBatches(leg, seed=3)[1]["images"], second)


def test_every_objective_falls_on_one_batch(model, batch):
    torch.manual_seed(0)
    names = set().union(*(leg.weights for leg in LEGS.values()))
    model.leg = dataclasses.replace(LEGS["tasks"], weights=dict.fromkeys(names, 1.0), mixture=FEW)
    optimiser = new_optimiser([model], 1e-3, 1e-3, 0.05)
    history = []
    for _ in range(10):
        found = model(batch, 1.0)
        assert set(found) == names
        optimiser.zero_grad()
        sum(found.values()).backward()
        optimiser.step()
        history.append({name: loss.item() for name, loss in found.items()})
    for name in names - {"contrast", "matching", "masked", "prefix"}:  # those draw anew at every step
        assert history[-1][name] < 0.95 * history[0][name], name
    untrained = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not untrained, untrained


def test_a_look_measures_every_task(model):
    results = look(model.network, model.patches, tasks=True, scenes=20)
    assert set(results) == {"train", "held_out"}
    for scores in results.values():
        assert set(scores) == {"patches", "recall", "exact", "vqa", "ground", "entail", "nlvr", "match", "retrieval"}
        assert all(0 <= share <= 1 for share in scores.values())
