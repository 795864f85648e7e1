"""systemd accepts the service file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.integration

UNIT = ROOT / "systemd" / "vision@.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian package systemd)")
@pytest.mark.parametrize(("change", "accepted"), [(("", ""), True), (("Restart=", "Restrat="), False)])
def test_systemd_accepts_the_unit(tmp_path: Path, change: tuple[str, str], accepted: bool) -> None:
    # The program is not installed here, so a program that exists stands in for it.
    text = UNIT.read_text().replace("/opt/vision/bin/vision", sys.executable).replace(*change)
    unit = tmp_path / "vision@test.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode == 0 and not done.stderr) is accepted, done.stderr
