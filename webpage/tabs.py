"""The page's tabs: one function each, which lays out its inputs and outputs and ties them to the client.

Each tab knows the server through `Ask` alone, and every refusal of the server becomes one line on the page.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from clients.client import ENTAILMENT_LABELS, Answer, Caption, Client, ClientError
from clients.client.images import as_shown
from clients.ground import with_boxes
from webpage import examples
from webpage.messages import readable

T = TypeVar("T")

#: Pictures that a search looks at closely, by the matching head.
SHORTLIST = 6
BEAMS = 5
#: Numbers of beams that are compared.
COMPARED_BEAMS = (1, 2, 3, 5, 8, 16)
#: So long an error stands on the page.
ERROR_SECONDS = 20


@dataclass(frozen=True)
class Ask:
    """How the server is reached, and what it serves."""

    connect: Callable[[], Client]
    models: frozenset[str]

    def __call__(self, question: Callable[[Client], T]) -> T:
        """Put one question with a client of its own; what the server refuses becomes one line on the page."""
        try:
            with self.connect() as client:
                return question(client)
        except ClientError as error:
            # The page would show the message as HTML, and it may quote what was typed or a file's name.
            raise gr.Error(html.escape(readable(error)), ERROR_SECONDS, print_exception=False) from error


def as_uploaded(component: Any) -> Any:
    """Make an input give its file's path: the server judges the bytes and turns the picture upright."""
    component.preprocess = lambda payload: payload and own_upload(payload.path)
    return component


def own_upload(path: str) -> str:
    """Return the path of a file that the page keeps. Raises gr.Error for any other path.

    A request may name any file of this machine, and Gradio checks only those that it marks as files.
    """
    folder = Path(get_upload_folder()).resolve()
    file = Path(path).resolve()
    if not (file.is_relative_to(folder) and file.is_file()):
        raise gr.Error("this file was not uploaded to this page", ERROR_SECONDS, print_exception=False)
    return str(file)


def picture_input(label: str = "Picture") -> gr.Image:
    """Where a picture is dropped; gives its path."""
    return as_uploaded(
        gr.Image(label=label, type="filepath", sources=["upload", "clipboard"], height=300, elem_classes="picture")
    )


def tie(
    triggers: list[Any],
    run: Callable[..., Any],
    inputs: list[Any],
    outputs: list[Any],
    to_try: list[list[str]],
    label: str,
) -> None:
    """Run `run` at any of the triggers, and when one of `to_try`, values of the first inputs, is clicked.

    From the page alone: programs have the server itself.
    """
    progress = {"show_progress_on": outputs[0], "api_visibility": "private"}
    gr.on(triggers, run, inputs, outputs, **progress)
    if to_try:
        filled = inputs[: len(to_try[0])]
        shown = gr.Examples(to_try, filled, label=label, examples_per_page=12, api_visibility="private")
        shown.load_input_event.success(run, inputs, outputs, **progress)


def needed(value: T | None, what: str, how: str = "drop or paste one, or choose one below") -> T:
    """The value, unless the visitor left it out. `how`: what to do then."""
    if not value:
        raise gr.Error(f"{what} is missing: {how}", ERROR_SECONDS, print_exception=False)
    return value


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """What `run` returns, and the seconds that it took: those of the server, and of the way there and back."""
    began = time.perf_counter()
    return run(), time.perf_counter() - began


def seconds_line() -> gr.Markdown:
    """Where the time of an answer goes; screen readers say when it changes."""
    return gr.Markdown(elem_classes="seconds")


def told(seconds: float) -> str:
    return f"Answered in {seconds:.2f} s"


def ranked(run: Callable[[], Sequence[Caption | Answer]]) -> tuple[str, str, list[list[Any]]]:
    """The best text, the time, and all texts with their scores."""
    answers, seconds = timed(run)
    return answers[0].text, told(seconds), [[each.text, round(each.score, 3)] for each in answers]


def text_and_table(label: str) -> list[gr.components.Component]:
    """Where the best text goes, the time it took, and the list it was chosen from."""
    best = gr.Textbox(label=label, interactive=False, elem_classes="answer")
    seconds = seconds_line()
    table = gr.Dataframe(
        headers=[label.lower(), "score"], label="Best first", interactive=False, wrap=True, column_widths=["75%", "25%"]
    )
    return [best, seconds, table]


# ------------------------------------------------------------------------------------------------- tabs


