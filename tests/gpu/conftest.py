"""Hooks and fixtures that mark all tests in this folder, and skip them if there is no GPU."""

from __future__ import annotations

import pytest

from vision.errors import DeviceMissing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if item.nodeid.startswith("tests/gpu/"):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device():  # type: ignore[no-untyped-def]  # vision.gpu.cuda cannot be imported everywhere
    """Return the real or emulated GPU. Skip the test if there is none."""
    try:
        from vision.gpu.cuda import open_device

        return open_device()
    except DeviceMissing as missing:
        pytest.skip(f"no GPU: {missing.args[0]}")


@pytest.fixture
def nvdec(device: object) -> None:
    """Skip the test if neither a real nor an emulated NVDEC is available."""
    from vision.capture.nvdec.bindings import require_nvdec
    from vision.errors import SourceError

    try:
        require_nvdec()
    except SourceError as error:
        pytest.skip(str(error))
