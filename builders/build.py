"""Build a deployable repository from a checkpoint.

    python builders/build.py CHECKPOINT --output DIR [--target openvino|torch|tensorrt|tensorrt-rtx]
                             [--precision auto|fp32|bf16|fp16|int8]

CHECKPOINT is a folder in any published layout, or in ours. DIR becomes a complete Triton repository: the
models that this checkpoint can serve, each compiled stage compared with PyTorch, and a build-info file.
Example: python builders/build.py checkpoints/demo --output build/demo
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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Run as a script: in place of this folder, whose openvino.py would stand for the package of that name.
    sys.path[0] = str(ROOT)

import yaml
from safetensors.torch import save_file
from tqdm import tqdm

from builders import openvino as openvino_builder
from builders import tensorrt as tensorrt_builder
from builders.compare import TOLERANCES, ArtefactError, compare_decoder, compare_graph
from builders.export import example_inputs, export
from mplug.checkpoint import CheckpointError, CheckpointFiles, load_checkpoint
from mplug.config import TASKS, ConfigError
from mplug.contract import DECODER_SCORE, MAX_FRAMES
from mplug.network import MPlug
from mplug.network.graphs import graphs_of
from mplug.runtime.interface import RuntimeUnavailable, StageInfo
from mplug.tasks.checkpoint_files import SERVED_FILE
from mplug.tasks.judgement import Head
from mplug.tokenizer import Tokenizer

SOURCE = ROOT / "model_repository"
BUILD_INFO = "build_info.json"
TARGETS = ("openvino", "torch", *tensorrt_builder.PACKAGES)
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")

_CAPTIONING = ("image-captioning", "video-captioning")
_QUESTIONS = ("visual-question-answering", "video-question-answering")
_RETRIEVAL = ("image-text-retrieval", "video-text-retrieval")
#: Public models → the tasks of a checkpoint that let it serve them.
PUBLIC_MODELS = {
    # A checkpoint for questions about videos also describes them from the frames alone, as published.
    "caption": (*_CAPTIONING, "video-question-answering"),
    "vqa": _QUESTIONS,
    "embed_image": _RETRIEVAL,
    "embed_text": _RETRIEVAL,
    "match": _RETRIEVAL,
    "ground": ("visual-grounding",),
    "nlvr": ("nlvr2",),
    "entail": ("visual-entailment",),
}
#: Public models with a head of their own, by its name in the network.
HEADS = {"nlvr": "nlvr_head", "entail": "entail_head"}


class BuildError(RuntimeError):
    """The repository cannot be built; the message says why."""


@dataclass(frozen=True)
class Build:
    """What is built from what."""

    network: MPlug
    files: CheckpointFiles
    tokenizer: Tokenizer
    target: str
    precision: str
    engines: list[dict[str, object]] = field(default_factory=list)  #: TensorRT's, as `builders.tensorrt` describes them

    def stage_info(self, folder: Path) -> StageInfo:
        """What the served stage must know besides its artefact."""
        config, text = self.network.config, self.network.config.text
        sizes = {
            "layers": text.text_decode_layers, "heads": text.heads, "head_width": text.head_width,
            "hidden_size": text.hidden_size, "vocab_size": text.vocab_size, "max_positions": text.max_positions,
            "max_states": MAX_FRAMES * config.vision.tokens + config.max_text_length,
            "ranks_candidates": int(config.ranks_candidates),
            "image_size": config.vision.image_size, "start_id": self.tokenizer.cls_id, "end_id": self.tokenizer.sep_id,
        }
        return StageInfo(folder, self.target, self.precision, sizes, asdict(config.generation))


def build(checkpoint: Path, output: Path, *, target: str = "openvino", precision: str = "auto",
          image_size: int | None = None, task: str | None = None,
          engine_settings: Mapping[str, object] | None = None) -> dict[str, float]:
    """Build `output` and return the relative error per compared output.

    `engine_settings` are more of `builders.tensorrt.EngineOptions`. Raises BuildError, CheckpointError,
    ConfigError or ArtefactError; `output` is then left as it was.
    """
    output = output.absolute()
    if output.exists() and not output.is_dir():
        raise BuildError(f"{output} is not a folder; choose another one")
    if output.exists() and not (output / BUILD_INFO).exists() and any(output.iterdir()):
        raise BuildError(f"{output} exists and was not made by this builder; choose another folder")
    try:
        if target in tensorrt_builder.PACKAGES:
            precision = tensorrt_builder.resolve_precision(precision)
            options = tensorrt_builder.EngineOptions(target, precision, **(engine_settings or {}))
        elif target == "openvino":
            precision = openvino_builder.resolve_precision(precision)
        else:
            precision = _torch_precision(precision)
    except ValueError as error:
        raise BuildError(str(error)) from None
    network, files = load_checkpoint(checkpoint, task=task, image_size=image_size)
    tokenizer = _tokenizer(files, network)
    models = [name for name, tasks in PUBLIC_MODELS.items() if set(tasks) & set(network.config.tasks)]
    if not models:
        raise BuildError(f"{checkpoint}: nothing serves {', '.join(network.config.tasks)} yet; "
                         f"served tasks: {', '.join(task for tasks in PUBLIC_MODELS.values() for task in tasks)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        repository = Path(scratch) / "repository"
        job = Build(network, files, tokenizer, target, precision)
        if target in tensorrt_builder.PACKAGES:
            errors = _build_engines(job, repository, Path(scratch), options)
        else:
            errors = _build_stages(job, repository, Path(scratch))
        for name in models:
            _build_public_model(job, repository, name)
        (repository / BUILD_INFO).write_text(json.dumps(_build_info(job, models, errors), indent=1) + "\n")
        if output.exists():  # moved, not deleted: a moment without a repository is as short as can be
            output.rename(Path(scratch) / "previous")
        repository.rename(output)
    return errors


def _torch_precision(precision: str) -> str:
    if precision not in ("auto", "fp32"):
        raise ValueError(f"the torch target is the fp32 reference; --precision {precision} needs another target")
    return "fp32"


def _tokenizer(files: CheckpointFiles, network: MPlug) -> Tokenizer:
    try:
        return Tokenizer(files.vocabulary, network.config.text.vocab_size)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _copy_model(name: str, repository: Path) -> Path:
    """Copy a model of `model_repository/`; returns its version folder."""
    shutil.copytree(SOURCE / name, repository / name, ignore=shutil.ignore_patterns("__pycache__"))
    return repository / name / "1"


def _build_stages(job: Build, repository: Path, scratch: Path) -> dict[str, float]:
    errors: dict[str, float] = {}
    graphs = list(graphs_of(job.network, job.tokenizer.sep_id))
    progress = tqdm(graphs, desc="building", unit="graph", leave=False, disable=None)
    for spec, graph in progress:
        stage = "text_decoder" if spec.name.startswith("text_decoder") else spec.name
        progress.set_postfix_str(spec.name)
        folder = repository / stage / "1"
        if not folder.exists():
            _copy_model(stage, repository)
            job.stage_info(folder).write()
        if job.target == "openvino":
            onnx = scratch / f"{spec.name}.onnx"
            export(spec, graph, example_inputs(spec, job.network), onnx)
            openvino_builder.compile_graph(onnx, folder, job.precision)
            onnx.unlink()
        else:
            _write_weights(job, folder, stage)
        if stage != "text_decoder" or spec is DECODER_SCORE:
            measured = compare_graph(folder, spec, graph, job.network)
        elif spec.name.endswith("step"):
            measured = compare_decoder(folder, job.network, job.tokenizer.sep_id)
        else:
            continue  # compared with the step, through which alone it acts
        compared = spec.name if spec is DECODER_SCORE else stage
        errors |= {f"{compared}.{name}": error for name, error in measured.items()}
    _check(errors, job.precision)
    return errors


def _build_engines(job: Build, repository: Path, scratch: Path,
                   options: tensorrt_builder.EngineOptions) -> dict[str, float]:
    stages = importlib.import_module("builders.tensorrt_stages")  # only here: it loads TensorRT and ONNX Runtime
    max_states = job.stage_info(repository).sizes["max_states"]
    compiler = stages.TensorRTStages(job.network, job.tokenizer.sep_id, max_states, MAX_FRAMES, options)
    errors: dict[str, float] = {}
    graphs = list(graphs_of(job.network, job.tokenizer.sep_id))
    for spec, graph in tqdm(graphs, desc="building", unit="graph", leave=False, disable=None):
        stage = "text_decoder" if spec.name.startswith("text_decoder") else spec.name
        folder = repository / stage / "1"
        if not folder.exists():
            _copy_model(stage, repository)
            job.stage_info(folder).write()
        measured = compiler.build(spec, graph, folder, scratch)
        compared = spec.name if spec is DECODER_SCORE else stage
        errors |= {f"{compared}.{name}": error for name, error in measured.items()}
    job.engines.extend(compiler.built)
    _check(errors, job.precision)
    return errors


def _check(errors: dict[str, float], precision: str) -> None:
    tolerance = TOLERANCES[precision]
    for name, error in errors.items():
        print(f"{name:42s} relative error {error:.1e}  (tolerance {tolerance:.0e}, {precision})")
    wrong = [name for name, error in errors.items() if not error <= tolerance]
    if wrong:
        raise ArtefactError(f"compiled stages differ from PyTorch by more than {tolerance:.0e}: {', '.join(wrong)}")


def _write_weights(job: Build, folder: Path, stage: str) -> None:
    """What the torch runtime loads: the stage's weights, with the heads behind it, and the configuration."""
    heads = {
        "vision_encoder": "vision_projection.", "text_encoder": "text_projection.", "fusion_encoder": "match_head.",
    }
    prefixes = (f"{stage}.", heads.get(stage, f"{stage}."))
    weights = {key: value.contiguous() for key, value in job.network.state_dict().items() if key.startswith(prefixes)}
    save_file(weights, folder / "model.safetensors")
    _write_config(job, folder)


