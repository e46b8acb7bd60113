"""Load published and own checkpoints into our network, safely.

A checkpoint is a folder. Whatever its layout, it holds a YAML, a BERT JSON, a `vocab.txt` and a file
of weights; the weights are read with `weights_only=True` or from safetensors, so that no file can run
code. Published state dicts are renamed to the names of `mplug.network`.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mplug.config import ConfigError, MPlugConfig, bert_config_name, read_config
from mplug.hub import WEIGHT_SUFFIXES, CacheError, find_snapshot, impostor
from mplug.inputs.tokenizer import Tokenizer
from mplug.network.mplug import PARTS_OF_TASK, MPlug, parts_needed
from mplug.network.vision_encoder import resample_positions

#: Names that publishers give the weights; the first found is read where a folder holds several files.
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin", "checkpoint_best.pth")
MAX_KEYS_NAMED = 8


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file or the key and what was wrong."""


@dataclass(frozen=True)
class CheckpointFiles:
    """The paths of a checkpoint's files."""

    folder: Path
    config: Path
    bert_config: Path
    vocabulary: Path
    weights: Path
    name: str  #: as people name the checkpoint: of a hub's cache `ORG/NAME@REVISION`, else the folder's

    def sha256(self) -> str:
        """Return the hash of the weights file, hexadecimal."""
        with self.weights.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def find_checkpoint(folder: Path) -> CheckpointFiles:
    """Find the four files of a checkpoint in a published layout or in ours, or in a hub's cache (`mplug.hub`).

    Raises CheckpointError naming what is missing or ambiguous, ConfigError for an unreadable YAML.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; a checkpoint is a folder with a YAML, a BERT JSON, "
            "vocab.txt and a file of weights"
        )
    try:
        snapshot = find_snapshot(folder)
    except CacheError as error:
        raise CheckpointError(str(error)) from None
    folder = snapshot.folder
    config = _only(folder, "a YAML", (".yaml", ".yml"), ("config.yaml",))
    # Where the files of several sizes share a folder, the YAML names its BERT JSON.
    bert_names = (bert_config_name(config) or "config_bert.json", "config_bert.json")
    return CheckpointFiles(
        folder=folder,
        config=config,
        bert_config=_only(folder, "a BERT JSON", (".json",), bert_names, must_contain="bert"),
        vocabulary=_only(folder, "vocab.txt", (".txt",), ("vocab.txt",)),
        weights=_only(folder, f"weights ({', '.join(WEIGHT_SUFFIXES)})", WEIGHT_SUFFIXES, WEIGHT_NAMES),
        name=snapshot.name,
    )


def _only(
    folder: Path, what: str, suffixes: tuple[str, ...], preferred: tuple[str, ...], must_contain: str = ""
) -> Path:
    files = (path for path in folder.iterdir() if path.is_file() and path.suffix in suffixes)
    found = sorted(path for path in files if must_contain in path.name)
    for name in preferred:
        if folder / name in found:
            return folder / name
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(f"{folder}: {what} is missing")
    names = ", ".join(path.name for path in found)
    raise CheckpointError(f"{folder}: several files could be {what}: {names}; rename one to {preferred[0]}")


def load_checkpoint(
    folder: Path,
    *,
    task: str | None = None,
    image_size: int | None = None,
    trainable: bool = False,
    mapped: bool = False,
) -> tuple[MPlug, CheckpointFiles]:
    """Read a checkpoint folder into a network, fp32.

    Args:
        task: overrides the task that the YAML names.
        image_size: serve at this size, pixels; the positions are resampled.
        trainable: leave the network in training mode.
        mapped: weights that are stored in fp32 stay in their file and are read as they are used; the file must not
            change as long as the network lives.
    Raises CheckpointError or ConfigError. What is left over is named in a warning.
    """
    files = find_checkpoint(folder)
    config = read_config(files.config, files.bert_config, task=task)
    if image_size is not None:
        config = config.at_image_size(image_size)
    check_vocabulary(files.vocabulary, config)
    state_dict = read_state_dict(files.weights)
    config = _with_stored_text_layers(config, state_dict)
    with torch.device("meta"):  # wrong sizes are reported before memory is allocated for them
        network = MPlug(config)
    load_weights(network, state_dict, source=files.weights, mapped=mapped)
    return network.train(trainable), files


_TEXT_LAYER = re.compile(r"^(?:(?:model|module)\.)*text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.")


def _with_stored_text_layers(config: MPlugConfig, state_dict: Mapping[str, Tensor]) -> MPlugConfig:
    """Return the configuration with as many text layers as the authors' grounding model stores.

    It keeps its first `stride_layer` (`del_unused_modules` of models/model_grounding_mplug.py), which is fewer than
    the BERT JSON says wherever `text_encoder_layers` is more.
    """
    text = config.text
    stored = {int(match[1]) for match in map(_TEXT_LAYER.match, state_dict) if match}
    kept = min(text.stride_layer, text.text_encoder_layers)
    if config.tasks != ("visual-grounding",) or stored != set(range(kept)):
        return config
    return replace(config, text=replace(text, text_encoder_layers=kept))


def check_vocabulary(path: Path, config: MPlugConfig) -> None:
    """Raise CheckpointError unless `vocab.txt` is a BERT vocabulary of the size of the embedding."""
    try:
        Tokenizer(path, config.text.vocab_size)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is not UTF-8 text: {error}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from None


class _StandIn:
    """A placeholder for objects that serving does not need: accepts any arguments and does nothing."""

    def __init__(self, *arguments: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


#: Saved beside the weights by training scripts (arguments, best scores); replaced by a placeholder, never called.
_HARMLESS = (
    "argparse.Namespace",
    "pathlib.PosixPath",
    "numpy.dtype",
    "numpy.ndarray",
    "_codecs.encode",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
)
#: Keys under which publishers put the state dict.
_WRAPPERS = ("model", "module", "state_dict")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a file of weights without running any code in it.

    Unwraps `"model"` and `"module"`. Raises CheckpointError for a truncated file, one that asks for
    code to run, or one that holds no tensors.
    """
    content = _read(path)
    while isinstance(content, dict):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; its keys are {_some(content)}")
    return tensors


