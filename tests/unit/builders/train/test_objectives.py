"""The training objectives: each against its definition, and each learns a small batch by heart."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from builders.evaluation.boxes import iou
from builders.train.fused_states import fuse, token_mask
from builders.train.learners import momentum_copy
from builders.train.objectives.answering import answer_loss, soft_answers
from builders.train.objectives.contrastive import ImageTextContrast
from builders.train.objectives.grounding import BoxIds, greedy_boxes, grounding_loss
from builders.train.objectives.judgement import entail_logits, entail_loss, nlvr_logits, nlvr_loss
from builders.train.objectives.masked_language import MaskedLanguageHead, SpecialIds, mask_tokens, masked_language_loss
from builders.train.objectives.matching import hard_negatives, match_logits, matching_loss
from builders.train.objectives.prefix_language import cut_texts, prefix_language_loss
from mplug.config import GenerationConfig, MPlugConfig, TextConfig, VisionConfig
from mplug.inputs.tokenizer import SPECIAL_TOKENS, Tokenizer
from mplug.network import MPlug

CLS, SEP, MASK, VOCABULARY = 1, 2, 3, 90
SPECIAL = SpecialIds(CLS, SEP, MASK)
BOXES = BoxIds(start=40, first_bin=41, bins=33)
PARTS = (
    "vision_encoder",
    "text_encoder",
    "fusion_encoder",
    "text_decoder",
    "vision_projection",
    "text_projection",
    "match_head",
    "nlvr_head",
    "entail_head",
)


def small_network(seed: int = 0) -> MPlug:
    text = TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        heads=2,
        max_positions=24,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        dropout=0.0,
        num_hidden_layers=3,
        text_encoder_layers=1,
        fusion_layers=3,
        stride_layer=2,
        text_decode_layers=1,
    )
    config = MPlugConfig(
        vision=VisionConfig(image_size=32, patch_size=16, width=64, layers=1),
        text=text,
        generation=GenerationConfig(5, 1, 10),
        tasks=("visual-question-answering",),
        embed_dim=16,
        max_text_length=12,
    )
    network = MPlug(config, PARTS)
    network.initialise(seed)
    return network


def texts(rows: int, seed: int = 0, longest: int = 8) -> torch.Tensor:
    """Random ids `[rows, longest]`, `[CLS] … [SEP]`, padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 40, (rows, longest), generator=generator)
    ids[:, 0] = CLS
    for row, length in zip(ids, torch.randint(3, longest + 1, (rows,), generator=generator).tolist(), strict=True):
        row[length - 1] = SEP
        row[length:] = 0
    return ids


