"""`demo/from_nothing.py` with a small network and small batches: curriculum_process.py OPTIONS.

Its training processes are this file, too, with the options of `demo/train.py`; at the end each leaves its learner.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from small_legs import shrink, small_learner

from demo import from_nothing
from demo import train as demo_train
from demo.training.legs import Leg
from mplug.network import MPlug


def train() -> int:
    learners = []

    def learner_of(network: MPlug, leg: Leg) -> demo_train.DemoLearner:
        learners.append(small_learner(leg))
        return learners[0]

    shrink()
    demo_train.DemoLearner = learner_of
    output = Path(sys.argv[sys.argv.index("--output") + 1])
    sys.argv += ["--workers", "0", "--log-every", "1"]
    code = demo_train.main()
    if learners:
        torch.save(learners[0].state_dict(), output / f"learner-{os.environ['RANK']}.pt")
    return code


if __name__ == "__main__":
    if "RANK" in os.environ:
        sys.exit(train())
    from_nothing.TRAIN = Path(__file__)
    sys.exit(from_nothing.main())
