"""What a run is resumed from: weights, optimiser, scaler, random numbers, and how many batches were seen.

    OUTPUT/states/step-000500/state.json               what is no tensor
                              shard-00001-….safetensors  tensors, by torch.distributed.checkpoint

All processes write, each its part, and any number of processes reads. The files are safetensors and JSON: none can run
code (the default format of torch.distributed.checkpoint is a pickle). A run that is stopped and resumed by as many
processes gives bit for bit what an uninterrupted one gives; by another number, one that continues with the same
pictures and other random numbers, the same at every time.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import getstate, setstate
from uuid import uuid4

import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException

from builders.data.streams import seed_of
from builders.train.distributed import of_all, rank, world_size
from builders.train.schedule import Optimiser

FOLDER = "states"
STATE = "state.json"
KEPT = 2  # newest states that stay


class ResumeError(ValueError):
    """A run cannot be resumed; the message names the state and what was wrong."""


def check_shared(output: Path) -> None:
    """Raise ValueError where the processes of a run, on several machines, do not see one and the same OUTPUT."""
    if world_size() == 1:
        return
    folder = output / FOLDER
    mark = folder / of_all(f"{uuid4()}.seen")[0]
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    distributed.barrier()
    seen = of_all(mark.exists())
    if rank() == 0:
        mark.unlink()
    if not all(seen):
        raise ValueError(
            f"--output {output}: process {seen.index(False)} does not see what process 0 writes there; a run on "
            "several machines needs a folder that all of them share"
        )


def save(
    output: Path,
    step: int,
    learner: nn.Module,
    optimiser: Optimiser,
    scaler: torch.amp.GradScaler,
    settings: dict[str, object],
) -> None:
    """Write the state after `step` steps. All processes call it; a kill leaves no half state."""
    folder = output / FOLDER
    path = folder / f"step-{step:06d}"
    unfinished = path.with_suffix(".unfinished")
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
    tensors = {**_of_learner(learner), **_of_optimiser(learner, optimiser), **_of_generators()}
    writer = checkpoint.HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
    try:
        with _one_process_may_do_it():
            checkpoint.save(tensors, storage_writer=writer, no_dist=world_size() == 1)
    except CheckpointException as error:  # no Exception, and as long as its traceback: a full disk is told in a line
        raise next((cause for cause, _ in error.failures.values() if isinstance(cause, OSError)), error) from None
    if rank() != 0:
        return
    version, numbers, gauss = getstate()
    document = {
        "step": step,
        "world": world_size(),
        "settings": settings,
        "scaler": scaler.state_dict(),
        "python": [version, list(numbers), gauss],
    }
    (unfinished / STATE).write_text(json.dumps(document))
    shutil.rmtree(path, ignore_errors=True)
    os.replace(unfinished, path)
    for old in _states(output)[:-KEPT]:
        shutil.rmtree(old)


@contextmanager
def _one_process_may_do_it() -> Iterator[None]:
    """Silence the warning that one process saves or loads alone: here that is how it should be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _of_learner(learner: nn.Module) -> dict[str, Tensor]:
    """The tensors of a learner by name, not copied; one that has two names (tied weights) is there once."""
    unique = {
        tensor.data_ptr() if tensor.numel() else name: (name, tensor) for name, tensor in learner.state_dict().items()
    }
    return {f"learner.{name}": tensor for name, tensor in unique.values()}


