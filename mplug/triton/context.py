"""What a served model knows about itself; imports no Triton."""

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
    """What a served model knows about itself when it is created."""

    name: str
    folder: Path  # of this version, where the artefacts are: DIR/NAME/1
    config: dict[str, Any]  # config.pbtxt as Triton completed it
    device: str = "cpu"  # "cuda:0" for an instance group of KIND_GPU

    @classmethod
    def of_arguments(cls, args: Mapping[str, str]) -> ModelContext:
        """From what the Python backend passes to `initialize`."""
        kind, device_id = args["model_instance_kind"], args["model_instance_device_id"]
        return cls(
            name=args["model_name"],
            folder=Path(args["model_repository"]) / args["model_version"],
            config=json.loads(args["model_config"]),
            device=f"cuda:{device_id}" if kind == "GPU" else "cpu",
        )

    @property
    def required_inputs(self) -> list[str]:
        """Names of the inputs that are not optional."""
        return [item["name"] for item in self.config["input"] if not item.get("optional")]

    @property
    def stages(self) -> dict[str, str]:
        """Names of stages → the models that this one's checkpoint has them in; what is not in it bears that name."""
        return read_stages(self.folder / STAGES_FILE)

    def on_gpu(self, stage: str) -> bool:
        """Whether a stage that this model calls was built for a GPU."""
        path = self.folder.parents[1] / self.stages.get(stage, stage) / self.folder.name / STAGE_FILE
        return path.exists() and json.loads(path.read_text())["target"] in GPU_TARGETS

    @property
    def parameters(self) -> dict[str, str]:
        """`parameters` of config.pbtxt."""
        return {key: value["string_value"] for key, value in self.config.get("parameters", {}).items()}
