"""The public models: every fact about each in one row; its class is imported on use."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mplug.errors import NotServed
from mplug.tasks.checkpoint_files import SERVED_FILE, Head, ServedCheckpoint
from mplug.tasks.interface import Task

_CAPTIONING = ("image-captioning", "video-captioning")
_QUESTIONS = ("visual-question-answering", "video-question-answering")
_RETRIEVAL = ("image-text-retrieval", "video-text-retrieval")


@dataclass(frozen=True)
class PublicModel:
    """One public model."""

    name: str  #: in `model_repository/`
    implementation: str  #: `module:class` of its `mplug.tasks.interface.Task`
    checkpoint_tasks: tuple[str, ...]  #: of `mplug.config.TASKS`, those that let a checkpoint serve it
    head: str | None = None  #: part of the network whose weights `builders/build.py` writes beside the model

    def open(self, folder: Path) -> Task:
        """Open the task of a built repository's version folder."""
        module, _, name = self.implementation.partition(":")
        task = getattr(importlib.import_module(module), name)
        checkpoint = ServedCheckpoint.read(folder)
        return task(checkpoint, Head.read(folder)) if self.head else task(checkpoint)


PUBLIC_MODELS = {
    model.name: model
    for model in (
        # A checkpoint for questions about videos also describes them from the frames alone, as published.
        PublicModel("caption", "mplug.tasks.caption:CaptionTask", (*_CAPTIONING, "video-question-answering")),
        PublicModel("vqa", "mplug.tasks.vqa:VqaTask", _QUESTIONS),
        PublicModel("embed_image", "mplug.tasks.retrieval:EmbedImageTask", _RETRIEVAL),
        PublicModel("embed_text", "mplug.tasks.retrieval:EmbedTextTask", _RETRIEVAL),
        PublicModel("match", "mplug.tasks.retrieval:MatchTask", _RETRIEVAL),
        PublicModel("ground", "mplug.tasks.ground:GroundTask", ("visual-grounding",)),
        PublicModel("nlvr", "mplug.tasks.judgement:NlvrTask", ("nlvr2",), head="nlvr_head"),
        PublicModel("entail", "mplug.tasks.judgement:EntailTask", ("visual-entailment",), head="entail_head"),
    )
}


def public_model(name: str) -> PublicModel:
    """Return the row of a public model. Raises NotServed listing the choices."""
    if name not in PUBLIC_MODELS:
        raise NotServed(f"there is no public model {name!r}; known: {', '.join(PUBLIC_MODELS)}")
    return PUBLIC_MODELS[name]


def served_by(tasks: Iterable[str]) -> list[PublicModel]:
    """Return the public models that a checkpoint of these tasks can serve."""
    tasks = set(tasks)
    return [model for model in PUBLIC_MODELS.values() if tasks.intersection(model.checkpoint_tasks)]


def open_task(folder: Path) -> Task:
    """Open the task of a public model's version folder, as `builders/build.py` wrote it."""
    return public_model(json.loads((folder / SERVED_FILE).read_text())["model"]).open(folder)
