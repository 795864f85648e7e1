"""Put the Python bindings of TensorRT into a folder for PYTHONPATH, so that they can be imported without a GPU.

    python tests/typing/prepare_tensorrt.py 11.4 build/tensorrt-11.4
    PYTHONPATH=build/tensorrt-11.4 pytest tests/unit/engine

Version 10.3 belongs to JetPack 6, 10.13 to JetPack 7.0 and 7.1, and 10.16 and 11.4 to JetPack 7.2. The bindings have
the real names, signatures, and enumerations, and call methods of Python classes as on a Jetson. `shim.c` replaces the
builder and the ONNX parser, which no package contains, so they cannot be created. From version 10.16 on, the runtime
and the plugin registry are real, because the package of the lean runtime contains them.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

SHIM = Path(__file__).with_name("shim.c")


@dataclass(frozen=True)
class Release:
    """Packages of one release of TensorRT."""

    number: str  # full version
    bindings: str  # name of the package with the bindings
    lean: str = ""  # name of the package with the lean runtime; empty if there is none

    @property
    def major(self) -> str:
        return self.number.split(".", maxsplit=1)[0]

    @property
    def packages(self) -> tuple[str, ...]:
        return tuple(f"{name}=={self.number}" for name in (self.bindings, self.lean) if name)


RELEASES = {
    "10.3": Release("10.3.0", "tensorrt-cu12-bindings"),
    "10.13": Release("10.13.3.9", "tensorrt-cu13-bindings"),
    "10.16": Release("10.16.1.11", "tensorrt-cu13-bindings", "tensorrt-lean-cu13-libs"),
    "11.4": Release("11.4.0.106", "tensorrt-cu13-bindings", "tensorrt-lean-cu13-libs"),
}

MODULE = """from tensorrt_bindings import *
from tensorrt_bindings import __version__
"""


def unpack(packages: Sequence[str], target: Path) -> None:
    """Download wheels, and unpack them into `target`. The lean runtime has 44 MB, and the bindings have 1 MB."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--only-binary=:all:", "-d", folder, *packages], check=True)
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)


def link(release: Release, target: Path) -> None:
    """Compile the libraries that the bindings need into the folder that the bindings search first."""
    folder = target / "tensorrt_bindings"
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        file = f"lib{library}.so.{release.major}"
        command = ["gcc", "-shared", "-fPIC", f"-D{library.upper()}", f"-Wl,-soname,{file}", "-o", str(folder / file)]
        command.append(str(SHIM))
        if library == "nvinfer" and not release.lean:
            command.append("-DWITHOUT_LEAN")
        elif library == "nvinfer":
            lean = target / "tensorrt_lean_libs"
            command += [f"-L{lean}", "-Wl,--no-as-needed", f"-l:libnvinfer_lean.so.{release.major}"]
            command.append("-Wl,-rpath,$ORIGIN/../tensorrt_lean_libs")
        subprocess.run(command, check=True)


def prepare(version: str, target: Path) -> None:
    """Put the bindings of one version, and the libraries that the bindings need, into `target`."""
    release = RELEASES[version]
    unpack(release.packages, target)
    link(release, target)
    package = target / "tensorrt"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text(MODULE)
    if (target / "tensorrt_bindings" / "plugin").exists():
        (package / "plugin").mkdir(exist_ok=True)
        (package / "plugin" / "__init__.py").write_text("from tensorrt_bindings.plugin import *\n")


def main(arguments: Sequence[str]) -> int:
    """Run ``prepare_tensorrt.py VERSION FOLDER``. Return 0 if FOLDER contains the bindings."""
    if len(arguments) != 2 or arguments[0] not in RELEASES:
        print(__doc__)
        print(f"VERSION is one of {', '.join(RELEASES)}")
        return 2
    prepare(arguments[0], Path(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
