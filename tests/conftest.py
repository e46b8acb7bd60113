"""Which tests stay together when several processes share them: `make test` asks for `--dist loadgroup`."""

from __future__ import annotations

import pytest

#: Starts the servers of a session: each process that has a test with one would start its own.
SHARED = "serve"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the files together that use a server of the session, and each other file by itself."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    shared = {item.path for item in items if SHARED in getattr(item, "fixturenames", ())}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("servers" if item.path in shared else item.path.name))
