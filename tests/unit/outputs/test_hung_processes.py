"""Tests that each process that stores or serves results is replaced if it hangs, and not if it has nothing to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from tests.messages.processes import wait_until
from vision.config.app import HttpConfig
from vision.config.archive import ArchiveConfig
from vision.config.onvif import OnvifConfig
from vision.config.recording import RecordingConfig
from vision.config.sinks import SinkConfig
from vision.messaging.helper_process import HelperProcess
from vision.outputs.archive.process import ArchiveProcess
from vision.outputs.onvif.process import MetadataProcess
from vision.outputs.page.process import PageProcess
from vision.outputs.page.settings import PageSettings
from vision.outputs.recording.process import RecordingProcess
from vision.outputs.recording.recorder import RecorderOptions
from vision.outputs.sinks.process import SinkProcess
from vision.runtime.monitoring.process import MonitoringProcess

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SILENT_S = 5.0
ANY_PORT = "127.0.0.1:0"


class Owner(Protocol):
    _process: HelperProcess

    def close(self) -> None: ...


def archive(folder: Path, address: str) -> Owner:
    return ArchiveProcess(ArchiveConfig(folder=str(folder)), address, replay=False)


def recorder(folder: Path, address: str) -> Owner:
    config = RecordingConfig(folder=str(folder / "videos"))
    return RecordingProcess(RecorderOptions(config, folder, ["gate"], [f"{address}-packets"], address, None))


def sink(folder: Path, address: str) -> Owner:
    common: dict[str, object] = {
        "address": address,
        "replay": None,
        "keys": None,
        "position": None,
        "node": "n",
        "secrets": {},
    }
    process = SinkProcess(SinkConfig(name="web", address="http://127.0.0.1:1/"), folder, common)
    process.start()
    return process


def page(_: Path, address: str) -> Owner:
    return PageProcess(ANY_PORT, PageSettings(address=address))


def http(_: Path, address: str) -> Owner:
    return MonitoringProcess(HttpConfig(bind=ANY_PORT), address, interval_s=1.0)


def onvif(_: Path, address: str) -> Owner:
    return MetadataProcess(OnvifConfig(bind=ANY_PORT), address, ["gate"])


@pytest.mark.parametrize("start", [archive, recorder, sink, page, http, onvif])
def test_stopped_process_is_replaced_and_an_idle_one_is_not(
    start: Callable[[Path, str], Owner], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {child.pid for child in psutil.Process().children()}
    with closing(start(tmp_path, f"ipc://@{tmp_path}")) as owner:
        process = owner._process
        assert process.silence.limit_s is not None
        process.silence.limit_s = SILENT_S
        wait_until(lambda: process.silence.is_observed, "the main loop has begun")
        (child,) = [child for child in psutil.Process().children() if child.pid not in before]
        time.sleep(2 * SILENT_S)
        assert process.restarts == 0
        child.suspend()
        wait_until(lambda: process.restarts == 1, "the process is replaced")
        wait_until(lambda: process.silence.is_observed, "the main loop of the next process has begun")
    assert "has printed nothing for 5 s, and is killed" in caplog.text
