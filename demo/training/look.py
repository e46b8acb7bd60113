"""A look at a demo model in training: every task on fixed scenes, unaugmented, in both kinds of styles.

Greedy decoding in PyTorch, a few hundred scenes: quick, and near enough to see where a run is going.
builders/evaluate.py measures what is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from builders.evaluation.boxes import ENOUGH, iou
from builders.train.distributed import of_all, rank, world_size
from builders.train.fused_states import fuse, token_mask
from builders.train.generation import generate
from builders.train.objectives.captioning import decoder_source
from builders.train.objectives.grounding import greedy_boxes
from builders.train.objectives.judgement import entail_logits, nlvr_logits
from demo.scenes.generator import SceneGenerator
from demo.scenes.grammar import exact_match, object_recall
from demo.scenes.sprites import HELD_OUT_STYLE, SPLIT_STYLES
from demo.training.batches import SceneTexts, normalise
from demo.training.legs import Mixture
from demo.training.patch_labelling import PatchLabelling
from mplug.network import MPlug

VALIDATION_SEED = 20_000
SPLITS = {"train": SPLIT_STYLES, "held_out": (HELD_OUT_STYLE,)}
SCENES = 200
TEXTS = Mixture(contrasted=0, questions=300, expressions=200, hypotheses=200, statements=200, matches=200)


@torch.no_grad()
def look(network: MPlug, patches: PatchLabelling, *, tasks: bool, scenes: int = SCENES) -> dict[str, dict[str, float]]:
    """Return shares of 1 that are right, by split and task; without `tasks`, of the labels of patches alone.

    Several processes divide the splits among themselves; all of them call it, and each returns everything.
    """
    was_training = network.training
    network.eval()
    results = {
        split: _look_at(network, patches, styles, tasks, scenes)
        for number, (split, styles) in enumerate(SPLITS.items())
        if number % world_size() == rank()
    }
    network.train(was_training)
    return {split: scores for found in of_all(results) for split, scores in found.items()}


def _look_at(
    network: MPlug, patches: PatchLabelling, styles: Sequence[str], tasks: bool, count: int
) -> dict[str, float]:
    scenes = SceneGenerator(styles, size=128, max_groups=2, seed=VALIDATION_SEED).batch(count, paired=True).scenes
    texts = SceneTexts(VALIDATION_SEED)
    texts.random = Random(VALIDATION_SEED)
    batch = texts.batch(scenes, TEXTS)
    states = network.vision_encoder(normalise(batch["images"]))
    scores = {"patches": patches.accuracy(states, batch["labels"])}
    if tasks:
        scores |= _captions(network, states, texts, scenes)
        scores |= _generated(network, states, batch, texts) | _judged(network, states, batch)
    return {name: round(float(value), 3) for name, value in scores.items()}


def _captions(network: MPlug, states: Tensor, texts: SceneTexts, scenes: Sequence) -> dict[str, float]:
    prompt = torch.tensor(texts.ids(network.config.prompt))
    ids = generate(
        network,
        decoder_source(network, states, prompt),
        start_id=texts.tokenizer.cls_id,
        end_id=texts.tokenizer.sep_id,
        length=network.config.generation.max_length,
    )
    written = [texts.tokenizer.decode(row[1:]) for row in ids.tolist()]
    pairs = list(zip(written, scenes, strict=True))
    return {
        "recall": sum(object_recall(text, scene) for text, scene in pairs) / len(pairs),
        "exact": sum(exact_match(text, scene.caption) for text, scene in pairs) / len(pairs),
    }


def _generated(network: MPlug, states: Tensor, batch: dict[str, Tensor], texts: SceneTexts) -> dict[str, float]:
    answers = batch["answer_ids"]
    source = network.decoder_input(*fuse(network, states, batch["question_ids"], None, batch["question_image"]))
    said = generate(
        network, source, start_id=texts.tokenizer.cls_id, end_id=texts.tokenizer.sep_id, length=answers.shape[1]
    )
    # Equal up to the end token; what stands behind it does not count.
    right = [
        row[: len(wanted)] == wanted
        for row, wanted in zip(said.tolist(), ([i for i in row if i] for row in answers.tolist()), strict=True)
    ]
    boxes = texts.box_ids
    found = greedy_boxes(network, states, batch["expression_ids"], None, boxes, batch["expression_image"])
    hit = iou(boxes.boxes(found).numpy(), boxes.boxes(batch["box_ids"]).numpy()) >= ENOUGH
    return {"vqa": sum(right) / len(right), "ground": hit.mean()}


def _judged(network: MPlug, states: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
    entailed = entail_logits(network, states, batch["hypothesis_ids"], None, batch["hypothesis_image"]).argmax(-1)
    true = nlvr_logits(
        network, states, batch["statement_ids"], None, batch["statement_image"], batch["statement_other"]
    ).argmax(-1)
    texts = batch["texts"]
    features = network.text_feature(network.text_encoder(texts, token_mask(texts))).float()
    similarity = network.image_feature(states).float() @ features.T
    every = torch.arange(len(states))
    right, wrong = (
        network.match_head(fuse(network, states, ids, None, images).text[:, 0])[:, 1]
        for ids, images in ((texts, every), (batch["wrong_ids"], batch["wrong_image"]))
    )
    return {
        "entail": (entailed == batch["entail_label"]).float().mean(),
        "nlvr": (true == batch["nlvr_label"]).float().mean(),
        "match": (right[batch["wrong_image"]] > wrong).float().mean(),  # of two captions, one wrong in one thing
        "retrieval": (similarity.argmax(1) == every).float().mean(),
    }
