"""Put TensorRT-RTX's Python bindings into a folder for PYTHONPATH, to build engines without a GPU or a driver.

    python tests/typing/prepare_bindings.py 1.4 build/tensorrt-rtx-1.4
    PYTHONPATH=build/tensorrt-rtx-1.4 pytest tests/unit -k engine

Version 1.4 has the names of TensorRT 10. Versions 1.6 and 1.7 have the names of TensorRT 11. Version 1.6 is the last
version that runs on compute capability 9.0. Version 1.7 is the first version that builds int8 convolutions for compute
capability 8.6. A process can import only one version, so the tests run separately with each version.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

REQUIREMENTS = {
    "1.4": ("tensorrt-rtx-cu12-bindings==1.4.0.76", "tensorrt-rtx-cu12-libs==1.4.0.76"),
    "1.6": ("tensorrt-rtx-cu13-bindings==1.6.1.120", "tensorrt-rtx-cu13-libs==1.6.1.120"),
    "1.7": ("tensorrt-rtx-cu13-bindings==1.7.1.116", "tensorrt-rtx-cu13-libs==1.7.1.116"),
}


def prepare(version: str, target: Path) -> None:
    """Download the wheels of one version (200 MB each), and unpack them into `target`."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, *REQUIREMENTS[version]]
        subprocess.run(command, check=True)
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)


def main(arguments: list[str]) -> int:
    """Run ``prepare_bindings.py VERSION FOLDER``. Return 0 if FOLDER contains the bindings."""
    if len(arguments) != 2 or arguments[0] not in REQUIREMENTS:
        print(__doc__)
        return 2
    prepare(arguments[0], Path(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
