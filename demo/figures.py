"""Build a checkpoint, evaluate it on every split through a server, and write figures.json beside it.

    python demo/figures.py checkpoints/demo --work build/figures          # six minutes and more on two cores

What is measured already, under WORK, is not measured again. OpenMoji is share-alike and fetched from npm, once; where
that fails, its split is left out and figures.json says why. figures.json is what demo/card.py writes the card from.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our packages are in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builders.evaluate import REPORTED
from builders.train.run_log import LOG, hours_of
from demo.records import TITLES
from demo.scenes.sprites import TRAIN_STYLES, build_atlases
from demo.splits import SPLITS
from demo.training.run_record import RunRecord, cpu_model
from mplug.checkpoint import find_checkpoint

ROOT = Path(__file__).resolve().parents[1]
FIGURES = "figures.json"
EASY_VQA = "easy-vqa/checkpoint"  # in the folder of a run: fine-tuned as docs/evaluation.md says
MISTAKES = 3  # first ones of each task and split that are kept
PACKAGES = ("torch", "openvino", "numpy", "opencv-python-headless", "pycocoevalcap")


class FiguresError(RuntimeError):
    """The figures cannot be measured; the command that failed has said why."""


@dataclass(frozen=True)
class Part:
    """What one call of builders/evaluate.py measures, of which checkpoint."""

    name: str
    checkpoint: Path
    options: tuple[str, ...]


def fetch_art() -> dict[str, str]:
    """Fetch OpenMoji unless it is here. Return {title of a split whose artwork is missing: why}."""
    missing = {}
    if not SPLITS["test-openmoji"].is_here:
        try:
            build_atlases(SPLITS["test-openmoji"].styles, SPLITS["test-openmoji"].folder)
        except (RuntimeError, OSError) as error:
            missing[TITLES["test-openmoji"]] = str(error)
    for name, title in TITLES.items():
        if not SPLITS[name].is_here:
            missing.setdefault(title, f"not fetched: `{SPLITS[name].fetched_by}`")
    return missing


def parts_of(checkpoint: Path, run: Path | None) -> Iterator[Part]:
    """What there is to measure, in the order of the card."""
    for name in TITLES:
        if SPLITS[name].is_here:
            yield Part(name, checkpoint, ("--split", name))
    if run is not None and (run / EASY_VQA).is_dir():
        yield Part("easy-vqa", run / EASY_VQA, ("--data", "easy-vqa"))


def measure(checkpoint: Path, work: Path, *, run: Path | None = None, items: int | None = None) -> Path:
    """Write CHECKPOINT/figures.json and return its path. Raises FiguresError where a command fails.

    `run`: the folder of the run that made the checkpoint, whose legs and hours are told. `items`: fewer than all.
    """
    left_out = fetch_art()
    outcomes, precision = [], ""
    for part in parts_of(checkpoint, run):
        repository = build(part.checkpoint, work)
        precision = json.loads((repository / "build_info.json").read_text(encoding="utf-8"))["precision"]
        found = evaluate(part, repository, work, items)
        outcomes += [{"part": part.name, **outcome} for outcome in json.loads(found.read_text("utf-8"))["outcomes"]]
    document = {
        "weights_sha256": find_checkpoint(checkpoint).sha256(),
        "styles": None if run is None else TRAIN_STYLES,
        "training": None if run is None else training_of(run),
        "evaluation": {
            "date": datetime.now(UTC).date().isoformat(),
            "through": f"a server on the CPU, {precision}, five beams",
            "cpu": cpu_model(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in PACKAGES},
        },
        "left_out": left_out,
        "outcomes": outcomes,
    }
    path = checkpoint / FIGURES
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def build(checkpoint: Path, work: Path) -> Path:
    """Return the served repository of a checkpoint, made unless it is there already."""
    digest = find_checkpoint(checkpoint).sha256()
    repository = work / f"repository-{digest[:12]}"
    if not (repository / "build_info.json").exists():
        _call("builders/build.py", str(checkpoint.resolve()), "--output", str(repository.resolve()))
    return repository


def evaluate(part: Part, repository: Path, work: Path, items: int | None) -> Path:
    """Return the file of a part's scores and first mistakes, measured through a server unless it is there already."""
    name = f"{part.name}-{repository.name.removeprefix('repository-')}{f'-{items}' if items else ''}"
    path = (work / f"{name}.json").resolve()
    if not path.exists():
        unfinished = path.with_suffix(".unfinished")
        scores = ("--failures", str(MISTAKES), "--output", str(unfinished))
        some = ("--items", str(items)) if items else ()
        server = ("-m", "mplug.server", str(repository.resolve()), "--run", "builders/evaluate.py", "--url", "{grpc}")
        _call(*server, *part.options, *some, *scores)
        unfinished.replace(path)
    return path


def training_of(run: Path) -> dict[str, object]:
    """Return how a run trained: seed, machine, and per leg steps, scenes and hours."""
    record = RunRecord.read(run)
    if record is None:
        raise FiguresError(f"{run}: holds no run of demo/train.py")
    legs = []
    for number, leg in enumerate(record.legs.split(","), start=1):
        name = leg.partition(":")[0]
        folder = run / f"{number}-{name}"
        last = json.loads((folder / LOG).read_text(encoding="utf-8").splitlines()[-1])
        legs.append(
            {"leg": name, "steps": last["step"], "scenes": last["samples"], "hours": round(hours_of(folder), 3)}
        )
    return {**asdict(record), "legs": legs}


def _call(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise FiguresError(f"`python {' '.join(command)}` ended with exit code {done.returncode}")


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/figures"), help="where what is measured is kept")
    parser.add_argument("--run", type=Path, metavar="DIR", help="OUTPUT of the demo/train.py that made the checkpoint")
    parser.add_argument("--items", type=int, help="per task and split (default: all, 1,000)")
    options = parser.parse_args()
    try:
        print(measure(options.checkpoint, options.work, run=options.run, items=options.items))
    except (FiguresError, *REPORTED) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # as shells report it
