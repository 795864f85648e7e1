"""Tests that a skip that is not on the allow-list counts as a failure in CI."""

from __future__ import annotations

import pytest

from tests.allowed_skips import allowed
from tests.systemd.container import skip_or_fail

pytest_plugins = ["pytester"]

SKIPPED = "import pytest\n\n@pytest.mark.skip(reason={reason!r})\ndef test_skipped(): pass\n"
PLUGIN = """
import pytest
from tests.allowed_skips import refuse_skip

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    refuse_skip(report, item.nodeid)
    return report
"""


@pytest.mark.parametrize(("ci", "outcome"), [(True, "failed"), (False, "skipped")])
def test_unknown_skip_fails_in_ci_only(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: bool, outcome: str
) -> None:
    monkeypatch.setenv("CI", "true") if ci else monkeypatch.delenv("CI", raising=False)
    pytester.makeconftest(PLUGIN)
    pytester.makepyfile(SKIPPED.format(reason="a package is missing"))
    pytester.inline_run("-p", "no:cacheprovider").assertoutcome(**{outcome: 1})


def test_missing_gpu_is_allowed() -> None:
    assert allowed("tests/gpu/test_nvdec.py::test_x", "no GPU: no driver")


def test_missing_advisories_are_allowed_and_missing_packages_are_not() -> None:
    assert allowed("tests/unit/test_locks.py::test_x", "the advisory service does not answer: 50 packages not checked")
    assert not allowed("tests/unit/test_locks.py::test_x", "the registry of packages cannot be reached")


def test_missing_package_is_not_allowed() -> None:
    assert not allowed("tests/unit/engine/test_build.py::test_x", "needs TensorRT")


CONTAINER_TEST = "tests/systemd/test_service.py::test_x"


@pytest.mark.parametrize(
    "output",
    [
        "mount: /tmp/tmpfs: permission denied.",
        "Failed to move root directory: Operation not permitted",
        "Failed to create //payload subcgroup: Read-only file system",
        "Failed to determine whether the unified cgroups hierarchy is used: No medium found",
    ],
)
def test_container_is_skipped_where_it_is_not_permitted(output: str) -> None:
    with pytest.raises(pytest.skip.Exception) as skipped:
        skip_or_fail("containers", output)
    assert allowed(CONTAINER_TEST, str(skipped.value))


def test_other_failure_of_a_container_is_not_skipped() -> None:
    with pytest.raises(AssertionError):
        skip_or_fail("containers", "Directory /x doesn't look like an OS root directory")
    assert not allowed(CONTAINER_TEST, "needs systemd-nspawn")
