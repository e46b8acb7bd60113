"""The documentation builds as a site: without a warning, without the network, with every page and public name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mplug_triton
from clients.client import Client

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` builds; a broken link or docstring is a warning, which fails it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs/site", "-d", folder / "cache"]
    done = subprocess.run([*command, ".", folder / "html"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_page_is_there(site: Path) -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "models").glob("*.md")]
    assert len(pages) > 25
    for page in pages:
        assert (site / page.relative_to(ROOT)).with_suffix(".html").is_file(), page
    assert 'url=README.html"' in (site / "index.html").read_text()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)\b[^>]*?(?:src|href)="(https?://[^"]+)"', page.read_text())
        assert not loaded, f"{page.name}: {loaded}"


def test_the_reference_has_every_public_name(site: Path) -> None:
    reference = (site / "docs/site/api.html").read_text()
    for name in set(mplug_triton.__all__) - {"ENTAILMENT_LABELS"}:
        assert re.search(rf'id="[\w.]+\.{name}"', reference), name
    for method in ("caption", "vqa", "match", "ground", "nlvr", "entail", "embed_image", "embed_text"):
        assert callable(getattr(Client, method))
        assert f'id="clients.client.Client.{method}"' in reference
    assert '<span class="kn">from</span>' in reference  # an example of a docstring, highlighted as code
