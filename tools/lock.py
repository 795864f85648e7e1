"""Write the lock files: the exact versions and hashes of all packages that a service needs.

python tools/lock.py            # rewrite locks/*.txt with the newest versions
python tools/lock.py --keep     # keep the versions in the files, except versions that pyproject.toml excludes
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
LOCKS: Final = ROOT / "locks"
OUTPUTS: Final = ("http", "page", "language", "mqtt", "kafka", "redis", "nats", "webhook", "onvif", "archive")
"""Extras that do not depend on the machine."""

BUILD: Final = ("setuptools>=77",)
"""Packages that `pip install --no-build-isolation` needs. They must agree with pyproject.toml."""

_HEADER: Final = """\
# Written by tools/lock.py, for {machines}.
# Extras: {extras}
# Other requirements: {others}
"""


@dataclass(frozen=True, slots=True)
class Lock:
    """Lock file: the exact packages for a set of extras on one type of machine."""

    extras: tuple[str, ...]
    machines: str
    options: tuple[str, ...]  # for `uv pip compile`
    more: tuple[str, ...] = ()  # further requirements


LOCKED: Final = {
    "service": Lock(
        ("laptop", *OUTPUTS),
        "Linux on x86_64 and aarch64, Python 3.10 or later",
        ("--universal", "--python-version=3.10"),
    ),
    "jetpack6": Lock(
        ("cuda12", *OUTPUTS),
        "JetPack 6",
        ("--python-platform=aarch64-manylinux_2_35", "--python-version=3.10"),
        ("numpy<2",),  # JetPack's OpenCV needs NumPy 1
    ),
    "jetpack7": Lock(
        ("cuda13", *OUTPUTS),
        "JetPack 7",
        ("--python-platform=aarch64-manylinux_2_39", "--python-version=3.12"),
        ("numpy<2",),
    ),
}


def write(name: str, lock: Lock, *, keep: bool) -> None:
    """Resolve the packages of a lock file, and write the file.

    Raises:
        subprocess.CalledProcessError: the packages cannot be resolved.
    """
    target = LOCKS / f"{name}.txt"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lock.txt"
        if keep and target.exists():
            output.write_bytes(target.read_bytes())
        subprocess.run(
            [
                *("uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--annotation-style=line"),
                *(f"--extra={extra}" for extra in lock.extras),
                *lock.options,
                *("--output-file", output, "pyproject.toml", "-"),
            ],
            input="\n".join((*BUILD, *lock.more)),
            text=True,
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"UV_SYSTEM_CERTS": "1"},
        )
        others = ", ".join((*BUILD, *lock.more))
        header = _HEADER.format(machines=lock.machines, extras=", ".join(lock.extras), others=others)
        target.write_text(header + output.read_text(encoding="utf-8"), encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Write all lock files. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="keep the versions in the files where possible")
    keep = parser.parse_args(arguments).keep
    LOCKS.mkdir(exist_ok=True)
    for name, lock in LOCKED.items():
        try:
            write(name, lock, keep=keep)
        except subprocess.CalledProcessError as error:
            print(f"locks/{name}.txt is unchanged, because the packages cannot be resolved", file=sys.stderr)
            return int(error.returncode)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
