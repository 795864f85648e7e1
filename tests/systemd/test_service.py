"""Tests of the service under a real systemd: installation, start, restrictions, hangs, restarts, stop, and removal."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.messages.processes import wait_until
from tests.paths import ROOT
from tests.systemd.container import Container, booted

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

PROGRAM = str(Path(sys.prefix) / "bin" / "vision")
CONFIG = """
pipeline: count
cameras: [{id: a, source: "synthetic:320x240@20?objects=6&seed=1&overlap=1"}]
detect: {backend: fake}
state_dir: /var/lib/vision/shop
publish: {bind: "ipc:///run/vision/shop.sock"}
snapshots: {folder: /var/lib/vision/snapshots}
analytics: {a: {lines: [{name: v, points: [[160, 0], [160, 240]]}]}}
"""
HANGS = """
import time
from vision.pipelines import pipeline_with

def stage(result):
    time.sleep(1e6)

build = pipeline_with([stage])
"""
FAILS = """
def build(config, options, resources):
    raise RuntimeError("fails at once")
"""
FREEZES = HANGS.replace("time.sleep(1e6)", "__import__('ctypes').PyDLL(None).sleep(1000)")


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    with booted(tmp_path_factory.mktemp("container")) as container:
        container.write("/root/shop.yaml", CONFIG)
        install = [PROGRAM, "install-service", "/root/shop.yaml"]
        environment = ["env", f"PYTHONPATH={ROOT}"]
        before = container.run(*environment, *install).stdout
        assert "systemctl enable --now vision@shop" in before
        assert not (container.root / "etc/systemd/system/vision@.service").exists()  # the default is a dry run
        container.run(*environment, *install, "--yes")
        yield container
        container.run(*environment, PROGRAM, "uninstall-service", "--yes")
        assert not (container.root / "etc/systemd/system/vision@.service").exists()
        assert (container.root / "etc/vision/shop.yaml").exists()
        assert container.properties("vision@shop", "LoadState", "ActiveState") == {
            "LoadState": "not-found",
            "ActiveState": "inactive",
        }


def add_service(container: Container, name: str, config: str, drop_in: str = "") -> str:
    """Add a configuration, and an optional drop-in for its unit. Return the name of the unit."""
    container.write(f"/etc/vision/{name}.yaml", config.replace("shop", name))
    if drop_in:
        container.write(f"/etc/systemd/system/vision@{name}.service.d/own.conf", drop_in)
        container.run("systemctl", "daemon-reload")
    return f"vision@{name}"


def main_pid(container: Container, unit: str) -> int:
    return int(container.properties(unit, "MainPID")["MainPID"])


def test_installed_service_runs_and_says_how_it_works(container: Container) -> None:
    container.wait_for("vision@shop", "StatusText", "1 of 1 cameras up, ")
    shown = container.properties("vision@shop", "ActiveState", "Type", "NRestarts", "User", "UMask", "LimitNOFILE")
    assert shown == {
        "ActiveState": "active",
        "Type": "notify",
        "NRestarts": "0",
        "User": "vision",
        "UMask": "0027",
        "LimitNOFILE": "65536",
    }
    assert "WatchdogUSec=1min 30s" in container.run("systemctl", "show", "vision@shop").stdout


def test_files_of_the_service_belong_to_its_user_alone(container: Container) -> None:
    container.wait_for("vision@shop", "StatusText", "1 of 1 cameras up, ")
    find = ["find", "/var/lib/vision", "/var/cache/vision", "(", "-not", "-user", "vision", "-o", "-perm", "/0007", ")"]
    assert container.run(*find).stdout == ""
    assert container.run("find", "/var/lib/vision/shop", "-name", "state.db").stdout != ""
    deadline_s = time.monotonic() + 60
    while not container.run("find", "/var/lib/vision/snapshots", "-name", "*.jpg").stdout:
        assert time.monotonic() < deadline_s, container.journal("vision@shop")
        time.sleep(0.3)
    assert container.run(*find).stdout == ""


def test_exposure_is_low(container: Container) -> None:
    report = container.run("systemd-analyze", "security", "vision@shop").stdout
    match = re.search(r"Overall exposure level for vision@shop.service: ([\d.]+)", report)
    assert match is not None
    assert float(match[1]) <= 2.0, report


def test_restrictions_hold(container: Container) -> None:
    pid = main_pid(container, "vision@shop")
    status = container.run("cat", f"/proc/{pid}/status").stdout
    for line in ("NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000", "CapEff:\t0000000000000000"):
        assert line in status
    assert re.search(r"^Max core file size +0 +0 ", container.run("cat", f"/proc/{pid}/limits").stdout, re.MULTILINE)
    inside = ["nsenter", "-t", str(pid), "-m"]
    for folder in ("/etc", "/usr", "/opt"):
        assert container.run(*inside, "touch", f"{folder}/x", check=False).returncode != 0
    assert container.run(*inside, "ls", "/home").stdout == ""
    container.run(*inside, "touch", "/var/lib/vision/x")


def test_service_sees_the_socket_of_csi_cameras_on_a_jetson_only(container: Container) -> None:
    """On a Jetson, the daemon for CSI cameras has its socket in /tmp."""
    container.run("touch", "/tmp/argus_socket")

    def is_seen() -> bool:
        inside = ["nsenter", "-t", str(main_pid(container, "vision@shop")), "-m"]
        return container.run(*inside, "test", "-e", "/tmp/argus_socket", check=False).returncode == 0

    assert not is_seen()
    container.write("/etc/nv_tegra_release", "# R36 (release), REVISION: 4.3\n")
    try:
        container.run("env", f"PYTHONPATH={ROOT}", PROGRAM, "install-service", "--yes")
        container.run("systemctl", "restart", "vision@shop")  # returns when the service is ready
        assert is_seen()
    finally:
        container.run("rm", "-r", "/etc/nv_tegra_release", "/etc/systemd/system/vision@.service.d")
        container.run("systemctl", "daemon-reload")
        container.run("systemctl", "restart", "vision@shop")
    assert not is_seen()


def test_killed_service_is_started_again(container: Container) -> None:
    before = main_pid(container, "vision@shop")
    container.run("kill", "-KILL", str(before))
    container.wait_for("vision@shop", "NRestarts", "1")
    container.wait_for("vision@shop", "StatusText", "1 of 1 cameras up, ")
    assert main_pid(container, "vision@shop") != before


def test_stop_is_orderly(container: Container) -> None:
    container.run("systemctl", "stop", "vision@shop")
    shown = container.properties("vision@shop", "Result", "ExecMainStatus", "ExecMainCode")
    assert shown == {"Result": "success", "ExecMainStatus": "0", "ExecMainCode": "1"}
    container.run("systemctl", "start", "vision@shop")  # returns when the service is ready


def test_worker_processes_work_under_the_restrictions(container: Container) -> None:
    camera = '{id: ID, source: "synthetic:320x240@20?objects=6&seed=1&overlap=1"}'
    cameras = ", ".join(camera.replace("ID", name) for name in "abcd")
    config = re.sub(r"cameras: .*", f"cameras: [{cameras}]\nprocesses: 2", CONFIG)
    unit = add_service(container, "many", config.replace('"ipc:///run/vision/shop.sock"', '"tcp://127.0.0.1:5599"'))
    container.run("systemctl", "start", unit)
    container.wait_for(unit, "StatusText", "4 of 4 cameras up, ")
    group = container.properties(unit, "TasksCurrent", "NRestarts")
    assert group["NRestarts"] == "0"
    workers = container.run("pgrep", "--parent", str(main_pid(container, unit))).stdout.split()
    assert len(workers) >= 4  # two that read cameras, and two that process results
    container.run("systemctl", "stop", unit)
    left = [pid for pid in workers if container.run("test", "-e", f"/proc/{pid}", check=False).returncode == 0]
    assert left == []
    assert "rror" not in container.journal(unit)


def test_hang_ends_the_service_with_all_stacks_and_a_restart(container: Container) -> None:
    container.write("/etc/vision/hangs.py", HANGS)
    config = CONFIG.replace("pipeline: count", "pipeline: hangs.py\nhang_s: 2").split("analytics:")[0]
    unit = add_service(container, "hangs", config)
    container.run("systemctl", "start", unit)
    container.wait_for(unit, "NRestarts", "1")
    assert "time.sleep(1e6)" in container.journal(unit)
    container.run("systemctl", "stop", unit)


def test_service_that_fails_at_once_waits_before_it_is_started_again(container: Container) -> None:
    container.write("/etc/vision/fails.py", FAILS)
    config = CONFIG.replace("pipeline: count", "pipeline: fails.py").split("analytics:")[0]
    unit = add_service(container, "fails", config)
    container.run("systemctl", "start", unit, check=False)
    wait_until(lambda: "3 failures, waiting 8 s" in container.journal(unit), "a wait of 8 s", 120)
    assert "2 failures, waiting 4 s" in container.journal(unit)
    container.run("systemctl", "stop", unit)
    container.wait_for(unit, "ActiveState", "inactive")
    assert container.run("ls", "/run/vision").stdout.count("failures") == 0


def test_watchdog_of_systemd_ends_a_frozen_service(container: Container) -> None:
    container.write("/etc/vision/frozen.py", FREEZES)
    config = CONFIG.replace("pipeline: count", "pipeline: frozen.py\nhang_s: 600").split("analytics:")[0]
    unit = add_service(container, "frozen", config, "[Service]\nWatchdogSec=3\nRestart=no\n")
    container.run("systemctl", "start", unit)
    container.wait_for(unit, "ActiveState", "failed")
    assert container.properties(unit, "Result") == {"Result": "watchdog"}
    assert "frozen.py" in container.journal(unit)  # faulthandler printed the stacks


def test_wrong_configuration_is_not_started_again(container: Container) -> None:
    unit = add_service(container, "wrong", CONFIG.replace("lines:", "lanes:"))
    container.run("systemctl", "start", unit, check=False)
    container.wait_for(unit, "ActiveState", "failed")
    assert container.properties(unit, "ExecMainStatus", "NRestarts") == {"ExecMainStatus": "78", "NRestarts": "0"}


def test_start_waits_for_its_address_and_then_is_ready(container: Container) -> None:
    config = CONFIG.replace('"ipc:///run/vision/shop.sock"', '"tcp://192.0.2.10:5555", insecure: true')
    unit = add_service(container, "early", config)
    container.run("systemctl", "start", "--no-block", unit)
    container.wait_for(unit, "StatusText", "waiting to start")
    assert container.properties(unit, "ActiveState") == {"ActiveState": "activating"}
    container.run("ip", "address", "add", "192.0.2.10/32", "dev", "lo")
    container.wait_for(unit, "ActiveState", "active")
    assert container.properties(unit, "NRestarts") == {"NRestarts": "0"}
    container.run("systemctl", "stop", unit)


def test_full_disk_at_the_start_does_not_stop_the_service_for_good(container: Container) -> None:
    unit = add_service(container, "full", CONFIG.replace("/var/lib/vision/shop", "/var/lib/vision/disk/shop"))
    disk = "/var/lib/vision/disk"
    container.run("mkdir", disk)
    container.run("mount", "-t", "tmpfs", "-o", "size=256k,mode=0777", "tmpfs", disk)
    container.run("dd", "if=/dev/zero", f"of={disk}/fill", check=False)
    container.run("systemctl", "start", "--no-block", unit)
    container.wait_for(unit, "StatusText", "waiting to start")
    container.run("rm", f"{disk}/fill")
    container.wait_for(unit, "ActiveState", "active")
    container.run("systemctl", "kill", "--signal=TERM", unit)
    container.wait_for(unit, "ActiveState", "inactive")


def test_reload_applies_a_valid_file_and_reports_an_invalid_one(container: Container) -> None:
    unit = add_service(container, "changed", CONFIG)
    container.run("systemctl", "start", unit)
    container.wait_for(unit, "StatusText", "1 of 1 cameras up, ")
    pid = main_pid(container, unit)
    second = ', {id: b, source: "synthetic:320x240@20?objects=6&seed=2"}]'
    container.write(
        "/etc/vision/changed.yaml", CONFIG.replace("shop", "changed").replace("}]\ndetect", f"}}{second}\ndetect")
    )
    container.run("systemctl", "reload", unit)
    container.wait_for(unit, "StatusText", "2 of 2 cameras up, ")
    container.write("/etc/vision/changed.yaml", CONFIG.replace("shop", "changed").replace("lines:", "lanes:"))
    assert container.run("systemctl", "reload", unit, check=False).returncode != 0
    assert "/etc/vision/changed.yaml:8:" in container.journal(unit)
    container.run("systemctl", "kill", "--signal=HUP", "--kill-who=main", unit)
    deadline_s = time.monotonic() + 60
    while "was not reloaded" not in container.journal(unit):
        assert time.monotonic() < deadline_s, container.journal(unit)
        time.sleep(0.2)
    assert container.properties(unit, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
    assert main_pid(container, unit) == pid
    container.wait_for(unit, "StatusText", "2 of 2 cameras up, ")
    container.run("systemctl", "stop", unit)
