"""What the paper reports, and on which files: a row per task of `builders/reproduce.py`.

Figures are those of mPLUG (arXiv 2205.12005) as the authors' README repeats them (github.com/X-PLUG/mPLUG at c666bfa,
"Results"); sizes of splits are the data sets' own. Settings of fine-tuning are those of the authors' YAMLs and scripts;
of NLVR2 and SNLI-VE, which they do not publish, ALBEF's (github.com/salesforce/ALBEF, `configs/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PAPER = "arXiv 2205.12005, as in the authors' README"
MODELS = ("base", "large")

#: Figures by measure, as `builders.evaluation` names it: of mPLUG base and large, in hundredths; None: not reported.
Figures = Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class Split:
    """One evaluation: a file of annotations, or a part of it, that has a figure of its own."""

    title: str
    annotations: tuple[str, ...]  #: below DATA; the first that is there is taken
    items: int  #: pictures, questions, videos … of the published split
    figures: Figures
    split: str | None = None  #: within the file, where it holds several
    questions: str | None = None  #: the official file of questions beside the annotations
    beside: tuple[str, ...] = ()  #: files that must lie in the folder of the annotations
    optional: bool = False  #: looked at only where its file is there
    note: str = ""

    @property
    def dataset(self) -> str:
        """The data set that it belongs to: what its title begins with."""
        return self.title.partition(",")[0]


@dataclass(frozen=True)
class Training:
    """Published fine-tuning: data, and how long with what."""

    dataset: str
    task: str  #: of builders/train/finetune.py
    annotations: tuple[str, ...]
    items: int
    epochs: int
    batch: int  #: of all processes together
    learning_rate: float
    vision_learning_rate: float
    image_size: int  #: pixels, of mPLUG large
    source: str
    split: str = "train"
    texts: int = 1  #: of an item that one published epoch goes through


@dataclass(frozen=True)
class Reproduction:
    """A task of the paper."""

    data: str  #: of builders.data.sources
    task: str  #: of builders/evaluate.py
    checkpoint_task: str  #: what the checkpoint is opened for
    images: tuple[str, ...]  #: folders of pictures or videos below DATA; the first that is there is taken
    splits: tuple[Split, ...]
    trainings: tuple[Training, ...] = ()  #: one per data set; empty: zero-shot
    settings: Mapping[str, object] = field(default_factory=dict)  #: of the evaluation
    ranked: bool = False  #: answers are ranked among the data set's closed list
    any_of: bool = False  #: splits are of several data sets, of which one suffices


def _recalls(text: tuple[float | None, float | None], image: tuple[float | None, float | None]) -> Figures:
    return {"image → text, R@1": text, "text → image, R@1": image}


def _boxes(large: float | None) -> Figures:
    return {"IoU ≥ 0.5": (None, large)}


def _places(name: str, part: str) -> tuple[str, ...]:
    return (f"{name}_{part}.pth", f"{name}/{name}_{part}.pth", f"data/{name}/{name}_{part}.pth")


def _refcoco(name: str, part: str, title: str, items: int, large: float) -> Split:
    return Split(title, _places(name, part), items, _boxes(large))


def _on_refcoco(name: str, title: str, items: int) -> Training:
    source = "configs/grounding_mplug_large.yaml, eight GPUs; they train on all three at once before"
    return Training(title, "grounding", _places(name, "train"), items, 120, 192, 2e-5, 5e-6, 336, source)


REPRODUCTIONS: dict[str, Reproduction] = {
    "caption": Reproduction(
        "coco", "caption", "image-captioning", ("images", "."),
        (Split("COCO, Karpathy test", ("dataset_coco.json", "coco_caption_test_ocr.json"), 5_000,
               {"CIDEr": (137.5, 141.0)}, split="test",
               note="after cross-entropy; with CIDEr optimised 150.4 (base) and 155.1 (large)"),),
        (Training("COCO", "caption", ("dataset_coco.json", "coco_caption_train_ocr.json"), 113_287, 5, 256, 1e-5, 5e-6,
                  336, "configs/caption_mplug_large.yaml, four GPUs", texts=5),),
    ),
    "vqa": Reproduction(
        "vqa", "vqa", "visual-question-answering", ("images", "."),
        (Split("VQA v2, val", ("v2_mscoco_val2014_annotations.json",), 214_354, {"accuracy": (None, None)},
               questions="v2_OpenEnded_mscoco_val2014_questions.json",
               note="published is test-dev 79.79 (base) and 81.27 (large), which the official server alone can score"),
         Split("VQA v2, test", ("v2_OpenEnded_mscoco_test2015_questions.json",), 447_793,
               {"accuracy": (79.98, 81.26)}, questions="v2_OpenEnded_mscoco_test2015_questions.json", optional=True,
               note="published is test-std; the predictions are for the official server")),
        (Training("VQA v2", "vqa", ("vqa_train.json", "vqa_train_ocr.json"), 443_757, 8, 1024, 3e-5, 5e-6, 336,
                  "configs/vqa_mplug_base.yaml, eight GPUs; they add most of val and Visual Genome"),),
    ),
    "retrieval": Reproduction(
        "flickr30k", "retrieval", "image-text-retrieval", ("images", "."),
        (Split("Flickr30K, 1K test", ("flickr30k_test.json", "dataset_flickr30k.json"), 1_000,
               _recalls((None, 97.6), (None, 88.4)), split="test"),
         Split("COCO, 5K test", ("coco_test.json", "dataset_coco.json"), 5_000,
               _recalls((None, 82.8), (None, 65.8)), split="test")),
        (Training("Flickr30K", "retrieval", ("flickr30k_train.json", "dataset_flickr30k.json"), 29_000, 8, 1024, 1e-5,
                  2e-6, 336, "configs/retrieval_flickr30k_mplug_large.yaml, eight GPUs", texts=5),
         Training("COCO", "retrieval", ("coco_train.json", "dataset_coco.json"), 113_287, 8, 1024, 1e-5, 2e-6, 336,
                  "configs/retrieval_coco_mplug_large.yaml, eight GPUs", texts=5)),
        settings={"reranked": 256}, any_of=True,
    ),
    "grounding": Reproduction(
        "refcoco", "grounding", "visual-grounding", ("images", "train2014", "."),
        (_refcoco("unc", "val", "RefCOCO, val", 10_834, 92.40),
         _refcoco("unc", "testA", "RefCOCO, testA", 5_657, 94.51),
         _refcoco("unc", "testB", "RefCOCO, testB", 5_095, 88.42),
         _refcoco("unc+", "val", "RefCOCO+, val", 10_758, 86.02),
         _refcoco("unc+", "testA", "RefCOCO+, testA", 5_726, 90.17),
         _refcoco("unc+", "testB", "RefCOCO+, testB", 4_889, 78.17),
         _refcoco("gref_umd", "val", "RefCOCOg, val-u", 4_896, 85.88),
         _refcoco("gref_umd", "test", "RefCOCOg, test-u", 9_602, 86.42)),
        (_on_refcoco("unc", "RefCOCO", 120_624), _on_refcoco("unc+", "RefCOCO+", 120_191),
         _on_refcoco("gref_umd", "RefCOCOg", 80_512)),
        any_of=True,
    ),
    "nlvr2": Reproduction(
        "nlvr2", "nlvr", "nlvr2", ("images", "."),
        (Split("NLVR2, dev", ("nlvr_dev.json",), 6_982, {"accuracy": (None, 84.58)}),
         Split("NLVR2, test-P", ("nlvr_test.json",), 6_967, {"accuracy": (None, 84.95)})),
        (Training("NLVR2", "nlvr", ("nlvr_train.json",), 86_373, 10, 128, 2e-5, 5e-6, 384,
                  "ALBEF's configs/NLVR.yaml"),),
    ),
    "snli-ve": Reproduction(
        "snli-ve", "entail", "visual-entailment", ("images", "flickr30k-images", "."),
        (Split("SNLI-VE, val", ("ve_dev.json",), 17_858, {"accuracy": (None, 89.45)}),
         Split("SNLI-VE, test", ("ve_test.json",), 17_901, {"accuracy": (None, 89.29)})),
        (Training("SNLI-VE", "entail", ("ve_train.json",), 529_527, 5, 256, 2e-5, 5e-6, 384,
                  "ALBEF's configs/VE.yaml"),),
    ),
    "msrvtt": Reproduction(
        "msrvtt", "retrieval", "video-text-retrieval", ("videos/all", "videos", "."),
        (Split("MSRVTT, 1K test, zero-shot", ("msrvtt_test.jsonl",), 1_000, {"text → image, R@1": (None, 38.1)},
               note="text → image is text to video"),),
        settings={"reranked": 128},
    ),
    "msrvtt-qa": Reproduction(
        "video-qa", "video", "video-question-answering", ("videos/all", "videos", "."),
        (Split("MSRVTT-QA, test, zero-shot", ("test.jsonl", "txt/test.jsonl"), 72_821, {"accuracy": (21.1, None)},
               beside=("train_ans2label.json",)),),
        ranked=True,
    ),
    "msvd": Reproduction(
        "video-qa", "video", "video-question-answering", ("videos/all", "videos", "."),
        (Split("MSVD-QA, test, zero-shot", ("test.jsonl", "txt/test.jsonl"), 13_157, {"accuracy": (37.2, None)},
               beside=("train_ans2label.json",)),),
        ranked=True,
    ),
    "vatex": Reproduction(
        "vatex", "caption", "video-captioning", ("videos/all", "videos", "."),
        (Split("VATEX, public test, zero-shot", ("vatex_public_test_english_v1.1.json",), 6_000,
               {"CIDEr": (None, 42.0)}),),
    ),
}  # fmt: skip
