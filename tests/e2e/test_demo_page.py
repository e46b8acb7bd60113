"""The page of `make demo` in a real browser, headless, beside the client: what it shows is what the server answers."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from clients.client import Client
from mplug.server.command import TritonServer

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLES = CHECKOUT / "examples"
#: The page's own environment, which `make` puts there.
PYTHON = Path(sys.prefix) / "page" / "bin" / "python"
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 60  # for whatever the page is waited for
TABS = ["Caption", "Ask", "Find", "Search", "Compare", "Video"]

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="webpage/requirements.txt is not installed: `make test` does that"),
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="no browser: Debian's packages chromium and chromium-driver bring one"
    ),
]


def until(found: Callable[[], object]) -> object:
    """What `found` gives, as soon as it is something; errors of a page that is changing count as nothing."""
    began, error = time.monotonic(), None
    while time.monotonic() - began < SECONDS:
        try:
            if result := found():
                return result
        except Exception as problem:  # elements come and go while the page draws itself
            error = problem
        time.sleep(0.1)
    raise AssertionError(f"nothing within {SECONDS} s") from error


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def page_of(server: TritonServer, *, quiet: bool = True) -> Iterator[str]:
    """The address of a page that asks this server; ended by SIGTERM, which it must take quietly.

    `quiet`: whether it must not print a traceback; Gradio does for requests that no page of its makes.
    """
    port = free_port()
    command = [PYTHON, "webpage/app.py", "--url", server.grpc_url, "--port", port]
    process = subprocess.Popen(
        list(map(str, command)), cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("ready"), process.communicate(timeout=SECONDS)[1]
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert not quiet or "Traceback" not in errors, errors


@pytest.fixture(scope="module")
def address(every_task_server: TritonServer) -> Iterator[str]:
    with page_of(every_task_server) as url:
        yield url


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=1200,1400",
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield chrome
    finally:
        chrome.quit()


@pytest.fixture
def client(every_task_server: TritonServer) -> Iterator[Client]:
    with Client(every_task_server.grpc_url) as client:
        yield client


class Page:
    """What a visitor sees and does, on one tab."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        driver.get(url)
        until(self.tabs)

    def tabs(self) -> list[str]:
        return [tab.text for tab in self.driver.find_elements(By.CSS_SELECTOR, "button[role=tab]") if tab.text]

    def open(self, title: str) -> Page:
        """Open a tab; where the window is too narrow for all, it is in a menu."""

        def button() -> WebElement:
            tabs = self.driver.find_elements(By.CSS_SELECTOR, "button[role=tab], .overflow-dropdown button")
            found = [each for each in tabs if title in each.text and each.is_displayed()]
            if not found:
                self.driver.find_element(By.CSS_SELECTOR, ".overflow-menu > button").click()
            return found[0]

        until(button).click()
        until(lambda: self.panel().text)
        return self

    def panel(self) -> WebElement:
        panels = self.driver.find_elements(By.CSS_SELECTOR, "[role=tabpanel]")
        return next(panel for panel in panels if panel.is_displayed())

    def all(self, selector: str) -> list[WebElement]:
        return self.panel().find_elements(By.CSS_SELECTOR, selector)

    def upload(self, path: Path, place: int = 0) -> None:
        self.all("input[type=file]")[place].send_keys(str(path))
        until(lambda: self.all(f"img[src*='{path.name}'], video[src*='{path.name}']"))  # or the place of what is none

    def field(self, label: str) -> WebElement:
        path = f".//label[.//span[normalize-space()='{label}']]//*[self::textarea or self::input]"
        return self.panel().find_element(By.XPATH, path)

    def type(self, label: str, text: str) -> None:
        field = until(lambda: self.field(label))
        field.clear()
        field.send_keys(text)

    def press(self, title: str) -> None:
        until(lambda: self.panel().find_element(By.XPATH, f".//button[normalize-space()='{title}']")).click()

    def value(self, label: str) -> str:
        return str(until(lambda: self.field(label).get_attribute("value")))

    def click_example(self, text: str) -> None:
        """The example that shows this text, or the picture of this name."""

        def example() -> WebElement:
            shown = self.all("button.gallery-item, tr.tr-body")
            return next(each for each in shown if text in each.get_attribute("outerHTML"))

        until(example).click()

    def error(self) -> str:
        """The text of the one error on the page."""
        return until(lambda: self.driver.find_element(By.CSS_SELECTOR, ".toast-body, [data-testid=toast-body]").text)


