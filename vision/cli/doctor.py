"""The command `vision doctor`, which shows what is installed, which features lack a package, and how to install it.

Each check is a function that returns a `Finding`, or several findings. Checks change nothing, and take at most a few
seconds.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json as json_module
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vision.capture.open import missing_pyav
from vision.cli.options import Json
from vision.cli.session import command
from vision.config.page import PageConfig
from vision.detect.gpu_presence import has_nvidia_gpu
from vision.engine.library import MODULES, TEGRA_RELEASE, missing_hint
from vision.errors import EXIT_OK, EXIT_RUNTIME, ConfigError, DeviceError, DeviceMissing
from vision.evaluation.tracks import INSTALL
from vision.outputs.page.process import PACKAGES, check_page
from vision.version import install_hint, pip_hint

Verdict = Literal["ok", "missing", "broken", "note"]

_STYLES: Final[dict[Verdict, str]] = {"ok": "green", "missing": "yellow", "broken": "red", "note": "cyan"}
_GSTREAMER_PACKAGES: Final = {
    "rtspsrc": "gstreamer1.0-plugins-good",
    "rtph264depay": "gstreamer1.0-plugins-good",
    "rtph265depay": "gstreamer1.0-plugins-good",
    "h264parse": "gstreamer1.0-plugins-bad",
    "h265parse": "gstreamer1.0-plugins-bad",
    "videoconvert": "gstreamer1.0-plugins-base",
    "appsink": "gstreamer1.0-plugins-base",
}
"""Debian package of each element in the pipeline of an RTSP camera. Decoders are checked separately."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, which is a line of the report."""

    subject: str  # the examined part
    verdict: Verdict
    detail: str
    hint: str = ""  # advice to the user; empty if there is none
    needed: bool = False  # True if `vision run demo` does not work without this part

    @property
    def prevents_demo(self) -> bool:
        return self.needed and self.verdict in ("missing", "broken")


@command()
def doctor(context: typer.Context, json: Json = False) -> int:
    """Diagnose the environment and suggest fixes.

    Examples:
      vision doctor
      vision doctor --json
    """
    findings = examine()
    works = not any(finding.prevents_demo for finding in findings)
    if json:
        document = {"schema": "vision.doctor/1", "works": works, "findings": [asdict(finding) for finding in findings]}
        print(json_module.dumps(document, indent=2))
    else:
        print_findings(findings, Console())
    return EXIT_OK if works else EXIT_RUNTIME


def examine() -> list[Finding]:
    """Run every check that applies to this machine, and return the findings."""
    jetson = TEGRA_RELEASE.exists()
    gpu: tuple[Callable[[], Finding], ...] = (check_gpu, check_nvdec, check_cuda, _tensorrt)
    checks: Iterable[Callable[[], Finding]] = (
        _machine,
        *((_jetson, _power_mode) if jetson else ()),
        check_pyav,
        _opencv,
        _gstreamer,
        _onnxruntime,
        *(gpu if has_nvidia_gpu() or jetson or _output("nvidia-smi", "-L") else (_no_gpu,)),
        _page,
        _zeromq,
        _clock_sync,
    )
    return [*(check() for check in checks), *check_evaluation()]


def print_findings(findings: Iterable[Finding], console: Console) -> None:
    """Print `findings` as a table, the hints, and whether `vision run demo` works."""
    findings = list(findings)
    table = Table("part", "state", "details", header_style="bold")
    table.columns[2].overflow = "fold"
    for finding in findings:
        style = _STYLES[finding.verdict]
        table.add_row(finding.subject, f"[{style}]{finding.verdict}[/]", escape(finding.detail))
    console.print(table)
    for finding in findings:
        if finding.hint:
            console.print(f"[bold]{finding.subject}[/]: {escape(finding.hint)}", highlight=False, soft_wrap=True)
    failed = [finding.subject for finding in findings if finding.prevents_demo]
    console.print(f"vision run demo needs: {', '.join(failed)}" if failed else "vision run demo works on this machine")


def _output(*line: str) -> str | None:
    """Return the standard output of a command, or None if the command is not installed, fails, or takes over 5 s."""
    if shutil.which(line[0]) is None:
        return None
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _machine() -> Finding:
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    detail = f"{platform.machine()}, {cores} cores, {memory_gib:.1f} GiB, Python {platform.python_version()}"
    return Finding("machine", "ok", detail)


def _jetson() -> Finding:
    model = Path("/proc/device-tree/model")
    name = model.read_bytes().rstrip(b"\0").decode(errors="replace") if model.exists() else "unknown module"
    return Finding("Jetson", "ok", f"{name}; {TEGRA_RELEASE.read_text().splitlines()[0].lstrip('# ')}")


