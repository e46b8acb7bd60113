"""The OpenAI-compatible endpoint through the real `openai` client, beside our own client: both get the same answers."""

from __future__ import annotations

import base64
import json
import math
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai_endpoint import CHECKOUT, SECONDS, command, endpoint_of

from clients.client import Client
from mplug.server.command import TritonServer

EXAMPLES = CHECKOUT / "examples"
WOLF, ROOSTERS = EXAMPLES / "scene-01.png", EXAMPLES / "scene-02.png"
VIDEO = EXAMPLES / "video-01.mp4"
KEY = "a key of the tests"
QUESTION = "what is this?"


def uri(path: Path, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*content: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


@pytest.fixture(scope="module")
def address(every_task_server: TritonServer) -> Iterator[str]:
    with endpoint_of(every_task_server.grpc_url, "--max-body-mb", "1", key=KEY) as found:
        yield found


@pytest.fixture(scope="module")
def asked(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{address}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def client(every_task_server: TritonServer) -> Iterator[Client]:
    with Client(every_task_server.grpc_url) as client:
        yield client


def chat(asked: openai.OpenAI, *messages: dict[str, Any], **options: Any) -> Any:
    return asked.chat.completions.create(model="mplug", messages=list(messages), **options)


def texts(completion: Any) -> list[str]:
    return [choice.message.content for choice in completion.choices]


# ---------------------------------------------------------------------------------------------- answers


def test_a_picture_gets_a_caption(asked: openai.OpenAI, client: Client) -> None:
    completion = chat(asked, user(picture(uri(WOLF)), text("  ")))
    (wanted,) = client.caption(WOLF)
    assert texts(completion) == [wanted.text]
    assert completion.usage.completion_tokens == len(wanted.token_ids) - 1
    assert completion.object == "chat.completion" and completion.model == "mplug"


def test_a_question_gets_answers_best_first(asked: openai.OpenAI, client: Client) -> None:
    completion = chat(asked, user(text(QUESTION), picture(uri(WOLF))), n=3)
    assert texts(completion) == [each.text for each in client.vqa(WOLF, QUESTION, num_return=3)]
    assert [choice.index for choice in completion.choices] == [0, 1, 2]


def test_more_answers_than_beams_search_more_beams(asked: openai.OpenAI, client: Client) -> None:
    wanted = client.caption(WOLF, num_beams=7, num_return=7)
    assert texts(chat(asked, user(picture(uri(WOLF))), n=7)) == [each.text for each in wanted]


def test_search_options_are_passed_on(asked: openai.OpenAI, client: Client) -> None:
    options = {"num_beams": 2, "min_tokens": 6, "length_penalty": 2.0}
    (wanted,) = client.caption(WOLF, num_beams=2, min_length=6, length_penalty=2.0)
    assert texts(chat(asked, user(picture(uri(WOLF))), extra_body=options)) == [wanted.text]


def test_pictures_and_videos_are_looked_at_together(asked: openai.OpenAI, client: Client) -> None:
    both = chat(asked, user(picture(uri(WOLF)), picture(uri(ROOSTERS)), text(QUESTION)))
    assert texts(both) == [client.vqa([WOLF, ROOSTERS], QUESTION)[0].text]
    video = {"type": "video_url", "video_url": {"url": uri(VIDEO, "video/mp4")}}
    assert texts(chat(asked, user(video))) == [client.caption(video=VIDEO)[0].text]


def test_a_conversation_is_about_its_last_picture(asked: openai.OpenAI, client: Client) -> None:
    told = {"role": "assistant", "content": "a wolf"}
    later = chat(asked, user(picture(uri(ROOSTERS))), user(picture(uri(WOLF))), told, user(text("what color is it?")))
    assert texts(later) == [client.vqa(WOLF, "what color is it?")[0].text]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_bound_on_tokens_cuts_and_says_so(asked: openai.OpenAI, client: Client, name: str) -> None:
    (whole,) = client.caption(WOLF)
    length = len(whole.token_ids) - 1
    for bound, reason in ((length - 1, "length"), (length, None), (100_000, None)):
        completion = chat(asked, user(picture(uri(WOLF))), **{name: bound})
        cut = client.caption(WOLF, max_length=bound)[0] if reason else whole
        assert texts(completion) == [cut.text]
        assert completion.usage.completion_tokens == len(cut.token_ids) - 1 <= bound
        assert reason is None or completion.choices[0].finish_reason == reason


def test_a_stream_is_one_event(asked: openai.OpenAI, address: str, client: Client) -> None:
    events = list(
        chat(asked, user(picture(uri(WOLF)), text(QUESTION)), stream=True, stream_options={"include_usage": True})
    )
    (wanted,) = client.vqa(WOLF, QUESTION)
    assert [choice.delta.content for choice in events[0].choices] == [wanted.text]
    assert events[0].usage is None and events[1].choices == []
    assert events[1].usage.completion_tokens == len(wanted.token_ids) - 1
    assert len(events) == 2
    body = {"model": "mplug", "stream": True, "messages": [user(picture(uri(WOLF)))]}
    lines = sent(address, "/v1/chat/completions", body)[1].strip().split("\n\n")
    assert len(lines) == 2 and lines[1] == "data: [DONE]"


def test_log_probabilities_are_those_of_whole_answers(asked: openai.OpenAI, client: Client) -> None:
    completion = chat(asked, user(picture(uri(WOLF)), text(QUESTION)), logprobs=True, top_logprobs=3)
    found = client.vqa(WOLF, QUESTION, num_return=3)
    (unit,) = completion.choices[0].logprobs.content
    assert [each.token for each in unit.top_logprobs] == [each.text for each in found]
    # Without a length penalty the score is the log-probability. A search of one beam may find another answer with
    # another penalty, but not this one: it stops at its first end.
    greedy = {"num_beams": 1}
    (plain,) = client.vqa(WOLF, QUESTION, num_beams=1, length_penalty=0.0)
    completion = chat(asked, user(picture(uri(WOLF)), text(QUESTION)), logprobs=True, extra_body=greedy)
    (unit,) = completion.choices[0].logprobs.content
    assert (unit.token, unit.bytes) == (plain.text, list(plain.text.encode()))
    assert unit.logprob == pytest.approx(plain.score, rel=1e-4)


def test_choices_are_ranked(asked: openai.OpenAI, client: Client) -> None:
    choices = ["wolf", "bee", "spider"]
    wanted = client.vqa(WOLF, QUESTION, candidates=choices)
    completion = chat(
        asked,
        user(picture(uri(WOLF)), text(QUESTION)),
        logprobs=True,
        top_logprobs=3,
        extra_body={"guided_choice": choices},
    )
    (unit,) = completion.choices[0].logprobs.content
    assert texts(completion) == [wanted[0].text]
    assert [each.token for each in unit.top_logprobs] == [each.text for each in wanted]
    assert [math.exp(each.logprob) for each in unit.top_logprobs] == pytest.approx([e.score for e in wanted], abs=1e-6)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_texts_and_pictures_are_embedded(asked: openai.OpenAI, client: Client, encoding: str) -> None:
    given = ["a wolf", uri(WOLF)]
    answer = asked.embeddings.create(model="mplug", input=given, encoding_format=encoding)
    found = [each.embedding for each in answer.data]
    if encoding == "base64":
        found = [np.frombuffer(base64.b64decode(each), "<f4") for each in found]
    np.testing.assert_allclose(found, [client.embed_text("a wolf"), client.embed_image(WOLF)], atol=1e-6)
    assert [each.index for each in answer.data] == [0, 1]


def test_models_are_listed(asked: openai.OpenAI) -> None:
    (model,) = asked.models.list().data
    assert model.id == "mplug" and model.serves == ["caption", "vqa", "embed_image", "embed_text"]
    assert asked.models.retrieve("mplug").id == "mplug"
    with pytest.raises(openai.NotFoundError, match="this endpoint offers mplug"):
        asked.models.retrieve("gpt")


def test_health_and_metrics_need_no_key(address: str) -> None:
    assert sent(address, "/health", key="") == (200, '{"ready":true}')
    chat_requests = r'mplug_openai_requests_total\{route="chat",status="200"\} (\S+)'
    before = re.search(chat_requests, sent(address, "/metrics", key="")[1])
    assert sent(address, "/v1/chat/completions", {"model": "mplug", "messages": [user(picture(uri(WOLF)))]})[0] == 200
    after = sent(address, "/metrics", key="")[1]
    assert float(re.search(chat_requests, after)[1]) == float(before[1] if before else 0) + 1
    assert "mplug_openai_requests_active 0.0" in after and "mplug_openai_body_bytes_held 0.0" in after


# --------------------------------------------------------------------------------------------- refusals


def sent(address: str, path: str, body: object = None, *, key: str = KEY) -> tuple[int, str]:
    """Status and text of an answer; a body that is no bytes is sent as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{address}{path}", data, headers), timeout=SECONDS
        ) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


GOOD = {"model": "mplug", "messages": [user(picture(uri(WOLF)))]}


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"messages": [user(picture("data:image/png;base64,AAAA"))]}, "messages", "the picture is not an image"),
        ({"messages": [user(picture(uri(WOLF)), text("word " * 60))]}, "messages", "the question: "),
        ({"messages": [user(picture(uri(WOLF)), text(QUESTION))], "n": 3, "num_beams": 2}, "n", "n: 3 is not"),
        ({"min_tokens": 1000}, "min_tokens", "min_tokens 1000 plus a 1-token prompt exceeds"),
    ],
)
def test_what_the_server_refuses_is_said_in_openais_names(
    address: str, changes: dict[str, Any], param: str, message: str
) -> None:
    status, answer = sent(address, "/v1/chat/completions", GOOD | changes)
    error = json.loads(answer)["error"]
    assert status == 400 and error["type"] == "invalid_request_error" and error["param"] == param, error
    assert message in error["message"]


def test_the_item_that_is_not_embedded_is_named(asked: openai.OpenAI) -> None:
    for given, message in ((["a wolf", " "], "is empty"), (["a", "data:image/png;base64,AAAA"], "is not an image")):
        with pytest.raises(openai.BadRequestError, match=f"input\\[1\\] {message}") as caught:
            asked.embeddings.create(model="mplug", input=given)
        assert caught.value.param == "input[1]"
    with pytest.raises(openai.BadRequestError, match="dimensions: 7, but these embeddings have"):
        asked.embeddings.create(model="mplug", input="a", dimensions=7)


def test_a_huge_body_is_refused_to_a_client_that_sends_it(asked: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="the body exceeds 1 MiB") as caught:
        chat(asked, user(text("a" * (3 << 20))))
    assert caught.value.status_code == 413 and caught.value.code == "request_too_large"


def test_keys_are_asked_for(address: str, asked: openai.OpenAI) -> None:
    for key, complaint in (("", "no API key"), ("another", "a wrong API key")):
        status, answer = sent(address, "/v1/models", key=key)
        assert status == 401 and complaint in json.loads(answer)["error"]["message"]
    with pytest.raises(openai.AuthenticationError):
        chat(asked.with_options(api_key="another"), user(picture(uri(WOLF))))


def test_a_captioner_answers_no_questions_and_checkpoints_have_names(several_server: TritonServer) -> None:
    arguments = ("--model-name", "four", "--checkpoint", "again")
    with (
        endpoint_of(several_server.grpc_url, *arguments) as found,
        openai.OpenAI(base_url=f"http://{found}/v1", api_key="none", max_retries=0) as asked,
    ):
        assert {each.id: each.serves for each in asked.models.list().data}["again"] == ["caption"]
        messages = [user(picture(uri(WOLF)))]
        captions = [
            asked.chat.completions.create(model=name, messages=messages).choices[0].message.content
            for name in ("again", "four")
        ]
        assert captions[0] == captions[1]
        with pytest.raises(openai.BadRequestError, match="again answers no questions: send the picture without text"):
            asked.chat.completions.create(model="again", messages=[user(picture(uri(WOLF)), text(QUESTION))])
        with pytest.raises(openai.BadRequestError, match=r"again embeds no texts \(its checkpoint serves caption\)"):
            asked.embeddings.create(model="again", input="a")


def test_no_server_and_no_port_are_one_line(every_task_server: TritonServer, address: str) -> None:
    port = address.split(":")[1]
    for arguments, complaint in [
        (command("127.0.0.1:9", "--wait", "0"), "no server is ready"),
        (command("nonsense"), "is not HOST:PORT"),
        ([*command(every_task_server.grpc_url), "--port", port], "cannot listen on"),
    ]:
        done = subprocess.run(arguments, cwd=CHECKOUT, capture_output=True, text=True, timeout=SECONDS)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"error: [^\n]+\n", done.stderr) and complaint in done.stderr, done.stderr
