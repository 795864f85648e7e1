"""Small file systems for tests with full or failing disks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.messages.processes import wait_until

_EXT4_BYTES: Final = 32 * 2**20


@contextmanager
def small_disk(folder: Path, kib: int = 64) -> Iterator[Path]:
    """Mount a file system of `kib` KiB in a new folder. Skip the test if this requires root privileges."""
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mounting, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class FailingDisk:
    """Ext4 file system in a file, mounted at `folder` with ``errors=remount-ro``."""

    def __init__(self, folder: Path, image: Path) -> None:
        """Create and mount the file system. Skip the test if this requires root privileges."""
        self.folder, self._image = folder, image
        folder.mkdir()
        with image.open("wb") as file:
            file.truncate(_EXT4_BYTES)
        try:
            subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("needs the program mkfs.ext4 (package e2fsprogs)")
        if os.geteuid() or self._mount():
            pytest.skip("only root may mount a file system")

    def fail(self) -> None:
        """Make Linux set the file system to read-only, as after a disk error. This also affects open files."""
        subprocess.run(["mount", "-o", "remount,abort", str(self.folder)], check=True)

    def repair(self) -> None:
        """Unmount the file system, repair it, and mount it again. No process may use it during this time."""
        self.unmount()
        assert subprocess.run(["e2fsck", "-p", str(self._image)], check=False, capture_output=True).returncode < 4
        assert self._mount() == 0

    def unmount(self) -> None:
        """Wait until no process uses the file system, and unmount it."""
        command = ["umount", str(self.folder)]
        wait_until(lambda: subprocess.run(command, check=False).returncode == 0, f"{self.folder} is not in use")

    def _mount(self) -> int:
        options = ["-t", "ext4", "-o", "loop,errors=remount-ro"]
        mounting = ["mount", *options, str(self._image), str(self.folder)]
        return subprocess.run(mounting, check=False, capture_output=True).returncode


@contextmanager
def failing_disk(folder: Path) -> Iterator[FailingDisk]:
    """Mount a `FailingDisk` in a new folder. Skip the test if this requires root privileges."""
    disk = FailingDisk(folder, folder.with_suffix(".img"))
    try:
        yield disk
    finally:
        disk.unmount()
