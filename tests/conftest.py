"""Hooks and fixtures of the whole test suite."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy.testing  # noqa: F401 - NumPy 1 starts a process when this is imported, which unit tests must not do
import pytest
from hypothesis import HealthCheck, settings

from tests.allowed_skips import refuse_skip

# Examples have no deadline, because their duration depends mostly on the other load of the machine. Developers get
# different examples in each run, but CI always gets the same ones.
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("untimed")

# The background jobs of a shell ignore SIGINT, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/replay/golden again, to be read before it is committed",
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exclude the modules and test items from garbage collection, because they are never garbage.

    Otherwise, each full collection would take 0.3 s in a process with all tests, and many tests start a collection.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


TIER_OF_FOLDER = {"unit": "unit", "rtsp": "rtsp", "gpu": "gpu"}
"""Tier of each folder below tests/, for tests that do not choose a tier. The tier of other folders is `integration`."""

TIERS = frozenset({"unit", "integration", "engine", "emulated", "rtsp", "gpu"})

_in_unit_test = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test without a tier the tier of its folder. Deselect `packages` tests that ``-m`` does not name."""
    if "packages" not in str(config.option.markexpr):
        left_out = [item for item in items if item.get_closest_marker("packages")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]
    for item in items:
        if TIERS.isdisjoint(marker.name for marker in item.iter_markers()):
            item.add_marker(TIER_OF_FOLDER.get(item.nodeid.split("/")[1], "integration"))


LIBRARY_LOOKUPS = {"ldconfig", "gcc", "cc", "ld", "objdump", "uname", "sh", "fc-list"}
"""Programs that `ctypes.util.find_library`, `platform`, and, on its first use on a machine, matplotlib start."""


def _refuse_processes(event: str, arguments: tuple[object, ...]) -> None:
    if not _in_unit_test or event not in {"subprocess.Popen", "os.fork", "os.posix_spawn"}:
        return
    if not arguments or Path(str(arguments[0])).name not in LIBRARY_LOOKUPS:
        raise AssertionError("a test of the tier `unit` starts no process: mark it `integration`")


sys.addaudithook(_refuse_processes)


@pytest.fixture(autouse=True)
def _no_process_in_unit_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test of the tier `unit` that starts a process."""
    global _in_unit_test  # noqa: PLW0603 - audit hooks cannot be removed, so one hook reads this
    _in_unit_test = request.node.get_closest_marker("unit") is not None
    yield
    _in_unit_test = False


@pytest.fixture(autouse=True)
def _restore_log_levels() -> Iterator[None]:
    """Restore the log levels after a test that runs a command with `--log-level` in this process."""
    loggers = [logging.getLogger(name) for name in ("", "vision")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def _forget_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test without registered secrets, because their values would be replaced in other tests' output."""
    monkeypatch.setattr("vision.errors._secrets", {})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """If CI is set, turn a skip that is not on the allow-list into a failure."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    refuse_skip(report, item.nodeid)
    return report  # type: ignore[return-value]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """If CI is set, turn the skip of a whole module that is not on the allow-list into a failure."""
    report: pytest.CollectReport = yield  # type: ignore[assignment]
    refuse_skip(report, collector.nodeid)
    return report  # type: ignore[return-value]
