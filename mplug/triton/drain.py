"""How the launcher and the served models agree on a drain.

tritonserver cannot be told to refuse new work and finish the rest, so the two do it between them: the
launcher (`mplug.server.process`) writes a file, the task models (`mplug.triton.models`) refuse requests
while it is there, and a metric tells the launcher how many are still being answered. A server started without
our launcher has no such file and never refuses.
"""

from __future__ import annotations

import os
from pathlib import Path

DRAIN_FILE_VARIABLE = "MPLUG_DRAIN_FILE"  # the file's path, in the environment of the served models
IN_FLIGHT_METRIC = "mplug_requests_in_flight"  # gauge, one per model
REFUSE, DROP = "refuse", "drop"  # what the file says: finish what is in flight, or give it up


def draining() -> bool:
    """Whether new requests are to be refused; a stat of one file, some microseconds."""
    path = os.environ.get(DRAIN_FILE_VARIABLE)
    return path is not None and os.path.exists(path)


def dropping() -> bool:
    """Whether requests in flight are to be answered at once: the time to finish them is over."""
    return draining() and Path(os.environ[DRAIN_FILE_VARIABLE]).read_text() == DROP
