"""Build a deployable repository from one checkpoint, or from several that serve different tasks.

    python builders/build.py [NAME=]CHECKPOINT... --output DIR [--target openvino|torch|tensorrt|tensorrt-rtx]
                             [--precision auto|fp32|bf16|fp16|int8]

CHECKPOINT is a folder in any published layout, or in ours. DIR becomes a complete Triton repository: the
models that these checkpoints can serve, each compiled stage compared with PyTorch, and a build-info file.
Stages with equal weights are built once. NAME=CHECKPOINT serves its models as NAME_caption and so on.

    python builders/build.py checkpoints/demo --output build/demo
    python builders/build.py mplug-captioning mplug-vqa large=mplug-large-captioning --output build/mplug
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our packages are in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from builders.compile import openvino as openvino_builder
from builders.compile import tensorrt as tensorrt_builder
from builders.compile import torch as torch_builder
from builders.compile.compare import TOLERANCES, ArtefactError, compare_decoders, compare_graph
from builders.compile.export import example_inputs, export
from builders.plan import Checkpoint, Plan, PlanError, Source, Stage, plan
from mplug.checkpoint import CheckpointError, CheckpointFiles
from mplug.config import TASKS, ConfigError, MPlugConfig
from mplug.contract import DECODER_SCORE, MAX_FRAMES, STAGES_FILE, GraphSpec
from mplug.runtime import open_decoder, open_graph
from mplug.runtime.interface import RuntimeUnavailable, StageInfo
from mplug.tasks.checkpoint_files import SERVED_FILE, Head
from mplug.tasks.table import PUBLIC_MODELS

SOURCE = Path(__file__).resolve().parents[1] / "model_repository"
BUILD_INFO = "build_info.json"
TARGETS = ("openvino", "torch", *tensorrt_builder.PACKAGES)
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
#: Of `--task`: what the checkpoint's own YAML says.
OWN_TASK = "auto"

#: Public models with a head of their own, by its name in the network.


class BuildError(RuntimeError):
    """The repository cannot be built; the message says why."""


@dataclass(frozen=True)
class Build:
    """What is built from what."""

    plan: Plan
    target: str
    precision: str
    options: tensorrt_builder.EngineOptions | None  #: of TensorRT's targets
    engines: list[dict[str, object]] = field(
        default_factory=list
    )  #: TensorRT's, as `builders.compile.tensorrt` describes them

    def stage_info(self, stage: Stage, folder: Path) -> StageInfo:
        """Return what the served stage must know besides its artefact."""
        config, text, tokenizer = stage.config, stage.config.text, stage.readers[0].tokenizer
        sizes = {
            "layers": text.text_decode_layers,
            "heads": text.heads,
            "head_width": text.head_width,
            "hidden_size": text.hidden_size,
            "vocab_size": text.vocab_size,
            "max_positions": text.max_positions,
            "max_states": stage.max_states,
            "max_text_length": config.max_text_length,
            "ranks_candidates": int(config.ranks_candidates),
            "image_size": config.vision.image_size,
            "start_id": tokenizer.cls_id,
            "end_id": tokenizer.sep_id,
        }
        return StageInfo(folder, self.target, self.precision, sizes, asdict(config.generation))


def build(
    checkpoint: Path,
    output: Path,
    *,
    target: str = "openvino",
    precision: str = "auto",
    image_size: int | None = None,
    task: str | None = None,
    engine_settings: Mapping[str, object] | None = None,
) -> dict[str, float]:
    """Build a repository of one checkpoint, whose public models keep their names; see `build_repository`."""
    sources = [Source(checkpoint, task=task, image_size=image_size)]
    return build_repository(sources, output, target=target, precision=precision, engine_settings=engine_settings)


def build_repository(
    sources: Sequence[Source],
    output: Path,
    *,
    target: str = "openvino",
    precision: str = "auto",
    engine_settings: Mapping[str, object] | None = None,
) -> dict[str, float]:
    """Build `output` from checkpoints and return the relative error per compared output.

    `engine_settings` are more of `builders.compile.tensorrt.EngineOptions`. Raises BuildError, PlanError,
    CheckpointError, ConfigError or ArtefactError; `output` is then left as it was.
    """
    output = output.absolute()
    if output.exists() and not output.is_dir():
        raise BuildError(f"{output} is not a folder; choose another one")
    if output.exists() and not (output / BUILD_INFO).exists() and any(output.iterdir()):
        raise BuildError(f"{output} exists and was not made by this builder; choose another folder")
    options = None
    try:
        if target in tensorrt_builder.PACKAGES:
            precision = tensorrt_builder.resolve_precision(precision)
            options = tensorrt_builder.EngineOptions(target, precision, **(engine_settings or {}))
        elif target == "openvino":
            precision = openvino_builder.resolve_precision(precision)
        else:
            precision = torch_builder.resolve_precision(precision)
    except ValueError as error:
        raise BuildError(str(error)) from None
    job = Build(plan([Checkpoint.read(source) for source in sources]), target, precision, options)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        repository = Path(scratch) / "repository"
        errors = _build_stages(job, repository, Path(scratch))
        for checkpoint in job.plan.checkpoints:
            for name, model in checkpoint.public_models.items():
                _build_public_model(job, checkpoint, _copy_model(model, repository, name), model)
        (repository / BUILD_INFO).write_text(json.dumps(_build_info(job, errors), indent=1) + "\n")
        if output.exists():  # moved, not deleted: a moment without a repository is as short as can be
            output.rename(Path(scratch) / "previous")
        repository.rename(output)
    return errors


def _copy_model(model: str, repository: Path, name: str) -> Path:
    """Copy a model of `model_repository/`, which has its name from its folder alone; returns the version folder."""
    shutil.copytree(SOURCE / model, repository / name, ignore=shutil.ignore_patterns("__pycache__"))
    return repository / name / "1"


def _build_stages(job: Build, repository: Path, scratch: Path) -> dict[str, float]:
    errors: dict[str, float] = {}
    graphs = [(stage, spec, graph) for stage in job.plan.stages for spec, graph in stage.graphs()]
    compilers = {stage.model: _graph_builder(job, stage) for stage in job.plan.stages}
    progress = tqdm(graphs, desc="building", unit="graph", leave=False, disable=None)
    previous: Stage | None = None
    for stage, spec, graph in progress:
        if previous is not None and previous is not stage:
            previous.release()  # a large model's weights are held once, and less with every stage
        previous = stage
        graph_name = stage.model + spec.name.removeprefix(stage.name)
        progress.set_postfix_str(graph_name)
        folder = repository / stage.model / "1"
        if not folder.exists():
            _copy_model(stage.name, repository, stage.model)
            job.stage_info(stage, folder).write()
        measured = compilers[stage.model](spec, graph, folder, scratch)
        compared = graph_name if spec is DECODER_SCORE else stage.model
        errors |= {f"{compared}.{name}": error for name, error in measured.items()}
    _check(errors, job.precision)
    return errors


#: Builds a graph into a stage's version folder; returns the relative error per output that was compared.
GraphBuilder = Callable[[GraphSpec, nn.Module, Path, Path], dict[str, float]]


def _graph_builder(job: Build, stage: Stage) -> GraphBuilder:
    if job.options is None:
        return partial(_build_graph, job, stage)
    stages = importlib.import_module(
        "builders.compile.tensorrt_stages"
    )  # only here: it loads TensorRT and ONNX Runtime
    end_id = stage.readers[0].tokenizer.sep_id
    compiler = stages.TensorRTStages(stage.network, end_id, stage.max_states, MAX_FRAMES, job.options, job.engines)
    return compiler.build


def _build_graph(
    job: Build, stage: Stage, spec: GraphSpec, graph: nn.Module, folder: Path, scratch: Path
) -> dict[str, float]:
    end_id = stage.readers[0].tokenizer.sep_id
    if job.target == "torch":
        _write_weights(stage, folder)
        return torch_builder.compare(folder, spec, graph, stage.network, end_id)
    onnx = scratch / f"{spec.name}.onnx"
    # Weights beside the file, which the compiler maps: inside, they would be in memory three times on the way.
    export(spec, graph, example_inputs(spec, stage.network), onnx, external_data=True)
    openvino_builder.compile_graph(onnx, folder, job.precision)
    for written in scratch.glob(f"{onnx.name}*"):
        written.unlink()
    if spec.name.endswith("prefill"):
        return {}  # compared with the step, through which alone it acts
    if spec.name.endswith("step"):
        return compare_decoders(open_decoder(folder), stage.network, end_id)
    return compare_graph(open_graph(folder, spec.name), spec, graph, stage.network)


def _check(errors: dict[str, float], precision: str) -> None:
    tolerance = TOLERANCES[precision]
    for name, error in errors.items():
        print(f"{name:42s} relative error {error:.1e}  (tolerance {tolerance:.0e}, {precision})")
    wrong = [name for name, error in errors.items() if not error <= tolerance]
    if wrong:
        raise ArtefactError(f"compiled stages differ from PyTorch by more than {tolerance:.0e}: {', '.join(wrong)}")


def _write_weights(stage: Stage, folder: Path) -> None:
    """Write what the torch runtime loads: the weights of the stage and its heads, and the configuration."""
    first = stage.readers[0]
    prefixes = tuple(f"{part}." for part in first.parts(stage.name))
    weights = {key: value.contiguous() for key, value in stage.network.state_dict().items() if key.startswith(prefixes)}
    save_file(weights, folder / "model.safetensors")
    _write_config(first.files, stage.config, folder)


def _write_config(files: CheckpointFiles, config: MPlugConfig, folder: Path) -> None:
    """Write the checkpoint's two configuration files, as published but for what was found out on loading.

    A YAML without a task, like the authors', gets the one that is built; a BERT JSON the text layers that run.
    """
    document = yaml.safe_load(files.config.read_text(encoding="utf-8"))
    document["tasks"] = list(config.tasks)
    (folder / "config.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    bert = json.loads(files.bert_config.read_text(encoding="utf-8"))
    bert["text_encoder_layers"] = config.text.text_encoder_layers
    (folder / "config_bert.json").write_text(json.dumps(bert, indent=1) + "\n", encoding="utf-8")


def _build_public_model(job: Build, checkpoint: Checkpoint, folder: Path, model: str) -> None:
    config = checkpoint.network.config
    _write_config(checkpoint.files, config, folder)
    shutil.copyfile(checkpoint.files.vocabulary, folder / "vocab.txt")
    served = {"model": model, "tasks": list(config.tasks), "image_size": config.vision.image_size}
    (folder / SERVED_FILE).write_text(json.dumps(served) + "\n")
    (folder / STAGES_FILE).write_text(json.dumps(job.plan.stages_of(checkpoint)) + "\n")
    head = PUBLIC_MODELS[model].head
    if head:
        hidden, _, output = getattr(checkpoint.network, head)
        weights = (hidden.weight, hidden.bias, output.weight, output.bias)
        Head(*(tensor.detach().numpy() for tensor in weights)).write(folder)


def _build_info(job: Build, errors: dict[str, float]) -> dict[str, object]:
    packages = [name for name in ("torch", "onnx", "onnxscript", "openvino", "nncf", "numpy") if find_spec(name)]
    checkpoints = [_checkpoint_info(job, checkpoint) for checkpoint in job.plan.checkpoints]
    return {
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        **(checkpoints[0] if len(checkpoints) == 1 else {"checkpoints": checkpoints}),
        "stages": {stage.model: stage.sha256 for stage in job.plan.stages},
        "target": job.target,
        "precision": job.precision,
        "relative_errors": errors,
        "tolerance": TOLERANCES[job.precision],
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "machine": platform.machine(),
        **({"engines": job.engines} if job.engines else {}),
    }


def _checkpoint_info(job: Build, checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "checkpoint": checkpoint.files.name,
        "weights_sha256": checkpoint.files.sha256(),
        "image_size": checkpoint.network.config.vision.image_size,
        "public_models": list(checkpoint.public_models),
        "reads_stages": job.plan.stages_of(checkpoint),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="[NAME=]CHECKPOINT",
        help="a folder with weights, YAML, BERT JSON and vocab.txt; its models are called NAME_caption "
        "and so on, or caption without a NAME",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the repository to write")
    parser.add_argument(
        "--target", choices=TARGETS, default="openvino", help="what to compile to (default: %(default)s)"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="auto: fp16 on a GPU, bf16 where the CPU has it, else fp32",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        action="append",
        help="serve at N×N pixels instead of the checkpoint's size; of several checkpoints all, or "
        "given once for each, in their order",
    )
    parser.add_argument(
        "--task",
        choices=(OWN_TASK, *TASKS),
        action="append",
        help="what the checkpoint was fine-tuned for, where its YAML does not say; of several "
        f"checkpoints all, or given once for each, in their order ({OWN_TASK}: as its YAML says)",
    )
    gpu = parser.add_argument_group("TensorRT", "see docs/gpu.md")
    gpu.add_argument(
        "--compute-capability",
        metavar="LIST",
        default="",
        help="RTX GPUs that tensorrt-rtx compiles for, such as 8.6,8.9,12.0 (default: Ampere and later)",
    )
    gpu.add_argument("--hardware-compatible", action="store_true", help="engines for every GPU from Ampere on")
    gpu.add_argument("--version-compatible", action="store_true", help="engines that later versions of TensorRT load")
    gpu.add_argument("--timing-cache", type=Path, metavar="FILE", help="keep the kernels' times for the next build")
    options = parser.parse_args(arguments)
    engine_settings = {
        "compute_capabilities": tuple(filter(None, options.compute_capability.split(","))),
        "hardware_compatible": options.hardware_compatible,
        "version_compatible": options.version_compatible,
        "timing_cache": options.timing_cache,
    }
    if any(engine_settings.values()) and options.target not in tensorrt_builder.PACKAGES:
        parser.error(f"--target {options.target} takes no TensorRT options")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            build_repository(
                _sources(options),
                options.output,
                target=options.target,
                precision=options.precision,
                engine_settings=engine_settings,
            )
    except (
        BuildError,
        PlanError,
        CheckpointError,
        ConfigError,
        ArtefactError,
        RuntimeUnavailable,
        tensorrt_builder.EngineError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"error: {error.filename or options.output}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"built {options.output}; serve it with: python -m mplug.server {options.output}")
    return 0


def _sources(options: argparse.Namespace) -> list[Source]:
    """Return the checkpoints with the options of each. Raises PlanError."""

    def for_each(option: str, values: list | None) -> list:
        given = values or [None]
        if len(given) not in (1, len(options.checkpoints)):
            raise PlanError(
                f"{option} is given {len(given)} times for {len(options.checkpoints)} checkpoints; "
                "give it once for all of them, or once for each, in their order"
            )
        return given * len(options.checkpoints) if len(given) == 1 else given

    tasks = [None if task == OWN_TASK else task for task in for_each("--task", options.task)]
    sizes = for_each("--image-size", options.image_size)
    return [Source.parse(*of_one) for of_one in zip(options.checkpoints, tasks, sizes, strict=True)]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # as shells report it; what was half built is gone
