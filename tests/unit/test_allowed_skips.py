"""CI fails skips that are not on the allow-list."""

from __future__ import annotations

import pytest

from tests.allowed_skips import allowed

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


def test_missing_package_is_not_allowed() -> None:
    assert not allowed("tests/unit/engine/test_build.py::test_x", "needs TensorRT")
