#!/usr/bin/env python3
"""Make reference cases: requests, and what the authors' code answers, for random or for given checkpoints.

  git clone https://github.com/X-PLUG/mPLUG published
  python -m venv reference && reference/bin/pip install torch "transformers==4.30.2" pyyaml pillow av
  reference/bin/python tests/parity/make_cases.py published tests/parity/data/generated --seed 7
  reference/bin/python tests/parity/make_cases.py published OUTPUT --checkpoint tests/parity/data/vqa \
      --task visual-question-answering
  reference/bin/python tests/parity/make_cases.py published OUTPUT --modelscope modelscope --seed 7

Each case is a folder: `answers.json` with requests as the public model takes them and the answers of the published
code; pictures and a video; and the four files of the checkpoint, unless one was given. `test_generated_cases.py` holds
the tasks against every case it finds below `tests/parity/data`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import torch
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from published_code import Published, VideoReader, is_needed, load_weights, n_best, resized
from published_modelscope import ModelScope

MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)
#: n-best lists in which two scores are closer than this prove nothing: rounding decides their order.
LEAST_MARGIN = 1e-4
BOX_BINS = 336  # of the published grounding class
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
PUNCTUATION = ",.'!?\"()*#:;~-/&$"


class Case:
    """One folder in the making."""

    def __init__(self, published: Published, folder: Path, checkpoint: Path, task: str, seed: int) -> None:
        self.published, self.folder, self.checkpoint, self.task = published, folder, checkpoint, task
        self.config = yaml.safe_load((checkpoint / "config.yaml").read_text())
        self.random = np.random.default_rng(seed)
        self.tokenizer = published.tokenizer(checkpoint)
        self.requests: list[dict] = []
        folder.mkdir(parents=True, exist_ok=True)

    def model(self, kind: str, **changes) -> torch.nn.Module:
        model = self.published.model(kind, {**self.config, **changes}, self.checkpoint)
        load_weights(model, next(path for path in self.checkpoint.glob("*") if path.suffix in (".bin", ".pth")))
        return model

    def words(self, least: int, most: int) -> str:
        """Random words of the vocabulary, some in capitals, some with punctuation."""
        known = [word for word in self.tokenizer.vocab if word.isalnum() and len(word) > 1]
        chosen = [str(self.random.choice(known)) for _ in range(self.random.integers(least, most + 1))]
        chosen = [word.upper() if self.random.random() < 0.2 else word for word in chosen]
        marks = [str(self.random.choice(list(PUNCTUATION))) if self.random.random() < 0.3 else "" for _ in chosen]
        return " ".join(word + mark for word, mark in zip(chosen, marks, strict=True))

    def picture(self, size: tuple[int, int] = (24, 20)) -> str:
        """A small picture of soft colours, `size` wide and high; its file's name."""
        name = f"picture{len(list(self.folder.glob('picture*')))}.png"
        coarse = Image.fromarray(self.random.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(self.folder / name)
        return name

    def video(self, frames: int) -> str:
        """An encoded video of so many frames; its file's name."""
        name = f"video{len(list(self.folder.glob('video*')))}.mp4"
        buffer = io.BytesIO()
        ends = self.random.integers(0, 256, (2, 4, 4, 3)).astype(np.float32)
        with av.open(buffer, "w", format="mp4") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for index in range(frames):
                share = index / max(1, frames - 1)
                coarse = Image.fromarray(((1 - share) * ends[0] + share * ends[1]).astype(np.uint8))
                container.mux(stream.encode(av.VideoFrame.from_image(coarse.resize((48, 32)))))
            container.mux(stream.encode(None))
        (self.folder / name).write_bytes(buffer.getvalue())
        return name

    def pixels(self, names: list[str]) -> torch.Tensor:
        """Pixels `[n, 3, R, R]` of picture files, as the published test transform makes them."""
        side = self.config["image_res"]
        pictures = [np.asarray(resized(Image.open(self.folder / name), (side, side)), np.float32) for name in names]
        return torch.from_numpy(np.stack([((p / 255 - MEAN) / STD).transpose(2, 0, 1) for p in pictures]))

    def video_pixels(self, name: str, frames: int) -> tuple[torch.Tensor, list[int]]:
        """Pixels of a video as the published loader takes them, and the frames that it took."""
        from dataset.videoqa_dataset import ImageNorm, videoqa_dataset

        with av.open(str(self.folder / name)) as container:
            VideoReader.videos[name] = [frame.to_image() for frame in container.decode(video=0)]
        loader = SimpleNamespace(num_frm=frames, frm_sampling_strategy="uniform")
        side = self.config["image_res"]
        taken = videoqa_dataset._load_video_from_path_decord(loader, name, height=side, width=side)
        return ImageNorm(tuple(MEAN.tolist()), tuple(STD.tolist()))(taken.float()), VideoReader.asked

    def searched(self, inputs: dict, found: tuple[list, list], **more) -> None:
        """Keep a request with the n best of one search."""
        ids = [hypothesis.tolist() for hypothesis in found[0][0]]
        scores = [float(score) for score in found[1][0]]
        if min(-np.diff(scores), default=1.0) > LEAST_MARGIN:
            self.requests.append({"inputs": inputs, "answer": {"TOKEN_IDS": ids, "SCORE": scores}, **more})

    def write(self) -> None:
        document = {"task": self.task, "checkpoint": os.path.relpath(self.checkpoint, self.folder)}
        document["requests"] = self.requests
        (self.folder / "answers.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def options(beams: int, least: int, most: int) -> dict:
    return {"NUM_BEAMS": beams, "NUM_RETURN": beams, "MIN_LENGTH": least, "MAX_LENGTH": most}


def caption(case: Case) -> None:
    """Captions of pictures and videos behind a prompt, as `videocap_mplug.py` has them decoded."""
    for index in range(4):
        prompt = case.words(1, 5) if index else ""
        beams, least, most = int(case.random.integers(1, 6)), int(case.random.integers(0, 5)), 12
        inputs = {**options(beams, least, most), **({"PROMPT": prompt} if prompt else {})}
        more = {}
        if index == 3:
            inputs |= {"VIDEO": case.video(21), "FRAMES": 4}
            pixels, more["frames"] = case.video_pixels(inputs["VIDEO"], 4)
        else:
            inputs["IMAGE"] = [case.picture()]
            pixels = case.pixels(inputs["IMAGE"])
        model = case.model("caption_mplug_vatex", prompt=prompt)
        with n_best(model, beams, least, most):
            found = model(pixels[None], None, None, train=False, device="cpu")
        case.searched(inputs, found, **more)


def composed(case: Case, inputs: dict) -> tuple[torch.Tensor, str]:
    """Pixels and question of a request as the published data set puts them together."""
    from dataset.vqa_dataset import vqa_dataset

    annotation = {"dataset": "vqa", "image": inputs["IMAGE"][0], "question": inputs["QUESTION"], "question_id": 0}
    if "OCR" in inputs:
        annotation["ocr"] = [[[0, 0], word] for word in inputs["OCR"]]
    if "OBJECTS" in inputs:
        annotation["object_label"] = "&&".join(inputs["OBJECTS"])
    for name, content in (("annotations", [annotation]), ("answers", [])):
        (case.folder / f"{name}.tmp").write_text(json.dumps(content))
    data = vqa_dataset(
        [str(case.folder / "annotations.tmp")], lambda _: case.pixels(inputs["IMAGE"]), str(case.folder), "", "",
        split="test", answer_list=str(case.folder / "answers.tmp"), add_ocr=True, add_object=True,
    )  # fmt: skip
    pixels, question, _ = data[0]
    for path in case.folder.glob("*.tmp"):
        path.unlink()
    return pixels, question


def fused(case: Case, model: torch.nn.Module, pixels: torch.Tensor, question: str) -> tuple[torch.Tensor, torch.Tensor]:
    """States and mask that `videoqa_mplug.py` gives to the decoder: frames side by side, then the question."""
    text = case.tokenizer([question], padding="longest", return_tensors="pt")
    states = model.visual_encoder.visual(pixels, skip_last_layer=True, use_checkpoint=False)
    if model.large:
        states = model.visn_layer_norm(model.visn_fc(states))
    states = states.reshape(1, -1, states.shape[-1])
    mask = torch.ones(states.shape[:2], dtype=torch.long)
    words = model.text_encoder(text.input_ids, attention_mask=text.attention_mask, return_dict=True).last_hidden_state
    image, words = model.fusion_encoder(
        encoder_embeds=words, attention_mask=text.attention_mask, encoder_hidden_states=states,
        encoder_attention_mask=mask, return_dict=False,
    )  # fmt: skip
    return torch.cat([image, words], 1), torch.cat([mask, text.attention_mask], 1)


def vqa(case: Case) -> None:
    """Questions with words and labels behind them, about pictures and a video, and answers that are ranked."""
    model = case.model("vqa_mplug", distill=False)
    positions = json.loads((case.checkpoint / "config_bert.json").read_text())["max_position_embeddings"]
    behind = [{}, {"OCR": (3, 6)}, {"OBJECTS": (1, 4)}, {"OCR": (32, 40), "OBJECTS": (2, 3)}]
    for kinds in behind:
        beams, most = int(case.random.integers(2, 6)), 10
        inputs = {"IMAGE": [case.picture()], "QUESTION": case.words(3, 8) + "?", **options(beams, 1, most)}
        for name, (least, longest) in kinds.items():
            inputs[name] = [case.words(1, 1) for _ in range(case.random.integers(least, longest + 1))]
        pixels, question = composed(case, inputs)
        text = case.tokenizer([question], padding="longest", return_tensors="pt")
        if text.input_ids.shape[1] <= min(80, positions):
            with n_best(model, beams, 1, most):
                case.searched(inputs, model(pixels, text, None, train=False))
    for frames in (0, 6):
        inputs = {"QUESTION": case.words(3, 8)}
        more = {}
        if frames:
            inputs |= {"VIDEO": case.video(30), "FRAMES": frames}
            pixels, more["frames"] = case.video_pixels(inputs["VIDEO"], frames)
        else:
            inputs["IMAGE"] = [case.picture()]
            pixels = case.pixels(inputs["IMAGE"])
        for count in (6, 150):
            # By their ids: texts that the tokenizer reads alike have the same score, and no order.
            drawn = [case.words(1, 3) for _ in range(count)]
            answers = list({tuple(case.tokenizer(text).input_ids): text for text in drawn}.values())
            ends = [answer + case.config["eos"] for answer in answers]
            ids = case.tokenizer(ends, padding="longest", return_tensors="pt")
            kept = min(128, len(answers))
            states = fused(case, model, pixels, inputs["QUESTION"])
            order, scores = model.rank_answer(*states, ids.input_ids, ids.attention_mask, kept)
            best = {"ANSWER": [answers[index] for index in order[0].tolist()], "SCORE": scores[0].tolist()}
            case.requests.append({"inputs": {**inputs, "CANDIDATES": answers}, "answer": best, **more})


def retrieval(case: Case) -> None:
    """Scores of the authors' two evaluation scripts: pictures, and videos as frames and encoded."""
    import retrieval_img_mplug
    import retrieval_vid_mplug
    from dataset.utils import pre_caption

    model = case.model("retrieval_mplug", distill=False)
    if not hasattr(model, "visn_fc"):
        raise ValueError(f"{case.checkpoint}: the published evaluation needs a vision width other than the text width")
    model.visn_fc.to("cpu")
    visual = model.visual_encoder.visual.forward
    model.visual_encoder.visual.forward = lambda *given, **named: visual(*given, **{**named, "use_checkpoint": False})
    texts = [case.words(3, 9) for _ in range(3)]
    pictures = [[case.picture()] for _ in texts]
    film = case.video(25)
    films = [[case.picture() for _ in range(3)] for _ in texts[1:]]
    encoded, taken = case.video_pixels(film, 3)
    jobs = [
        (retrieval_img_mplug, 30, [{"IMAGE": names} for names in pictures], [case.pixels(p) for p in pictures], {}),
        (
            retrieval_vid_mplug,
            40,
            [{"VIDEO": film, "FRAMES": 3}, *({"IMAGE": names} for names in films)],
            [encoded[None], *(case.pixels(names)[None] for names in films)],
            {"frames": taken},
        ),
    ]
    for script, words, shown, pixels, more in jobs:
        script.args = SimpleNamespace(distributed=False)
        data = SimpleNamespace(text=[pre_caption(text, words) for text in texts], image=pictures)
        loader = _Loader(data, [(one, index) for index, one in enumerate(pixels)])
        scores, _ = script.evaluation(model, loader, case.tokenizer, torch.device("cpu"), {"k_test": len(texts)})
        for index, inputs in enumerate(shown):
            request = {"inputs": {**inputs, "TEXT": texts}, "answer": {"SCORE": scores[index].tolist()}}
            case.requests.append({**request, **(more if "VIDEO" in inputs else {})})


def grounding(case: Case) -> None:
    """Boxes in pictures of several aspects, with the transforms and the text features of `grounding_mplug.py`."""
    from dataset import grounding_dataset

    model = case.model("grounding_mplug")
    transform = grounding_dataset.make_transforms(case.config, "testA")
    length = case.config["max_query_len"]
    for size in ((40, 40), (48, 20), (17, 45), (64, 63), (90, 7), (5, 60)):
        name, expression = case.picture(size), case.words(2, 12)
        picture = Image.open(case.folder / name).convert("RGB")
        shown = transform({"img": picture, "box": torch.zeros(4), "text": expression})["img"]
        examples = grounding_dataset.read_examples(expression.lower(), 0)
        (text,) = grounding_dataset.convert_examples_to_features(examples, length, case.tokenizer)
        if len(case.tokenizer.tokenize(expression.lower())) > length - 2:
            continue  # cut by the published code, an error here
        box = model(
            SimpleNamespace(tensors=shown[None]),
            SimpleNamespace(tensors=torch.tensor([text.input_ids]), mask=torch.tensor([text.input_mask])),
            {},
        )
        tokens = (box[0] * BOX_BINS).round().int() + case.tokenizer.convert_tokens_to_ids("[unused340]")
        inputs = {"IMAGE": [name], "EXPRESSION": expression}
        case.requests.append({"inputs": inputs, "answer": {"BOX_TOKENS": tokens.tolist()}})


def caption_modelscope(case: Case, model: torch.nn.Module) -> None:
    """Captions as ModelScope's pipeline has them decoded: its preprocessor gives an empty question."""
    for _ in range(3):
        beams, most = int(case.random.integers(2, 6)), 12
        inputs = {**options(beams, 1, most), "IMAGE": [case.picture()]}
        with n_best(model, beams, 1, most):
            case.searched(inputs, model(case.pixels(inputs["IMAGE"]), None, train=False))


def vqa_modelscope(case: Case, model: torch.nn.Module) -> None:
    """Answers as ModelScope's pipeline has them decoded: questions in small letters, padded to 25 tokens."""
    for _ in range(4):
        beams, most = int(case.random.integers(2, 6)), 10
        inputs = {"IMAGE": [case.picture()], "QUESTION": case.words(2, 6) + "?", **options(beams, 1, most)}
        text = case.tokenizer(
            inputs["QUESTION"].lower(), padding="max_length", truncation=True, max_length=25, return_tensors="pt"
        )
        if text.attention_mask.sum() < 25:  # longer ones are cut there, and not here
            with n_best(model, beams, 1, most):
                case.searched(inputs, model(case.pixels(inputs["IMAGE"]), text, train=False))


class _Loader(list):
    """Batches, and the data set that the evaluation scripts ask for its texts."""

    def __init__(self, data: SimpleNamespace, batches: list) -> None:
        super().__init__(batches)
        self.dataset = data


#: Per task: the public model that the requests are for, the published class, and what makes the requests.
TASKS: dict[str, tuple[str, str, Callable[[Case], None]]] = {
    "image-captioning": ("caption", "caption_mplug_vatex", caption),
    "visual-question-answering": ("vqa", "vqa_mplug", vqa),
    "image-text-retrieval": ("match", "retrieval_mplug", retrieval),
    "visual-grounding": ("ground", "grounding_mplug", grounding),
}
#: The same of ModelScope's code. Its retrieval gives a softmax over both logits, of which `match` gives one.
MODELSCOPE = {
    "image-captioning": ("caption", caption_modelscope),
    "visual-question-answering": ("vqa", vqa_modelscope),
}


def random_checkpoint(
    published: Published,
    folder: Path,
    task: str,
    random: np.random.Generator,
    modelscope: ModelScope | None = None,
) -> None:
    """Write the four files of a small checkpoint of random sizes, in ModelScope's layout, weights in half precision.

    The keys are those of the authors' classes, or those of `modelscope`'s.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pick = lambda *values: values[random.integers(len(values))]  # noqa: E731
    patch, fusion, vision = pick(8, 14, 16), int(random.integers(2, 6)), pick(64, 128)
    # The published evaluation of retrieval projects the image states, so the two widths must differ.
    hidden = pick(*(width for width in (48, 64, 96) if width != vision or not task.endswith("retrieval")))
    tokens = [SPECIAL.get(index, f"[unused{index}]") for index in range(104)]
    tokens += [*PUNCTUATION, *"abcdefghijklmnopqrstuvwxyz0123456789", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    syllables = [c + v for c in "bdfgklmnprst" for v in "aeiou"]
    tokens += sorted({pick(*syllables) + pick(*syllables) for _ in range(200)})
    if task == "visual-grounding":
        tokens += [f"[unused{index}]" for index in range(339, 341 + BOX_BINS)]
    bert = {
        "hidden_act": "gelu", "hidden_size": hidden, "intermediate_size": pick(64, 128), "layer_norm_eps": 1e-12,
        "max_position_embeddings": 112, "model_type": "bert", "num_attention_heads": hidden // 16,
        "num_hidden_layers": fusion + int(random.integers(0, 3)), "pad_token_id": 0, "type_vocab_size": 2,
        "vocab_size": len(tokens), "encoder_width": hidden, "add_cross_attention": False, "use_cache": False,
        "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1, "gradient_checkpointing": False,
        "text_encoder_layers": int(random.integers(1, 4)), "fusion_layers": fusion,
        "text_decode_layers": int(random.integers(1, 4)), "stride_layer": int(random.integers(1, 4)),
    }  # fmt: skip
    side = patch * int(random.integers(2, 5))
    config = {
        "task": task, "bert_config": "config_bert.json", "image_res": side, "vision_width": vision, "distill": False,
        "clip_name": "ViT-B-16", "eos": "[SEP]", "min_length": 1, "max_length": 10, "beam_size": 5, "alpha": 0.4,
        "clip_embed_dim": 16, "clip_image_resolution": side, "clip_vision_layers": int(random.integers(1, 4)),
        "clip_vision_width": vision, "clip_vision_patch_size": patch, "clip_context_length": 4, "clip_vocab_size": 8,
        "clip_transformer_width": 64, "clip_transformer_heads": 1, "clip_transformer_layers": 1, "embed_dim": 32,
        "queue_size": 8, "temp": 0.07, "momentum": 0.995, "k_test": 128, "prompt": "",
        "final_sep": not published.own_tokenizer,
    }  # fmt: skip
    if task == "visual-grounding":
        # The published class sets its bins for 336 pixels, whatever the YAML says; so few patches keep it small.
        patch = pick(56, 84, 112)
        config |= {"image_res": BOX_BINS, "clip_image_resolution": BOX_BINS, "clip_vision_patch_size": patch}
        config |= {"max_query_len": 20, "grounding_statistics": "imagenet"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "config_bert.json").write_text(json.dumps(bert, indent=1) + "\n")
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    torch.manual_seed(int(random.integers(1 << 31)))
    if modelscope is None:
        model = published.model(TASKS[task][1], config, folder)
    else:
        model = modelscope.model(folder, weights=False)
    state = {}
    for key, value in model.state_dict().items():
        if is_needed(key):
            if key.endswith("weight") and value.ndim == 1:
                value = 1 + 0.2 * torch.randn_like(value)
            elif value.ndim:
                value = (0.08 if value.ndim > 1 else 0.05) * torch.randn_like(value)
            state[key] = value.half()
    torch.save({"model": state}, folder / "pytorch_model.bin")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="a clone of the authors' repository")
    parser.add_argument("output", type=Path, help="folder for the cases")
    parser.add_argument("--task", choices=TASKS, action="append", help="which (default: all)")
    parser.add_argument("--checkpoint", type=Path, help="use this one instead of random ones; its task must be --task")
    parser.add_argument("--modelscope", type=Path, metavar="CLONE", help="make them with ModelScope's code instead")
    parser.add_argument("--own-tokenizer", action="store_true", help="the clone's, which writes no last [SEP]")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.modelscope and (arguments.checkpoint or arguments.own_tokenizer):
        parser.error("--modelscope makes random checkpoints of its own, with its own tokenizer")
    if arguments.modelscope and not set(arguments.task or ()) <= MODELSCOPE.keys():
        parser.error(f"--modelscope is for {', '.join(MODELSCOPE)}")
    if arguments.checkpoint and len(arguments.task or ()) != 1:
        parser.error("--checkpoint needs exactly one --task")
    if arguments.own_tokenizer and arguments.checkpoint:
        parser.error("--own-tokenizer goes with random checkpoints, whose YAML says so")
    return arguments


@torch.no_grad()
def main() -> int:
    """Make a case per task."""
    arguments = parse_arguments()
    try:
        published = Published(arguments.clone, own_tokenizer=arguments.own_tokenizer)
        modelscope = ModelScope(arguments.modelscope) if arguments.modelscope else None
    except FileNotFoundError as error:
        print(f"make_cases.py: error: {error}", file=sys.stderr)
        return 1
    for task in arguments.task or (MODELSCOPE if modelscope else TASKS):
        name = f"{task}-{arguments.checkpoint.name if arguments.checkpoint else arguments.seed}"
        folder, checkpoint = arguments.output / (f"modelscope-{name}" if modelscope else name), arguments.checkpoint
        if checkpoint is None:
            checkpoint = folder
            random = np.random.default_rng([arguments.seed, len(task)])
            random_checkpoint(published, folder, task, random, modelscope)
        case = Case(published, folder, checkpoint, (MODELSCOPE if modelscope else TASKS)[task][0], arguments.seed)
        if modelscope:
            MODELSCOPE[task][1](case, modelscope.model(folder))
        else:
            TASKS[task][2](case)
        case.write()
        print(f"{folder}: {len(case.requests)} requests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
