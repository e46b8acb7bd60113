"""What the OpenAI-compatible endpoint refuses, how it is bounded, and what it does for clients that go.

The real application and the real `openai` client, joined in this process; no server is behind it, and none is asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest

from clients.client import Answer, AsyncClient, Caption, ClientError
from clients.client.tracing import trace_headers
from deploy.openai.admission import Limits
from deploy.openai.app import Endpoint, application
from deploy.openai.catalogue import Catalogue

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
PICTURE = {"type": "image_url", "image_url": {"url": PIXEL}}
ASKED = {"type": "text", "text": "what is this?"}


class Served:
    """In place of AsyncClient: an answer that the test gives, and who has been asked, and cancelled."""

    def __init__(self, answer: Callable[[], Awaitable[Any]]) -> None:
        self._answer = answer
        self.asked = self.cancelled = 0
        self.trace: dict[str, str] | None = None  # what a client sends along

    async def caption(self, *_: Any, **__: Any) -> list[Caption]:
        self.asked += 1
        self.trace = trace_headers()
        try:
            return await self._answer()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    vqa = caption

    async def is_ready(self, model: str | None = None) -> bool:
        return True


async def nobody() -> Any:
    raise AssertionError("the server was asked")


def endpoint(client: Any = None, limits: Limits | None = None, **options: Any) -> Endpoint:
    return Endpoint(Catalogue({"mplug": client or Served(nobody)}), limits or Limits(), **options)


async def post(
    made: Endpoint, body: object, path: str = "/v1/chat/completions", headers: dict[str, str] | None = None
) -> httpx.Response:
    transport = httpx.ASGITransport(application(made))
    async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await client.post(path, content=content, headers=headers)


def refused(body: object, path: str = "/v1/chat/completions", **options: Any) -> tuple[int, dict[str, Any]]:
    response = asyncio.run(post(endpoint(**options), body, path))
    document = response.json()
    assert set(document) == {"error"} and set(document["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in document["error"]["message"] and "Traceback" not in response.text
    return response.status_code, document["error"]


def message(*content: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": list(content)}


GOOD = {"model": "mplug", "messages": [message(PICTURE)]}


def linked(url: str) -> dict[str, Any]:
    return {"messages": [message({"type": "image_url", "image_url": {"url": url}})]}


@pytest.mark.parametrize(
    ("changes", "param", "code", "said"),
    [
        ({"messages": []}, "messages", "invalid_value", "at least 1 item"),
        ({"messages": None}, "messages", "invalid_value", "valid array"),
        ({"messages": [message(ASKED)]}, "messages", "missing_image", "no picture"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "messages", "missing_image", "add a part"),
        ({"messages": [message(PICTURE, PICTURE)]}, "messages", "too_many_images", "2 pictures and no question"),
        ({"messages": [message(PICTURE, role="tool")]}, "messages[0].role", "invalid_value", "'user', 'assistant'"),
        ({"messages": [message(PICTURE, role="king")]}, "messages[0].role", "invalid_value", "'user', 'assistant'"),
        (
            {"messages": [message(ASKED, role="system"), message(PICTURE)]},
            "messages[0].role",
            "unsupported_value",
            "--ignore-system",
        ),
        (
            {"messages": [message(PICTURE), message(ASKED, role="assistant")]},
            "messages",
            "invalid_value",
            "the last one must be the user's",
        ),
        (
            {"messages": [message(PICTURE, role="assistant"), message(ASKED)]},
            "messages[0].content",
            "invalid_value",
            "belong in user messages",
        ),
        (
            {"messages": [message({"type": "input_audio", "input_audio": {}})]},
            "messages[0].content[0]",
            "invalid_value",
            "parts of type 'input_audio' are not read",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value", "neither a text"),
        ({"messages": [message({"text": "a"})]}, "messages[0].content[0]", "invalid_value", "a part with a type"),
        (
            {"messages": [message({"type": "image_url", "image_url": PIXEL})]},
            "messages[0].content[0].image_url",
            "invalid_value",
            "in place of the bare text",
        ),
        (
            {"messages": [message({"type": "image_url", "image_url": {"url": PIXEL, "detail": "huge"}})]},
            "messages[0].content[0].image_url.detail",
            "invalid_value",
            "'auto', 'low' or 'high'",
        ),
        (linked("https://example.org/cat.jpg"), "messages[0].content[0].image_url", "invalid_image_url", "not fetched"),
        (linked("file:///etc/passwd"), "messages[0].content[0].image_url", "invalid_image_url", "not fetched"),
        (linked("cat.jpg"), "messages[0].content[0].image_url", "invalid_image_url", "not a data URI in base64"),
        (linked("data:image/png,raw"), "messages[0].content[0].image_url", "invalid_image_url", "not a data URI"),
        (linked("data:image/png;base64,"), "messages[0].content[0].image_url", "invalid_image_url", "is empty"),
        (linked("data:image/png;base64,@@@@"), "messages[0].content[0].image_url", "invalid_base64", "broken base64"),
        (linked("data:image/png;base64,AAA"), "messages[0].content[0].image_url", "invalid_base64", "broken base64"),
        (linked("data:image/png;base64,AAA\u00e9"), "messages[0].content[0].image_url", "invalid_base64", "broken"),
        ({"model": "gpt-4o"}, "model", "model_not_found", "this endpoint offers mplug"),
        ({"temperature": 0.7}, "temperature", "unsupported_parameter", "not drawn at random"),
        ({"stop": ["\n"]}, "stop", "unsupported_parameter", "max_tokens"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter", "calls no tools"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter", "plain text"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "unsupported_parameter", "leave it out"),
        ({"colour": "red"}, "colour", "unsupported_parameter", "there is none of this name"),
        ({"n": 17}, "n", "invalid_value", "less than or equal to 16"),
        ({"n": "two"}, "n", "invalid_value", "integer"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "greater than or equal to 1"),
        ({"logprobs": True}, "logprobs", "invalid_value", "only for answers to a question"),
        ({"guided_choice": ["a"]}, "guided_choice", "invalid_value", "only for answers to a question"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value", "needs logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value", "needs stream"),
        (
            {"messages": [message(PICTURE, ASKED)], "guided_choice": ["a", "b"], "max_tokens": 3},
            "max_tokens",
            "invalid_value",
            "ranked and not searched",
        ),
        (
            {"messages": [message(PICTURE, ASKED)], "guided_choice": ["a", "b"], "n": 3},
            "n",
            "invalid_value",
            "3 answers of 2",
        ),
    ],
)
def test_a_bad_request_gets_a_line_that_helps(changes: dict[str, Any], param: str, code: str, said: str) -> None:
    status, error = refused(GOOD | changes)
    assert status == (404 if code == "model_not_found" else 400)
    assert (error["param"], error["code"]) == (param, code), error
    assert said in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON: recursion limit"),
        (b"[]", "the body is not a JSON object"),
        (b"{}", "model: Field required"),
    ],
)
def test_a_body_that_is_no_request(body: bytes, said: str) -> None:
    for path in ("/v1/chat/completions", "/v1/embeddings"):
        status, error = refused(body, path)
        assert status == 400 and said in error["message"]


@pytest.mark.parametrize(
    ("given", "param", "said"),
    [
        ([1, 2], "input", "token ids are not read"),
        ([[1, 2]], "input", "token ids are not read"),
        ([], "input", "at least 1 item"),
        (["a"] * 257, "input", "at most 256 items"),
        (["a", "data:image/png;base64,@@@"], "input[1]", "broken base64"),
        ([{"type": "image_url", "image_url": {"url": "http://x.org/a.png"}}], "input[0]", "not fetched"),
    ],
)
def test_what_cannot_be_embedded(given: object, param: str, said: str) -> None:
    status, error = refused({"model": "mplug", "input": given}, "/v1/embeddings")
    assert status == 400 and error["param"] == param and said in error["message"]


def test_routes_and_methods_that_are_not_offered_are_told() -> None:
    assert refused({}, "/v1/completions")[0] == 404
    status, error = refused({}, "/v1/models")
    assert status == 405 and "/v1/chat/completions" in error["message"]


def test_what_asks_for_nothing_is_taken() -> None:
    async def answer() -> list[Caption]:
        return [Caption("a wolf", -0.1, [101, 5, 6, 102])]

    nothing = {
        "temperature": 0,
        "top_p": 1,
        "stop": None,
        "tools": [],
        "seed": 5,
        "user": "me",
        "presence_penalty": 0.0,
    }
    system = [message(ASKED, role="system"), message(PICTURE)]
    made = endpoint(Served(answer), ignore_system=True)
    response = asyncio.run(post(made, GOOD | nothing | {"messages": system}))
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == "a wolf"


def test_the_trace_of_who_asks_goes_on_to_the_server() -> None:
    async def answer() -> list[Caption]:
        return [Caption("a wolf", -0.1, [101, 5, 6, 102])]

    served = Served(answer)
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for sent, expected in (({"TraceParent": traceparent}, {"traceparent": traceparent}), ({}, None)):
        assert asyncio.run(post(endpoint(served), GOOD, headers=sent)).status_code == 200
        assert served.trace == expected


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ClientError("at 10.0.0.7:8001 answered", "UNAVAILABLE"), 503, "try again later"),
        (ClientError("no server at 10.0.0.7:8001", "UNREACHABLE"), 503, "try again later"),
        (ClientError("no answer from 10.0.0.7:8001", "DEADLINE_EXCEEDED"), 504, "not answered in time"),
        (ClientError("at 10.0.0.7:8001: KeyError", "INTERNAL"), 500, "log says more"),
        (RuntimeError("10.0.0.7"), 500, "log says more"),
    ],
)
def test_failures_of_ours_tell_nothing_of_the_inside(error: Exception, status: int, said: str) -> None:
    async def fails() -> Any:
        raise error

    got, document = refused(GOOD, client=Served(fails))
    assert got == status and said in document["message"] and "10.0.0.7" not in document["message"]
    assert document["type"] == "server_error"


def test_the_client_that_users_have_raises_its_own_errors() -> None:
    async def ask() -> None:
        transport = httpx.ASGITransport(application(endpoint()))
        http = httpx.AsyncClient(transport=transport, base_url="http://endpoint")
        async with openai.AsyncOpenAI(
            base_url="http://endpoint/v1", api_key="none", http_client=http, max_retries=0
        ) as client:
            with pytest.raises(openai.NotFoundError, match="offers mplug") as caught:
                await client.chat.completions.create(model="gpt-4o", messages=GOOD["messages"])
            assert caught.value.code == "model_not_found" and caught.value.param == "model"
            with pytest.raises(openai.BadRequestError, match="not drawn at random"):
                await client.chat.completions.create(model="mplug", messages=GOOD["messages"], temperature=1.5)

    asyncio.run(ask())


# ----------------------------------------------------------------------------------------------- bounds


def test_more_requests_than_there_is_room_for_are_turned_away() -> None:
    async def crowd() -> None:
        opened = asyncio.Event()

        async def answer() -> list[Answer]:
            await opened.wait()
            return [Answer("wolf", -0.1, [101, 5, 102])]

        served = Served(answer)
        made = endpoint(served, Limits(in_flight=2, waiting=1))
        first = [asyncio.create_task(post(made, GOOD)) for _ in range(3)]
        while made.admission.requests < 3 or served.asked < 2:
            await asyncio.sleep(0)
        turned_away = await post(made, GOOD)
        assert turned_away.status_code == 503 and turned_away.headers["retry-after"] == "1"
        assert "3 requests" in turned_away.json()["error"]["message"]
        await asyncio.sleep(0.05)
        assert served.asked == 2  # the third waits for a slot
        opened.set()
        assert [response.status_code for response in await asyncio.gather(*first)] == [200] * 3
        assert served.asked == 3 and made.admission.requests == made.admission.held == 0

    asyncio.run(crowd())


@pytest.mark.parametrize("declared", [True, False])
def test_bodies_are_bounded_each_and_all_together(declared: bool) -> None:
    async def chunks() -> Any:
        for _ in range(8):
            yield b"a" * 1024

    async def ask(limits: Limits) -> httpx.Response:
        transport = httpx.ASGITransport(application(endpoint(limits=limits)))
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            content = b"a" * 8192 if declared else chunks()
            return await client.post("/v1/embeddings", content=content)

    one = asyncio.run(ask(Limits(body_bytes=4096)))
    assert (one.status_code, one.json()["error"]["code"]) == (413, "request_too_large")
    every = asyncio.run(ask(Limits(held_bytes=4096)))
    assert (every.status_code, every.json()["error"]["code"]) == (503, "overloaded")


class Connection:
    """A client at the level of ASGI, which can send slowly, and go."""

    def __init__(self, *events: dict[str, Any], goes: bool) -> None:
        self._events, self._goes = list(events), goes
        self.leaves = asyncio.Event()
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if self._events:
            return self._events.pop(0)
        if self._goes:
            await self.leaves.wait()
            return {"type": "http.disconnect"}
        return await asyncio.Future()

    async def send(self, event: dict[str, Any]) -> None:
        self.sent.append(event)

    async def ask(self, made: Endpoint) -> int:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [],
            "query_string": b"",
            "root_path": "",
        }
        await application(made)(scope, self.receive, self.send)
        return self.sent[0]["status"]


def body(content: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": content, "more_body": more}


def test_a_request_whose_client_goes_is_cancelled() -> None:
    async def leave() -> None:
        served = Served(asyncio.Future)
        made = endpoint(served)
        client = Connection(body(json.dumps(GOOD).encode()), goes=True)
        asking = asyncio.create_task(client.ask(made))
        while not served.asked:
            await asyncio.sleep(0)
        client.leaves.set()
        assert await asking == 499
        assert (served.cancelled, made.admission.requests, made.admission.held) == (1, 0, 0)

    asyncio.run(leave())


def test_answers_and_bodies_that_do_not_come_are_given_up() -> None:
    async def wait() -> None:
        served = Served(asyncio.Future)
        made = endpoint(served, Limits(answer_seconds=0.05, body_seconds=0.05))
        assert await Connection(body(json.dumps(GOOD).encode()), goes=False).ask(made) == 504
        assert (served.cancelled, made.admission.requests) == (1, 0)
        assert await Connection(body(b"{", more=True), goes=False).ask(made) == 408

    asyncio.run(wait())


def test_a_server_that_lacks_the_model_is_told_apart_from_an_unknown_name() -> None:
    class Captioner(AsyncClient):
        async def is_ready(self, model: str | None = None) -> bool:
            return model in (None, "caption")

        async def infer(self, call: Any) -> Any:
            raise ClientError(f"{call.model} at here answered NOT_FOUND: no such model", "NOT_FOUND")

    async def ask() -> httpx.Response:
        return await post(endpoint(Captioner("127.0.0.1:9")), GOOD | {"messages": [message(PICTURE, ASKED)]})

    response = asyncio.run(ask())
    assert response.status_code == 400
    assert "mplug answers no questions: send the picture without text" in response.json()["error"]["message"]
