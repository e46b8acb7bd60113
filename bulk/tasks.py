"""What each command asks of the pipeline about an input, and the columns of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from mplug.answers import Generated
from mplug.contract import Value
from mplug.errors import InvalidRequest

#: Columns of every output, before those of the answer. `error` is null where there is an answer.
INPUT_COLUMNS = [("input", pa.string()), ("key", pa.string()), ("error", pa.string())]


@dataclass(frozen=True)
class Task:
    """One public model with its options, the same for all inputs."""

    model: str
    columns: tuple[tuple[str, pa.DataType], ...]
    search: Mapping[str, float] = field(default_factory=dict)  #: options of the beam search
    prompt: str | None = None
    question: str | None = None  #: asked of inputs that have none of their own
    candidates: tuple[str, ...] = ()

    @property
    def schema(self) -> pa.Schema:
        """Return the schema of the output: explicit, because a file without errors would have a column of nulls."""
        return pa.schema([*INPUT_COLUMNS, *self.columns])

    def settings(self) -> dict[str, Any]:
        """Return what an answer depends on besides its input and the checkpoint, for the manifest."""
        settings = {"prompt": self.prompt, "question": self.question, "candidates": list(self.candidates) or None}
        return {name: value for name, value in {**self.search, **settings}.items() if value is not None}

    def inputs(self, row: Mapping[str, Any]) -> dict[str, Value]:
        """Return the tensors of a row as it was read. Raises InvalidRequest when it has no question."""
        inputs: dict[str, Value] = {"VIDEO": [row["video"]]} if row["video"] is not None else {"IMAGE": [row["image"]]}
        for name, value in self.search.items():
            inputs[name.upper()] = np.array([value], np.float32 if name == "length_penalty" else np.int32)
        if self.prompt is not None:
            inputs["PROMPT"] = [self.prompt.encode()]
        if self.model == "vqa":
            question = row["question"] if row["question"] is not None else self.question
            if question is None:
                raise InvalidRequest("QUESTION is missing: the row has none, and --question gives none")
            inputs["QUESTION"] = [question.encode()]
            if self.candidates:
                inputs["CANDIDATES"] = [text.encode() for text in self.candidates]
        return inputs

    def answer(self, outputs: Mapping[str, Value], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the cells of an answer."""
        if self.model == "embed_image":
            return {"feature": outputs["FEATURE"]}
        if self.model == "caption":
            best = Generated.read(outputs, "CAPTION")[0]
            return {"caption": best.text, "score": best.score}
        best = Generated.read(outputs, "ANSWER")[0]
        return {"question": self.asked(row), "answer": best.text, "score": best.score}

    def asked(self, row: Mapping[str, Any]) -> str | None:
        """Return the question of a row."""
        return row["question"] if row["question"] is not None else self.question

    @classmethod
    def caption(cls, search: Mapping[str, float], prompt: str | None) -> Task:
        """Return the task of `bulk/caption.py`: `caption` and its `score`."""
        return cls("caption", (("caption", pa.string()), ("score", pa.float32())), search, prompt=prompt)

    @classmethod
    def ask(cls, search: Mapping[str, float], question: str | None, candidates: tuple[str, ...]) -> Task:
        """Return the task of `bulk/ask.py`: `question`, `answer` and its `score`."""
        columns = (("question", pa.string()), ("answer", pa.string()), ("score", pa.float32()))
        return cls("vqa", columns, search, question=question, candidates=candidates)

    @classmethod
    def embed(cls) -> Task:
        """Return the task of `bulk/embed.py`: `feature`, a unit vector."""
        return cls("embed_image", (("feature", pa.list_(pa.float32())),))
