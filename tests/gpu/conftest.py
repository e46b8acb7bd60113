"""Tests that need a GPU; without one each skips and says what is missing. `make test-gpu` runs them."""

from __future__ import annotations

import pytest
import torch

from mplug.runtime.gpu.cuda import device_count
from mplug.runtime.gpu.engine import PACKAGES, can_run

#: Need PyTorch's CUDA build and nothing else.
OF_PYTORCH = ("test_torch.py", "test_training.py", "test_demo.py")

#: Targets whose engines can be built and run here.
TARGETS = [target for target in PACKAGES if can_run(target)]


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu/" not in item.path.as_posix():
            continue
        if item.path.name in OF_PYTORCH:
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason=f"PyTorch {torch.__version__} sees no GPU"))
        elif not device_count():
            item.add_marker(pytest.mark.skip(reason="no GPU, or no cuda-python (requirements-gpu.txt)"))


@pytest.fixture(scope="session", params=TARGETS or [None], ids=str)
def target(request):
    """Each target in turn that can run here."""
    if request.param is None:
        pytest.skip("neither tensorrt nor tensorrt_rtx is installed (requirements-gpu.txt)")
    return request.param