def _write_config(job: Build, folder: Path) -> None:
    """The checkpoint's two files; a YAML without a task, as the authors' are, gets the one that is built."""
    document = yaml.safe_load(job.files.config.read_text(encoding="utf-8"))
    document["tasks"] = list(job.network.config.tasks)
    (folder / "config.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    shutil.copy(job.files.bert_config, folder / "config_bert.json")


def _build_public_model(job: Build, repository: Path, name: str) -> None:
    folder = _copy_model(name, repository)
    _write_config(job, folder)
    shutil.copy(job.files.vocabulary, folder / "vocab.txt")
    config = job.network.config
    served = {"tasks": list(config.tasks), "image_size": config.vision.image_size}
    (folder / SERVED_FILE).write_text(json.dumps(served) + "\n")
    if name in HEADS:
        hidden, _, output = getattr(job.network, HEADS[name])
        weights = (hidden.weight, hidden.bias, output.weight, output.bias)
        Head(*(tensor.detach().numpy() for tensor in weights)).write(folder)


def _build_info(job: Build, models: list[str], errors: dict[str, float]) -> dict[str, object]:
    packages = ("torch", "onnx", "onnxscript", "openvino", "nncf", "numpy")
    return {
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": job.files.folder.name,
        "weights_sha256": job.files.sha256(),
        "target": job.target,
        "precision": job.precision,
        "image_size": job.network.config.vision.image_size,
        "public_models": models,
        "relative_errors": errors,
        "tolerance": TOLERANCES[job.precision],
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "machine": platform.machine(),
        **({"engines": job.engines} if job.engines else {}),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT",
                        help="a folder with weights, YAML, BERT JSON and vocab.txt")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the repository to write")
    parser.add_argument("--target", choices=TARGETS, default="openvino",
                        help="what to compile to (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto",
                        help="auto: fp16 on a GPU, bf16 where the CPU has it, else fp32")
    parser.add_argument("--image-size", type=int, metavar="N",
                        help="serve at N×N pixels instead of the checkpoint's size")
    parser.add_argument("--task", choices=TASKS,
                        help="what the checkpoint was fine-tuned for, where its YAML does not say")
    gpu = parser.add_argument_group("TensorRT", "see docs/gpu.md")
    gpu.add_argument("--compute-capability", metavar="LIST", default="",
                     help="RTX GPUs that tensorrt-rtx compiles for, such as 8.6,8.9,12.0 (default: Ampere and later)")
    gpu.add_argument("--hardware-compatible", action="store_true", help="engines for every GPU from Ampere on")
    gpu.add_argument("--version-compatible", action="store_true", help="engines that later versions of TensorRT load")
    gpu.add_argument("--timing-cache", type=Path, metavar="FILE", help="keep the kernels' times for the next build")
    options = parser.parse_args(arguments)
    engine_settings = {
        "compute_capabilities": tuple(filter(None, options.compute_capability.split(","))),
        "hardware_compatible": options.hardware_compatible, "version_compatible": options.version_compatible,
        "timing_cache": options.timing_cache,
    }
    if any(engine_settings.values()) and options.target not in tensorrt_builder.PACKAGES:
        parser.error(f"--target {options.target} takes no option of TensorRT's")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            build(options.checkpoint, options.output, target=options.target, precision=options.precision,
                  image_size=options.image_size, task=options.task, engine_settings=engine_settings)
    except (BuildError, CheckpointError, ConfigError, ArtefactError, RuntimeUnavailable,
            tensorrt_builder.EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"error: {error.filename or options.output}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"built {options.output}; serve it with: python -m mplug.server {options.output}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # as shells report it; what was half built is gone