def caption(ask: Ask) -> None:
    """Describe a picture."""
    with gr.Row():
        with gr.Column():
            picture = picture_input()
            beams = gr.Slider(1, 16, BEAMS, step=1, label="Beams", info="How many captions are searched side by side")
            button = gr.Button("Describe", variant="primary")
            compare = gr.Button("Compare numbers of beams")
        with gr.Column():
            outputs = text_and_table("Caption")
            compared = gr.Dataframe(
                headers=["beams", "best caption", "score", "seconds"],
                label="By number of beams",
                interactive=False,
                wrap=True,
                column_widths=["17%", "44%", "18%", "21%"],
                max_height=800,
                visible=False,
            )

    def run(path: str | None, beams: int) -> tuple[str, str, list[list[Any]]]:
        image = needed(path, "The picture")
        return ranked(lambda: ask(lambda client: client.caption(image, num_beams=beams, num_return=beams)))

    def run_compare(path: str | None) -> gr.Dataframe:
        image = needed(path, "The picture")
        ask(lambda client: client.caption(image, num_beams=1))  # the encoders' states are cached: all rows find them
        rows = []
        for beams in COMPARED_BEAMS:
            found, seconds = timed(lambda beams=beams: ask(lambda client: client.caption(image, num_beams=beams)))
            rows.append([beams, found[0].text, round(found[0].score, 3), round(seconds, 2)])
        return gr.Dataframe(rows, visible=True)

    to_try = [[str(path)] for path in examples.pictures()]
    tie([button.click, picture.upload], run, [picture, beams], outputs, to_try, "Pictures to try")
    gr.on([compare.click], run_compare, [picture], [compared], api_visibility="private")


def question(ask: Ask) -> None:
    """Ask about a picture, freely or for the likeliest of given answers."""
    with gr.Row():
        with gr.Column():
            picture = picture_input()
            text = gr.Textbox(label="Question", placeholder="what is this?")
            given = gr.Textbox(label="Answers to choose from", placeholder="yes, no", info="Optional, with commas")
            button = gr.Button("Ask", variant="primary")
        with gr.Column():
            outputs = text_and_table("Answer")

    def run(path: str | None, text: str, given: str) -> tuple[str, str, list[list[Any]]]:
        image, candidates = needed(path, "The picture"), [each.strip() for each in given.split(",") if each.strip()]
        asked = needed(text.strip(), "The question", "type one, or choose one below")
        if candidates:
            return ranked(lambda: ask(lambda client: client.vqa(image, asked, candidates)))
        return ranked(lambda: ask(lambda client: client.vqa(image, asked, num_beams=BEAMS, num_return=BEAMS)))

    to_try = examples.rows(examples.QUESTIONS)
    tie([button.click, text.submit, given.submit], run, [picture, text, given], outputs, to_try, "Questions to try")


def ground(ask: Ask) -> None:
    """Find what an expression names, and draw the box."""
    with gr.Row():
        with gr.Column():
            picture = picture_input()
            text = gr.Textbox(label="What to find", placeholder="the dog on the left")
            button = gr.Button("Find", variant="primary")
        with gr.Column():
            drawn = gr.Image(label="Found", interactive=False, format="png", height=300, buttons=["fullscreen"])
            corners = gr.Textbox(label="Box: left, top, right, bottom, in pixels", interactive=False)
            time_taken = seconds_line()

    def run(path: str | None, text: str) -> tuple[Image.Image, str, str]:
        image = needed(path, "The picture")
        sought = needed(text.strip(), "What to find", "type it, or choose something below")
        found, seconds = timed(lambda: ask(lambda client: client.ground(image, sought)))
        corners = ", ".join(f"{corner:.0f}" for corner in found.box)
        return with_boxes(as_shown(image), [found.box]), corners, told(seconds)

    to_try = examples.rows(examples.EXPRESSIONS)
    tie([button.click, text.submit], run, [picture, text], [drawn, corners, time_taken], to_try, "Things to find")


@dataclass(frozen=True)
class Pictures:
    """The example pictures and their embeddings, which the server is asked for once."""

    ask: Ask
    paths: list[Path]

    @cached_property
    def features(self) -> np.ndarray:
        """Unit vectors, float32 `[pictures, E]`."""
        return self.ask(lambda client: np.stack([client.embed_image(path) for path in self.paths]))

    def search(self, text: str) -> tuple[list[tuple[str, str]], str]:
        """(path, what to write on it), and the time: the shortlist by the matching head, then by similarity."""
        sought = needed(text.strip(), "What the picture shows", "type it, or choose a search below")

        def run(client: Client) -> list[tuple[str, str]]:
            similarities = features @ client.embed_text(sought)
            order = np.argsort(-similarities)
            scores = {index: client.match(self.paths[index], [sought])[0].score for index in order[:SHORTLIST]}
            closely = sorted(scores, key=lambda index: -scores[index])
            return [
                *((str(self.paths[index]), f"match {scores[index]:.2f}") for index in closely),
                *((str(self.paths[index]), f"similarity {similarities[index]:.2f}") for index in order[SHORTLIST:]),
            ]

        features = self.features  # of the first search alone, so not of its time
        found, seconds = timed(lambda: self.ask(run))
        return found, told(seconds)


