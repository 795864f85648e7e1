"""Tests of the end of an estimate: its time limit, an absent client, a missing archive, and simultaneous estimates."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from vision.config import AppConfig, CameraConfig
from vision.config.archive import ArchiveConfig
from vision.errors import ConfigError, Unavailable
from vision.outputs.page.editor_estimate import Estimator

pytestmark = pytest.mark.integration


def configuration(folder: Path | None) -> AppConfig:
    archive = None if folder is None else ArchiveConfig(folder=str(folder))
    return AppConfig(cameras=(CameraConfig(id="gate", source="synthetic:"),), pipeline="count", archive=archive)


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if "whatif" in each.cmdline()]


def estimate(estimator: Estimator, folder: Path | None) -> Coroutine[Any, Any, dict[str, Any]]:
    config = configuration(folder)
    return estimator.estimate(config, config, "gate")


def test_limit_ends_the_process(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        asyncio.run(estimate(Estimator(limit_s=0.01), tmp_path))
    assert caught.value.code == "estimate-limit" and children() == []


def test_second_estimate_is_refused_and_a_canceled_one_ends(tmp_path: Path) -> None:
    async def run() -> None:
        estimator = Estimator(wait_s=0.01)
        first = asyncio.create_task(estimate(estimator, tmp_path))
        while not children():
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable) as caught:
            await estimate(estimator, tmp_path)
        assert caught.value.code == "estimate-busy"
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert children() == []

    asyncio.run(run())


def test_service_needs_no_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Jetson, the service cannot write to /tmp."""
    runtime, archive = tmp_path / "run", tmp_path / "archive"
    runtime.mkdir(mode=0o755)
    archive.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(runtime))
    with pytest.raises(ConfigError) as caught:  # the archive is empty
        asyncio.run(estimate(Estimator(), archive))
    assert caught.value.code == "estimate-failed" and str(archive) in str(caught.value)
    assert list(runtime.iterdir()) == []


def test_missing_archive_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        asyncio.run(estimate(Estimator(), None))
    assert caught.value.code == "no-archive"
    with pytest.raises(ConfigError) as caught:
        asyncio.run(estimate(Estimator(), tmp_path))
    assert caught.value.code == "estimate-failed" and str(tmp_path) in str(caught.value)
