"""mPLUG, a vision-language model, on NVIDIA Triton: what an installed `mplug-triton` offers to Python.

    from mplug_triton import Client

    with Client("localhost:8001") as client:
        print(client.caption("photo.jpg")[0].text)

`Client`, `AsyncClient`, their answers and `ClientError` need nothing but the package itself. `Pipeline` runs a built
repository in this process and needs the extra `serve` (`pip install 'mplug-triton[serve]'`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0.dev0"  # the one place of the version

if TYPE_CHECKING:
    from mplug.pipeline import Pipeline

    from .client import (
        ENTAILMENT_LABELS,
        Answer,
        AsyncClient,
        Caption,
        Client,
        ClientError,
        Entailment,
        Grounding,
        Match,
        Verdict,
    )

__all__ = [
    "ENTAILMENT_LABELS",
    "Answer",
    "AsyncClient",
    "Caption",
    "Client",
    "ClientError",
    "Entailment",
    "Grounding",
    "Match",
    "Pipeline",
    "Verdict",
]


def __getattr__(name: str) -> object:
    """Import a public name on use, so that `mplug --help` waits for no package of a client."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .location import CLIENT

    module = "mplug.pipeline" if name == "Pipeline" else CLIENT
    return getattr(importlib.import_module(module), name)
