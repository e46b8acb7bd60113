"""What a run is resumed from: weights, optimiser, scaler, random numbers, and how many batches were seen.

One file per saved step, `states/step-000500.pt`, read with `weights_only=True`, so that none can run code. A run that
was stopped and resumed gives bit for bit what an uninterrupted one gives.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import getstate, setstate

import torch
from torch import Tensor, nn

from builders.train.distributed import gather, rank, world_size

FOLDER = "states"
KEPT = 2  # newest files that stay


class ResumeError(ValueError):
    """A run cannot be resumed; the message names the file and what was wrong."""


def save(
    output: Path,
    step: int,
    learner: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    settings: dict[str, object],
) -> None:
    """Write the state after `step` steps. All processes call it; process 0 writes, and a kill leaves no half file."""
    own = torch.get_rng_state()
    on_gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    device = next(learner.parameters()).device
    generators = [gather(state[None].to(device)).cpu() for state in (own, *on_gpu)]
    if rank() != 0:
        return
    version, numbers, gauss = getstate()
    document = {
        "step": step,
        "world": world_size(),
        "settings": settings,
        "learner": learner.state_dict(),
        "optimiser": optimiser.state_dict(),
        "scaler": scaler.state_dict(),
        "generators": generators,
        "python": [version, list(numbers), gauss],
    }
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}.pt"
    unfinished = path.with_suffix(".unfinished")
    torch.save(document, unfinished)
    os.replace(unfinished, path)
    for old in sorted(folder.glob("step-*.pt"))[:-KEPT]:
        old.unlink()


def newest(output: Path) -> Path | None:
    """Return the newest state of a run, if there is one."""
    return max((output / FOLDER).glob("step-*.pt"), default=None)


def discard(output: Path) -> None:
    """Delete the states of a run, when another begins in its place."""
    for path in (output / FOLDER).glob("step-*.pt"):
        path.unlink()


def find(output: Path, wanted: str) -> Path:
    """Return the file to resume from: the one named, or `latest`. Raises ResumeError where there is none."""
    if wanted != "latest":
        if not Path(wanted).is_file():
            raise ResumeError(f"{wanted}: no such file; states of a run lie in OUTPUT/{FOLDER}")
        return Path(wanted)
    found = newest(output)
    if found is None:
        raise ResumeError(f"{output / FOLDER}: holds no step-*.pt to resume from; start without --resume")
    return found


def restore(
    path: Path,
    learner: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    settings: dict[str, object],
) -> int:
    """Fill everything from a file; returns the number of steps that are behind.

    Raises ResumeError for a damaged file, another number of processes, or settings that would not continue the run.
    """
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
        stored, world = document["settings"], document["world"]
    except Exception as error:  # readers raise about anything on damaged bytes
        raise ResumeError(f"{path}: damaged, or no state of a run ({' '.join(str(error).split())[:160]})") from None
    if world != world_size():
        raise ResumeError(f"{path}: was written by {world} processes, but {world_size()} resume it")
    changed = [
        f"{name} was {stored.get(name)!r}, now {value!r}"
        for name, value in settings.items()
        if stored.get(name) != value
    ]
    if changed:
        raise ResumeError(f"{path}: belongs to a run with other settings: {'; '.join(changed)}")
    try:
        learner.load_state_dict(document["learner"])
        optimiser.load_state_dict(document["optimiser"])
    except (RuntimeError, ValueError) as error:
        raise ResumeError(f"{path}: belongs to another network: {' '.join(str(error).split())[:300]}") from None
    scaler.load_state_dict(document["scaler"])
    generators: list[Tensor] = [states[rank()] for states in document["generators"]]
    torch.set_rng_state(generators[0])
    if len(generators) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(generators[1])
    version, numbers, gauss = document["python"]
    setstate((version, tuple(numbers), gauss))
    return document["step"]
