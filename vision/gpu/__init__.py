"""CUDA: devices, streams, events, graphs, memory, and kernels. The import needs cuda-python, but no GPU."""

import importlib

from vision.errors import DeviceMissing
from vision.version import install_hint

try:
    importlib.import_module("cuda.bindings.runtime")
except ImportError as error:
    raise DeviceMissing(
        f"cuda-python cannot be imported: {error}",
        hint=f"install the extra of the machine's CUDA version: `{install_hint('cuda13')}`, "
        "or cuda12 instead of cuda13 (JetPack 6)",
        code="cuda-python-missing",
    ) from error
