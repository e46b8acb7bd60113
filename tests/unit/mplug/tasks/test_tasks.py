"""Public models without a server: what each asks of the stages, and what it makes of their answers."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mplug.config import read_config
from mplug.errors import InvalidRequest
from mplug.inputs.tokenizer import Tokenizer
from mplug.tasks.caption import CaptionTask
from mplug.tasks.checkpoint_files import Head, ServedCheckpoint
from mplug.tasks.ground import GroundTask
from mplug.tasks.inputs import PADDING_STEP, tokenised
from mplug.tasks.judgement import EntailTask, NlvrTask
from mplug.tasks.retrieval import EmbedImageTask, EmbedTextTask, MatchTask
from mplug.tasks.vqa import VqaTask

GOLDEN = Path(__file__).parents[3] / "parity" / "data"


def checkpoint(case: str, *tasks: str) -> ServedCheckpoint:
    folder = GOLDEN / case
    task = tasks[0] if tasks else None
    config = read_config(folder / "config.yaml", folder / "config_bert.json", task=task)
    if tasks:
        config = replace(config, tasks=tasks)
    tokenizer = Tokenizer(folder / "vocab.txt", config.text.vocab_size)
    return ServedCheckpoint(config, tokenizer, config.vision.image_size)


def picture(width: int = 40, height: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 60)).save(buffer, "PNG")
    return buffer.getvalue()


class Stages:
    """Stands in for the served stages: shapes as the contract says, values that tell rows apart."""

    def __init__(self, task) -> None:
        config = task.config
        self.width, self.tokens, self.embed = config.text.hidden_size, config.vision.tokens, config.embed_dim
        self.calls: list[tuple[str, dict, list[str]]] = []
        self.decoded: dict = {}

    async def __call__(self, name, inputs, outputs):
        self.calls.append((name, dict(inputs), list(outputs)))
        return {output: self.answer(output, inputs) for output in outputs}

    def answer(self, output, inputs):
        if output == "IMAGE_STATES":
            return np.ones((len(inputs["PIXELS"]), self.tokens, self.width), np.float32)
        if output == "IMAGE_PROJECTION":
            rows = np.arange(1, len(inputs["PIXELS"]) + 1)
            return np.eye(self.embed, dtype=np.float32)[: len(rows)] * rows[:, None].astype(np.float32)
        if output == "TEXT_STATES":
            return np.zeros((*inputs["INPUT_IDS"].shape, self.width), np.float32)
        if output == "TEXT_PROJECTION":
            return np.eye(self.embed, dtype=np.float32)[np.zeros(len(inputs["INPUT_IDS"]), int)] * 3
        if output == "FUSED_IMAGE_STATES":
            return inputs["IMAGE_STATES"] + 1
        if output == "FUSED_TEXT_STATES":
            return inputs["TEXT_STATES"] + np.arange(1, len(inputs["TEXT_STATES"]) + 1)[:, None, None]
        if output == "MATCH_LOGITS":
            return np.arange(2 * len(inputs["TEXT_STATES"]), dtype=np.float32).reshape(-1, 2)
        return self.decoded[output]

    def inputs_of(self, name: str) -> list[dict]:
        return [inputs for called, inputs, _ in self.calls if called == name]


def answered(task, stages: Stages, **inputs):
    return asyncio.run(task.run(task.parse(inputs), stages))


def test_vqa_reads_the_fused_states_behind_their_mask() -> None:
    task = VqaTask(checkpoint("vqa"))
    stages = Stages(task)
    stages.decoded = {"TOKEN_IDS": np.array([[101, 530, 102]], np.int32), "SCORE": np.array([-1.0], np.float32)}
    answer = answered(task, stages, IMAGE=[picture()], QUESTION=[b"w1 w2"], NUM_BEAMS=np.array([3], np.int32))
    assert answer["ANSWER"] == [task.tokenizer.decode([530]).encode()]
    (read,) = stages.inputs_of("text_decoder")
    length = PADDING_STEP
    assert read["ENCODER_STATES"].shape == (task.config.vision.tokens + length, task.config.text.hidden_size)
    words = len(task.tokenizer.pieces("w1 w2")) + 2
    assert read["ENCODER_MASK"].tolist() == [1] * (task.config.vision.tokens + words) + [0] * (length - words)
    assert read["NUM_BEAMS"].tolist() == [3]


def test_texts_are_no_longer_than_the_longest_needs() -> None:
    """A multiple of the step, so that requests of like lengths share a batch; never more than the checkpoint reads."""
    tokenizer = checkpoint("retrieval").tokenizer
    most = 2 * PADDING_STEP - 2
    for words, length in ((1, PADDING_STEP), (PADDING_STEP - 2, PADDING_STEP), (PADDING_STEP - 1, most)):
        texts = {"TEXT[0]": "w1", "TEXT[1]": " ".join(["w1"] * words)}
        ids, mask = tokenised(tokenizer, texts, most)
        assert ids.shape == mask.shape == (2, length)
        assert mask.sum(1).tolist() == [3, words + 2] and ids[1, words + 1] == tokenizer.sep_id
        assert not ids[mask == 0].any()
    with pytest.raises(InvalidRequest, match=r"TEXT\[0\]: 29 tokens exceed the 28"):
        tokenised(tokenizer, {"TEXT[0]": " ".join(["w1"] * (most - 1))}, most)


def test_ranked_candidates_are_a_softmax_over_those_that_were_kept() -> None:
    task = VqaTask(checkpoint("vqa"))
    stages = Stages(task)
    scores = np.array([-3.0, -np.inf, -1.0, -1.5], np.float32)
    stages.decoded = {"TOKEN_IDS": np.arange(8, dtype=np.int32).reshape(4, 2), "SCORE": scores}
    answer = answered(task, stages, IMAGE=[picture()], QUESTION=[b"w1"], CANDIDATES=[b"w1", b"w2", b"w3", b"w4"])
    assert answer["ANSWER"] == [b"w3", b"w4", b"w1"]
    weights = np.exp([-1.0, -1.5, -3.0])
    np.testing.assert_allclose(answer["SCORE"], weights / weights.sum(), rtol=1e-6)
    assert answer["TOKEN_IDS"].tolist() == [[4, 5], [6, 7], [0, 1]]


def test_candidates_end_as_the_checkpoint_says_and_their_first_token_counts_twice() -> None:
    published = VqaTask(checkpoint("vqa"))  # its YAML has `eos: '[SEP]'`
    own = VqaTask(replace(checkpoint("vqa"), config=replace(published.config, eos="")))
    for task, ends in ((published, [102, 102]), (own, [102])):
        stages = Stages(task)
        stages.decoded = {"TOKEN_IDS": np.zeros((1, 2), np.int32), "SCORE": np.zeros(1, np.float32)}
        answered(task, stages, IMAGE=[picture()], QUESTION=[b"w1"], CANDIDATES=[b"w2"])
        (read,) = stages.inputs_of("text_decoder")
        assert read["CANDIDATE_IDS"].tolist() == [[101, *task.tokenizer.pieces("w2"), *ends]]
        assert read["FIRST_TOKEN_WEIGHT"].tolist() == [2]


def test_ocr_and_objects_stand_behind_the_question_each_with_its_end() -> None:
    task = VqaTask(checkpoint("vqa"))
    request = task.parse({"IMAGE": [picture()], "QUESTION": [b"w1"], "OCR": [b"w2", b"w3"], "OBJECTS": [b"w4"]})
    pieces, end = task.tokenizer.pieces, task.tokenizer.sep_id
    wanted = [task.tokenizer.cls_id, *pieces("w1"), end, *pieces("w2 w3"), end, *pieces("w4"), end]
    assert request.question[0][: len(wanted)].tolist() == wanted


def test_words_that_were_read_are_cleaned_and_cut_and_objects_are_not() -> None:
    task = VqaTask(checkpoint("vqa"))
    read = [b"W2,", b"w3-w4", *[b"w5"] * 40]
    request = task.parse({"IMAGE": [picture()], "QUESTION": [b"w1?"], "OCR": read, "OBJECTS": [b"w6,", b"w7"]})
    pieces, end = task.tokenizer.pieces, task.tokenizer.sep_id
    words = ["w2", "w3", "w4", *["w5"] * 27]  # 30
    wanted = [101, *pieces("w1?"), end, *pieces(" ".join(words)), end, *pieces("w6, w7"), end]
    assert request.question[0][: len(wanted)].tolist() == wanted
    assert request.question[1].sum() == len(wanted)


def test_what_does_not_fit_behind_the_question_is_an_error() -> None:
    task = VqaTask(checkpoint("vqa"))  # 64 positions: fewer than the 80 tokens of the published script
    objects = [b"w4"] * 30
    with pytest.raises(InvalidRequest, match="OCR and OBJECTS: 66 tokens with the question exceed the 64 that"):
        task.parse({"IMAGE": [picture()], "QUESTION": [b"w1 w2"], "OCR": [b"w3"] * 30, "OBJECTS": objects})


def test_a_prompt_that_is_decoded_keeps_its_punctuation_and_one_that_is_encoded_does_not() -> None:
    served = checkpoint("caption")
    for states, prompt in (("image", "W1, w2-w3."), ("fused", "w1 w2 w3")):
        task = CaptionTask(replace(served, config=replace(served.config, caption_states=states)))
        assert task.parse({"IMAGE": [picture()], "PROMPT": [b"W1, w2-w3."]}).prompt == prompt
    task = CaptionTask(served)
    with pytest.raises(InvalidRequest, match="PROMPT: holds no words"):
        task.parse({"IMAGE": [picture()], "PROMPT": ["\ufffd".encode()]})
    stages = Stages(task)
    stages.decoded = {"TOKEN_IDS": np.array([[101, 102]], np.int32), "SCORE": np.zeros(1, np.float32)}
    answered(task, stages, IMAGE=[picture()], PROMPT=[b"W1, w2-w3."])
    (read,) = stages.inputs_of("text_decoder")
    assert read["PROMPT_IDS"].tolist() == [101, *task.tokenizer.pieces("w1 , w2 - w3 .")]


def test_answers_are_short_where_the_checkpoint_writes_captions() -> None:
    captioner = VqaTask(checkpoint("caption", "image-captioning", "visual-question-answering"))
    request = captioner.parse({"IMAGE": [picture()], "QUESTION": [b"w1"]})
    assert (request.search.min_length, request.search.max_length) == (1, 10)


def test_frames_lie_side_by_side() -> None:
    task = CaptionTask(checkpoint("video"))
    stages = Stages(task)
    stages.decoded = {"TOKEN_IDS": np.array([[101, 102]], np.int32), "SCORE": np.zeros(1, np.float32)}
    answered(task, stages, IMAGE=[picture()] * 5, FRAMES=np.array([3], np.int32))
    (read,) = stages.inputs_of("text_decoder")
    assert len(read["ENCODER_STATES"]) == 3 * task.config.vision.tokens


def test_retrieval() -> None:
    image = EmbedImageTask(checkpoint("retrieval"))
    feature = answered(image, Stages(image), IMAGE=[picture()] * 2)["FEATURE"]
    np.testing.assert_allclose(feature[:2], np.array([1, 2]) / np.sqrt(5), rtol=1e-6)  # averaged, then normalised
    text = EmbedTextTask(checkpoint("retrieval"))
    assert np.linalg.norm(answered(text, Stages(text), TEXT=[b"W1, w2!"])["FEATURE"]) == pytest.approx(1)


def test_pairs_are_matched_in_bounded_pieces_in_their_order() -> None:
    task = MatchTask(checkpoint("retrieval"))
    stages = Stages(task)
    answer = answered(task, stages, IMAGE=[picture()], TEXT=[b"w1"] * 70)
    assert answer["SCORE"].tolist() == [*range(1, 129, 2), *range(1, 13, 2)]
    np.testing.assert_allclose(answer["SIMILARITY"], np.ones(70))
    assert [len(inputs["TEXT_STATES"]) for inputs in stages.inputs_of("fusion_encoder")] == [64, 6]
    assert len(stages.inputs_of("vision_encoder")) == 1


def test_frames_are_matched_side_by_side_and_the_similarity_counts() -> None:
    task = MatchTask(checkpoint("retrieval"))
    for images, similarity in ((1, 1.0), (2, 1 / np.sqrt(5))):
        stages = Stages(task)
        answer = answered(task, stages, IMAGE=[picture()] * images, TEXT=[b"w1", b"w2"])
        np.testing.assert_allclose(answer["SIMILARITY"], [similarity] * 2, rtol=1e-6)
        logits = np.array([1, 3], np.float32)  # of the stand-in
        np.testing.assert_allclose(answer["SCORE"], logits + (similarity if images > 1 else 0), rtol=1e-6)
        (read,) = stages.inputs_of("fusion_encoder")
        assert read["IMAGE_STATES"].shape[:2] == (2, images * task.config.vision.tokens)


def test_a_box_is_undone_from_the_canvas() -> None:
    task = GroundTask(checkpoint("grounding", "visual-grounding"))
    stages = Stages(task)
    first, scale = task.tokenizer.token_id("[unused340]"), task.config.vision.image_size
    tokens = [first + scale // 2, first + scale // 2, first + scale, first + scale // 2]
    stages.decoded = {"TOKEN_IDS": np.array([[task.start, *tokens]], np.int32), "SCORE": np.zeros(1, np.float32)}
    answer = answered(task, stages, IMAGE=[picture(80, 40)], EXPRESSION=[b"w1"])
    np.testing.assert_allclose(answer["BOX"], [0, 0, 80, 40], atol=1e-4)  # half the canvas's height is all of it
    assert answer["BOX_TOKENS"].tolist() == tokens
    (read,) = stages.inputs_of("text_decoder")
    assert read["TOKEN_RANGE"].tolist() == [first, first + scale + 1]
    assert read["PROMPT_IDS"].tolist() == [task.start]
    assert (read["MIN_LENGTH"].tolist(), read["MAX_LENGTH"].tolist()) == ([0], [4])


def test_a_vocabulary_without_box_tokens_is_refused() -> None:
    served = checkpoint("grounding", "visual-grounding")
    with pytest.raises(ValueError, match=r"\[unused340\] to"):
        GroundTask(replace(served, trained_image_size=5000))


def test_heads_read_the_first_state_of_every_image() -> None:
    served = checkpoint("vqa", "nlvr2", "visual-entailment")
    width = served.config.text.hidden_size
    weight = np.zeros((1, 2 * width), np.float32)
    weight[0, 0], weight[0, width] = 1, 10  # of the stand-in's states: 1 for the first image, 2 for the second
    head = Head(weight, np.zeros(1), np.array([[0.0], [0.1]]), np.zeros(2))
    nlvr = NlvrTask(served, head)
    answer = answered(nlvr, Stages(nlvr), IMAGE=[picture()] * 2, STATEMENT=[b"w1"])
    assert answer["LABEL"] == [b"true"]
    np.testing.assert_allclose(answer["PROBABILITY"], [1 / (1 + np.exp(-2.1))], rtol=1e-5)
    head = Head(weight[:, :width], np.zeros(1), np.array([[3.0], [2.0], [1.0]]), np.zeros(3))
    entail = EntailTask(served, head)
    answer = answered(entail, Stages(entail), IMAGE=[picture()], HYPOTHESIS=[b"w1"])
    assert answer["LABEL"] == [b"contradiction"]
    assert answer["PROBABILITY"].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({"QUESTION": [b"w1"]}, "IMAGE: missing"),
        ({"QUESTION": [b"w1"], "IMAGE": []}, "IMAGE: holds 0"),
        ({"QUESTION": [b"w1", b"w2"], "IMAGE": [picture()]}, "QUESTION: must hold exactly one"),
        ({"QUESTION": [b"w1"], "IMAGE": [picture()], "FRAMES": np.array([0])}, "FRAMES: "),
        ({"QUESTION": [b"w1"], "IMAGE": [picture()], "VIDEO": [b"x"]}, "VIDEO: is sent beside IMAGE"),
        ({"QUESTION": [b"w1"], "IMAGE": [picture()], "CANDIDATES": []}, "CANDIDATES: holds 0"),
        ({"QUESTION": [b"w1"], "IMAGE": [picture()], "CANDIDATES": [b"w1 " * 62]}, r"CANDIDATES\[0\]: has"),
        (
            {"QUESTION": [b"w1"], "IMAGE": [picture()], "CANDIDATES": [b"w1"], "MAX_LENGTH": np.array([3])},
            "MAX_LENGTH: ",
        ),
    ],
)
def test_bad_requests_name_the_input(inputs, complaint) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        VqaTask(checkpoint("vqa")).parse(inputs)