def _of_optimiser(learner: nn.Module, optimiser: Optimiser) -> dict[str, Tensor]:
    return {
        f"optimiser.{name}:{key}": value
        for name, parameter in learner.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def _of_generators() -> dict[str, Tensor]:
    """The states of this process' generators of random numbers."""
    found = {f"generator.cpu.{rank()}": torch.get_rng_state()}
    if torch.cuda.is_available():
        found[f"generator.cuda.{rank()}"] = torch.cuda.get_rng_state()
    return found


def _states(output: Path) -> list[Path]:
    """The states of a run, the newest last."""
    found = [path for path in (output / FOLDER).glob("step-*") if path.is_dir() and not path.suffix]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def step_of(state: Path) -> int:
    """Return how many steps are behind a state. Raises ResumeError for what is none."""
    try:
        return json.loads((state / STATE).read_text())["step"]
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(state, error) from None


def newest(output: Path) -> Path | None:
    """Return the newest state of a run, if there is one."""
    return next(reversed(_states(output)), None)


def discard(output: Path) -> None:
    """Delete the states of a run, when another begins in its place."""
    for path in _states(output):
        shutil.rmtree(path)


def find(output: Path, wanted: str) -> Path:
    """Return the state to resume from: the one named, or `latest`. Raises ResumeError where there is none."""
    if wanted != "latest":
        if not (Path(wanted) / STATE).is_file():
            raise ResumeError(f"{wanted}: no state of a run; those lie in OUTPUT/{FOLDER}, a folder each")
        return Path(wanted)
    found = newest(output)
    if found is None:
        raise ResumeError(f"{output / FOLDER}: holds no step-* to resume from; start without --resume")
    return found


def restore(
    path: Path,
    learner: nn.Module,
    optimiser: Optimiser,
    scaler: torch.amp.GradScaler,
    settings: dict[str, object],
) -> int:
    """Fill everything from a state; returns the number of steps that are behind.

    Raises ResumeError for a damaged state, another network, or settings that would not continue the run.
    """
    try:
        document = json.loads((path / STATE).read_text())
        stored = document["settings"]
        reader = checkpoint.HuggingFaceStorageReader(str(path))
        described = reader.read_metadata().state_dict_metadata
    except Exception as error:  # readers raise about anything on damaged bytes
        raise _damaged(path, error) from None
    changed = [
        f"{name} was {stored.get(name)!r}, now {value!r}"
        for name, value in settings.items()
        if stored.get(name) != value
    ]
    if changed:
        raise ResumeError(f"{path}: belongs to a run with other settings: {'; '.join(changed)}")
    tensors = _of_learner(learner)
    names = {name for name in described if name.startswith("learner.")}
    other = sorted(names ^ tensors.keys()) or sorted(n for n in names if described[n].size != tensors[n].shape)
    if other:
        raise ResumeError(f"{path}: belongs to another network; {len(other)} weights differ, such as {other[0]}")
    resumed_by_as_many = document["world"] == world_size()
    own = (f"generator.cpu.{rank()}", f"generator.cuda.{rank()}") if resumed_by_as_many else ()
    for name, description in described.items():
        if name.startswith("optimiser.") or name in own:
            tensors[name] = torch.empty(description.size, dtype=description.properties.dtype)
    try:
        with _one_process_may_do_it():
            checkpoint.load(tensors, storage_reader=reader, no_dist=world_size() == 1)
    except Exception as error:  # as above
        raise _damaged(path, error) from None
    _fill_optimiser(optimiser, learner, tensors)
    scaler.load_state_dict(document["scaler"])
    if resumed_by_as_many:
        torch.set_rng_state(tensors[own[0]])
        if own[1] in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[own[1]])
    else:
        torch.manual_seed(seed_of("resumed", settings.get("seed"), document["step"], world_size(), rank()))
    version, numbers, gauss = document["python"]
    setstate((version, tuple(numbers), gauss))
    return document["step"]


def _fill_optimiser(optimiser: Optimiser, learner: nn.Module, tensors: dict[str, Tensor]) -> None:
    parameters = dict(learner.named_parameters())
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            of, _, key = name.removeprefix("optimiser.").rpartition(":")
            optimiser.state[parameters[of]][key] = tensor.to(parameters[of].device)


def _damaged(path: Path, error: Exception) -> ResumeError:
    text = " ".join(str(error).split())
    return ResumeError(f"{path}: damaged, or no state of a run ({type(error).__name__}: {text[-160:]})")