def _power_mode() -> Finding:
    mode = " ".join((_output("nvpmodel", "-q") or "").split())
    if "MAXN" in mode.upper():
        return Finding("power mode", "ok", mode)
    hint = "to run faster, with more heat: sudo nvpmodel -m 0 && sudo jetson_clocks"
    return Finding("power mode", "note", mode or "nvpmodel does not answer", hint)


def _opencv() -> Finding:
    hint = f"required for USB cameras, images, and drawings: {install_hint('opencv')}; on a Jetson, see docs/jetson.md"
    try:
        import cv2
    except ImportError as error:
        present = importlib.util.find_spec("cv2") is not None
        return Finding("OpenCV", "broken" if present else "missing", str(error), hint)
    lines = (" ".join(line.split()) for line in cv2.getBuildInformation().splitlines())
    parts = ", ".join(line for line in lines if line.startswith(("FFMPEG", "GStreamer", "v4l/v4l2")))
    return Finding("OpenCV", "ok", f"{cv2.__version__} from {Path(cv2.__file__).parent}; {parts}")


def _gstreamer() -> Finding:
    purpose = "required for CSI cameras, and for RTSP with capture times from the camera"
    try:
        import gi

        gi.require_version("Gst", "1.0")
        from gi.repository import Gst
    except (ImportError, ValueError) as error:
        hint = (
            f"{purpose}: sudo apt-get install python3-gi gir1.2-gst-plugins-base-1.0 "
            "gstreamer1.0-plugins-{base,good,bad} gstreamer1.0-libav, and a virtual environment that /usr/bin/python3 "
            "created with --system-site-packages"
        )
        return Finding("GStreamer", "missing", str(error), hint)
    Gst.init(None)
    return judge_gstreamer(Gst.version_string(), lambda name: Gst.ElementFactory.find(name) is not None)


def judge_gstreamer(version: str, has_element: Callable[[str], Any]) -> Finding:
    """Check that an installed GStreamer contains the elements that RTSP cameras require. Return the finding.

    `has_element` returns a true value if the element with a given name is installed.
    """
    decoders = [name for name in ("nvv4l2decoder", "avdec_h264", "avdec_h265") if has_element(name)]
    missing = [name for name in _GSTREAMER_PACKAGES if not has_element(name)]
    packages = {_GSTREAMER_PACKAGES[name] for name in missing}
    if "nvv4l2decoder" not in decoders and len(decoders) < 2:
        missing.append("a decoder for H.264 and H.265")
        packages.add("gstreamer1.0-libav")
    if missing:
        hint = f"required for RTSP cameras: sudo apt-get install {' '.join(sorted(packages))}"
        return Finding("GStreamer", "missing", f"{version} without {', '.join(missing)}", hint)
    return Finding("GStreamer", "ok", f"{version}; {', '.join(decoders)}, RTSP")


def check_pyav() -> Finding:
    """Check that PyAV is installed and recent enough."""
    reason = missing_pyav()
    if reason is not None:
        hint = "required for video files, HTTP cameras, and RTSP cameras without GStreamer: " + pip_hint("av>=12.3")
        return Finding("PyAV", "missing", reason, hint, needed=True)
    import av

    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    return Finding("PyAV", "ok", f"{av.__version__}; libavcodec {codec}", needed=True)


def _onnxruntime() -> Finding:
    needed = not any(importlib.util.find_spec(name) for name in MODULES)
    try:
        import onnxruntime
    except ImportError as error:
        return Finding("ONNX Runtime", "missing", str(error), install_hint("onnx"), needed)
    providers = ", ".join(onnxruntime.get_available_providers())
    return Finding("ONNX Runtime", "ok", f"{onnxruntime.__version__}; {providers}")


