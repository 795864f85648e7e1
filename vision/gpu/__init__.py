"""Wrappers for CUDA: devices, streams, graphs, memory, and kernels.

Importing this package requires cuda-python, but no GPU. Without cuda-python, the import raises `DeviceMissing`.
"""

import importlib

from vision.errors import DeviceMissing
from vision.version import install_hint

try:
    importlib.import_module("cuda.bindings.runtime")
except ImportError as error:
    raise DeviceMissing(
        f"cuda-python cannot be imported: {error}",
        hint=f"install the extra for the CUDA version of the machine: `{install_hint('cuda13')}`, "
        "or cuda12 instead of cuda13 (JetPack 6)",
        code="cuda-python-missing",
    ) from error
