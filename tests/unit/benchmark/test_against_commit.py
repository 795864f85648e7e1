"""Tests that `--base` applies the measurements of this tree to the `vision` of another checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.perf import frame_cost, throughput

pytestmark = pytest.mark.integration


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a checkout whose own measurement modules raise an error when they are imported."""
    folder = tmp_path / "base"
    (folder / "tests" / "perf").mkdir(parents=True)
    (folder / "vision").symlink_to(ROOT / "vision")
    (folder / "tests" / "__init__.py").touch()
    (folder / "tests" / "perf" / "__init__.py").touch()
    for name in ("against_commit", "frame_cost", "throughput"):
        (folder / "tests" / "perf" / f"{name}.py").write_text("raise RuntimeError('these are the tests of the base')\n")
    return folder


def test_throughput_of_a_checkout_with_other_tests_is_measured(base: Path) -> None:
    found = throughput.measure_once(base, cameras=2, fps=10.0, seconds=3.0, processes=1)
    assert found["frames_per_s"] > 0


def test_cost_of_a_frame_of_a_checkout_with_other_tests_is_measured(base: Path) -> None:
    found = frame_cost.compare(base, [1], 2)
    assert found["objects_1_cameras_1"]["base_us"].keys() == found["objects_1_cameras_1"]["this_us"].keys()
