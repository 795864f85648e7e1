"""Container in which systemd is PID 1, on a copy-on-write view of this machine's file system."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest

from tests.paths import ROOT
from vision.cli.service import HIDDEN

BOOT_S = 180.0
NOT_PERMITTED = re.compile("Operation not permitted|Permission denied|Read-only file system|No medium found", re.I)
"""Errors of mount and systemd-nspawn if the user lacks the rights of root, or the hierarchy of cgroups is read-only."""
_ENGLISH = {"LC_ALL": "C"}

_SLOW_UNITS = ("systemd-networkd-wait-online", "NetworkManager-wait-online", "systemd-time-wait-sync", "apt-daily")


class Container:
    """Running container. `run` executes a command in the container as root."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._leader = leader

    def run(
        self, *command: str | Path, check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        arguments = ["nsenter", "-t", str(self._leader), "-m", "-p", "-n", "-i", "-u", *map(str, command)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=timeout_s)
        if check and done.returncode:
            journal = [*arguments[: -len(command)], "journalctl", "--no-pager", "--lines=60"]
            log = subprocess.run(journal, capture_output=True, text=True, check=False, timeout=timeout_s)
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}{log.stdout}")
        return done

    def write(self, path: str, content: str) -> None:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)

    def properties(self, unit: str, *names: str) -> dict[str, str]:
        """Return the values of properties of a unit, as `systemctl show` prints them."""
        lines = self.run("systemctl", "show", unit, f"--property={','.join(names)}").stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit).stdout

    def wait_for(self, unit: str, name: str, value: str, timeout_s: float = 60.0) -> None:
        """Wait until the value of a property of a unit starts with `value`."""
        deadline_s = time.monotonic() + timeout_s
        while not (current := self.properties(unit, name)[name]).startswith(value):
            assert time.monotonic() < deadline_s, (
                f"{unit}: {name} is {current}, not {value}\n{self.journal(unit)[-4000:]}"
            )
            time.sleep(0.2)


def missing() -> str:
    """Return the reason why this machine cannot start a container, or an empty string if it can."""
    if os.geteuid():
        return "only root can start a container"
    tools = ("setpriv", "systemd-nspawn", "nsenter", "systemd-analyze", "mount")
    if absent := [tool for tool in tools if shutil.which(tool) is None]:
        return f"needs {', '.join(absent)} (Debian packages systemd and systemd-container)"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "the kernel has no overlay file systems"
    for path in (ROOT, Path(sys.prefix)):
        if any(path.is_relative_to(hidden) for hidden in HIDDEN):
            return f"a service cannot see {path}"
    return ""


@contextmanager
def booted(folder: Path) -> Iterator[Container]:
    """Boot a container, and remove it at the end of the block. Skip the test if this machine cannot start one."""
    if reason := missing():
        pytest.skip(reason)
    tmpfs, root = folder / "tmpfs", folder / "tmpfs" / "root"
    tmpfs.mkdir()
    mounts = [tmpfs]
    process = leader = None
    try:
        _mount("-t", "tmpfs", "tmpfs", tmpfs)
        for name in ("upper", "work", "root"):
            (tmpfs / name).mkdir()
        _mount("-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={tmpfs}/upper,workdir={tmpfs}/work", root)
        mounts.append(root)
        _prepare(root)
        command = ["setpriv", "--pdeathsig", "TERM"]  # if the tests are killed, the container shuts down
        command += ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"]
        command += ["--console=pipe", "--link-journal=no", f"--machine=vision-{os.getpid()}", f"--directory={root}"]
        command += [f"--bind-ro={path}" for path in _programs()]
        with (tmpfs / "log").open("wb") as log:
            environment = os.environ | _ENGLISH
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        leader = _leader(process, tmpfs / "log")
        container = Container(root, leader)
        _wait_until_booted(container)
        yield container
    finally:
        if leader is not None:
            os.kill(leader, signal.SIGKILL)  # this kills PID 1, and with it all processes of the container
        if process is not None:
            _end(process, now=leader is None)
        for mount in reversed(mounts):
            subprocess.run(["umount", "--recursive", "--lazy", str(mount)], check=False, capture_output=True)


def _end(process: subprocess.Popen[bytes], *, now: bool) -> None:
    """Wait until systemd-nspawn cleans up and ends. Kill it after 30 s or, if `now` is True, immediately."""
    if not now:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
    process.kill()
    process.wait()


def skip_or_fail(what: str, output: str) -> NoReturn:
    """Skip the test if `output` says that this machine does not permit an operation. Otherwise, fail the test."""
    if NOT_PERMITTED.search(output):
        pytest.skip(f"this machine does not permit {what}: {output.strip()}")
    raise AssertionError(f"{what} failed: {output.strip()}")


def _mount(*arguments: str | Path) -> None:
    command = ["mount", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | _ENGLISH)
    if done.returncode:
        skip_or_fail("mounts", done.stderr)


def _programs() -> set[str]:
    """Return the folders that the container needs and that may be separate mounts, which the root overlay lacks."""
    return {str(ROOT), sys.prefix, sys.base_prefix} - {"/", "/usr"}


def _prepare(root: Path) -> None:
    """Make the container boot with a fixed machine id, and with only the units that the tests need."""
    units = root / "etc" / "systemd" / "system"
    for path in units.glob("*.wants"):
        shutil.rmtree(path)
    for name in _SLOW_UNITS:
        (units / f"{name}.service").unlink(missing_ok=True)
        (units / f"{name}.service").symlink_to("/dev/null")
    (root / "etc" / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    environment = f"[Service]\nEnvironment=PYTHONPATH={ROOT}\nBindReadOnlyPaths={ROOT} {sys.prefix}\n"
    drop_in = units / "vision@.service.d" / "tests.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(environment)


def _leader(process: subprocess.Popen[bytes], log: Path) -> int:
    """Return the process id of the container's PID 1."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline_s = time.monotonic() + BOOT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            skip_or_fail("containers", log.read_text())
        for child in children.read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                return int(child)
        time.sleep(0.05)
    raise AssertionError("the container has no PID 1")


def _wait_until_booted(container: Container) -> None:
    deadline_s = time.monotonic() + BOOT_S
    while time.monotonic() < deadline_s:
        state = container.run("systemctl", "is-system-running", check=False).stdout.strip()
        if state in ("running", "degraded"):
            return
        time.sleep(0.2)
    raise AssertionError(f"the container did not boot: {state}")
