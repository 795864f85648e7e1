from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rtsp.stage import Server, missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith("tests/rtsp/"):
            item.add_marker(pytest.mark.rtsp)


@pytest.fixture(autouse=True, scope="session")
def needs_server() -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def server(needs_server: None) -> Iterator[Server]:
    """Run one server for all tests that do not change the state of the server."""
    with Server() as running:
        yield running


@pytest.fixture(params=["gstreamer", "ffmpeg"])
def reader(request: pytest.FixtureRequest) -> str:
    """Return the value of `reader`, which selects the library that opens the source."""
    return str(request.param)