def _page() -> Finding:
    """Check that the packages of the web page are installed, because the demo has a page."""
    try:
        check_page(PageConfig(), can_bind=False)
    except ConfigError as error:
        return Finding("page", "missing", error.args[0], error.hint, needed=True)
    versions = (f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return Finding("page", "ok", ", ".join(versions), needed=True)


def check_gpu() -> Finding:
    """Check that the driver finds the GPU."""
    listing = _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if listing is not None:
        return Finding("GPU", "ok", "; ".join(listing.splitlines()))
    if TEGRA_RELEASE.exists():
        return Finding("GPU", "ok", "integrated")
    hint = "install NVIDIA's driver; without it, the detector runs on ONNX Runtime"
    return Finding("GPU", "missing", "nvidia-smi is not installed, or finds no GPU", hint)


def _no_gpu() -> Finding:
    """Return the finding that replaces the GPU checks on a machine without an NVIDIA GPU."""
    detail = "no NVIDIA GPU: the detector runs on the CPU with ONNX Runtime, without CUDA, TensorRT, and NVDEC"
    return Finding("GPU", "note", detail)


def check_nvdec() -> Finding:
    """Check that PyNvVideoCodec, which decodes on a graphics card, is installed and finds its driver libraries."""
    if TEGRA_RELEASE.exists():
        return Finding("NVDEC", "note", "a Jetson's decoders are used through GStreamer")
    if shutil.which("nvidia-smi") is None:
        return Finding("NVDEC", "note", "no NVIDIA graphics card")
    if importlib.util.find_spec("PyNvVideoCodec") is None:
        hint = "required to decode cameras on the graphics card: " + install_hint("nvdec")
        return Finding("NVDEC", "missing", "the module PyNvVideoCodec is not installed", hint)
    try:
        module = importlib.import_module("PyNvVideoCodec")
    except Exception as error:  # noqa: BLE001 - it raises its own errors if the driver lacks the video libraries
        hint = "in a container, set NVIDIA_DRIVER_CAPABILITIES=compute,utility,video; otherwise update the driver"
        return Finding("NVDEC", "broken", f"PyNvVideoCodec: {str(error).splitlines()[0]}", hint)
    return Finding("NVDEC", "ok", f"PyNvVideoCodec {module.__version__}")


def check_cuda() -> Finding:
    """Check that CUDA can open the GPU. This fails if the driver is too old for cuda-python, or the GPU is hidden."""
    try:
        from vision.gpu.cuda import open_device

        device = open_device()
    except DeviceError as error:
        present = has_nvidia_gpu() or not isinstance(error, DeviceMissing)
        return Finding("CUDA", "broken" if present else "missing", error.args[0], error.hint or "")
    version = f"{device.driver_version // 1000}.{device.driver_version % 1000 // 10}"
    detail = f"{device.name} ({device.arch}), the driver supports CUDA {version}; {cuda_packages()}"
    return Finding("CUDA", "ok", detail)


def cuda_packages() -> str:
    """Return the versions of cuda-python and of NVRTC as text."""
    from vision.gpu.nvrtc import nvrtc_version

    # Until 12.6, which JetPack 6 needs, cuda-python contains the bindings itself.
    found = [name for name in ("cuda-python", "cuda-bindings") if _installed(name)]
    listed = [f"{name} {importlib.metadata.version(name)}" for name in found] or ["cuda-python of an unknown version"]
    try:
        major, minor = nvrtc_version()
    except DeviceError as error:
        return f"{', '.join(listed)}; {error.args[0]}"
    return f"{', '.join(listed)}, NVRTC {major}.{minor}"


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _tensorrt() -> Finding:
    for name in MODULES:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            return Finding("TensorRT", "broken", f"{name}: {error}")
        return Finding("TensorRT", "ok", f"{name} {module.__version__}")
    system, machine = platform.system(), platform.machine()
    hint = missing_hint(system, machine, tegra=TEGRA_RELEASE.exists(), python=sys.version_info[:2])
    return Finding("TensorRT", "missing", f"{sys.executable} has neither tensorrt nor tensorrt_rtx", hint)


def _zeromq() -> Finding:
    import zmq

    return Finding("ZeroMQ", "ok", f"{zmq.zmq_version()}, pyzmq {zmq.__version__}", needed=True)


def check_evaluation() -> list[Finding]:
    """Check the packages that `vision eval` needs in addition to the packages of `vision run`."""
    return [
        _optional("matplotlib", "plots of vision eval and vision bench", INSTALL),
        _optional("scipy", "tracking metrics of vision eval", INSTALL),
        _optional("trackeval", "tracking metrics of vision eval", INSTALL),
    ]


def _optional(module: str, purpose: str, install: str) -> Finding:
    """Check that the Python package `module`, which only some commands need, is installed.

    `purpose` and `install` are the use of the package and the command that installs it, for the hint.
    """
    if importlib.util.find_spec(module) is None:
        return Finding(module, "note", f"not installed; required for {purpose}", f"{purpose}: {install}")
    try:
        version = importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        version = "version unknown"
    return Finding(module, "ok", version)


def _clock_sync() -> Finding:
    state = _output("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if state == "yes":
        return Finding("clock", "ok", "synchronized")
    if state == "no":
        hint = "capture times in messages depend on this machine's clock: sudo timedatectl set-ntp true"
        return Finding("clock", "note", "not synchronized", hint)
    hint = "capture times in messages depend on this machine's clock: compare `date -u` with that of another machine"
    return Finding("clock", "note", "timedatectl does not answer, for example in a container", hint)
