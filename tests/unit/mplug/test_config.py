"""Configurations as they are published, and as they must not be: each wrong one is a line that names file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mplug.config import TASKS, ConfigError, bert_config_name, read_config

GOLDEN = Path(__file__).parents[2] / "parity" / "data" / "caption"

#: The captioning YAML of the authors, in what matters: no task, no sizes of CLIP but its name, keys of training.
AUTHORS_YAML = {
    "train_file": ["train.json"],
    "val_file": "val.json",
    "bert_config": "configs/config_bert.json",
    "image_res": 384,
    "batch_size_train": 32,
    "alpha": 0.4,
    "distill": True,
    "warm_up": True,
    "eos": "[SEP]",
    "clip_name": "ViT-B-16",
    "beam_size": 5,
    "min_length": 8,
    "max_length": 25,
    "add_object": False,
    "optimizer": {"opt": "adamW", "lr1": 1e-5, "lr2": 1e-6, "weight_decay": 0.02},
    "schedular": {"sched": "cosine", "epochs": 5, "warmup_epochs": 0},
}
#: The base model's BERT JSON.
AUTHORS_BERT = {
    "architectures": ["BertForMaskedLM"],
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "fusion_layer": 6,
    "encoder_width": 768,
    "text_encoder_layers": 6,
    "fusion_layers": 6,
    "text_decode_layers": 12,
    "stride_layer": 3,
}
ABSENT = object()


def write(folder: Path, document: dict[str, Any], bert: dict[str, Any]) -> tuple[Path, Path]:
    paths = folder / "caption_mplug_base.yaml", folder / "config_bert.json"
    present = [{key: value for key, value in each.items() if value is not ABSENT} for each in (document, bert)]
    paths[0].write_text(yaml.safe_dump(present[0]))
    paths[1].write_text(json.dumps(present[1]))
    return paths


def read(folder: Path, *, task: str | None = "image-captioning", bert: dict[str, Any] | None = None, **changes: Any):
    return read_config(*write(folder, AUTHORS_YAML | changes, AUTHORS_BERT | (bert or {})), task=task)


def test_what_a_modelscope_yaml_leaves_out_is_as_its_code_has_it(tmp_path: Path) -> None:
    config = read_config(*write(tmp_path, {"task": "image-captioning"}, AUTHORS_BERT))
    assert (config.vision.image_size, config.vision.patch_size, config.vision.layers) == (504, 14, 24)
    generation = config.generation
    assert (generation.num_beams, generation.min_length, generation.max_length) == (5, 1, 10)
    longer = read_config(*write(tmp_path, {"task": "image-captioning", "min_length": 12}, AUTHORS_BERT)).generation
    assert (longer.min_length, longer.max_length) == (12, 12)


def test_a_published_folder() -> None:
    config = read_config(GOLDEN / "config.yaml", GOLDEN / "config_bert.json")
    assert config.tasks == ("image-captioning",)
    assert (config.vision.image_size, config.vision.patch_size, config.vision.tokens) == (64, 16, 17)
    assert (config.vision.width, config.vision.layers, config.vision.heads) == (128, 2, 2)
    assert (config.text.vocab_size, config.text.hidden_size, config.text.head_width) == (900, 128, 64)
    assert (config.text.num_hidden_layers, config.text.fusion_layers, config.text.stride_layer) == (5, 4, 2)
    assert (config.generation.num_beams, config.generation.min_length, config.generation.max_length) == (5, 4, 14)
    assert config.generation.length_penalty == 0.6
    assert config.embed_dim == 48
    assert (config.caption_states, config.prompt) == ("image", "")


def test_the_authors_yaml(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config.tasks == ("image-captioning",)
    assert (config.vision.width, config.vision.layers, config.vision.patch_size) == (768, 12, 16)
    assert (config.vision.grid, config.vision.tokens) == (24, 577)
    assert not config.projects_vision
    assert (config.generation.num_beams, config.generation.min_length, config.generation.max_length) == (5, 8, 25)


def test_the_authors_large_model(tmp_path: Path) -> None:
    config = read(tmp_path, clip_name="ViT-L-14", bert={"stride_layer": 6})
    assert (config.vision.width, config.vision.layers, config.vision.patch_size) == (1024, 24, 14)
    assert config.vision.tokens == 1 + 27**2  # 384 is no multiple of 14; the rest is cut off
    assert config.projects_vision


def test_sizes_that_are_spelt_out_come_before_the_name(tmp_path: Path) -> None:
    config = read(tmp_path, clip_name="ViT-B-16", clip_vision_patch_size=32, image_res=224)
    assert (config.vision.patch_size, config.vision.width, config.vision.grid) == (32, 768, 7)


def test_connected_layers_of_the_published_sizes(tmp_path: Path) -> None:
    """Base closes the skip-connection at its fourth running layer, large never does."""
    for stride, connected in ((3, [3]), (6, [])):
        text = read(tmp_path, bert={"stride_layer": stride}).text
        assert [i for i in range(text.fusion_layers) if text.fusion_layer_is_connected(i)] == connected


@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_be_named(tmp_path: Path, task: str) -> None:
    assert read(tmp_path, task=task).tasks == (task,)
    path, bert = write(tmp_path, AUTHORS_YAML | {"task": task}, AUTHORS_BERT)
    assert read_config(path, bert).tasks == (task,)


def test_several_tasks_and_an_override(tmp_path: Path) -> None:
    path, bert = write(tmp_path, AUTHORS_YAML | {"tasks": ["image-captioning", "visual-grounding"]}, AUTHORS_BERT)
    assert read_config(path, bert).tasks == ("image-captioning", "visual-grounding")
    assert read_config(path, bert, task="visual-grounding").tasks == ("visual-grounding",)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ({}, (8, 25)),
        ({"max_length": 5}, (5, 5)),
        ({"min_length": 40}, (40, 40)),
        ({"min_length": 1, "max_length": 10}, (1, 10)),
    ],
)
def test_a_length_that_is_not_said_gives_way(tmp_path: Path, lengths: dict[str, int], expected: tuple) -> None:
    generation = read(tmp_path, **({"min_length": ABSENT, "max_length": ABSENT} | lengths)).generation
    assert (generation.min_length, generation.max_length) == expected


@pytest.mark.parametrize(
    ("task", "search", "tokens"),
    [
        ("image-captioning", (5, 8, 25), 25),
        ("video-captioning", (10, 15, 25), 25),
        ("visual-question-answering", (5, 1, 10), 80),
        ("video-question-answering", (5, 1, 10), 80),
        ("image-text-retrieval", (5, 8, 25), 30),
        ("video-text-retrieval", (5, 8, 25), 35),
        ("visual-grounding", (5, 8, 25), 20),
    ],
)
def test_what_the_yaml_leaves_out_is_what_the_published_scripts_pass(
    tmp_path: Path, task: str, search: tuple, tokens: int
) -> None:
    config = read(tmp_path, task=task, beam_size=ABSENT, min_length=ABSENT, max_length=ABSENT)
    generation = config.generation
    assert (generation.num_beams, generation.min_length, generation.max_length) == search
    assert config.max_text_length == tokens


def test_texts_are_never_longer_than_the_positions(tmp_path: Path) -> None:
    config = read(tmp_path, max_length=9, min_length=1, bert={"max_position_embeddings": 20})
    assert config.max_text_length == 20


def test_another_image_size(tmp_path: Path) -> None:
    config = read(tmp_path).at_image_size(224)
    assert config.vision.grid == 14
    for size in (0, -16, 15, 10**6):
        with pytest.raises(ConfigError, match=f"{size}"):
            config.at_image_size(size)


def test_the_yaml_names_its_bert_json(tmp_path: Path) -> None:
    for said, name in (
        ("configs/config_bert_large.json", "config_bert_large.json"),
        ("config_bert.json", "config_bert.json"),
        (ABSENT, None),
        (3, None),
        ("", None),
    ):
        path, _ = write(tmp_path, AUTHORS_YAML | {"bert_config": said}, AUTHORS_BERT)
        assert bert_config_name(path) == name


WRONG_IN_YAML: list[tuple[dict[str, Any], str]] = [
    ({"image_res": ABSENT}, "image_res is missing"),
    ({"image_res": None}, "image_res is missing"),
    ({"image_res": "384"}, "image_res is '384', not a whole number"),
    ({"image_res": 384.5}, "image_res is 384.5, not a whole number"),
    ({"image_res": True}, "image_res is True"),
    ({"image_res": [384]}, "image_res is"),
    ({"image_res": 0}, "image_size is 0"),
    ({"image_res": -384}, "image_size is -384"),
    ({"image_res": 8}, "image size 8 is smaller than one patch"),
    ({"image_res": 10**9}, "image size 1000000000 exceeds the limit of 2048"),
    ({"clip_name": "ViT-H-14"}, "clip_vision_patch_size is missing"),
    ({"clip_name": ABSENT}, "clip_vision_patch_size is missing"),
    ({"clip_vision_width": 100}, "vision width 100 is not a multiple"),
    ({"clip_vision_layers": 0}, "vision layers is 0"),
    ({"clip_vision_patch_size": 0}, "vision patch_size is 0"),
    ({"vision_stem": 64}, "vision_stem is 64, but must list up to 6 numbers of channels"),
    ({"vision_stem": ["64"]}, "vision_stem is ['64'], but must list"),
    ({"vision_stem": [64, 0, 64]}, "vision stem 0 is not a positive multiple of 8"),
    ({"vision_stem": [64, 100, 192]}, "vision stem 100 is not a positive multiple of 8"),
    ({"vision_stem": [64, 128]}, "a stem of 2 convolutions has patches of 8 pixels, not 16"),
    ({"beam_size": 0}, "beam_size is 0"),
    ({"beam_size": 17}, "beam_size 17 exceeds the 16 beams"),
    ({"beam_size": "many"}, "beam_size is 'many'"),
    ({"min_length": -1}, "min_length -1 is not between 0"),
    ({"min_length": 26}, "min_length 26 is not between 0 and max_length 25"),
    ({"max_length": 0, "min_length": 0}, "max_length is 0"),
    ({"max_length": 512}, "max_length 512 needs more than the 512 positions"),
    ({"max_text_length": 2}, "max_text_length 2 is too short"),
    ({"max_text_length": -3}, "max_text_length -3"),
    ({"embed_dim": 0}, "embed_dim is 0"),
    ({"caption_states": "text"}, "caption_states 'text' is not image or fused"),
    ({"final_sep": "no"}, "final_sep is 'no', not true or false"),
    ({"frame_sampling": "random"}, "frame_sampling 'random' is not published or even"),
    ({"grounding_statistics": "coco"}, "grounding_statistics 'coco' is not clip or imagenet"),
]
WRONG_IN_BERT: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": ABSENT}, "hidden_size is missing"),
    ({"hidden_size": "768"}, "hidden_size is '768', not a whole number"),
    ({"hidden_size": 0}, "hidden_size is 0"),
    ({"hidden_size": 770}, "hidden_size 770 is not a multiple of its 12 heads"),
    ({"num_attention_heads": 0}, "heads is 0"),
    ({"vocab_size": -1}, "vocab_size is -1"),
    ({"intermediate_size": 3072.5}, "intermediate_size is 3072.5"),
    ({"max_position_embeddings": 25}, "max_length 25 needs more than the 25 positions"),
    ({"text_encoder_layers": 0}, "text_encoder_layers is 0"),
    ({"text_decode_layers": 0}, "text_decode_layers is 0"),
    ({"fusion_layers": 13}, "fusion_layers 13 exceeds num_hidden_layers 12"),
    ({"stride_layer": 0}, "stride_layer is 0"),
    ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
    ({"layer_norm_eps": "tiny"}, "layer_norm_eps is 'tiny', not a number"),
    ({"layer_norm_eps": None}, "layer_norm_eps is None, not a number"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
    ({"layer_norm_eps": -1e-12}, "layer_norm_eps is -1e-12"),
    ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
]


@pytest.mark.parametrize(
    ("changes", "complaint", "where"),
    [(*case, "yaml") for case in WRONG_IN_YAML] + [(*case, "bert") for case in WRONG_IN_BERT],
)
def test_a_wrong_number_names_file_and_key(tmp_path: Path, changes: dict, complaint: str, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, **(changes if where == "yaml" else {"bert": changes}))
    message = str(caught.value)
    assert complaint in message
    assert {"yaml": "caption_mplug_base.yaml", "bert": "config_bert.json"}[where] in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({}, "names no task; pass --task with one of image-captioning"),
        ({"task": None}, "names no task"),
        ({"tasks": []}, "names no task"),
        ({"task": "captioning"}, "unknown task 'captioning'; known: image-captioning"),
        ({"tasks": ["image-captioning", 7]}, "unknown task '7'"),
        ({"task": 7}, "the task is 7, neither a name nor a list"),
        ({"tasks": {"image-captioning": True}}, "neither a name nor a list"),
    ],
)
def test_a_wrong_task(tmp_path: Path, said: dict[str, Any], complaint: str) -> None:
    path, bert = write(tmp_path, AUTHORS_YAML | said, AUTHORS_BERT)
    with pytest.raises(ConfigError) as caught:
        read_config(path, bert)
    assert complaint in str(caught.value) and path.name in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is not a mapping"),
        (b"- a\n- b\n", "is not a mapping"),
        (b"a: [1\n", "cannot be parsed"),
        (b"a: \xff\xfe\n", "cannot be parsed"),
    ],
)
@pytest.mark.parametrize("which", [0, 1], ids=["yaml", "json"])
def test_a_file_that_cannot_be_read(tmp_path: Path, which: int, content: bytes, complaint: str) -> None:
    paths = write(tmp_path, AUTHORS_YAML, AUTHORS_BERT)
    paths[which].write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_config(*paths, task="image-captioning")
    assert str(paths[which]) in str(caught.value)
    assert (complaint if which == 0 else "") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_deeper_than_its_parser_goes(tmp_path: Path) -> None:
    paths = write(tmp_path, AUTHORS_YAML, AUTHORS_BERT)
    paths[1].write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="cannot be parsed"):
        read_config(*paths, task="image-captioning")


@pytest.mark.parametrize("which", [0, 1], ids=["yaml", "json"])
def test_a_file_that_is_not_there(tmp_path: Path, which: int) -> None:
    paths = write(tmp_path, AUTHORS_YAML, AUTHORS_BERT)
    paths[which].unlink()
    with pytest.raises(ConfigError, match=f"{paths[which].name}: cannot be read: No such file"):
        read_config(*paths, task="image-captioning")
    paths[which].mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_config(*paths, task="image-captioning")


def test_a_yaml_runs_nothing(tmp_path: Path) -> None:
    paths = write(tmp_path, AUTHORS_YAML, AUTHORS_BERT)
    trace = tmp_path / "trace"
    paths[0].write_text(f"!!python/object/apply:os.system ['touch {trace}']")
    with pytest.raises(ConfigError, match="cannot be parsed"):
        read_config(*paths, task="image-captioning")
    assert not trace.exists()
