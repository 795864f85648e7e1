"""Log records as data, for tests that do not depend on the wording of a log line."""

from __future__ import annotations

import logging

import pytest


def log_args(caplog: pytest.LogCaptureFixture, logger: str, level: int = logging.WARNING) -> list[tuple[object, ...]]:
    """Return the arguments of each record with exactly the level `level` that `logger` wrote."""
    return [tuple(record.args or ()) for record in caplog.records if (record.name, record.levelno) == (logger, level)]