def _read(path: Path) -> object:
    try:
        if wrong := impostor(path):
            raise CheckpointError(f"{path}: {wrong}")
        if path.suffix == ".safetensors":
            return load_file(path)
        harmless = torch.serialization.safe_globals([(_StandIn, name) for name in _HARMLESS])
        with harmless, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses about damaged files
            # Mapped, not read: of what training scripts save, half is momentum copies and CLIP's text tower.
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:  # its own text advises running the file's code
        asked = re.search(r"GLOBAL (\S+)", str(error))
        found = f"would have to run {asked[1]}" if asked else "is damaged, or would have to run code"
        advice = "to be read, which is refused; save its state dict alone"
        raise CheckpointError(f"{path}: {found} {advice}") from None
    except Exception as error:  # readers raise about anything on damaged bytes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: truncated, damaged or not a file of weights ({reason})") from None


#: Published keys that serving has no use for.
_UNUSED = re.compile(
    r"(_m\.|_m$|(^|\.)(temp|image_queue|text_queue|idx_queue|queue_ptr|ptr_queue|masks)$|position_ids$"
    r"|^visual_encoder\.(?!visual\.)|^visual_encoder\.visual\.proj$|^(text_encoder|fusion_encoder)\.cls\."
    r"|^fusion_encoder\.(fusion\.)?embeddings\.|^(prefix_ids|target_ids|bbox_prob_mask)$"
    r"|\.pooler\.|^text_decoder\.cls\.predictions\.decoder\.)"
)

