"""The examples of README.md and docs/ run as they stand there, and the errors on a model's page are those that come."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from docs_examples import CHECKOUT, PAGES, Example, errors, examples, fits

from mplug.server.command import TritonServer
from mplug.tasks.table import PUBLIC_MODELS

MODEL_PAGES = {page.stem: page for page in (CHECKOUT / "docs" / "models").glob("*.md")}


def picture(name: str) -> str:
    """A data URI."""
    return "data:image/png;base64," + base64.b64encode((CHECKOUT / "examples" / name).read_bytes()).decode()


#: A good request to each model.
REQUESTS = {
    "caption": {"IMAGE": "scene-01.png"},
    "vqa": {"IMAGE": "scene-01.png", "QUESTION": "what is this?"},
    "embed_image": {"IMAGE": "scene-01.png"},
    "embed_text": {"TEXT": "a wolf"},
    "match": {"IMAGE": "scene-01.png", "TEXT": ["a wolf", "a bee"]},
    "ground": {"IMAGE": "scene-01.png", "EXPRESSION": "the wolf"},
    "nlvr": {"IMAGE": ["scene-01.png", "scene-02.png"], "STATEMENT": "there is a wolf in the left picture"},
    "entail": {"IMAGE": "scene-01.png", "HYPOTHESIS": "there is a wolf"},
}


def generate(server: TritonServer, model: str, changes: dict[str, object]) -> tuple[int, dict[str, object]]:
    """Status and JSON of a good request with some changes; what is None is left out."""
    good = {key: as_uri(value) if key == "IMAGE" else value for key, value in REQUESTS[model].items()}
    body = {key: value for key, value in (good | changes).items() if value is not None}
    url = f"http://{server.http_url}/v2/models/{model}/generate"
    try:
        with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def as_uri(names: object) -> object:
    return [picture(name) for name in names] if isinstance(names, list) else picture(str(names))


@pytest.mark.parametrize("example", [each for page in PAGES for each in examples(page)], ids=str)
def test_an_example_runs_and_prints_what_the_page_shows(
    example: Example, every_task_server: TritonServer, openai_endpoint: str, tmp_path: Path
) -> None:
    printed = example.run(every_task_server, openai_endpoint, tmp_path)
    if example.output is not None:
        assert fits(printed, example.output), printed


def test_every_model_has_a_page_with_an_example_of_each_kind() -> None:
    assert set(MODEL_PAGES) == set(PUBLIC_MODELS) == set(REQUESTS)
    index = (CHECKOUT / "docs" / "models.md").read_text()
    for model, page in MODEL_PAGES.items():
        assert f"(models/{page.name})" in index
        blocks = [example.code for example in examples(page)]
        for kind in (f"/v2/models/{model}/generate", f"client.{model}(", "python clients/"):
            assert any(kind in block for block in blocks), f"{page.name} has no example with {kind}"


@pytest.mark.parametrize("model", REQUESTS)
def test_errors_are_those_of_the_page(model: str, every_task_server: TritonServer) -> None:
    assert generate(every_task_server, model, {})[0] == 200
    promised = errors(MODEL_PAGES[model])
    assert promised
    for changes, message in promised:
        assert generate(every_task_server, model, changes) == (400, {"error": message})


@pytest.mark.parametrize(
    ("shown", "same", "other"),
    [
        ("a wolf\n", "3 bees, 4 or so\n", "a wolf\na bee\n"),
        ("-1.5 a wolf\n", "-11.25 three\n", "a wolf\n"),
        ("1.5 2.0 3.25\n", "1 2 -3\n", "1 2\n"),
        ("true\t0.875\n", "false\t0.5\n", "true\tfalse\n"),
        ("examples/scene-01.png\ta wolf\n", "examples/scene-01.png\t\n", "examples/scene-02.png\ta wolf\n"),
        ('{"TEXT": "a wolf", "IDS": [1, 2]}\n', '{"TEXT": "", "IDS": [1]}\n', '{"TEXT": ["a", "b"], "IDS": [1]}\n'),
        ('{"A": 1}\n', '{"A": 2.5}\n', '{"B": 1}\n'),
    ],
)
def test_shapes_tell_apart_what_differs(shown: str, same: str, other: str) -> None:
    assert fits(same, shown) and fits(shown, shown) and not fits(other, shown)