def search(ask: Ask) -> None:
    """Find the pictures that a text describes."""
    pictures = Pictures(ask, examples.pictures())
    text = gr.Textbox(
        label="What the picture shows",
        placeholder="two green apples",
        info=f"The {SHORTLIST} most similar pictures are then looked at closely, together with the text",
    )
    button = gr.Button("Search", variant="primary")
    time_taken = seconds_line()
    gallery = gr.Gallery(
        [str(path) for path in pictures.paths],
        label="Pictures, best first",
        columns=4,
        height="auto",
        elem_classes="found",
        object_fit="contain",
        interactive=False,
        buttons=["fullscreen"],
    )
    to_try = [[each] for each in examples.SEARCHES]
    tie([button.click, text.submit], pictures.search, [text], [gallery, time_taken], to_try, "Searches to try")


def compare(ask: Ask) -> None:
    """Say of two pictures together whether a statement is true, and of each what follows from it."""
    with gr.Row():
        pictures = [picture_input("Left picture"), picture_input("Right picture")]
    statement = gr.Textbox(label="Statement", placeholder="there is a dog in both pictures")
    button = gr.Button("Judge", variant="primary")
    time_taken = seconds_line()
    outputs = []
    with gr.Row():
        if "nlvr" in ask.models:
            outputs.append(gr.Label(label="The two together"))
        if "entail" in ask.models:
            outputs += [gr.Label(label=f"The {side} picture alone") for side in ("left", "right")]

    def run(left: str | None, right: str | None, statement: str) -> list[Any]:
        images = (needed(left, "The left picture"), needed(right, "The right picture"))
        judged = needed(statement.strip(), "The statement", "type one, or choose a pair below")

        def judge(client: Client) -> list[dict[str, float]]:
            verdicts = []
            if "nlvr" in ask.models:
                verdict = client.nlvr(images, judged)
                other = "false" if verdict.label == "true" else "true"
                verdicts.append({verdict.label: verdict.probability, other: 1 - verdict.probability})
            if "entail" in ask.models:
                for image in images:
                    classes = client.entail(image, judged).probabilities
                    verdicts.append(dict(zip(ENTAILMENT_LABELS, classes, strict=True)))
            return verdicts

        verdicts, seconds = timed(lambda: ask(judge))
        return [told(seconds), *verdicts]

    to_try = examples.rows(examples.STATEMENTS, 2)
    tie([button.click, statement.submit], run, [*pictures, statement], [time_taken, *outputs], to_try, "Pairs to try")


def video(ask: Ask) -> None:
    """Describe a video, and ask about it."""
    with gr.Row():
        with gr.Column():
            clip = as_uploaded(gr.Video(label="Video", sources=["upload"], height=300))
            frames = gr.Slider(1, 16, 8, step=1, label="Frames", info="How many are looked at, evenly spaced")
            describe = gr.Button("Describe", variant="primary") if "caption" in ask.models else None
            text = asked = None
            if "vqa" in ask.models:
                text = gr.Textbox(label="Question", placeholder=examples.VIDEO_QUESTION)
                asked = gr.Button("Ask", variant="primary")
        with gr.Column():
            outputs = text_and_table("Answer")

    options = {"num_beams": BEAMS, "num_return": BEAMS}

    def run_caption(path: str | None, frames: int) -> tuple[str, str, list[list[Any]]]:
        file = needed(path, "The video")
        return ranked(lambda: ask(lambda client: client.caption(video=file, frames=frames, **options)))

    def run_question(path: str | None, frames: int, text: str) -> tuple[str, str, list[list[Any]]]:
        file, asked = needed(path, "The video"), needed(text.strip(), "The question", "type one")
        return ranked(lambda: ask(lambda client: client.vqa(video=file, question=asked, frames=frames, **options)))

    to_try = [[str(path)] for path in examples.videos()]
    if describe is not None:
        tie([describe.click], run_caption, [clip, frames], outputs, to_try, "Videos to try")
    if text is not None and asked is not None:
        tie([asked.click, text.submit], run_question, [clip, frames, text], outputs, [], "")


@dataclass(frozen=True)
class Tab:
    """A tab, and the models behind it: all of `every`, and one of `some` where there are any."""

    title: str
    fill: Callable[[Ask], None]
    every: frozenset[str] = frozenset()
    some: frozenset[str] = frozenset()

    def is_served(self, models: frozenset[str]) -> bool:
        return self.every <= models and (not self.some or bool(self.some & models))


TABS = (
    Tab("Caption", caption, frozenset({"caption"})),
    Tab("Ask", question, frozenset({"vqa"})),
    Tab("Find", ground, frozenset({"ground"})),
    Tab("Search", search, frozenset({"embed_image", "embed_text", "match"})),
    Tab("Compare", compare, some=frozenset({"nlvr", "entail"})),
    Tab("Video", video, some=frozenset({"caption", "vqa"})),
)
MODELS = tuple(sorted(frozenset().union(*(tab.every | tab.some for tab in TABS))))