@pytest.fixture
def page(driver: webdriver.Chrome, address: str) -> Page:
    return Page(driver, address)


def best_of(found: list) -> str:
    return found[0].text


def test_tabs_are_those_that_are_served(page: Page) -> None:
    assert page.tabs() == TABS


def test_a_captioner_has_no_other_tabs(driver: webdriver.Chrome, caption_server: TritonServer) -> None:
    with page_of(caption_server) as url:
        page = Page(driver, url)
        assert page.tabs() == ["Caption", "Video"]
        page.open("Video")
        assert [button.text for button in page.all("button.primary")] == ["Describe"]


def test_an_example_is_captioned_when_clicked(page: Page, client: Client) -> None:
    page.open("Caption").click_example("scene-02.png")
    wanted = client.caption(EXAMPLES / "scene-02.png", num_beams=5, num_return=5)
    assert page.value("Caption") == wanted[0].text
    assert re.fullmatch(r"Answered in \d+\.\d\d s", until(lambda: page.all(".seconds")[0].text))
    rows = until(lambda: [cell.text for cell in page.all("[data-testid^=cell-]")])  # those in view are drawn
    assert rows[::2] == [each.text for each in wanted][: len(rows) // 2]
    scores = [each.score for each in wanted][: len(rows) // 2]
    assert [float(score) for score in rows[1::2]] == pytest.approx(scores, abs=1e-3)


def test_a_picture_of_ones_own_turned_by_its_exif(page: Page, client: Client, tmp_path: Path) -> None:
    """The file goes to the server as it is: nothing is lost on the way, the orientation neither."""
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(EXAMPLES / "scene-08.jpg").save(path, exif=exif)
    page.open("Caption").upload(path)
    page.press("Describe")
    assert page.value("Caption") == best_of(client.caption(path, num_beams=5))


def test_questions_with_and_without_given_answers(page: Page, client: Client) -> None:
    path, question = EXAMPLES / "scene-05.png", "how many apples are there?"
    page.open("Ask").upload(path)
    page.type("Question", question)
    page.press("Ask")
    assert page.value("Answer") == best_of(client.vqa(path, question, num_beams=5, num_return=5))
    given = ["one", "two", "three"]
    page.type("Answers to choose from", ", ".join(given))
    page.press("Ask")
    wanted = best_of(client.vqa(path, question, given))
    until(lambda: page.value("Answer") == wanted)


def test_a_box_is_drawn(page: Page, client: Client) -> None:
    page.open("Find").click_example("scene-04.jpg")
    box = client.ground(EXAMPLES / "scene-04.jpg", "the fire truck").box
    assert page.value("Box: left, top, right, bottom, in pixels") == ", ".join(f"{corner:.0f}" for corner in box)
    source = until(lambda: page.all("img")[1].get_attribute("src"))
    with urllib.request.urlopen(source) as response:
        drawn = np.asarray(Image.open(io.BytesIO(response.read())).convert("RGB"), np.int32)
    original = np.asarray(Image.open(EXAMPLES / "scene-04.jpg").convert("RGB"), np.int32)
    assert drawn.shape == original.shape
    rows, columns = np.nonzero(np.abs(drawn - original).sum(-1) > 60)
    edges = [columns.min(), rows.min(), columns.max(), rows.max()]
    np.testing.assert_allclose(edges, box, atol=5)  # the line has a white casing


def test_pictures_are_found(page: Page, client: Client) -> None:
    text = "two green apples"
    page.open("Search").click_example(text)
    paths = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".png", ".jpg"))
    similarity = np.stack([client.embed_image(path) for path in paths]) @ client.embed_text(text)
    order = np.argsort(-similarity)
    scores = {index: client.match(paths[index], [text])[0].score for index in order[:6]}
    wanted = [f"match {scores[index]:.2f}" for index in sorted(scores, key=lambda index: -scores[index])]
    until(lambda: "match" in page.panel().text)
    shown = [each.text for each in page.all(".caption-label")]
    assert shown[:6] == wanted and len(shown) == len(paths)
    first = max(scores, key=lambda index: scores[index])
    sources = [each.get_attribute("src") for each in page.all("button.thumbnail-lg img, .thumbnail-item img")]
    assert paths[first].name in sources[0]


