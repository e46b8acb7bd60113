"""Photograph the page for the README, as it answers: `make screenshots`.

    python webpage/screenshots.py --url localhost:8001

Starts the page before a server that runs, opens it in a headless Chromium, clicks examples, and writes WebP files.
Needs selenium, Pillow, and Debian's packages chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

CHECKOUT = Path(__file__).resolve().parents[1]
SECONDS = 60.0  # for whatever is waited for
QUALITY = 80


@dataclass(frozen=True)
class Shot:
    """One photograph: an example of a tab is clicked, and its answer awaited."""

    name: str
    tab: str
    example: str
    width: int
    height: int


SHOTS = (
    Shot("caption", "Caption", "scene-02.png", 1100, 840),
    Shot("find", "Find", "the fire truck", 760, 900),
    Shot("phone", "Caption", "scene-02.png", 390, 1000),
)


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="localhost:8001", help="the server's gRPC port (default: %(default)s)")
    parser.add_argument(
        "--page-python", default=sys.executable, metavar="PYTHON", help="that of the page's environment"
    )
    parser.add_argument("--output", type=Path, default=CHECKOUT / "docs" / "page", metavar="DIR")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with page(options.page_python, options.url) as address, browser() as driver:
        for shot in SHOTS:
            path = options.output / f"{shot.name}.webp"
            take(driver, address, shot).save(path, quality=QUALITY, method=6)
            print(f"{path}\t{path.stat().st_size / 1024:.0f} KiB")
    return 0


@contextmanager
def page(python: str, url: str) -> Iterator[str]:
    """Yield the address of a page."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [python, "webpage/app.py", "--url", url, "--port", port]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            raise SystemExit("error: the page has not started; it has said why")
        yield found[0]
    finally:
        process.terminate()
        process.wait()


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Yield a headless Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def take(driver: webdriver.Chrome, address: str, shot: Shot) -> Image.Image:
    """Return what a visitor sees."""
    size = {"width": shot.width, "height": shot.height, "deviceScaleFactor": 1, "mobile": shot.width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(f"{address}?__theme=light")
    _until(lambda: _visible(driver, "button[role=tab]", shot.tab)).click()
    example = _until(lambda: _visible(driver, "button.gallery-item, tr.tr-body", shot.example))
    driver.execute_script("arguments[0].click()", example)  # it may lie below the window
    _until(lambda: _visible(driver, ".seconds", "Answered in"))
    time.sleep(1)  # for what moves on the page to come to rest
    driver.execute_script("window.scrollTo(0, 0)")
    encoded = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


def _visible(driver: webdriver.Chrome, selector: str, text: str) -> WebElement | None:
    for element in driver.find_elements(By.CSS_SELECTOR, selector):
        if element.is_displayed() and text in element.get_attribute("outerHTML"):
            return element
    return None


def _until(find: Callable[[], WebElement | None]) -> WebElement:
    """Return what is found, as soon as it is there; elements come and go while the page draws itself."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            if found := find():
                return found
        except WebDriverException:
            pass
        time.sleep(0.1)
    raise SystemExit(f"error: what is waited for has not appeared within {SECONDS:g} s")


if __name__ == "__main__":
    sys.exit(main())