#: Published names → ours, tried in order on each key.
_RENAMES = [
    (r"^(text_encoder|fusion_encoder)\.(bert|fusion)\.", r"\1."),
    (r"^visual_encoder\.visual\.class_embedding$", "vision_encoder.class_embedding"),
    (r"^visual_encoder\.visual\.positional_embedding$", "vision_encoder.position_embedding"),
    (r"^visual_encoder\.visual\.conv1\.", "vision_encoder.patch_embedding."),
    (r"^visual_encoder\.visual\.ln_pre\.", "vision_encoder.norm_in."),
    (r"^visual_encoder\.visual\.ln_post\.", "vision_encoder.norm_out."),
    (r"^visual_encoder\.visual\.transformer\.resblocks\.(\d+)\.", r"vision_encoder.blocks.\1."),
    (r"^(vision_encoder\.blocks\.\d+)\.attn\.in_proj_(weight|bias)$", r"\1.query_key_value.\2"),
    (r"^(vision_encoder\.blocks\.\d+)\.attn\.out_proj\.", r"\1.output."),
    (r"^(vision_encoder\.blocks\.\d+)\.ln_1\.", r"\1.norm_attention."),
    (r"^(vision_encoder\.blocks\.\d+)\.ln_2\.", r"\1.norm_feed_forward."),
    (r"^(vision_encoder\.blocks\.\d+)\.mlp\.c_fc\.", r"\1.expand."),
    (r"^(vision_encoder\.blocks\.\d+)\.mlp\.c_proj\.", r"\1.contract."),
    (r"^visn_fc\.", "vision_encoder.projection.0."),
    (r"^visn_layer_norm\.", "vision_encoder.projection.1."),
    (r"^vision_proj\.", "vision_projection."),
    (r"^text_proj\.", "text_projection."),
    (r"^itm_head\.", "match_head."),
    (r"^text_decoder\.bert\.", "text_decoder."),
    (r"^text_decoder\.cls\.predictions\.transform\.dense\.", "text_decoder.head_dense."),
    (r"^text_decoder\.cls\.predictions\.transform\.LayerNorm\.", "text_decoder.head_norm."),
    (r"^text_decoder\.cls\.predictions\.bias$", "text_decoder.head_bias"),
    (r"^(\w+)\.embeddings\.(word|position|token_type)_embeddings\.", r"\1.embeddings.\2."),
    (r"^(\w+)\.embeddings\.LayerNorm\.", r"\1.embeddings.norm."),
    (r"^(\w+)\.encoder\.layer\.(\d+)\.", r"\1.layers.\2."),
    (r"^(\w+\.layers\.\d+)\.attention\.", r"\1.self_attention."),
    (r"^(\w+\.layers\.\d+)\.crossattention\.", r"\1.cross_attention."),
    (r"^(\w+\.layers\.\d+\.\w+_attention)\.self\.", r"\1."),
    (r"^(\w+\.layers\.\d+\.\w+_attention)\.output\.dense\.", r"\1.output."),
    (r"^(\w+\.layers\.\d+\.\w+_attention)\.output\.LayerNorm\.", r"\1.norm."),
    (r"^(\w+\.layers\.\d+)\.intermediate\.dense\.", r"\1.feed_forward.expand."),
    (r"^(\w+\.layers\.\d+)\.output\.dense\.", r"\1.feed_forward.contract."),
    (r"^(\w+\.layers\.\d+)\.output\.LayerNorm\.", r"\1.feed_forward.norm."),
]
_RENAMES = [(re.compile(pattern), replacement) for pattern, replacement in _RENAMES]
_WRAPPER_PREFIX = re.compile(r"^((model|module)\.)+")
_STORED_LAYER = re.compile(r"^(fusion_encoder|text_encoder|text_decoder)\.layers\.(\d+)\.")


def rename_published(state_dict: dict[str, Tensor], config: MPlugConfig) -> dict[str, Tensor]:
    """Rename published weights, without prefix, to our names; drop what is not served and layers that do not run."""
    text = config.text
    first_fusion_layer = text.num_hidden_layers - text.fusion_layers
    depth = {"text_encoder": text.text_encoder_layers, "text_decoder": text.text_decode_layers}
    renamed: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if key == "text_decoder.cls.predictions.decoder.bias":
            # Some versions of the published code save the tied bias under this name alone.
            renamed.setdefault("text_decoder.head_bias", tensor)
            continue
        for pattern, replacement in _RENAMES:
            if _UNUSED.search(key):
                break
            key = pattern.sub(replacement, key)
        if _UNUSED.search(key):
            continue
        layer = _STORED_LAYER.match(key)
        if layer:
            stage, index = layer[1], int(layer[2])
            if stage == "fusion_encoder":
                running = index - first_fusion_layer
                if not 0 <= running < text.fusion_layers:
                    continue
                if ".cross_attention." in key and text.fusion_layer_is_connected(running):
                    continue
                key = f"{stage}.layers.{running}.{key[layer.end() :]}"
            elif index >= depth[stage]:
                continue
        renamed[key] = tensor
    return renamed


