"""Put type stubs of TensorRT into a folder for MYPYPATH, and repair the stubs that are not valid Python.

    python tests/typing/prepare_stubs.py build/stubs && MYPYPATH=build/stubs mypy vision/engine

The published stubs describe TensorRT 10.13. Without stubs, mypy accepts every call into TensorRT. With stubs, it finds
misspelled methods and wrong arguments on a machine that has neither TensorRT nor a GPU.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

REQUIREMENT = "tensorrt-stubs==10.13.0.35.1"

_KEYWORD_AS_NAME = re.compile(r"(?<=[(, ])in: (?=list\[)")
_DEFAULT_BEFORE_NONE = "power: Weights = None, channel_axis: int)"


def repair(text: str) -> str:
    """Return the stub as valid Python: no parameter is named `in`, and only the last parameters have defaults.

    Raises:
        ValueError: the stub has faults that this function does not repair.
    """
    text, renamed = _KEYWORD_AS_NAME.subn("in_: ", text)
    if renamed != 4 or text.count(_DEFAULT_BEFORE_NONE) != 1:
        raise ValueError(f"{REQUIREMENT} has other faults than expected: {renamed} parameters named `in`, expected 4")
    text = text.replace(_DEFAULT_BEFORE_NONE, "power: Weights = None, channel_axis: int = ...)")
    return f"# mypy: ignore-errors\n{text}"


def download(folder: Path) -> Path:
    """Download the wheel without its dependencies (the TensorRT libraries, 1 GB). Return the path of the wheel."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), REQUIREMENT]
    subprocess.run(command, check=True)
    return next(folder.glob("tensorrt_stubs-*.whl"))


def prepare(wheel: Path, target: Path) -> None:
    """Unpack the stubs of `wheel` into `target`, and repair them."""
    with zipfile.ZipFile(wheel) as archive:
        for name in ("tensorrt/__init__.pyi", "tensorrt_bindings/__init__.pyi", "tensorrt_bindings/tensorrt.pyi"):
            text = archive.read(name).decode()
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(repair(text) if name.endswith("tensorrt.pyi") else f"# mypy: ignore-errors\n{text}")


def main(arguments: list[str]) -> int:
    """Run ``prepare_stubs.py FOLDER``. Return 0 if FOLDER contains the repaired stubs."""
    if len(arguments) != 1:
        print(__doc__)
        return 2
    with TemporaryDirectory() as folder:
        prepare(download(Path(folder)), Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
