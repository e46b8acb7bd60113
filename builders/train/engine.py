"""The loop that trains a learner: any task, one process or several, CPU or GPU.

    Trainer(learner, batches, settings, output, device=device).run()

A learner turns a batch into named losses; the trainer adds them up, steps, logs, validates and saves. A step is one
step of the optimiser: `accumulate` batches of every process.
"""

from __future__ import annotations

import contextlib
import math
import sys
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from builders.train import run_state
from builders.train.batches import UNREADABLE, Batch, to_device
from builders.train.distributed import mean_over_processes, rank, world_size
from builders.train.gradient_checkpointing import checkpoint_blocks
from builders.train.run_log import RunLog
from builders.train.schedule import cosine_with_warmup, new_optimiser, set_rate

CPU = torch.device("cpu")
BATCH_OF_ALL = "batch_size of all processes together"
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


@dataclass(frozen=True)
class Settings:
    """How to train. What decides the weights (`binding`) must not change on resuming."""

    steps: int
    batch_size: int  #: images of one batch of one process
    accumulate: int = 1  #: batches of a step
    learning_rate: float = 1e-4
    vision_learning_rate: float = 1e-5
    warmup: int = 1000  #: steps
    weight_decay: float = 0.02
    beta2: float = 0.999  #: of AdamW, as published
    muon: float = 0.0  #: rate of Muon, for the matrices of layers, in multiples of AdamW's; 0: AdamW for all
    clip: float = 1.0  #: largest norm of the gradient; 0: none
    clip_groups: bool = False  #: clip each group of parameters by its own norm, the vision encoder apart
    precision: str = "bf16"
    seed: int = 0
    checkpointing: bool = False
    log_every: int = 50  #: steps
    validate_every: int = 1000  #: steps; 0: at the end alone
    save_every: int = 1000  #: steps; 0: at the end alone
    workers: int = 1  #: processes that make batches; 0: none beside the training
    max_unreadable: float = 0.01  #: share of the data set's pictures that may be unreadable; one always may

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.muon < 0:
            raise ValueError(f"muon is {self.muon}, but must be a factor of the rates, or 0")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is none of {', '.join(PRECISIONS)}")

    def binding(self, world: int) -> dict[str, object]:
        """Return what a run must have in common with the one that it continues, in `world` processes.

        Their number may change as long as their batches are as many images together.
        """
        free = {"checkpointing", "log_every", "validate_every", "save_every", "workers", "max_unreadable", "batch_size"}
        kept = {name: value for name, value in asdict(self).items() if name not in free}
        return {**kept, BATCH_OF_ALL: self.batch_size * world}


