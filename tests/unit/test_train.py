"""Objectives and the demo's training loop, small."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builders.data.emoji_scenes import PATCH, SceneGenerator
from builders.data.vocabulary import build_vocabulary
from builders.train.captioning import caption_loss, decoder_source, greedy_captions
from builders.train.demo import CLS, SEP, TRAINING_STYLES, WordIds, demo_config, normalise, tensors_of
from builders.train.patch_labelling import PatchLabelling
from mplug.network import MPlug
from mplug.preprocess import pixel_values


@pytest.fixture(scope="module")
def words() -> WordIds:
    return WordIds(build_vocabulary())


def test_words_survive_the_round_trip(words):
    batch = SceneGenerator(TRAINING_STYLES, max_groups=4, seed=5).batch(40)
    assert [words.decode(words.encode(caption)) for caption in batch.captions] == [
        caption.replace(",", " ,") for caption in batch.captions
    ]


def test_a_window_holds_its_object_and_its_labels(words):
    batch = SceneGenerator(TRAINING_STYLES, max_groups=1, max_count=1, seed=5).batch(20)
    images, _, labels = tensors_of(batch, words, 64)
    assert images.shape == (20, 64, 64, 3) and labels.shape == (20, 64 // PATCH, 64 // PATCH)
    for scene, grid in zip(batch.scenes, labels, strict=True):
        assert (grid == scene.objects[0].class_index + 1).any()


def test_training_sees_the_pixels_that_serving_sees(words):
    from PIL import Image

    batch = SceneGenerator(TRAINING_STYLES, seed=5).batch(1)
    images, _, _ = tensors_of(batch, words, 128)
    served = pixel_values(Image.fromarray(batch.images[0]), 128)
    np.testing.assert_allclose(normalise(images)[0].numpy(), served, atol=1e-6)


def test_a_few_steps_on_one_batch_lower_both_losses(words):
    torch.manual_seed(0)
    network = MPlug(demo_config(64, len(words.vocabulary)))
    network.initialise()
    patches = PatchLabelling(192, 250)
    batch = SceneGenerator(TRAINING_STYLES, max_groups=1, max_count=1, seed=1).batch(8)
    images, ids, labels = tensors_of(batch, words, 64)
    prompt = torch.tensor(words.encode("a picture of"))
    optimiser = torch.optim.AdamW([*network.parameters(), *patches.parameters()], lr=1e-3)
    history = []
    for _ in range(12):
        image_states = network.vision_encoder(normalise(images))
        source = decoder_source(network, image_states, prompt)
        losses = caption_loss(network, source, ids), patches(image_states, labels)
        optimiser.zero_grad()
        sum(losses).backward()
        optimiser.step()
        history.append([loss.item() for loss in losses])
    assert history[-1][0] < 0.6 * history[0][0] and history[-1][1] < history[0][1]
    with torch.no_grad():
        source = decoder_source(network, network.vision_encoder(normalise(images)), prompt)
        greedy = greedy_captions(network, source, cls_id=CLS, sep_id=SEP, length=6)
    assert greedy.shape[0] == 8 and (greedy[:, 0] == CLS).all()
