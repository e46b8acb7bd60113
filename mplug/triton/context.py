"""A served model's name, folder and configuration; imports no Triton."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mplug.contract import STAGES_FILE, read_stages
from mplug.runtime.interface import GPU_TARGETS, STAGE_FILE


@dataclass(frozen=True)
class ModelContext:
    """A served model's name, folder and configuration."""

    name: str
    folder: Path  # of this version, where the artefacts are: DIR/NAME/1
    config: dict[str, Any]  # config.pbtxt as Triton completed it

    @classmethod
    def of_arguments(cls, args: Mapping[str, str]) -> ModelContext:
        """Read what the Python backend passes to `initialize`."""
        return cls(
            name=args["model_name"],
            folder=Path(args["model_repository"]) / args["model_version"],
            config=json.loads(args["model_config"]),
        )

    @property
    def required_inputs(self) -> list[str]:
        """Return the names of the inputs that are not optional."""
        return [item["name"] for item in self.config["input"] if not item.get("optional")]

    @property
    def stages(self) -> dict[str, str]:
        """Return stage names → models that hold this checkpoint's stages; a stage that is absent has its own name."""
        return read_stages(self.folder / STAGES_FILE)

    def on_gpu(self, stage: str) -> bool:
        """Return whether a stage that this model calls was built for a GPU."""
        path = self.folder.parents[1] / self.stages.get(stage, stage) / self.folder.name / STAGE_FILE
        return path.exists() and json.loads(path.read_text())["target"] in GPU_TARGETS

    @property
    def parameters(self) -> dict[str, str]:
        """Return the `parameters` of config.pbtxt."""
        return {key: value["string_value"] for key, value in self.config.get("parameters", {}).items()}
