"""A small importable client for a served mPLUG.

    from clients.client import Client

    with Client("localhost:8001") as client:
        print(client.caption("examples/photo.jpg")[0].text)

`AsyncClient` has the same methods, to be awaited. Both speak gRPC or HTTP and raise `ClientError`, one clear
line, for anything that goes wrong.
"""

from .answers import ENTAILMENT_LABELS, Answer, Caption, Entailment, Grounding, Match, Verdict
from .api_key import API_KEY_VARIABLE, read_api_key
from .clients import AsyncClient, Client
from .connection import DEFAULT_TIMEOUT, DEFAULT_URL
from .errors import ClientError

__all__ = [
    "API_KEY_VARIABLE",
    "DEFAULT_TIMEOUT",
    "DEFAULT_URL",
    "ENTAILMENT_LABELS",
    "Answer",
    "AsyncClient",
    "Caption",
    "Client",
    "ClientError",
    "Entailment",
    "Grounding",
    "Match",
    "Verdict",
    "read_api_key",
]