#: Stages and heads that a state dict may hold for tasks other than the one that is served.
_PARTS = {part for parts in PARTS_OF_TASK.values() for part in parts}


def load_weights(network: MPlug, state_dict: dict[str, Tensor], *, source: Path | str, mapped: bool = False) -> None:
    """Fill the network from a published or own state dict; `mapped` as for `load_checkpoint`.

    Raises CheckpointError naming every key that is missing or has a wrong shape; warns of keys that
    are neither used nor known to be superfluous.
    """
    state_dict = own_names(state_dict, network.config)
    wanted = network.state_dict()
    missing = sorted(set(wanted) - set(state_dict))
    if missing:
        tasks = ", ".join(network.config.tasks)
        raise CheckpointError(f"{source}: weights are missing for the task {tasks}: {_some(missing)}")
    positions = "vision_encoder.position_embedding"
    stored = state_dict.get(positions)
    if positions in wanted and stored.ndim == 2 and len(stored) > 1:
        try:
            resampled = resample_positions(stored, network.config.vision.grid)
        except ValueError as error:
            raise CheckpointError(f"{source}: {positions}: {error}") from None
        state_dict = {**state_dict, positions: resampled}
    wrong = [
        f"{key} is {list(state_dict[key].shape)} instead of {list(wanted[key].shape)}"
        for key in sorted(wanted)
        if state_dict[key].shape != wanted[key].shape
    ]
    if wrong:
        raise CheckpointError(f"{source}: weights have the wrong shape: {_some(wrong)}")
    whole = [key for key in sorted(wanted) if not state_dict[key].is_floating_point()]
    if whole:
        raise CheckpointError(f"{source}: weights are not floating-point numbers: {_some(whole)}")
    unfinite = [key for key in sorted(wanted) if not torch.isfinite(state_dict[key]).all()]
    if unfinite:
        raise CheckpointError(f"{source}: weights are not finite: {_some(unfinite)}")
    parts_of_other_tasks = _PARTS - set(parts_needed(network.config))
    left_over = sorted(set(state_dict) - set(wanted))
    unknown = [key for key in left_over if key.split(".")[0] not in parts_of_other_tasks]
    if unknown:
        warnings.warn(f"{source}: weights that are not used: {_some(unknown)}", stacklevel=2)
    if mapped:
        network.load_state_dict({key: state_dict[key].float() for key in wanted}, assign=True)
        return
    if any(tensor.is_meta for tensor in wanted.values()):
        network.to_empty(device="cpu")
    with torch.no_grad():
        for key, tensor in network.state_dict().items():  # one by one: a dict of all in fp32 is a second network
            tensor.copy_(state_dict[key])


def own_names(state_dict: dict[str, Tensor], config: MPlugConfig) -> dict[str, Tensor]:
    """Return a state dict of any layout, prefixed or not, under our names."""
    bare = {_WRAPPER_PREFIX.sub("", key): tensor for key, tensor in state_dict.items()}
    return bare if is_own(bare) else rename_published(bare, config)


def is_own(state_dict: dict[str, Tensor]) -> bool:
    """Return whether the names are already ours."""
    return any(key.startswith("vision_encoder.") for key in state_dict)


def save_weights(network: MPlug, path: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write the weights as safetensors under our names."""
    weights = network.state_dict().items()
    save_file({key: value.detach().to(dtype).contiguous() for key, value in weights}, path)


def _some(names: object) -> str:
    listed = [str(name) for name in names]  # type: ignore[attr-defined]
    rest = len(listed) - MAX_KEYS_NAMED
    return ", ".join(listed[:MAX_KEYS_NAMED]) + (f" and {rest} more" if rest > 0 else "")


__all__ = [
    "CheckpointError",
    "CheckpointFiles",
    "ConfigError",
    "check_vocabulary",
    "find_checkpoint",
    "is_own",
    "load_checkpoint",
    "load_weights",
    "own_names",
    "read_state_dict",
    "rename_published",
    "save_weights",
]
