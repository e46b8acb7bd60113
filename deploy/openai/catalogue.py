"""Which models are offered: one for each checkpoint of the server's repository, by OpenAI's kind of name."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from clients.client import AsyncClient, ClientError
from deploy.openai.errors import ApiError, of_client

READY_SECONDS = 5.0  # for the server to say whether it is ready
#: Triton's models that OpenAI's routes have a use for.
SERVED = ("caption", "vqa", "embed_image", "embed_text")
_LACKING = {
    "caption": "does not describe pictures: ask a question about one",
    "vqa": "answers no questions: send the picture without text for a caption",
    "embed_image": "embeds no pictures",
    "embed_text": "embeds no texts",
}


class Catalogue:
    """Model names, and the client of each."""

    def __init__(self, clients: Mapping[str, AsyncClient]) -> None:
        self._clients = dict(clients)

    def client(self, name: str) -> AsyncClient:
        """Return the client of a model. Raises ApiError for an unknown one."""
        if name not in self._clients:
            known = ", ".join(self._clients)
            message = f"the model {name[:100]!r} does not exist; this endpoint offers {known}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self._clients[name]

    async def served(self, name: str) -> list[str]:
        """Return which of Triton's models are ready behind a name."""
        client = self.client(name)
        ready = await asyncio.gather(*(client.is_ready(model) for model in SERVED))
        return [model for model, is_ready in zip(SERVED, ready, strict=True) if is_ready]

    async def document(self, name: str, created: int) -> dict[str, Any]:
        """Return OpenAI's description of a model; `serves`, beyond it, lists what can be asked of it."""
        serves = await self.served(name)
        return {"id": name, "object": "model", "created": created, "owned_by": "mplug", "serves": serves}

    async def listed(self, created: int) -> dict[str, Any]:
        """Return the list of models that have anything to offer."""
        documents = await asyncio.gather(*(self.document(name, created) for name in self._clients))
        return {"object": "list", "data": [each for each in documents if each["serves"]]}

    async def is_ready(self) -> bool:
        """Return whether the server takes requests."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                return await next(iter(self._clients.values())).is_ready()
        except TimeoutError:
            return False

    async def explain(self, error: ClientError, name: str) -> ApiError:
        """Return the answer to what the server refused; a model that its checkpoint lacks is named."""
        if error.status == "NOT_FOUND":
            serves = await self.served(name)
            for model in SERVED:
                if model not in serves and f"{model} at " in str(error):
                    message = f"{name} {_LACKING[model]} (its checkpoint serves {', '.join(serves) or 'nothing'})"
                    return ApiError(400, message, param="model", code="unsupported_model")
        return of_client(error)

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.close()
