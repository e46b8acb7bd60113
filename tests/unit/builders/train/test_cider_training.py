"""CIDEr optimisation: the reward is the official score, and following it raises it."""

from __future__ import annotations

import pytest
import torch
from pycocoevalcap.cider.cider import Cider
from training_fixtures import caption_records, maker_of, small_network, write_vocabulary

from builders.train.batches import caption_batch
from builders.train.generation import generate
from builders.train.learners import CaptionLearner
from builders.train.objectives.cider import CiderLearner, CiderReward, advantages, self_critical_loss

REFERENCES = [["a red picture", "the picture is red"], ["a dark blue picture"], ["the bright green picture"]]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def test_the_reward_is_the_official_score():
    captions = ["a red picture", "a blue picture", "what is it"]
    keys = range(3)
    _, official = Cider().compute_score(dict(zip(keys, REFERENCES, strict=True)), {k: [captions[k]] for k in keys})
    assert CiderReward(REFERENCES)(captions, REFERENCES) == pytest.approx(list(official))
    # Frequencies are those of the corpus, whatever is scored beside.
    assert CiderReward(REFERENCES)(captions[1:2], REFERENCES[1:2]) == pytest.approx([official[1]])
    assert official[0] > official[1] > official[2] == 0.0


def test_a_corpus_of_one_picture_is_refused():
    with pytest.raises(ValueError, match="several pictures, but there are 1"):
        CiderReward(REFERENCES[:1])


def test_samples_are_compared_with_their_peers():
    found = advantages(torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]]))
    torch.testing.assert_close(found, torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]))


def test_generated_texts_are_those_of_the_whole_decoder(vocabulary):
    """The cached steps choose what the decoder over the whole text would."""
    network = small_network(vocabulary).eval()
    states, mask = torch.randn(3, 5, 64), torch.ones(3, 5)
    mask[1, 3:] = 0
    ids = generate(network, (states, mask), start_id=2, end_id=None, length=8)
    with torch.no_grad():
        assert (network.text_decoder(ids[:, :-1], states, mask).argmax(-1) == ids[:, 1:]).all()
    ended = generate(network, (states, mask), start_id=2, end_id=int(ids[0, 3]), length=8)
    assert ended[0, :4].tolist() == ids[0, :4].tolist() and (ended[0, 4:] == 0).all()
    boxes = generate(network, (states, mask), start_id=2, end_id=None, length=5, allowed=slice(20, 30))
    assert ((boxes[:, 1:] >= 20) & (boxes[:, 1:] < 30)).all()


def test_samples_follow_the_probabilities(vocabulary):
    network = small_network(vocabulary).eval()
    with torch.no_grad():
        network.text_decoder.head_bias[:] = -30.0
        network.text_decoder.head_bias[[7, 8]] = torch.tensor([1.0, 0.0])
    source = torch.randn(1, 2, 64).expand(400, -1, -1), torch.ones(400, 2)
    drawn = generate(
        network, source, start_id=2, end_id=3, length=2, sampled=True, generator=torch.Generator().manual_seed(0)
    )[:, 1]
    assert (drawn == 7).float().mean() == pytest.approx(0.73, abs=0.1) and ((drawn == 7) | (drawn == 8)).all()


def test_following_the_reward_raises_it(vocabulary):
    from random import Random

    torch.manual_seed(0)
    network = small_network(vocabulary)
    maker, records = maker_of(network, vocabulary), caption_records(6)
    batch = caption_batch(records, maker, Random(0))
    reward = CiderReward([record.captions for record in records])
    learner = CaptionLearner(network, maker.tokenizer)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)

    def step(loss) -> None:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    for _ in range(12):  # cross-entropy first, as in practice
        step(learner(batch, 0.0)["caption"])
    rewards = []
    for _ in range(25):
        loss, mean = self_critical_loss(
            network, learner.source(batch), batch["references"], reward, maker.tokenizer, length=8
        )
        step(loss)
        rewards.append(mean)
    assert sum(rewards[-5:]) > 1.2 * sum(rewards[:5])
    measured = CiderLearner(network, maker.tokenizer, reward=reward).eval().validate([batch])
    assert measured["CIDEr"] > rewards[0]
    with pytest.raises(ValueError, match="no peers"):
        self_critical_loss(
            network, learner.source(batch), batch["references"], reward, maker.tokenizer, length=8, samples=1
        )
