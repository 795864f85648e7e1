"""Tests that a service writes few log lines, but one line for each camera that freezes."""

from __future__ import annotations

import logging

import pytest
from msgspec.structs import replace

from tests.log_records import log_args
from tests.messages.samples import camera_status, node_status
from vision.cli.status_view import StatusView
from vision.stages.stage import Report


def report(uptime_s: float, state: str = "streaming") -> Report:
    return Report(replace(node_status(), uptime_s=uptime_s), (camera_status(state=state),), {})


def test_a_day_is_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    view = StatusView(None)
    for second in range(0, 86_400, 2):
        view.show(report(float(second)))
    assert 25 < len(log_args(caplog, "vision.cli.status_view", logging.INFO)) < 45


def test_frozen_camera_is_a_warning_but_not_each_time(caplog: pytest.LogCaptureFixture) -> None:
    view = StatusView(None)
    for second in range(100):
        view.show(report(second, "frozen" if second % 10 < 5 else "streaming"))
    assert len(log_args(caplog, "vision.cli.status_view", logging.WARNING)) == 4  # the 1st, 2nd, 4th and 8th time
