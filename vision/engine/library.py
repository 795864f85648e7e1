# mypy: allow-subclassing-any
"""Access to the installed TensorRT module (`tensorrt` or `tensorrt_rtx`) as `trt`, to its log, and to its features.

Both modules have the same API, except for names that differ between versions. The code does not compare version
numbers. It uses `hasattr`, and looks up flags by name, because the numbers of flags differ between versions 10.x and
11.x.
"""

from __future__ import annotations

import functools
import importlib
import logging
import platform
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from vision.errors import DeviceMissing, DeviceNotReady
from vision.version import pip_hint

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["trt"]  # type checkers treat an imported name as private

Flavour: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""Names of modules to try, in this order.

The last module is in the wheel with the bindings of TensorRT-RTX. This wheel can be installed without the empty parent
package.
"""

_T = TypeVar("_T")

TEGRA_RELEASE = Path("/etc/nv_tegra_release")


class Gpu(Protocol):
    """GPU of this machine (`vision.gpu.cuda.Device`) or of a different machine (`GpuDescription`)."""

    @property
    def name(self) -> str: ...
    @property
    def compute_capability(self) -> tuple[int, int]: ...
    @property
    def integrated(self) -> bool: ...
    @property
    def total_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class GpuDescription:
    """Properties of a GPU, for a build on a machine without this GPU."""

    name: str  # such as NVIDIA H100 80GB HBM3 or Orin
    compute_capability: tuple[int, int]
    integrated: bool = False  # True if CPU and GPU share their memory
    total_bytes: int = 0  # size of the GPU's memory; 0 if unknown


@dataclass(frozen=True, slots=True)
class Library:
    """Installed TensorRT library: its Python module, its kind (TensorRT or TensorRT-RTX), and its version."""

    module: ModuleType
    flavour: Flavour
    version: str

    def __str__(self) -> str:
        name = "TensorRT-RTX" if self.flavour == "tensorrt-rtx" else "TensorRT"
        return f"{name} {self.version}"


def missing_hint(system: str, machine: str, *, tegra: bool, python: tuple[int, int]) -> str:
    """Return text that explains how to install TensorRT on this machine.

    Args:
        system: result of `platform.system`.
        machine: result of `platform.machine`.
        tegra: True on a Jetson.
        python: major and minor version of Python.
    """
    if tegra:
        return (
            "JetPack includes TensorRT: `sudo apt install python3-libnvinfer`, then create the environment with the "
            "system's python3 and `--system-site-packages` "
            f"(this is Python {python[0]}.{python[1]}; JetPack 6 has 3.10, JetPack 7 has 3.12)"
        )
    if system == "Linux" and machine == "x86_64":
        return (
            f"`{pip_hint('tensorrt-cu13')}` (or tensorrt-cu12 for a CUDA 12 driver; tensorrt-rtx for TensorRT-RTX), "
            "or `detect: {backend: onnxruntime}` to run on the CPU"
        )
    if system == "Linux" and machine == "aarch64":
        return f"`{pip_hint('tensorrt-cu13')}` (servers with an Arm processor), or `detect: {{backend: onnxruntime}}`"
    return f"TensorRT does not support {system} on {machine}; `detect: {{backend: onnxruntime}}` runs on the CPU"


@functools.cache
def find_library(names: tuple[str, ...] = MODULES) -> Library:
    """Find the TensorRT library: the first module of `names` that can be imported. The result is cached.

    Raises:
        DeviceMissing: no module can be imported, or no imported module is TensorRT. The message contains the reason for
            each module.
    """
    tried: list[str] = []
    for name in names:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError means that the shared library behind the module is missing
            tried.append(f"{name}: {error}")
            continue
        if not hasattr(module, "Builder") and not hasattr(module, "Runtime"):
            tried.append(f"{name}: {getattr(module, '__file__', None) or 'a folder'} is not TensorRT")
            continue
        flavour: Flavour = "tensorrt-rtx" if "rtx" in name else "tensorrt"
        return Library(module, flavour, str(getattr(module, "__version__", "unknown")))
    tegra = TEGRA_RELEASE.exists()
    hint = missing_hint(platform.system(), platform.machine(), tegra=tegra, python=sys.version_info[:2])
    raise DeviceMissing(f"TensorRT was not found: {'; '.join(tried)}", hint=hint, code="tensorrt-missing")


if not TYPE_CHECKING:

    class _Late:
        """Proxy that imports TensorRT at its first use, so that this module can be imported without TensorRT."""

        def __getattr__(self, name: str) -> Any:
            return getattr(find_library().module, name)

    trt = _Late()


# ------------------------------------------------------------------------------------------------ log

_LEVELS: Mapping[str, int] = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.DEBUG,  # at this level, TensorRT logs several lines per layer
}

_log = logging.getLogger("vision.tensorrt")


@dataclass(frozen=True, slots=True)
class LogLine:
    """Message that TensorRT logged."""

    severity: str
    text: str


@dataclass(slots=True, eq=False)
class LogLines:
    """Messages of level INFO and above that TensorRT logged during a `collect_log` block."""

    lines: list[LogLine] = field(default_factory=list)

    def errors(self) -> tuple[str, ...]:
        """Return the texts of the errors, oldest first, without duplicates."""
        texts = (line.text.strip() for line in self.lines if line.severity in ("ERROR", "INTERNAL_ERROR"))
        return tuple(dict.fromkeys(texts))


_sinks: list[LogLines] = []
_recent_errors: deque[str] = deque(maxlen=8)
_sinks_lock = threading.Lock()


def take_message(severity: str, text: str) -> None:
    """Pass a TensorRT message of level INFO or above to the log and to all `collect_log` blocks. Thread-safe."""
    level = _LEVELS.get(severity)
    if level is None:  # at the level VERBOSE, a build logs a hundred thousand lines
        return
    _log.log(level, "%s", text)
    with _sinks_lock:
        if level == logging.ERROR:
            _recent_errors.append(text.strip())
        for sink in _sinks:
            sink.lines.append(LogLine(severity, text))


def recent_errors() -> str:
    """Return up to 8 recent errors of TensorRT as one line, for calls that are too frequent for `collect_log`."""
    with _sinks_lock:
        return "; ".join(dict.fromkeys(_recent_errors)) or "no reason given"


@contextmanager
def collect_log() -> Iterator[LogLines]:
    """Yield a collection of the messages that TensorRT logs during a `with` block.

    Only these messages explain why a call failed.
    """
    sink = LogLines()
    with _sinks_lock:
        _sinks.append(sink)
    try:
        yield sink
    finally:
        with _sinks_lock:
            _sinks.remove(sink)


@functools.cache
def logger() -> trt.ILogger:
    """Return the logger of all TensorRT objects. It is never freed, because TensorRT uses it until the process ends."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            take_message(severity.name, msg)

    return Log()


