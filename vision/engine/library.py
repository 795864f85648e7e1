# mypy: allow-subclassing-any
"""Access to TensorRT: `tensorrt` or `tensorrt_rtx`, whichever is installed, as `trt`.

Both have the same API except for names that come and go between versions. No code compares version numbers: it uses
`hasattr`, and it computes the integers of flags, because one bit means different flags in 10.x and 11.x.
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

from vision.errors import DeviceMissing
from vision.version import pip_hint

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["trt"]  # type checkers take an imported name for private

Flavour: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""Module names in the order in which they are tried. The last is what TensorRT-RTX's binding wheel holds without its
empty parent package."""

_T = TypeVar("_T")

TEGRA_RELEASE = Path("/etc/nv_tegra_release")


class Gpu(Protocol):
    """A GPU of this machine (`vision.gpu.cuda.Device`) or of another one (`GpuDescription`)."""

    @property
    def name(self) -> str: ...
    @property
    def compute_capability(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class GpuDescription:
    """A GPU by name, for a build on a machine that does not have it."""

    name: str  # such as NVIDIA H100 80GB HBM3 or Orin
    compute_capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Library:
    """The TensorRT that is installed."""

    module: ModuleType
    flavour: Flavour
    version: str

    def __str__(self) -> str:
        name = "TensorRT-RTX" if self.flavour == "tensorrt-rtx" else "TensorRT"
        return f"{name} {self.version}"


def missing_hint(system: str, machine: str, *, tegra: bool, python: tuple[int, int]) -> str:
    """Return how to install TensorRT on a platform. Arguments as from `platform.system()` and `platform.machine()`."""
    if tegra:
        return (
            "on a Jetson TensorRT comes with JetPack: `sudo apt install python3-libnvinfer`, then make the environment "
            "with the system's own python3 and `--system-site-packages` "
            f"(this is Python {python[0]}.{python[1]}; JetPack 6 has 3.10, JetPack 7 has 3.12)"
        )
    if system == "Linux" and machine == "x86_64":
        return (
            f"`{pip_hint('tensorrt-cu13')}` (or tensorrt-cu12 for a CUDA 12 driver; tensorrt-rtx for TensorRT-RTX), "
            "or `detect: {backend: onnxruntime}` to run on the CPU"
        )
    if system == "Linux" and machine == "aarch64":
        return f"`{pip_hint('tensorrt-cu13')}` (servers with an Arm processor), or `detect: {{backend: onnxruntime}}`"
    return f"TensorRT is not made for {system} on {machine}; `detect: {{backend: onnxruntime}}` runs on the CPU"


@functools.cache
def find_library(names: tuple[str, ...] = MODULES) -> Library:
    """Return the TensorRT of this process: the first of `names` that can be imported. The search runs once.

    Raises:
        DeviceMissing: none can; the message lists the reason for each.
    """
    tried: list[str] = []
    for name in names:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: the shared library behind the module is missing
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
        """Stand-in for the module that imports it at the first use, so that this package imports without TensorRT."""

        def __getattr__(self, name: str) -> Any:
            return getattr(find_library().module, name)

    trt = _Late()


# ------------------------------------------------------------------------------------------------ log

_LEVELS: Mapping[str, int] = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.DEBUG,  # TensorRT logs several lines at this level per layer
}

_log = logging.getLogger("vision.tensorrt")


@dataclass(frozen=True, slots=True)
class LogLine:
    """One message of TensorRT."""

    severity: str
    text: str


@dataclass(slots=True, eq=False)
class LogLines:
    """Messages of TensorRT during a `collect_log` block, INFO and above."""

    lines: list[LogLine] = field(default_factory=list)

    def errors(self) -> tuple[str, ...]:
        """Return the texts of errors, oldest first, without repetition."""
        texts = (line.text.strip() for line in self.lines if line.severity in ("ERROR", "INTERNAL_ERROR"))
        return tuple(dict.fromkeys(texts))


_sinks: list[LogLines] = []
_recent_errors: deque[str] = deque(maxlen=8)
_sinks_lock = threading.Lock()


def take_message(severity: str, text: str) -> None:
    """Pass one message of TensorRT to the log and to all collectors. Any thread can call it."""
    level = _LEVELS.get(severity)
    if level is None:  # VERBOSE: a hundred thousand lines a build
        return
    _log.log(level, "%s", text)
    with _sinks_lock:
        if level == logging.ERROR:
            _recent_errors.append(text.strip())
        for sink in _sinks:
            sink.lines.append(LogLine(severity, text))


def recent_errors() -> str:
    """Return the last errors of TensorRT in one line, for calls too frequent for `collect_log`."""
    with _sinks_lock:
        return "; ".join(dict.fromkeys(_recent_errors)) or "it gave no reason"


@contextmanager
def collect_log() -> Iterator[LogLines]:
    """Collect the messages of TensorRT inside the block: it reports errors nowhere else. Blocks can be nested."""
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
    """Return the only logger. TensorRT keeps the first one until the process ends, so it is never freed."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            take_message(severity.name, msg)

    return Log()


def start(factory: Callable[[trt.ILogger], _T], log: LogLines) -> _T:
    """Create a ``trt.Runtime`` or ``trt.Builder``. Raises `DeviceMissing` with TensorRT's messages if no GPU works."""
    try:
        return factory(logger())
    except TypeError as error:  # the bindings' word for a constructor that gave null
        raise DeviceMissing(
            f"{find_library()} could not start: {'; '.join(log.errors()) or error}",
            hint="`nvidia-smi` (on a Jetson: `tegrastats`) shows whether the driver works; `vision doctor` says more",
        ) from error


# ------------------------------------------------------------------------------------------------ probes


def or_none(result: _T) -> _T | None:
    """Return `result` with the type it really has: TensorRT returns None on failure, its types promise an object."""
    return result


def member_of(enumeration: str, name: str) -> Any:
    """Return a member of an enumeration by both names, or None if this library lacks either."""
    return getattr(getattr(trt, enumeration, None), name, None)


def keeps_timing() -> bool:
    """Return True if timings can be kept between builds. TensorRT-RTX measures nothing and ignores the calls."""
    return find_library().flavour == "tensorrt"


def has_weak_typing() -> bool:
    """Return True if a builder flag can allow lower precision. Otherwise the ONNX file determines the precision.

    TensorRT-RTX 1.4 has the flags and ignores them: it is always strongly typed.
    """
    return find_library().flavour == "tensorrt" and member_of("BuilderFlag", "FP16") is not None


def network_flags(*, strongly_typed: bool) -> int:
    """Return the bits for `create_network`. A library without the bit is always strongly typed."""
    flag = member_of("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    return 1 << int(flag) if strongly_typed and flag is not None else 0


def supported_capabilities() -> tuple[tuple[int, int], ...]:
    """Return the compute capabilities that ahead-of-time builds can name (TensorRT-RTX), or () without such a list."""
    names: Mapping[str, object] = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    numbers = sorted(int(name[2:]) for name in names if name.startswith("SM") and name[2:].isdigit())
    return tuple((number // 10, number % 10) for number in numbers)


def capability_names(capabilities: Sequence[tuple[int, int]]) -> str:
    """Return compute capabilities as a list for messages, such as ``8.6, 8.9``."""
    return ", ".join(f"{major}.{minor}" for major, minor in capabilities)
