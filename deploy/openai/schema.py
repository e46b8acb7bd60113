"""The bodies of requests, as OpenAI documents them, reduced to what has a meaning for mPLUG.

Parameters beyond these are accepted where their value changes nothing (`NEUTRAL`), and refused by name otherwise:
nobody is told that their temperature counted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from deploy.openai.errors import ApiError

#: Parameters that are not read, and the values that ask for nothing but what is done anyway; null always does.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 1),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "stop": ([],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
#: Parameters that are not read and may say anything: nothing is drawn at random, and nobody is told apart.
UNREAD = frozenset(
    {
        "user",
        "seed",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
    }
)
_WHY_NOT = {
    "temperature": "answers are searched by beams, not drawn at random: leave it out or send 0",
    "top_p": "answers are searched by beams, not drawn at random: leave it out or send 1",
    "stop": "leave it out and bound the answer by max_tokens",
    "tools": "the model calls no tools: leave it out",
    "functions": "the model calls no functions: leave it out",
    "response_format": "answers are plain text: leave it out, or send guided_choice with the answers to choose from",
    "audio": "answers are plain text: leave it out",
}

MAX_MESSAGES = 256
MAX_PARTS = 64
MAX_INPUTS = 256
MAX_CHOICES = 16  # captions or answers of one search: the most beams that the server takes
MAX_CANDIDATES = 4096


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Request(_Body):
    model: str

    @model_validator(mode="before")
    @classmethod
    def _known(cls, body: Any) -> Any:
        """Drop parameters that ask for nothing. Raises ApiError for those that ask for something else."""
        if not isinstance(body, dict):
            raise ValueError("the body is not a JSON object")
        kept = {}
        for name, value in body.items():
            if name in cls.model_fields:
                kept[name] = value
            elif not (value is None or name in UNREAD or any(value == each for each in NEUTRAL.get(name, ()))):
                reason = _WHY_NOT.get(name, "leave it out" if name in NEUTRAL else "there is none of this name")
                message = f"unsupported parameter {name[:100]}: {reason}"
                raise ApiError(400, message, param=name[:100], code="unsupported_parameter")
        return kept


class Link(_Body):
    url: str
    detail: Literal["auto", "low", "high"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_object(cls, given: Any) -> Any:
        if isinstance(given, str):
            raise ValueError('send an object, {"url": "data:…"}, in place of the bare text')
        return given


class TextPart(_Body):
    type: Literal["text"]
    text: str


class ImagePart(_Body):
    type: Literal["image_url"]
    image_url: Link


class VideoPart(_Body):
    type: Literal["video_url"]
    video_url: Link


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(_Body):
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[list[Part], Field(max_length=MAX_PARTS)]
    name: str | None = None
    refusal: None = None

    @field_validator("content", mode="before")
    @classmethod
    def _as_parts(cls, content: Any) -> Any:
        if not isinstance(content, str | list):
            raise ValueError("neither a text nor a list of parts")
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class StreamOptions(_Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(_Request):
    """A body of `/v1/chat/completions`. Beyond OpenAI's: the search options, and `guided_choice` as vLLM has it."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    num_beams: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    guided_choice: Annotated[list[str], Field(min_length=1, max_length=MAX_CANDIDATES)] | None = None

    @property
    def longest(self) -> int | None:
        """Return the most tokens that are wanted."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class EmbeddingRequest(_Request):
    """A body of `/v1/embeddings`; a picture is a data URI, or a part as in a chat."""

    input: Annotated[list[Part], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _as_parts(cls, given: Any) -> Any:
        items = given if isinstance(given, list) else [given]
        if any(isinstance(item, int | list) for item in items):
            raise ValueError("token ids are not read: send the texts themselves")
        return [_as_part(item) for item in items]


def _as_part(item: Any) -> Any:
    if not isinstance(item, str):
        return item
    for kind in ("image", "video"):
        if item.startswith(f"data:{kind}/"):
            return {"type": f"{kind}_url", f"{kind}_url": {"url": item}}
    return {"type": "text", "text": item}
