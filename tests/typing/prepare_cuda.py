"""Put the headers of TensorRT and CUDA, and the CUDA compiler, into a folder, to compile plugins without a GPU.

    python tests/typing/prepare_cuda.py build/cuda

NVIDIA's Python packages contain no TensorRT headers. The package `kernel-lens` contains the headers of TensorRT 10.14,
which NVIDIA publishes under Apache 2.0. This module uses no other part of the package.
"""

from __future__ import annotations

import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.typing.prepare_tensorrt import unpack

HEADERS = "kernel-lens==2.0.1"
PACKAGES = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
)
"""Compiler, headers, and libraries of CUDA: 110 MB."""


def prepare(target: Path) -> None:
    """Unpack the packages into `target`, with the headers of TensorRT in ``tensorrt`` and CUDA in ``nvidia/cu13``."""
    with TemporaryDirectory() as folder:
        unpack([HEADERS], Path(folder))
        shutil.copytree(Path(folder) / "kernel_lens" / "include" / "tensorrt", target / "tensorrt", dirs_exist_ok=True)
    unpack(PACKAGES, target)
    toolkit = target / "nvidia" / "cu13"
    for program in (*(toolkit / "bin").iterdir(), *(toolkit / "nvvm" / "bin").iterdir()):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)  # `zipfile` does not keep the modes of files


def main(arguments: Sequence[str]) -> int:
    """Run ``prepare_cuda.py FOLDER``. Return 0 if FOLDER contains the headers and the compiler."""
    if len(arguments) != 1:
        print(__doc__)
        return 2
    prepare(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
