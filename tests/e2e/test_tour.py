"""The notebook `examples/tour.ipynb` runs as it stands, and what is stored in it is what comes.

To store anew what it prints, for new weights or after a change:

    python tests/e2e/test_tour.py
"""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image

CHECKOUT = Path(__file__).resolve().parents[2]
NOTEBOOK = CHECKOUT / "examples" / "tour.ipynb"
SECONDS = 120  # for a cell
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def build(folder: Path) -> Path:
    """Build the demo checkpoint for PyTorch: in seconds, and with the same answers on every CPU."""
    repository = folder / "repository"
    command = [sys.executable, "builders/build.py", "checkpoints/demo", "--output", repository, "--target", "torch"]
    subprocess.run(list(map(str, command)), cwd=CHECKOUT, check=True, capture_output=True)
    return repository


def executed(repository: Path, url: str) -> nbformat.NotebookNode:
    """Return the notebook with what its cells print now."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = os.environ | {"MPLUG_REPOSITORY": str(repository), "MPLUG_URL": url}
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    )
    client.execute(env=environment)
    return notebook


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output["text"] for output in cell["outputs"] if output["output_type"] == "stream")


def pictures(cell: nbformat.NotebookNode) -> list[np.ndarray]:
    encoded = [output["data"].get("image/png") for output in cell["outputs"] if "data" in output]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each))), np.int32) for each in encoded if each]


def test_what_is_stored_is_what_comes(tmp_path: Path, serve: Callable) -> None:
    repository = build(tmp_path)
    stored = nbformat.read(NOTEBOOK, as_version=4)
    notebook = executed(repository, serve(repository).grpc_url)
    cells = [pair for pair in zip(stored.cells, notebook.cells, strict=True) if pair[0]["cell_type"] == "code"]
    assert sum(bool(printed(cell)) for cell, _ in cells) >= 8 and sum(len(pictures(cell)) for cell, _ in cells) >= 4
    for was, now in cells:
        assert _NUMBER.sub("#", printed(now)) == _NUMBER.sub("#", printed(was))
        numbers = [[float(each) for each in _NUMBER.findall(printed(cell))] for cell in (was, now)]
        # Scores are printed to a tenth and boxes to a pixel: rounding may go either way.
        np.testing.assert_allclose(numbers[1], numbers[0], atol=1.01, rtol=0)
        assert len(pictures(now)) == len(pictures(was))
        for before, after in zip(pictures(was), pictures(now), strict=True):
            assert before.shape == after.shape and np.abs(before - after).mean() < 4  # a box may move by a pixel


def test_the_server_gives_the_same_answers() -> None:
    """The notebook says so of itself: each line ends in whether the token ids agree."""
    stored = nbformat.read(NOTEBOOK, as_version=4)
    (lines,) = [printed(cell).splitlines() for cell in stored.cells if "here.token_ids ==" in cell["source"]]
    assert len(lines) == 3 and all(line.endswith(" True") for line in lines)


def main() -> None:
    """Run the notebook and store what it prints."""
    sys.path.insert(0, str(CHECKOUT))
    from mplug.server.command import Options, TritonServer

    with tempfile.TemporaryDirectory() as folder:
        repository = build(Path(folder))
        server = TritonServer(repository, Options())
        server.start()
        try:
            notebook = executed(repository, server.grpc_url)
        finally:
            server.stop()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell["metadata"] = {}  # when each cell ran
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/jpeg", None)  # the PNG is enough
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
