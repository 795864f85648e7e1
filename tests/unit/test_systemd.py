"""systemd accepts the service file, and each of its restrictions lowers the exposure of the service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian package systemd)"
    ),
]

UNIT = ROOT / "systemd" / "vision@.service"
RESTRICTIONS = (
    "CapabilityBoundingSet", "LockPersonality", "NoNewPrivileges", "PrivateMounts", "PrivateTmp", "ProtectClock",
    "ProtectControlGroups", "ProtectHome", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules",
    "ProtectKernelTunables", "ProtectProc", "ProtectSystem", "RemoveIPC", "RestrictAddressFamilies",
    "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallFilter",
    "UMask", "User",
)  # fmt: skip


def analyze(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze for a unit. The program is not installed here, so a program that exists stands in for it."""
    unit = folder / "vision@test.service"
    unit.write_text(text.replace("/opt/vision/bin/vision", sys.executable))
    command = ["systemd-analyze", *arguments, str(unit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("change", "accepted"), [(("", ""), True), (("Restart=", "Restrat="), False)])
def test_systemd_accepts_the_unit(tmp_path: Path, change: tuple[str, str], accepted: bool) -> None:
    done = analyze(tmp_path, UNIT.read_text().replace(*change), "verify", "--man=no")
    assert (done.returncode == 0 and not done.stderr) is accepted, done.stderr


def checks(folder: Path, text: str) -> dict[str, dict[str, Any]]:
    """Return the security checks of systemd for a unit, by name."""
    done = analyze(folder, text, "security", "--offline=true", "--json=short")
    if "unrecognized option" in done.stderr:
        pytest.skip("needs systemd 250 or later")
    assert not done.stderr
    return {check["json_field"]: check for check in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return checks(tmp_path_factory.mktemp("unit"), UNIT.read_text())


def test_exposure_is_low(tmp_path: Path, passed: dict[str, dict[str, Any]]) -> None:
    """The fixture skips this test if systemd is too old."""
    done = analyze(tmp_path, UNIT.read_text(), "security", "--offline=true", "--threshold=20", "--no-pager")
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.parametrize("restriction", RESTRICTIONS)
def test_each_restriction_lowers_the_exposure(
    tmp_path: Path, passed: dict[str, dict[str, Any]], restriction: str
) -> None:
    text, removed = re.subn(rf"^{restriction}=.*\n", "", UNIT.read_text(), flags=re.MULTILINE)
    assert removed
    failed = [name for name, check in checks(tmp_path, text).items() if check != passed[name]]
    assert failed != []
