"""Tests that `tests.gpu.run_all` selects existing tests. Otherwise, a part without tests would seem to pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.run_all import ROOT, parts
from vision.detect.reference.heads import HEADS as KINDS

pytestmark = pytest.mark.integration

HEADS = tuple(KINDS)


def test_sanitizers_cover_every_kernel_and_head(tmp_path: Path) -> None:
    arguments = {
        tool: part.command[part.command.index(sys.executable) :]
        for tool, part in parts(tmp_path).items()
        if "compute-sanitizer" in part.command[0]
    }
    assert set(arguments) == {"memcheck", "racecheck", "initcheck"}
    assert len(set(arguments.values())) == 1
    found = subprocess.run(
        [*arguments["memcheck"], "--collect-only"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    assert found.returncode == 0, found.stdout
    assert found.stdout.count("test_letterbox_kernel.py::") == 3, found.stdout
    assert found.stdout.count("test_postprocess_kernels.py::") > len(HEADS), found.stdout
    for head in HEADS:
        assert f"test_postprocess_kernels.py::test_detections_match_the_reference[plain {head}]" in found.stdout, (
            found.stdout
        )
