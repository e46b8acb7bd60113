"""The ASGI application: OpenAI's routes over a served mPLUG, each a few lines around the parts beside this file."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clients.client import ClientError
from clients.client.tracing import forwarding
from deploy.openai import chat, embeddings
from deploy.openai.admission import Admission, Limits, unless_gone
from deploy.openai.catalogue import Catalogue
from deploy.openai.errors import ApiError, of_validation
from deploy.openai.metrics import Metrics
from deploy.openai.schema import ChatRequest, EmbeddingRequest

log = logging.getLogger("mplug.openai")

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


@dataclass
class Endpoint:
    """What the routes share."""

    catalogue: Catalogue
    limits: Limits = field(default_factory=Limits)
    api_keys: Sequence[str] = ()  # none: everybody may ask
    ignore_system: bool = False

    def __post_init__(self) -> None:
        self.admission = Admission(self.limits)
        self.metrics = Metrics(self.admission)
        self.started = int(time.time())

    # ------------------------------------------------------------------------------------------ routes

    async def chat(self, request: Request) -> Response:
        """Caption a picture, or answer a question about it."""
        async with self.admission.body(request) as body:
            asked, query = await asyncio.to_thread(self._read_chat, body)
            client = self.catalogue.client(asked.model)
            work = self.admission.bounded(lambda: chat.answer(asked, query, client))
            choices = await self._asked(request, asked.model, work)
        if asked.stream:
            headers = {"Cache-Control": "no-cache"}
            return Response(chat.events(asked, choices), media_type="text/event-stream", headers=headers)
        return JSONResponse(chat.completion(asked, choices))

    def _read_chat(self, body: bytes) -> tuple[ChatRequest, chat.Query]:
        asked = ChatRequest.model_validate_json(body)
        self.catalogue.client(asked.model)
        query = chat.read(asked, ignore_system=self.ignore_system)
        chat.check(asked, query)
        return asked, query

    async def embeddings(self, request: Request) -> Response:
        """Embed texts and pictures."""
        async with self.admission.body(request) as body:
            asked, items = await asyncio.to_thread(self._read_embeddings, body)
            client = self.catalogue.client(asked.model)
            work = embeddings.embed(items, client, self.admission.bounded)
            features = await self._asked(request, asked.model, work)
        return JSONResponse(embeddings.document(asked, features))

    def _read_embeddings(self, body: bytes) -> tuple[EmbeddingRequest, list[embeddings.Item]]:
        asked = EmbeddingRequest.model_validate_json(body)
        self.catalogue.client(asked.model)
        return asked, embeddings.read(asked)

    async def _asked(self, request: Request, model: str, work: Coroutine[Any, Any, T]) -> T:
        """Await the server's answer. Raises ApiError and ClientDisconnect."""
        try:
            return await unless_gone(request, work, self.limits.answer_seconds)
        except ClientError as error:
            raise await self.catalogue.explain(error, model) from error

    async def models(self, request: Request) -> Response:
        """List the models."""
        return JSONResponse(await self.catalogue.listed(self.started))

    async def model(self, request: Request) -> Response:
        """Describe one model."""
        return JSONResponse(await self.catalogue.document(request.path_params["name"], self.started))

    async def health(self, request: Request) -> Response:
        """Say whether the server behind the endpoint takes requests."""
        ready = await self.catalogue.is_ready()
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def shown_metrics(self, request: Request) -> Response:
        """Show the metrics."""
        return self.metrics.response()

    # --------------------------------------------------------------------------------------- around them

    def answered(self, route: str, handler: Handler, *, keyed: bool = True) -> Handler:
        """Return a handler that checks the key, counts the answer, and gives every failure OpenAI's form."""

        async def handle(request: Request) -> Response:
            began = time.monotonic()
            try:
                if keyed:
                    self._check_key(request)
                with forwarding(request.headers):  # one trace, from whoever asks us to the stages
                    response = await handler(request)
            except ApiError as error:
                response = _error_response(error)
            except ValidationError as error:
                response = _error_response(of_validation(error))
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody reads it
            except Exception:
                log.exception("%s failed", route)
                response = _error_response(
                    ApiError(500, "the endpoint failed; its log says more", code="internal_error")
                )
            self.metrics.count(route, response.status_code, time.monotonic() - began)
            return response

        return handle

    def _check_key(self, request: Request) -> None:
        if not self.api_keys:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        fits = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in self.api_keys]
        if scheme.lower() != "bearer" or not any(fits):
            message = "a wrong API key" if given else "no API key; send the header Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key")


def application(endpoint: Endpoint) -> Starlette:
    """Return the ASGI application."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await endpoint.catalogue.close()

    routes = [
        Route("/v1/chat/completions", endpoint.answered("chat", endpoint.chat), methods=["POST"]),
        Route("/v1/embeddings", endpoint.answered("embeddings", endpoint.embeddings), methods=["POST"]),
        Route("/v1/models", endpoint.answered("models", endpoint.models)),
        Route("/v1/models/{name}", endpoint.answered("models", endpoint.model)),
        Route("/health", endpoint.answered("health", endpoint.health, keyed=False)),
        Route("/metrics", endpoint.answered("metrics", endpoint.shown_metrics, keyed=False)),
    ]
    paths = ", ".join(route.path for route in routes)

    async def no_route(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        what = f"{request.method} {request.url.path[:200]}"
        message = f"{what} is not offered; this endpoint has {paths}"
        return _error_response(ApiError(status, message, code="unknown_url" if status == 404 else "method_not_allowed"))

    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={404: no_route, 405: no_route})


def _error_response(error: ApiError) -> Response:
    return JSONResponse(error.document(), error.status, error.headers)
