"""A served model's name, folder and configuration; imports no Triton."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mplug.contract import STAGES_FILE, read_stages
from mplug.runtime.gpu.cuda import device_count
from mplug.runtime.gpu.placement import gpu_of
from mplug.runtime.interface import ANY_DEVICE


@dataclass(frozen=True)
class ModelContext:
    """A served model's name, folder and configuration."""

    name: str
    folder: Path  # of this version, where the artefacts are: DIR/NAME/1
    config: dict[str, Any]  # config.pbtxt as Triton completed it
    device: str = ANY_DEVICE  # of this instance, as `mplug.runtime.open_graph` takes it

    @classmethod
    def of_arguments(cls, args: Mapping[str, str]) -> ModelContext:
        """Read what the Python backend passes to `initialize`.

        An instance of KIND_GPU runs on the GPU that Triton gives it, from `gpus` of its instance group; one of KIND_CPU
        leaves the choice to the runtime.
        """
        on_gpu = args.get("model_instance_kind", "").removeprefix("KIND_") == "GPU"
        return cls(
            name=args["model_name"],
            folder=Path(args["model_repository"]) / args["model_version"],
            config=json.loads(args["model_config"]),
            device=f"cuda:{args['model_instance_device_id']}" if on_gpu else ANY_DEVICE,
        )

    @property
    def required_inputs(self) -> list[str]:
        """Return the names of the inputs that are not optional."""
        return [item["name"] for item in self.config["input"] if not item.get("optional")]

    @property
    def stages(self) -> dict[str, str]:
        """Return stage names → models that hold this checkpoint's stages; a stage that is absent has its own name."""
        return read_stages(self.folder / STAGES_FILE)

    def gpu_of(self, stage: str) -> int | None:
        """Return the number of the GPU that a stage called by this model runs on, None for one on the CPU."""
        model = self.folder.parents[1] / self.stages.get(stage, stage)
        return gpu_of(model, self.folder.name, torch_on_gpu=device_count() > 0)

    @property
    def parameters(self) -> dict[str, str]:
        """Return the `parameters` of config.pbtxt."""
        return {key: value["string_value"] for key, value in self.config.get("parameters", {}).items()}
