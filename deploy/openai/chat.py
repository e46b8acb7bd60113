"""`/v1/chat/completions`: a conversation becomes one question or one caption, and the answer a completion.

mPLUG holds no dialogue. The last user message counts: its text is the question, its pictures are looked at, and where
it has none, those of the last user message that has. Without text the picture is described.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clients.client import Answer, AsyncClient, Caption
from deploy.openai.errors import ApiError
from deploy.openai.media import decoded
from deploy.openai.schema import ChatRequest, ImagePart, Message, TextPart, VideoPart

#: `[SEP]` in BERT's vocabularies: the last token of an answer that came to its end.
_END_ID = 102
#: The published length penalty: a score is the log-probability over ((5 + tokens) / 6) to this power.
_LENGTH_PENALTY = 0.6
#: The server's default number of beams as published; more answers than these need more beams.
_BEAMS = 5


@dataclass(frozen=True)
class Query:
    """What is asked of the model."""

    question: str  # empty: describe the picture
    images: tuple[bytes, ...]
    video: bytes | None


@dataclass(frozen=True)
class Choice:
    """One answer."""

    text: str
    log_probability: float | None  # of the whole answer
    tokens: int
    complete: bool


def read(request: ChatRequest, *, ignore_system: bool) -> Query:
    """Return what a conversation asks. Raises ApiError for what mPLUG cannot do."""
    messages = request.messages
    for number, message in enumerate(messages):
        if message.role in ("system", "developer") and not ignore_system:
            raise ApiError(
                400,
                f"messages[{number}]: the model follows no instructions, so a {message.role} message has no effect: "
                "leave it out, or start the endpoint with --ignore-system",
                param=f"messages[{number}].role",
                code="unsupported_value",
            )
        if message.role != "user" and any(not isinstance(part, TextPart) for part in message.content):
            raise ApiError(
                400,
                f"messages[{number}]: pictures belong in user messages",
                param=f"messages[{number}].content",
                code="invalid_value",
            )
    if messages[-1].role != "user":
        raise ApiError(400, "messages: the last one must be the user's", param="messages", code="invalid_value")
    question = "\n".join(part.text for part in messages[-1].content if isinstance(part, TextPart)).strip()
    images, video = _visual(messages)
    if not images and video is None:
        raise ApiError(
            400,
            "messages: no picture; the model looks at pictures and holds no other conversation: add a part "
            '{"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,…"}}',
            param="messages",
            code="missing_image",
        )
    if images and video is not None:
        raise ApiError(
            400, "messages: pictures beside a video; send one or the other", param="messages", code="invalid_value"
        )
    if len(images) > 1 and not question:
        raise ApiError(
            400,
            f"messages: {len(images)} pictures and no question: a caption describes one picture. Send a request for "
            "each, or ask a question, which is answered from all of them",
            param="messages",
            code="too_many_images",
        )
    return Query(question, tuple(images), video)


def _visual(messages: Sequence[Message]) -> tuple[list[bytes], bytes | None]:
    """Return pictures and video of the last user message that has any."""
    for number in reversed(range(len(messages))):
        images: list[bytes] = []
        video = None
        for index, part in enumerate(messages[number].content):
            place = f"messages[{number}].content[{index}]"
            if isinstance(part, ImagePart):
                images.append(decoded(part.image_url.url, "image", f"{place}.image_url"))
            elif isinstance(part, VideoPart):
                if video is not None:
                    raise ApiError(
                        400, f"{place}: a second video; one is looked at", param="messages", code="invalid_value"
                    )
                video = decoded(part.video_url.url, "video", f"{place}.video_url")
        if images or video is not None:
            return images, video
    return [], None


def check(request: ChatRequest, query: Query) -> None:
    """Raise ApiError for options that contradict each other or have no meaning for this question."""
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs: true", param="top_logprobs", code="invalid_value")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options: needs stream: true", param="stream_options", code="invalid_value")
    if query.question:
        if request.guided_choice:
            for name in ("num_beams", "min_tokens", "length_penalty", "max_tokens", "max_completion_tokens"):
                if getattr(request, name) is not None:
                    reason = "has no meaning with guided_choice, whose answers are ranked and not searched"
                    raise ApiError(400, f"{name}: {reason}; leave it out", param=name, code="invalid_value")
        return
    for name in ("logprobs", "guided_choice"):
        if getattr(request, name):
            raise ApiError(
                400,
                f"{name}: only for answers to a question; this request asks for a caption",
                param=name,
                code="invalid_value",
            )


async def answer(request: ChatRequest, query: Query, client: AsyncClient) -> list[Choice]:
    """Ask the model; return `n` answers, best first. Raises ClientError and ApiError."""
    wanted = request.n or 1
    returned = max(wanted, request.top_logprobs or 1)
    if request.guided_choice:
        returned = min(returned, len(request.guided_choice))
        if wanted > returned:
            message = f"n: {wanted} answers of {returned} in guided_choice; ask for fewer"
            raise ApiError(400, message, param="n", code="invalid_value")
        options: dict[str, Any] = {"candidates": request.guided_choice, "num_return": returned}
    else:
        options = {
            "num_return": returned if returned > 1 else None,
            "num_beams": request.num_beams or (returned if returned > _BEAMS else None),
            "min_length": request.min_tokens,
            "length_penalty": request.length_penalty,
        }
    found = await _ask(client, query, options)
    longest = request.longest
    # max_tokens is a bound, and most clients send one far above what the decoder can write: so it is passed on only
    # where an answer exceeds it. A search that ends within the bound is the same with and without it.
    if longest is not None and not request.guided_choice and any(_tokens(each) > longest for each in found):
        found = await _ask(client, query, options | {"max_length": longest})
    return [_choice(each, request) for each in found]


async def _ask(client: AsyncClient, query: Query, options: dict[str, Any]) -> Sequence[Caption | Answer]:
    image = query.images[0] if len(query.images) == 1 else (query.images or None)
    if query.question:
        return await client.vqa(image, query.question, video=query.video, **options)
    return await client.caption(image, video=query.video, **options)


def _tokens(found: Caption | Answer) -> int:
    return len(found.token_ids) - 1  # without [CLS]; the end counts


def _choice(found: Caption | Answer, request: ChatRequest) -> Choice:
    log_probability = None
    if request.logprobs:
        if request.guided_choice:  # their scores are probabilities
            log_probability = math.log(max(found.score, 1e-38))
        else:
            exponent = _LENGTH_PENALTY if request.length_penalty is None else request.length_penalty
            log_probability = found.score * ((5 + _tokens(found)) / 6) ** exponent
    complete = bool(request.guided_choice) or found.token_ids[-1:] == [_END_ID]
    return Choice(found.text, log_probability, _tokens(found), complete)


# ------------------------------------------------------------------------------------------ completions


def completion(request: ChatRequest, choices: Sequence[Choice]) -> dict[str, Any]:
    """Return the document of a completion."""
    returned = choices[: request.n or 1]
    return {
        **_head("chat.completion", request),
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": _log_probabilities(choice, choices, request),
                "finish_reason": _finish(choice),
            }
            for index, choice in enumerate(returned)
        ],
        "usage": usage(returned),
    }


def events(request: ChatRequest, choices: Sequence[Choice]) -> bytes:
    """Return the server-sent events of a completion: the whole answer in one, the usage if it is wanted, the end."""
    returned = choices[: request.n or 1]
    head = _head("chat.completion.chunk", request)
    chunks = [
        {
            **head,
            "choices": [
                {
                    "index": index,
                    "delta": {"role": "assistant", "content": choice.text},
                    "logprobs": _log_probabilities(choice, choices, request),
                    "finish_reason": _finish(choice),
                }
                for index, choice in enumerate(returned)
            ],
        }
    ]
    if request.stream_options is not None and request.stream_options.include_usage:
        chunks[0]["usage"] = None
        chunks.append({**head, "choices": [], "usage": usage(returned)})
    lines = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


def usage(choices: Sequence[Choice]) -> dict[str, int]:
    """Return how many tokens were written. Those of picture and question are not counted: they are no prompt."""
    written = sum(choice.tokens for choice in choices)
    return {"prompt_tokens": 0, "completion_tokens": written, "total_tokens": written}


def _head(kind: str, request: ChatRequest) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": request.model}


def _finish(choice: Choice) -> str:
    return "stop" if choice.complete else "length"


def _log_probabilities(choice: Choice, choices: Sequence[Choice], request: ChatRequest) -> dict[str, Any] | None:
    """Return the answer as one unit with its log-probability, beside the likeliest answers: nothing finer is known."""
    if not request.logprobs:
        return None
    others = [_unit(each) for each in choices[: request.top_logprobs or 0]]
    return {"content": [{**_unit(choice), "top_logprobs": others}], "refusal": None}


def _unit(choice: Choice) -> dict[str, Any]:
    return {"token": choice.text, "logprob": choice.log_probability, "bytes": list(choice.text.encode())}
