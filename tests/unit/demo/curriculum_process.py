"""`demo/from_nothing.py` with a small network and small batches: curriculum_process.py OPTIONS.

Its training processes are this file, too, with the options of `demo/train.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from leg_process import shrink, small_learner

from demo import from_nothing
from demo import train as demo_train

if __name__ == "__main__":
    if "RANK" in os.environ:
        shrink()
        demo_train.DemoLearner = lambda network, leg: small_learner(leg)
        sys.argv += ["--workers", "0", "--log-every", "1"]
        sys.exit(demo_train.main())
    from_nothing.TRAIN = Path(__file__)
    sys.exit(from_nothing.main())
