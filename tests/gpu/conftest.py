"""Tests that need a GPU; without one each skips and says what is missing. `make test-gpu` runs them."""

from __future__ import annotations

import pytest

from mplug.runtime.gpu.cuda import device_count
from mplug.runtime.gpu.engine import PACKAGES, can_run

#: Targets whose engines can be built and run here.
TARGETS = [target for target in PACKAGES if can_run(target)]


def pytest_collection_modifyitems(items):
    if device_count():
        return
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason="no GPU, or no cuda-python (requirements-gpu.txt)"))


@pytest.fixture(scope="session", params=TARGETS or [None], ids=str)
def target(request):
    """Each target in turn that can run here."""
    if request.param is None:
        pytest.skip("neither tensorrt nor tensorrt_rtx is installed (requirements-gpu.txt)")
    return request.param
