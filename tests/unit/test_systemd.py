"""Tests that systemd accepts the unit, that each restriction lowers the exposure, and that failures are counted."""

from __future__ import annotations

import json
import os
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
    """Run systemd-analyze for a unit. An existing program replaces `vision`, which is not installed on this machine."""
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
    """The fixture skips this test if the version of systemd is too old."""
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


def command(name: str, folder: Path) -> str:
    """Return the shell command of `ExecStartPre` or `ExecStopPost` that counts failures, with its folder replaced."""
    (line,) = [
        text for text in UNIT.read_text().splitlines() if text.startswith(f"{name}=-/bin/sh") and ".failures" in text
    ]
    script = line.removeprefix(f"{name}=-/bin/sh -c '").removesuffix("'")
    return script.replace("%t/vision", str(folder)).replace("%i", "shop").replace("%%", "%").replace("$$", "$")


def end(folder: Path, *, result: str = "exit-code", status: str = "1") -> None:
    """Run the command that the unit executes after the end of the service."""
    variables = {"SERVICE_RESULT": result, "EXIT_STATUS": status}
    subprocess.run(["sh", "-c", command("ExecStopPost", folder)], check=True, env=os.environ | variables)


def wait_s(folder: Path) -> int:
    """Run the command that the unit executes before the start. Return the number of seconds that it waits."""
    script = f'sleep() {{ echo "$1" >>"{folder}/slept"; }}; {command("ExecStartPre", folder)}'
    subprocess.run(["sh", "-c", script], check=True)
    slept = folder / "slept"
    waited = int(slept.read_text()) if slept.exists() else 0
    slept.unlink(missing_ok=True)
    return waited


def test_starts_after_failures_wait_longer_and_longer(tmp_path: Path) -> None:
    waits = [wait_s(tmp_path)]
    for _ in range(9):
        end(tmp_path)
        waits.append(wait_s(tmp_path))
    assert waits == [0, 0, 4, 8, 16, 32, 64, 120, 120, 120]


@pytest.mark.parametrize(("result", "status"), [("success", "0"), ("exit-code", "78")])
def test_orderly_stop_and_error_of_an_operator_are_no_failures(tmp_path: Path, result: str, status: str) -> None:
    for _ in range(3):
        end(tmp_path)
    end(tmp_path, result=result, status=status)
    assert wait_s(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []


def test_failure_long_after_the_last_one_counts_as_the_first(tmp_path: Path) -> None:
    for _ in range(4):
        end(tmp_path)
    count, at_s = (tmp_path / "shop.failures").read_text().split()
    assert count == "4"
    (tmp_path / "shop.failures").write_text(f"4 {int(at_s) - 601}\n")
    end(tmp_path)
    assert (tmp_path / "shop.failures").read_text().startswith("1 ")


@pytest.mark.parametrize("content", ["", "x\n", "1\n"])
def test_damaged_count_does_not_prevent_a_start(tmp_path: Path, content: str) -> None:
    (tmp_path / "shop.failures").write_text(content)
    done = subprocess.run(["sh", "-c", command("ExecStartPre", tmp_path)], check=False)  # like `-` in the unit
    assert done.returncode in (0, 1, 2)
    end(tmp_path, result="success")
    assert not (tmp_path / "shop.failures").exists()