_unusable: list[object] = []  # objects whose release would end the process with a segmentation fault


def start(factory: Callable[[trt.ILogger], _T]) -> _T:
    """Create a ``trt.Runtime`` or ``trt.Builder``. Raise `DeviceNotReady` with TensorRT's messages if no GPU works.

    Without a usable driver, a constructor of TensorRT either returns null, or logs an error of CUDA and returns an
    object that crashes at its first use and at its release.
    """
    with collect_log() as log:
        try:
            started = factory(logger())
        except TypeError as error:  # the bindings raise TypeError if a constructor returns null
            raise _not_started(log.errors() or (str(error),)) from error
    if any("cuda" in text.lower() for text in log.errors()):
        _unusable.append(started)
        raise _not_started(log.errors())
    return started


def _not_started(reasons: Sequence[str]) -> DeviceNotReady:
    return DeviceNotReady(
        f"{find_library()} could not start: {'; '.join(reasons)}",
        hint="`nvidia-smi` (on a Jetson: `tegrastats`) tests the driver; `vision doctor` shows details",
        code="tensorrt-not-started",
    )


# ------------------------------------------------------------------------------------------------ probes


def or_none(result: _T) -> _T | None:
    """Return `result`, typed as possibly None. TensorRT returns None on failure, but its type stubs omit this."""
    return result


def member_of(enumeration: str, name: str) -> Any:
    """Return the member `name` of an enumeration of `trt`.

    Return None if the library lacks the member or the enumeration.
    """
    return getattr(getattr(trt, enumeration, None), name, None)


def keeps_timing() -> bool:
    """Return True if builds can reuse kernel timings of previous builds. TensorRT-RTX does not measure its kernels."""
    return find_library().flavour == "tensorrt"


def has_weak_typing() -> bool:
    """Return True if builder flags determine the precision. Otherwise, the ONNX file determines the precision.

    TensorRT-RTX 1.4 has the flags but ignores them, because it is always strongly typed.
    """
    return find_library().flavour == "tensorrt" and member_of("BuilderFlag", "FP16") is not None


def network_flags(*, strongly_typed: bool) -> int:
    """Return the flags for `create_network`. A library without the flag STRONGLY_TYPED always uses strong typing."""
    flag = member_of("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    return 1 << int(flag) if strongly_typed and flag is not None else 0


def supported_capabilities() -> tuple[tuple[int, int], ...]:
    """Return the compute capabilities that the library lists, in ascending order.

    Return an empty tuple if the library has no such list.
    """
    names: Mapping[str, object] = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    numbers = sorted(int(name[2:]) for name in names if name.startswith("SM") and name[2:].isdigit())
    return tuple((number // 10, number % 10) for number in numbers)


def capability_names(capabilities: Sequence[tuple[int, int]]) -> str:
    """Return compute capabilities as text, such as ``8.6, 8.9``, for messages."""
    return ", ".join(f"{major}.{minor}" for major, minor in capabilities)