class Learner(nn.Module, ABC):
    """A network with what its task adds in training. Subclasses say which losses, and what is measured."""

    every_parameter = True  #: whether every step has a gradient for every trained parameter

    @abstractmethod
    def forward(self, batch: Batch, done: float) -> dict[str, Tensor]:
        """Return losses by name; `done` is the share of the run that is over."""

    def weight_of(self, loss: str) -> float:
        """Return what a loss is multiplied by before all are added up."""
        return 1.0

    def after_batch(self) -> None:
        """Called when a batch's gradient is there."""

    def after_step(self) -> None:
        """Called when the optimiser has stepped."""

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return metrics by name, on batches that are the same every time; without gradient, in evaluation mode.

        Every process calls it with batches of its own, and returns what all of them together measure.
        """
        return {}


class Trainer:
    """Runs a learner for so many steps."""

    def __init__(
        self,
        learner: Learner,
        batches: Dataset,
        settings: Settings,
        output: Path,
        *,
        device: torch.device = CPU,
        validation: Iterable[Batch] = (),
        resume: Path | None = None,
        progress: bool = True,
        leg: str = "",
        after_validation: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        """`after_validation` is called with step and metrics, by every process.

        Raises ResumeError for a state that does not fit, ValueError for half precision that the CPU lacks.
        """
        if settings.precision == "fp16" and device.type == "cpu":
            raise ValueError("precision fp16 needs a GPU; on a CPU choose bf16 or fp32")
        self.settings, self.output, self.device = settings, output, device
        self.batches, self.validation = batches, validation
        self.after_validation = after_validation
        self.unreadable: dict[Path, str] = {}
        self.learner = learner.to(device).train()
        if settings.checkpointing:
            checkpoint_blocks(learner)
        rates = settings.learning_rate, settings.vision_learning_rate
        self.optimiser = new_optimiser(
            [learner], *rates, settings.weight_decay, beta2=settings.beta2, muon=settings.muon
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        torch.manual_seed(settings.seed * 1_000_003 + rank())
        self.step = 0
        if resume is not None:
            self.step = run_state.restore(resume, learner, self.optimiser, self.scaler, settings.binding(world_size()))
        run_state.check_shared(output)
        self.log = RunLog(output, resumed_at=self.step, quiet=rank() != 0, leg=leg)
        self.model: nn.Module = learner
        if world_size() > 1:
            ids = [device.index] if device.type == "cuda" else None
            # Queues and momentum copies are the same everywhere already.
            self.model = DistributedDataParallel(
                learner,
                device_ids=ids,
                forward_sync_buffers=False,
                find_unused_parameters=not learner.every_parameter,
            )
        self.progress = progress and rank() == 0

    @property
    def samples(self) -> int:
        """Images that all processes have seen."""
        return self.step * self.settings.accumulate * self.settings.batch_size * world_size()

    def run(self, until: int | None = None) -> None:
        """Train to the end, or to step `until`, and save there. Raises TrainingError for a loss that is no number."""
        settings = self.settings
        until = min(until or settings.steps, settings.steps)
        loader = DataLoader(
            self.batches,
            batch_size=None,
            num_workers=settings.workers,
            sampler=range(self.step * settings.accumulate, until * settings.accumulate),
            prefetch_factor=4 if settings.workers else None,
            generator=torch.Generator(),  # without one it would draw from the generator of training
            # A forked process would wait for ever for the threads that OpenCV had in this one.
            multiprocessing_context="spawn" if settings.workers else None,
        )
        upcoming = iter(loader)
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        logged = self.step
        bar = tqdm(total=settings.steps, initial=self.step, unit="step", disable=not self.progress)
        while self.step < until:
            for name, value in self._one_step(upcoming).items():
                sums[name] += value
            bar.update()
            if self.step % settings.log_every == 0 or self.step == until:
                means = {name: mean_over_processes(value / (self.step - logged)).item() for name, value in sums.items()}
                bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
                self.log.write(self.step, self.samples, "losses", means, learning_rate=self._rate())
                sums.clear()
                logged = self.step
            last = self.step == settings.steps
            if last or (settings.validate_every and self.step % settings.validate_every == 0):
                self._validate()
            if self.step == until or (settings.save_every and self.step % settings.save_every == 0):
                binding = settings.binding(world_size())
                run_state.save(self.output, self.step, self.learner, self.optimiser, self.scaler, binding)
        bar.close()
        if self.unreadable and self.progress:
            print(f"pictures left out because they could not be read: {len(self.unreadable)}", file=sys.stderr)
        self.log.close()

    def _rate(self) -> float:
        return max(group["lr"] for group in self.optimiser.param_groups)

    def _one_step(self, upcoming: Iterable[Batch]) -> dict[str, Tensor]:
        settings = self.settings
        done = self.step / settings.steps
        set_rate(self.optimiser, cosine_with_warmup(done, self.step, settings.warmup))
        found: dict[str, Tensor] = {}
        for number in range(settings.accumulate):
            batch = to_device(self._readable(next(upcoming)), self.device)
            last = number == settings.accumulate - 1
            waiting = contextlib.nullcontext() if last or world_size() == 1 else self.model.no_sync()
            with waiting:
                with self._autocast():
                    losses = self.model(batch, done)
                total = sum(self.learner.weight_of(name) * loss for name, loss in losses.items())
                total = total / settings.accumulate
                self.scaler.scale(total).backward()
            for name, value in losses.items():
                found[name] = found.get(name, 0.0) + value.detach() / settings.accumulate
            self.learner.after_batch()
        self._check(found)
        self.scaler.unscale_(self.optimiser)
        if settings.clip:
            groups = [group["params"] for group in self.optimiser.param_groups]
            for parameters in groups if settings.clip_groups else [list(chain.from_iterable(groups))]:
                nn.utils.clip_grad_norm_(parameters, settings.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.learner.after_step()
        self.step += 1
        return found

    def _readable(self, batch: Batch) -> Batch:
        """Name the batch's unreadable pictures, each once. Raises TrainingError above the share that is allowed."""
        for path, message in batch.pop(UNREADABLE, {}).items():
            if path in self.unreadable:
                continue
            self.unreadable[path] = message
            tqdm.write(f"left out, {len(self.unreadable)} so far: {message}", file=sys.stderr)
            files, share = getattr(self.batches, "files", 0), self.settings.max_unreadable
            if len(self.unreadable) > max(1, share * files):
                raise TrainingError(
                    f"step {self.step + 1}: {len(self.unreadable)} pictures of {files:,} records cannot be read, more "
                    f"than --max-unreadable {share:g} allows; the last: {message}"
                )
        return batch

    def _check(self, losses: dict[str, Tensor]) -> None:
        bad = [name for name, value in losses.items() if not math.isfinite(value.item())]
        if bad:
            raise TrainingError(
                f"step {self.step + 1}: the loss {', '.join(bad)} is no longer a number; lower the learning rate, or "
                f"resume from a state in {self.output / run_state.FOLDER} with another"
            )

    def _autocast(self) -> contextlib.AbstractContextManager:
        dtype = PRECISIONS[self.settings.precision]
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

    @torch.no_grad()
    def _validate(self) -> None:
        """Every process looks at its share of the batches; the metrics are those of all of them."""
        self.learner.eval()
        # A look draws no random numbers that training would miss.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []), self._autocast():
            torch.manual_seed(self.settings.seed)
            metrics = self.learner.validate(to_device(batch, self.device) for batch in self.validation)
        self.learner.train()
        if metrics:
            self.log.write(self.step, self.samples, "metrics", metrics)
        if self.after_validation:
            self.after_validation(self.step, metrics)