@pytest.fixture(autouse=True)
def one_thread():
    """What a few steps in half precision come to depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def network() -> MPlug:
    torch.manual_seed(0)
    return small_network()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def learn(parameters, loss_of, steps: int = 40, after=lambda: None) -> list[float]:
    optimiser = torch.optim.AdamW(list(parameters), lr=3e-3)
    history = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        after()
        history.append(loss.item())
    return history


def halved(history: list[float]) -> bool:
    return history[-1] < 0.5 * history[0]


# Contrast


def test_contrast_is_the_cross_entropy_against_every_key(network, pixels):
    ids = texts(6)
    contrast = ImageTextContrast(network, queue_size=8, alpha=0.0)
    image, text = network.vision_encoder(pixels), network.text_encoder(ids, token_mask(ids))
    result = contrast(network, image, text, pixels, ids, token_mask(ids))
    similarity = network.image_feature(image) @ network.text_feature(text).T / 0.07  # the teacher is a fresh copy
    truth = torch.arange(6)
    expected = (functional.cross_entropy(similarity, truth) + functional.cross_entropy(similarity.T, truth)) / 2
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(result.image_to_text, similarity.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.text_to_image, similarity.T.detach(), atol=1e-4, rtol=1e-4)


def test_the_queue_holds_the_latest_and_adds_wrong_ones(network, pixels):
    contrast = ImageTextContrast(network, queue_size=8, alpha=0.0)
    ids = texts(6)
    first = _contrast(contrast, network, pixels, ids)
    contrast.enqueue(first)
    assert contrast.enqueued == 6
    second = _contrast(contrast, network, pixels, ids)
    assert second.loss > first.loss, "the same texts stand in the queue and are wrong there"
    contrast.enqueue(second)
    torch.testing.assert_close(contrast.text_queue[[6, 7, 0, 1, 2, 3]], second.text_keys)
    torch.testing.assert_close(contrast.text_queue[[4, 5]], first.text_keys[4:])


def test_pairs_with_one_id_are_right_for_each_other(network, pixels):
    ids = texts(6)
    contrast = ImageTextContrast(network, queue_size=8, alpha=0.0)
    pair_ids = torch.tensor([7, 8, 9, 7, 10, 11])
    apart = _contrast(contrast, network, pixels, ids)
    together = _contrast(contrast, network, pixels, ids, ids=pair_ids)
    similarity = apart.image_to_text
    targets = torch.eye(6)
    targets[0, 3] = targets[3, 0] = 1
    targets /= targets.sum(1, keepdim=True)
    expected = [-(s.log_softmax(1) * targets).sum(1).mean() for s in (similarity, apart.text_to_image)]
    assert together.loss.item() == pytest.approx((sum(expected) / 2).item(), rel=1e-4)
    contrast.enqueue(together)
    right = contrast._truth(pair_ids, torch.cat([pair_ids, contrast.id_queue[:6]]))
    assert right[0].nonzero()[:, 0].tolist() == [0, 3, 6, 9] and right.sum(1).allclose(torch.ones(6))


def test_momentum_and_resuming(network, pixels):
    contrast = ImageTextContrast(network, queue_size=8, momentum=0.9)
    before = contrast.teacher.text_projection.weight.clone()
    with torch.no_grad():
        network.text_projection.weight += 1.0
        contrast.temperature.fill_(3.0)
    contrast.update_momentum(network)
    torch.testing.assert_close(contrast.teacher.text_projection.weight, before + 0.1)
    assert contrast.temperature == 0.5
    contrast.enqueue(_contrast(contrast, network, pixels, texts(6)))
    again = ImageTextContrast(small_network(3), queue_size=8, momentum=0.9)
    again.load_state_dict(contrast.state_dict())
    assert _contrast(again, network, pixels, texts(6)).loss == _contrast(contrast, network, pixels, texts(6)).loss
    assert not any(parameter.requires_grad for parameter in contrast.teacher.parameters())


def test_a_momentum_copy_follows_slowly_and_never_trains(network):
    copy = momentum_copy(network, momentum=0.9)
    before = network.text_projection.weight.clone()
    with torch.no_grad():
        network.text_projection.weight += 1.0
    for followed in (0.1, 0.19):  # 1 - 0.9, then 0.9 of the rest
        copy.update_parameters(network)
        torch.testing.assert_close(copy.module.text_projection.weight, before + followed)
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def test_contrast_is_learnt(network, pixels):
    contrast = ImageTextContrast(network, queue_size=0, momentum=0.8)
    loss = lambda: _contrast(contrast, network, pixels, texts(6), alpha=0.0).loss  # noqa: E731
    assert halved(learn(network.parameters(), loss, 40, lambda: contrast.update_momentum(network)))


def _contrast(contrast, network, pixels, input_ids, **options):
    mask = token_mask(input_ids)
    states = network.vision_encoder(pixels), network.text_encoder(input_ids, mask)
    return contrast(network, *states, pixels, input_ids, mask, **options)


# Matching and retrieval


def test_hard_negatives_are_wrong_and_mostly_similar():
    torch.manual_seed(0)
    similarity = torch.zeros(6, 6)
    similarity[0, 4] = 6.0
    similarity += 9.0 * torch.eye(6)
    ids = torch.tensor([0, 1, 1, -1, -1, 2])
    drawn = []
    for _ in range(300):
        rows, partners = hard_negatives(similarity, ids)
        assert rows.tolist() == [0, 1, 2, 3, 4, 5] and (rows != partners).all()
        assert partners[1] != 2 and partners[2] != 1
        drawn.append(partners)
    drawn = torch.stack(drawn)
    assert (drawn[:, 0] == 4).float().mean() > 0.9
    assert (drawn[:, 3] == 4).any(), "ids below zero belong to nobody"


def test_a_batch_of_one_caption_has_no_wrong_pairs(network, pixels):
    rows, partners = hard_negatives(torch.zeros(3, 3), torch.tensor([5, 5, 5]))
    assert len(rows) == len(partners) == 0
    ids = texts(1).expand(3, -1)
    states = network.vision_encoder(pixels[:3]), network.text_encoder(ids, token_mask(ids))
    loss = matching_loss(
        network, *states, token_mask(ids), torch.zeros(3, 3), torch.zeros(3, 3), ids=torch.tensor([5, 5, 5])
    )
    logits = match_logits(network, *states, token_mask(ids))
    assert loss.item() == pytest.approx(functional.cross_entropy(logits, torch.ones(3).long()).item(), rel=1e-5)


def test_retrieval_is_learnt(network, pixels):
    contrast = ImageTextContrast(network, queue_size=0, momentum=0.8)
    ids, pair_ids = texts(6), torch.arange(6)

    def loss():
        mask = token_mask(ids)
        states = network.vision_encoder(pixels), network.text_encoder(ids, mask)
        found = contrast(network, *states, pixels, ids, mask, ids=pair_ids, alpha=0.0)
        return found.loss + matching_loss(
            network, *states, mask, found.image_to_text, found.text_to_image, ids=pair_ids
        )

    assert halved(learn(network.parameters(), loss, 60, lambda: contrast.update_momentum(network)))


def test_texts_known_to_be_wrong_are_learnt(network, pixels):
    ids, images, labels = texts(6), torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 1, 0, 0, 1])

    def loss():
        states, mask = network.vision_encoder(pixels)[images], token_mask(ids)
        return functional.cross_entropy(match_logits(network, states, network.text_encoder(ids, mask), mask), labels)

    assert halved(learn(network.parameters(), loss))


# Masked and prefix language modelling


def test_masking_shares():
    torch.manual_seed(0)
    ids = texts(4000, longest=12)
    masked, chosen = mask_tokens(ids, SPECIAL, VOCABULARY)
    inner = ids >= 4
    assert not (chosen & ~inner).any() and (masked[~chosen] == ids[~chosen]).all()
    assert chosen.sum() / inner.sum() == pytest.approx(0.15, abs=0.01)
    total = chosen.sum()
    assert ((masked == MASK) & chosen).sum() / total == pytest.approx(0.8, abs=0.03)
    assert ((masked == ids) & chosen).sum() / total == pytest.approx(0.1 + 0.1 / VOCABULARY, abs=0.02)


def test_nothing_masked_is_no_loss(network, pixels):
    head = MaskedLanguageHead(network.config.text)
    loss = masked_language_loss(network, head, network.vision_encoder(pixels), texts(6), SPECIAL, share=0.0)
    loss.backward()
    assert loss == 0.0 and torch.isfinite(network.text_encoder.embeddings.word.weight.grad).all()


def test_masked_words_are_learnt(network, pixels):
    head = MaskedLanguageHead(network.config.text)

    def loss():
        generator = torch.Generator().manual_seed(4)
        states = network.vision_encoder(pixels)
        return masked_language_loss(network, head, states, texts(6), SPECIAL, share=0.4, generator=generator)

    assert halved(learn([*network.parameters(), *head.parameters()], loss))


def test_cut_texts_are_put_together_again():
    ids = texts(500, longest=9)
    prefix, rest = cut_texts(ids, CLS, SEP, generator=torch.Generator().manual_seed(0))
    cuts = set()
    for whole, first, second in zip(ids.tolist(), prefix.tolist(), rest.tolist(), strict=True):
        words = [[token for token in row if token not in (0, CLS, SEP)] for row in (whole, first, second)]
        assert words[1] + words[2] == words[0] and words[2]
        for row, inner in ((first, words[1]), (second, words[2])):
            assert row == [CLS, *inner, SEP] + [0] * (9 - len(inner) - 2)
        cuts.add((len(words[0]), len(words[1])))
    assert {cut for length, cut in cuts if length == 7} == set(range(7))


def test_rests_are_learnt(network, pixels):
    def loss():
        generator = torch.Generator().manual_seed(4)
        return prefix_language_loss(network, network.vision_encoder(pixels), texts(6), CLS, SEP, generator=generator)

    assert halved(learn(network.parameters(), loss))


# Answers, boxes, judgements


def test_weights_of_answers_and_shared_images(network, pixels):
    states = network.vision_encoder(pixels[:2])
    questions, answers = texts(3), texts(4, seed=2, longest=5)
    images, of_question = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1, 2])
    weights = torch.tensor([0.3, 0.7, 1.0, 1.0])
    loss = answer_loss(network, states, questions, None, answers, weights, images, question_index=of_question)
    singles = [
        answer_loss(network, states[images[q]][None], questions[q][None], None, answers[a][None])
        for a, q in enumerate(of_question)
    ]
    expected = sum(weight * single for weight, single in zip(weights, singles, strict=True)) / 3
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_soft_answers_take_their_share(network, pixels):
    teacher = small_network(1)
    states, questions, answers = network.vision_encoder(pixels), texts(6), texts(6, seed=2, longest=5)
    soft = soft_answers(teacher, pixels, questions, None, answers)
    torch.testing.assert_close(soft.sum(-1), torch.ones(6, 4))
    losses = [
        answer_loss(network, states, questions, None, answers, soft_targets=soft, alpha=alpha).item()
        for alpha in (0.0, 1.0, 0.4)
    ]
    assert losses[0] == pytest.approx(answer_loss(network, states, questions, None, answers).item())
    assert losses[2] == pytest.approx(0.6 * losses[0] + 0.4 * losses[1], rel=1e-5)


def test_answers_are_learnt(network, pixels):
    images = torch.tensor([0, 0, 1, 1, 2, 3])
    answers = texts(6, seed=2, longest=4)
    loss = lambda: answer_loss(  # noqa: E731
        network, network.vision_encoder(pixels), texts(6), None, answers, image_index=images
    )
    assert halved(learn(network.parameters(), loss))


def test_boxes_are_learnt_and_read_back(network, pixels):
    boxes = torch.tensor(
        [[0, 0, 10, 20], [5, 5, 31, 31], [2, 10, 8, 30], [16, 0, 32, 16], [0, 0, 32, 32], [7, 9, 12, 13]]
    )
    ids = BOXES.tokens(boxes)
    assert ids[0].tolist() == [40, 41 + 5, 41 + 10, 41 + 10, 41 + 20]
    assert (iou(BOXES.boxes(ids), boxes) > 0.8).all()
    loss = lambda: grounding_loss(network, network.vision_encoder(pixels), texts(6), None, ids, BOXES)  # noqa: E731
    assert halved(learn(network.parameters(), loss, 120))
    found = greedy_boxes(network.eval(), network.vision_encoder(pixels), texts(6), None, BOXES)
    assert (found == ids).float().mean() > 0.8


def test_boxes_need_their_tokens(tmp_path):
    vocabulary = [*SPECIAL_TOKENS, *(f"[unused{index}]" for index in range(339, 360))]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = Tokenizer(tmp_path / "vocab.txt")
    assert BoxIds.of(tokenizer, 16) == BoxIds(5, 6, 17)
    with pytest.raises(ValueError, match=r"at 32 pixels needs \[unused339\] to \[unused372\].* has no '\[unused372\]'"):
        BoxIds.of(tokenizer, 32)


def test_statements_are_read_left_before_right_and_learnt(network, pixels):
    left, right, labels = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 0, 3, 2]), torch.tensor([1, 0, 1, 0])
    ids = texts(4)
    states = network.vision_encoder(pixels)
    logits = nlvr_logits(network, states, ids, None, left, right)
    each = [fuse(network, states[index], ids).text[:, 0] for index in (left, right)]
    torch.testing.assert_close(logits, network.nlvr_head(torch.cat(each, dim=1)))
    loss = lambda: nlvr_loss(network, network.vision_encoder(pixels), ids, None, left, right, labels)  # noqa: E731
    assert halved(learn(network.parameters(), loss))


def test_hypotheses_are_learnt(network, pixels):
    labels, images = torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([0, 0, 0, 1, 1, 1])
    loss = lambda: entail_loss(  # noqa: E731
        network, network.vision_encoder(pixels), texts(6), None, labels, images
    )
    assert halved(learn(network.parameters(), loss, 60))
    logits = entail_logits(network, network.vision_encoder(pixels), texts(6), None, images)
    assert (logits.argmax(-1) == labels).all()