def test_two_pictures_are_compared(page: Page, client: Client) -> None:
    left, right, statement = EXAMPLES / "scene-01.png", EXAMPLES / "scene-11.jpg", "there is a wolf in the left picture"
    page.open("Compare").click_example(statement)
    wanted = [client.nlvr((left, right), statement).label]
    wanted += [client.entail(picture, statement).label for picture in (left, right)]
    shown = until(lambda: [each.text for each in page.all("[data-testid=label-output-value]")])
    assert shown == wanted


def test_a_video_is_described_and_asked_about(page: Page, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        for name in ("scene-05.png", "scene-08.jpg") * 4:
            container.mux(stream.encode(av.VideoFrame.from_image(Image.open(EXAMPLES / name).convert("RGB"))))
        container.mux(stream.encode(None))
    page.open("Video").upload(path)
    page.press("Describe")
    assert page.value("Answer") == best_of(client.caption(video=path, frames=8, num_beams=5))
    page.type("Question", "how many apples are there?")
    page.press("Ask")
    wanted = best_of(client.vqa(video=path, question="how many apples are there?", frames=8, num_beams=5))
    until(lambda: page.value("Answer") == wanted)


@pytest.mark.parametrize("title", ["Caption", "Video"])
def test_what_the_server_refuses_is_one_line(page: Page, tmp_path: Path, title: str) -> None:
    path = tmp_path / ("noise.png" if title == "Caption" else "noise.mp4")
    path.write_bytes(b"not a picture at all " * 50)
    page.open(title).upload(path)
    if title == "Video":  # a picture is described at once
        page.press("Describe")
    complaint = "The picture is not an image in a known format" if title == "Caption" else "The video cannot be decoded"
    shown = until(lambda: complaint in page.error() and page.error()).splitlines()
    said = [line for line in shown if line not in ("Error", "(2)", "×", "Video not playable")]  # so says the browser
    assert len(said) == 1 and said[0].startswith(complaint)
    assert title == "Caption" or "'<none>'" in said[0]  # what is quoted is no part of the page
    assert "Traceback" not in page.driver.page_source


#: What a script can do of a visitor's clipboard and mouse: events that carry a file.
FILE = """
const bytes = Uint8Array.from(atob(arguments[0]), (each) => each.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], "own.png", {type: "image/png"}));
"""
PASTE = 'document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true}));'
DROP = """
const place = document.querySelector(".picture button[aria-dropeffect]");
for (const kind of ["dragenter", "dragover", "drop"])
  place.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
"""


def test_a_picture_is_pasted_replaced_and_dropped(page: Page, client: Client) -> None:
    """It is described at once, whether there was a picture before or not."""
    page.open("Caption")
    for name, gesture in (("scene-01.png", PASTE), ("scene-05.png", PASTE), ("scene-02.png", DROP)):
        path = EXAMPLES / name
        page.driver.execute_script(FILE + gesture, base64.b64encode(path.read_bytes()).decode())
        wanted = best_of(client.caption(path, num_beams=5))
        until(lambda wanted=wanted: page.value("Caption") == wanted)


def test_numbers_of_beams_are_compared(page: Page, client: Client) -> None:
    path = EXAMPLES / "scene-04.jpg"
    page.open("Caption").upload(path)
    page.press("Compare numbers of beams")
    until(lambda: "By number of beams" in page.panel().text)
    table = until(lambda: next(each for each in page.all(".table-wrap") if "best caption" in each.text))
    cells = until(lambda: [cell.text for cell in table.find_elements(By.CSS_SELECTOR, "[data-testid^=cell-]")])
    rows = list(zip(*[iter(cells)] * 4, strict=True))
    assert rows and [int(beams) for beams, *_ in rows] == [1, 2, 3, 5, 8, 16][: len(rows)]  # those in view are drawn
    for beams, text, score, seconds in rows:
        (wanted,) = client.caption(path, num_beams=int(beams))
        assert text == wanted.text and float(seconds) > 0
        assert float(score) == pytest.approx(wanted.score, abs=1e-3)


def test_the_keyboard_is_enough(page: Page, client: Client) -> None:
    page.open("Ask")
    until(lambda: page.all(".tr-body td"))[0].send_keys(Keys.ENTER)
    assert page.value("Answer") == best_of(client.vqa(EXAMPLES / "scene-01.png", "what is this?", num_beams=5))


@pytest.mark.parametrize(("width", "mode"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_every_tab_is_accessible(driver: webdriver.Chrome, address: str, width: int, mode: str) -> None:
    """Names, roles, labels and contrasts as axe-core checks them, and nothing wider than the window."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page = Page(driver, f"{address}?__theme={mode}")
        driver.execute_script(resources.files("axe_core_python").joinpath("axe.min.js").read_text())
        for title in TABS:
            page.open(title)
            found = driver.execute_async_script(
                "const done = arguments[0]; axe.run().then((result) => done(result.violations.map("
                "(each) => [each.id, each.nodes.map((node) => node.html.slice(0, 200))])))"
            )
            assert found == [], title
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_chosen_is_told(page: Page) -> None:
    page.open("Caption").press("Describe")
    assert "The picture is missing" in page.error()


def test_nothing_is_fetched_from_elsewhere(page: Page, address: str) -> None:
    for title in TABS:
        page.open(title)
    asked = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    urls = {each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"}
    hosts = {urlsplit(url).hostname for url in urls if url.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"}
    with urllib.request.urlopen(address) as response:  # and what it may load later is said by a header
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]


def test_only_this_machine_is_listened_to(address: str) -> None:
    port = urlsplit(address).port
    socket.create_connection(("127.0.0.1", port), 5).close()
    with pytest.raises(ConnectionRefusedError):  # another address of this machine
        socket.create_connection(("127.0.0.2", port), 5)


def asked(address: str, number: int, data: list[object]) -> dict[str, object]:
    """The last thing that the page says of an event, asked without a browser."""
    session = f"session{number}"
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session}).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(
        urllib.request.Request(f"{address}gradio_api/queue/join", body, headers), timeout=SECONDS
    ).close()
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash={session}", timeout=SECONDS) as events:
        for line in events:
            event = json.loads(line.removeprefix(b"data: ") or b"{}") if line.startswith(b"data: ") else {}
            if event.get("msg") == "process_completed":
                return event
    raise AssertionError("no answer")


def test_files_of_the_host_are_not_handed_out(every_task_server: TritonServer, tmp_path: Path) -> None:
    """A request may name any path, and Gradio checks only those that are marked as files."""
    secret = tmp_path / "secret.png"
    Image.open(EXAMPLES / "scene-01.png").save(secret)
    with page_of(every_task_server, quiet=False) as address:
        with urllib.request.urlopen(f"{address}config", timeout=SECONDS) as response:
            config = json.load(response)
        kinds = {each["id"]: each["type"] for each in config["components"]}
        tried = []
        for event in config["dependencies"]:
            inputs = [kinds[component] for component in event["inputs"]]
            for mark in ({}, {"meta": {"_type": "gradio.FileData"}}):
                file = {"path": str(secret), **mark}
                values = {"image": file, "video": file, "slider": 2, "textbox": "the wolf"}
                if not {"image", "video"} & set(inputs):
                    continue
                answer = asked(address, event["id"], [values.get(kind) for kind in inputs])
                assert answer["success"] is False and "data" not in answer["output"], answer
                if "image" in inputs and not mark:  # the one that Gradio lets through
                    assert answer["output"]["error"] == "this file was not uploaded to this page", answer
                    tried.append(inputs)
    assert len(tried) >= 4


def test_the_page_decodes_with_the_servers_pillow() -> None:
    code = "import gradio, PIL; print(PIL.__version__)"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, timeout=120)
    pinned = re.search(r"^pillow==(.*)$", (CHECKOUT / "requirements/runtime.txt").read_text(), re.MULTILINE)
    assert done.stdout.strip() == pinned[1], done.stderr


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(PYTHON), "webpage/app.py", *arguments]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)


def test_no_server_and_no_port_are_one_line(every_task_server: TritonServer, address: str) -> None:
    for arguments, complaint in [
        (["--url", f"127.0.0.1:{free_port()}", "--wait", "0"], "no server is ready"),
        (["--url", "nonsense"], "is not HOST:PORT"),
        (["--url", every_task_server.grpc_url, "--port", str(urlsplit(address).port)], "cannot listen on"),
    ]:
        done = started(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"error: [^\n]+\n", done.stderr) and complaint in done.stderr, done.stderr
