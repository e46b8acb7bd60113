"""Training losses on published weights against what the published implementation computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import DATA, expected, tensors

from builders.train.fused_states import mean_over_tokens, token_losses
from builders.train.objectives.answering import answer_loss, soft_answers
from builders.train.objectives.captioning import caption_loss
from builders.train.objectives.matching import match_logits
from mplug.checkpoint import load_checkpoint


def load(case: str):
    network, _ = load_checkpoint(DATA / case)
    return network, {name: torch.from_numpy(array) for name, array in tensors(case).items()}


@torch.no_grad()
def test_caption_cross_entropy():
    network, golden = load("caption")
    source = golden["image_embeds"], torch.ones(golden["image_embeds"].shape[:2])
    losses = token_losses(network, source, golden["decoder_input_ids"])
    wanted = pytest.approx(expected("caption")["lm_loss"], rel=1e-4)
    assert mean_over_tokens(losses, golden["decoder_input_ids"]).item() == wanted
    assert caption_loss(network, source, golden["decoder_input_ids"]).item() == wanted


@torch.no_grad()
def test_answer_likelihoods_weighted():
    network, golden = load("vqa")
    answers, published = torch.tensor(expected("vqa")["answer_ids"]), np.array(expected("vqa")["answer_nll_sum"])
    states = network.vision_encoder(golden["pixel_values"])
    questions = golden["input_ids"], golden["attention_mask"]
    each = [
        answer_loss(network, states, *questions, answers, weights).item() * len(answers)
        for weights in torch.eye(len(answers))
    ]
    np.testing.assert_allclose(each, published, rtol=1e-4)
    weights = torch.linspace(0.1, 1.0, len(answers))
    loss = answer_loss(network, states, *questions, answers, weights)
    assert loss.item() == pytest.approx((published * weights.numpy()).sum() / len(answers), rel=1e-4)


@torch.no_grad()
def test_soft_answers_are_the_decoder_s_probabilities():
    network, golden = load("vqa")
    answers = torch.tensor(expected("vqa")["answer_ids"])
    soft = soft_answers(network, golden["pixel_values"], golden["input_ids"], golden["attention_mask"], answers)
    likelihood = soft.gather(-1, answers[:, 1:, None])[..., 0].log() * (answers[:, 1:] != 0)
    np.testing.assert_allclose(-likelihood.sum(1), expected("vqa")["answer_nll_sum"], rtol=1e-4)


@torch.no_grad()
def test_matching_logits():
    network, golden = load("retrieval")
    states = network.vision_encoder(golden["pixel_values"])
    texts = network.text_encoder(golden["input_ids"], golden["attention_mask"])
    pairs = min(len(states), len(texts))
    logits = match_logits(network, states[:pairs], texts[:pairs], golden["attention_mask"][:pairs])
    wanted = golden["itm_logits"][range(pairs), range(pairs)]
    assert (logits - wanted).abs().max() < 1e-4 * golden["itm_logits"].abs().max()
