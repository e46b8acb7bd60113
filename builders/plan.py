"""Which checkpoints a repository serves, under which names, and which stages they share.

Public models of a checkpoint bear their own names, or `NAME_caption` where the checkpoint was given a name. Stages
with equal weights are one model, whoever reads them; where checkpoints differ, the second `vision_encoder` is
`vision_encoder_2`, and so on. Each public model keeps a file that says which stages are its own.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn

from mplug.checkpoint import CheckpointError, CheckpointFiles, load_checkpoint
from mplug.config import TASKS, MPlugConfig
from mplug.contract import ENCODERS, MAX_FRAMES, OPTIONAL_OUTPUTS, GraphSpec
from mplug.inputs.tokenizer import Tokenizer
from mplug.network import MPlug
from mplug.network.graphs import graphs_of
from mplug.tasks.table import served_by

STAGES = (*ENCODERS, "text_decoder")

#: A name stands in URLs, in metrics and in names of folders.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class PlanError(ValueError):
    """These checkpoints do not go together; the message says why and what to do."""


@dataclass(frozen=True)
class Source:
    """A checkpoint to be served, as the command line names it."""

    folder: Path
    name: str = ""  #: stands before the names of its public models; empty: they keep theirs
    task: str | None = None  #: overrides what its YAML says
    image_size: int | None = None  #: pixels, where it is not to be its own

    @classmethod
    def parse(cls, argument: str, task: str | None = None, image_size: int | None = None) -> Source:
        """Parse `CHECKPOINT` or `NAME=CHECKPOINT`. Raises PlanError for an invalid name."""
        name, equals, folder = argument.partition("=")
        if not equals or Path(argument).is_dir():  # a folder may have that sign in its name
            return cls(Path(argument), "", task, image_size)
        if not NAME.fullmatch(name):
            raise PlanError(
                f"{argument}: the name {name!r} may hold only letters, digits, - and _, as in large={folder}"
            )
        return cls(Path(folder), name, task, image_size)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read."""

    source: Source
    network: MPlug
    files: CheckpointFiles
    tokenizer: Tokenizer

    @classmethod
    def read(cls, source: Source) -> Checkpoint:
        """Read a checkpoint. Raises CheckpointError, ConfigError, or PlanError if no public model can serve it."""
        network, files = load_checkpoint(source.folder, task=source.task, image_size=source.image_size, mapped=True)
        try:
            tokenizer = Tokenizer(files.vocabulary, network.config.text.vocab_size)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        found = cls(source, network, files, tokenizer)
        if not found.public_models:
            raise PlanError(
                f"{source.folder}: nothing serves {', '.join(network.config.tasks)} yet; served tasks: "
                f"{', '.join(TASKS)}"
            )
        return found

    @property
    def public_models(self) -> dict[str, str]:
        """Names of its public models in the repository → what they are called in `model_repository/`."""
        prefix = f"{self.source.name}_" if self.source.name else ""
        return {f"{prefix}{model.name}": model.name for model in served_by(self.network.config.tasks)}

    def parts(self, stage: str) -> tuple[str, ...]:
        """Return the parts of the network that make up a stage: itself, and the heads that this checkpoint adds."""
        outputs = ENCODERS[stage].outputs if stage in ENCODERS else ()
        heads = (OPTIONAL_OUTPUTS[output.name] for output in outputs if output.name in OPTIONAL_OUTPUTS)
        return (stage, *(head for head in heads if hasattr(self.network, head)))

    def fingerprint(self, stage: str) -> str:
        """Return the SHA-256 of what a stage computes with: weights, heads included, and sizes of its layers."""
        config = self.network.config
        if stage == "vision_encoder":
            layers: dict[str, object] = asdict(config.vision)
        else:
            layers = asdict(replace(config.text, dropout=0.0))  # which is for training alone
        if stage == "text_decoder":
            layers |= {"start_id": self.tokenizer.cls_id, "end_id": self.tokenizer.sep_id}
        digest = hashlib.sha256(json.dumps(layers, sort_keys=True).encode())
        for part in self.parts(stage):
            for key, tensor in sorted(getattr(self.network, part).state_dict().items()):
                digest.update(f"{part}.{key}{list(tensor.shape)}".encode())
                digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Stage:
    """One stage model of the repository."""

    name: str  #: of `STAGES`, and in `model_repository/`
    model: str  #: in the repository
    sha256: str  #: `Checkpoint.fingerprint`
    readers: tuple[Checkpoint, ...]  #: the checkpoints that have it
    network: MPlug  #: has its weights, and the configuration of the most that any of them asks of it

    @property
    def config(self) -> MPlugConfig:
        return self.network.config

    @property
    def max_states(self) -> int:
        """Encoder states that one request may bring to the decoder."""
        return MAX_FRAMES * self.config.vision.tokens + self.config.max_text_length

    def release(self) -> None:
        """Let go of the stage's weights, which nothing reads once it is built; heads are small, and stay."""
        for reader in self.readers:
            getattr(reader.network, self.name).to("meta")

    def graphs(self) -> Iterator[tuple[GraphSpec, nn.Module]]:
        """Yield its graphs, in the order in which they are built."""
        for spec, graph in graphs_of(self.network, self.readers[0].tokenizer.sep_id):
            if spec.name == self.name or spec.name.startswith(f"{self.name}_"):
                yield spec, graph


@dataclass(frozen=True)
class Plan:
    """What becomes of the checkpoints."""

    checkpoints: tuple[Checkpoint, ...]
    stages: tuple[Stage, ...]

    def stages_of(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Return which model of the repository each stage of a checkpoint is, by stage name."""
        return {stage.name: stage.model for stage in self.stages if checkpoint in stage.readers}


def plan(checkpoints: Sequence[Checkpoint]) -> Plan:
    """Name all models. Raises PlanError when two checkpoints serve a public model of the same name."""
    served: dict[str, Checkpoint] = {}
    for checkpoint in checkpoints:
        for name, model in checkpoint.public_models.items():
            if name in served:
                folder = checkpoint.source.folder
                raise PlanError(
                    f"{name}: served by both {served[name].source.folder} and {folder}; give one a name "
                    f"of its own: large={folder} makes it large_{model}"
                )
            served[name] = checkpoint
    stages = []
    for name in STAGES:
        readers: dict[str, list[Checkpoint]] = {}
        for checkpoint in checkpoints:
            if hasattr(checkpoint.network, name):
                readers.setdefault(checkpoint.fingerprint(name), []).append(checkpoint)
        for number, (sha256, some) in enumerate(readers.items(), start=1):
            model = name if number == 1 else f"{name}_{number}"
            stages.append(Stage(name, model, sha256, tuple(some), _for_all([one.network for one in some])))
    return Plan(tuple(checkpoints), tuple(stages))


def _for_all(networks: Sequence[MPlug]) -> MPlug:
    """Return the first network, configured for the tasks, longest texts and most image states of all of them."""
    configs = [network.config for network in networks]
    network = copy.copy(networks[0])  # the weights are the same objects
    network.config = replace(
        configs[0],
        tasks=tuple(dict.fromkeys(task for config in configs for task in config.tasks)),
        max_text_length=max(config.max_text_length for config in configs),
        vision=max((config.vision for config in configs), key=lambda vision: vision.tokens),
    )
    return network
