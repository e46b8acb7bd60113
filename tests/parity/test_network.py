"""Every tensor of the published implementation, reproduced by ours in fp32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import DATA, assert_close, expected, tensors

from builders.train.objectives.captioning import caption_loss
from mplug.checkpoint import load_checkpoint
from mplug.inputs.pixels import Pixels
from mplug.network.graphs import graphs_of

SEP = 102


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_vision_stage_normalises_bit_for_bit(dtype):
    """Every level of every colour, with either statistics, and padding, whatever lies there: as at the door."""
    network, _ = load_checkpoint(DATA / "caption")
    (graph,) = (graph for spec, graph in graphs_of(network.to(dtype), SEP) if spec.name == "vision_encoder")
    levels = torch.arange(3 * 64 * 64, dtype=torch.int32).remainder(256).to(torch.uint8).view(1, 3, 64, 64)
    levels = levels.expand(3, -1, -1, -1).contiguous()
    boxes = torch.tensor([[0, 0, 64, 64], [3, 0, 60, 64], [0, 1, 64, 63]], dtype=torch.int32)
    statistics = torch.tensor([[0], [1], [0]], dtype=torch.int32)
    reference = Pixels(levels.numpy(), boxes.numpy(), statistics.numpy()).normalised()
    assert not reference[1, :, :, :3].any() and not reference[2, :, 63:].any() and reference[0].all()
    values = graph.normalised(levels, boxes, statistics)
    assert torch.equal(values, torch.from_numpy(reference).to(dtype))


def test_padding_of_texts_changes_nothing():
    """Tasks pad texts no further than they need, where the published code pads to a fixed length."""
    network, golden = load("retrieval")
    ids, mask, images = golden["input_ids"], golden["attention_mask"], golden["image_embeds"][:1]
    for row in range(len(ids)):
        shortest = int(mask[row].sum())
        assert shortest < ids.shape[1]
        states = network.text_encoder(ids[row : row + 1, :shortest], mask[row : row + 1, :shortest])
        assert_close(states[0], golden["text_embeds"][row, :shortest].numpy(), "text_embeds")
        padded = network.fusion_encoder(images, golden["text_embeds"][row : row + 1], mask[row : row + 1])
        image, text = network.fusion_encoder(images, states, mask[row : row + 1, :shortest])
        assert_close(image, padded[0].numpy(), "fused image states")
        assert_close(text, padded[1][:, :shortest].numpy(), "fused text states")


def load(case: str, **options):
    network, _ = load_checkpoint(DATA / case, **options)
    return network, {name: torch.from_numpy(array) for name, array in tensors(case).items()}


def test_caption():
    network, golden = load("caption")
    image_states = network.vision_encoder(golden["pixel_values"])
    assert_close(image_states, golden["image_embeds"].numpy(), "image_embeds")
    mask = torch.ones(image_states.shape[:2])
    logits = network.text_decoder(golden["decoder_input_ids"], image_states, mask)
    assert_close(logits, golden["decoder_logits"].numpy(), "decoder_logits")


def test_captioning_loss():
    network, golden = load("caption")
    source = golden["image_embeds"], torch.ones(golden["image_embeds"].shape[:2])
    loss = caption_loss(network, source, golden["decoder_input_ids"])
    assert loss.item() == pytest.approx(expected("caption")["lm_loss"], rel=1e-4)


@pytest.mark.parametrize("case", ["vqa", "grounding"])
def test_fusion(case: str):
    network, golden = load(case)
    image_states = network.vision_encoder(golden["pixel_values"])
    text_states = network.text_encoder(golden["input_ids"], golden["attention_mask"])
    fused_image, fused_text = network.fusion_encoder(image_states, text_states, golden["attention_mask"])
    assert_close(image_states, golden["image_embeds"].numpy(), "image_embeds")
    assert_close(text_states, golden["text_embeds"].numpy(), "text_embeds")
    assert_close(fused_image, golden["fused_image"].numpy(), "fused_image")
    assert_close(fused_text, golden["fused_text"].numpy(), "fused_text")


def test_answer_likelihood():
    """The sum of token log-probabilities that VQA is trained on and ranks answers by."""
    network, golden = load("vqa")
    answers = torch.tensor(expected("vqa")["answer_ids"])
    image_states = network.vision_encoder(golden["pixel_values"])
    text_states = network.text_encoder(golden["input_ids"], golden["attention_mask"])
    fused = network.fusion_encoder(image_states, text_states, golden["attention_mask"])
    states, mask = network.decoder_input(*fused, golden["attention_mask"])
    logits = network.text_decoder(answers, states, mask)
    log_probabilities = logits[:, :-1].log_softmax(-1).gather(-1, answers[:, 1:, None])[..., 0]
    likelihood = -(log_probabilities * (answers[:, 1:] != 0)).sum(-1)
    np.testing.assert_allclose(likelihood, expected("vqa")["answer_nll_sum"], rtol=1e-4)


def test_retrieval():
    network, golden = load("retrieval")
    image_states = network.vision_encoder(golden["pixel_values"])
    text_states = network.text_encoder(golden["input_ids"], golden["attention_mask"])
    assert_close(image_states, golden["image_embeds"].numpy(), "image_embeds")
    assert_close(text_states, golden["text_embeds"].numpy(), "text_embeds")
    image_feature, text_feature = network.image_feature(image_states), network.text_feature(text_states)
    assert_close(image_feature, golden["image_feat"].numpy(), "image_feat")
    assert_close(text_feature, golden["text_feat"].numpy(), "text_feat")
    assert_close(image_feature @ text_feature.T, golden["itc_similarity"].numpy(), "itc_similarity")
    for image in range(image_states.shape[0]):
        pairs = image_states[image].expand(text_states.shape[0], -1, -1)
        _, fused_text = network.fusion_encoder(pairs, text_states, golden["attention_mask"])
        logits = network.match_head(fused_text[:, 0])
        assert_close(logits, golden["itm_logits"][image].numpy(), "itm_logits")


def test_video():
    """Frames lie side by side as one long sequence of image states."""
    network, golden = load("video")
    videos = expected("video")["videos"]
    frames = torch.stack([golden["pixel_values"][indices] for indices in videos])  # [videos, frames, 3, R, R]
    frame_states = network.vision_encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).flatten(1, 2)
    assert_close(frame_states, golden["frame_embeds"].numpy(), "frame_embeds")
    text_states = network.text_encoder(golden["input_ids"], golden["attention_mask"])
    fused_image, fused_text = network.fusion_encoder(frame_states, text_states, golden["attention_mask"])
    assert_close(fused_image, golden["fused_image"].numpy(), "fused_image")
    assert_close(fused_text, golden["fused_text"].numpy(), "fused_text")


def test_positions_are_resampled_at_another_image_size():
    size = expected("resize")["image_res"]
    network, _ = load_checkpoint(DATA / "caption", image_size=size)
    golden = tensors("resize")
    assert_close(network.vision_encoder(torch.from_numpy(golden["pixel_values"])), golden["image_embeds"])
