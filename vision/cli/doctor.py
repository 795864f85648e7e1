"""Diagnosis of the environment: what is installed, what is missing for which feature, and how to install it.

Each check is a function that returns one `Finding`; none of them changes anything or takes longer than a few seconds.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vision.detect.open import has_nvidia_gpu
from vision.engine.library import TEGRA_RELEASE, missing_hint
from vision.errors import DeviceError, DeviceMissing
from vision.version import install_hint, pip_hint

Verdict = Literal["ok", "missing", "broken", "note"]

_TENSORRT_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `needed`: `vision run demo` does not work without it."""

    subject: str
    verdict: Verdict
    detail: str
    hint: str = ""
    needed: bool = False


def examine() -> list[Finding]:
    """Run every check."""
    gpu: tuple[Callable[[], Finding], ...] = (_gpu, _nvdec, _cuda_python, check_cuda, _tensorrt)
    checks: Iterable[Callable[[], Finding]] = (
        _machine,
        _jetson,
        _power_mode,
        _opencv,
        _gstreamer,
        _pyav,
        _onnxruntime,
        *(gpu if has_nvidia_gpu() or TEGRA_RELEASE.exists() or _output("nvidia-smi", "-L") else (_no_gpu,)),
        _zeromq,
        _evaluation,
        _clock_sync,
    )
    return [check() for check in checks]


def print_findings(findings: Iterable[Finding], console: Console) -> int:
    """Print the table and the hints; return 0 if everything that is needed is there, else 1."""
    findings = list(findings)
    styles = {"ok": "green", "missing": "yellow", "broken": "red", "note": "cyan"}
    table = Table("what", "state", "found", header_style="bold")
    table.columns[2].overflow = "fold"
    for finding in findings:
        table.add_row(finding.subject, f"[{styles[finding.verdict]}]{finding.verdict}[/]", escape(finding.detail))
    console.print(table)
    for finding in findings:
        if finding.hint:
            console.print(f"[bold]{finding.subject}[/]: {escape(finding.hint)}", highlight=False, soft_wrap=True)
    failed = [finding.subject for finding in findings if finding.needed and finding.verdict in ("missing", "broken")]
    console.print(f"needed and not there: {', '.join(failed)}" if failed else "vision run demo will work here")
    return 1 if failed else 0


def print_findings_as_json(findings: Iterable[Finding]) -> int:
    """Print the findings as JSON; return 0 if everything that is needed is there, else 1."""
    findings = list(findings)
    works = not any(finding.needed and finding.verdict in ("missing", "broken") for finding in findings)
    document = {"schema": "vision.doctor/1", "works": works, "findings": [asdict(finding) for finding in findings]}
    print(json.dumps(document, indent=2))
    return 0 if works else 1


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "version unknown"


def _output(*command: str) -> str | None:
    """Return standard output of a command; None if it is not there, fails, or takes over 5 s."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _machine() -> Finding:
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    detail = f"{platform.machine()}, {cores} cores, {memory_gib:.1f} GiB, Python {platform.python_version()}"
    return Finding("machine", "ok", detail, needed=True)


def _jetson() -> Finding:
    release = Path("/etc/nv_tegra_release")
    if not release.exists():
        return Finding("Jetson", "note", "this is not a Jetson")
    model = Path("/proc/device-tree/model")
    name = model.read_bytes().rstrip(b"\0").decode(errors="replace") if model.exists() else "unknown module"
    return Finding("Jetson", "ok", f"{name}; {release.read_text().splitlines()[0].lstrip('# ')}")


def _power_mode() -> Finding:
    mode = _output("nvpmodel", "-q")
    if mode is None:
        return Finding("power mode", "note", "no nvpmodel here")
    detail = " ".join(mode.split())
    if "MAXN" in detail.upper():
        return Finding("power mode", "ok", detail)
    return Finding("power mode", "note", detail, hint="more speed, more heat: sudo nvpmodel -m 0 && sudo jetson_clocks")


def _opencv() -> Finding:
    hint = f"{install_hint('opencv')}; on a Jetson use JetPack's own build: docs/jetson.md"
    if importlib.util.find_spec("cv2") is None:
        return Finding("OpenCV", "missing", "the module cv2 is not installed", hint, needed=True)
    try:
        import cv2
    except ImportError as error:
        return Finding("OpenCV", "broken", str(error), hint, needed=True)
    wanted = ("FFMPEG", "GStreamer", "v4l/v4l2")
    lines = (line.strip() for line in cv2.getBuildInformation().splitlines())
    parts = [" ".join(line.split()) for line in lines if line.startswith(wanted)]
    return Finding(
        "OpenCV", "ok", f"{cv2.__version__} from {Path(cv2.__file__).parent}; {', '.join(parts)}", needed=True
    )


def _gstreamer() -> Finding:
    hint = (
        "RTSP with capture times from the camera and CSI cameras need it: sudo apt-get install python3-gi "
        "gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-{base,good,bad} gstreamer1.0-libav, and a virtual "
        "environment made with --system-site-packages"
    )
    try:
        import gi

        gi.require_version("Gst", "1.0")
        from gi.repository import Gst
    except (ImportError, ValueError) as error:
        return Finding("GStreamer", "missing", str(error), hint)
    Gst.init(None)
    decoders = [name for name in ("nvv4l2decoder", "avdec_h264", "nvarguscamerasrc") if Gst.ElementFactory.find(name)]
    detail = f"{Gst.version_string()}; {', '.join(decoders) or 'no H.264 decoder'}"
    if not {"nvv4l2decoder", "avdec_h264"} & set(decoders):
        return Finding("GStreamer", "missing", detail, hint)
    return Finding("GStreamer", "ok", detail)


def _pyav() -> Finding:
    from vision.capture.open import missing_pyav

    hint = "video files, HTTP cameras, and RTSP cameras without GStreamer need it: " + pip_hint("av>=12.3")
    reason = missing_pyav()
    if reason is not None:
        return Finding("PyAV", "missing", reason, hint, needed=True)
    import av

    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    return Finding("PyAV", "ok", f"{av.__version__}; libavcodec {codec}", needed=True)


def _onnxruntime() -> Finding:
    needed = not any(importlib.util.find_spec(name) for name in _TENSORRT_MODULES)
    try:
        import onnxruntime
    except ImportError as error:
        return Finding("ONNX Runtime", "missing", str(error), install_hint("onnx"), needed)
    providers = ", ".join(onnxruntime.get_available_providers())
    return Finding("ONNX Runtime", "ok", f"{onnxruntime.__version__}; {providers}")


def _gpu() -> Finding:
    listing = _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if listing is None:
        if Path("/etc/nv_tegra_release").exists():
            return Finding("GPU", "ok", "integrated")
        return Finding("GPU", "missing", "nvidia-smi is not there or finds no GPU", "the detector runs on ONNX Runtime")
    return Finding("GPU", "ok", "; ".join(listing.splitlines()))


def _no_gpu() -> Finding:
    """Return one finding in place of those about the GPU's driver and libraries."""
    detail = "no NVIDIA GPU: the detector runs on the CPU with ONNX Runtime, without CUDA, TensorRT and NVDEC"
    return Finding("GPU", "note", detail)


def _evaluation() -> Finding:
    """Return which optional parts of `vision eval` are there."""
    parts = {name: importlib.util.find_spec(name) is not None for name in ("matplotlib", "scipy", "trackeval")}
    missing = [name for name, present in parts.items() if not present]
    if not missing:
        return Finding("vision eval", "ok", ", ".join(parts))
    hint = f"vision eval needs them: {install_hint('eval')} && {pip_hint('--no-deps', 'trackeval>=1.3')}"
    return Finding("vision eval", "note", f"not installed: {', '.join(missing)}", hint)


def _nvdec() -> Finding:
    if Path("/etc/nv_tegra_release").exists():
        return Finding("NVDEC", "note", "a Jetson's decoders are reached through GStreamer")
    if shutil.which("nvidia-smi") is None:
        return Finding("NVDEC", "note", "no graphics card of NVIDIA")
    if importlib.util.find_spec("PyNvVideoCodec") is None:
        hint = "cameras are decoded on the graphics card with it: " + install_hint("nvdec")
        return Finding("NVDEC", "missing", "the module PyNvVideoCodec is not installed", hint)
    try:
        module = importlib.import_module("PyNvVideoCodec")
    except Exception as error:  # noqa: BLE001 - it raises its own where the driver lacks the video libraries
        hint = "a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility,video; else update the driver"
        return Finding("NVDEC", "broken", f"PyNvVideoCodec: {str(error).splitlines()[0]}", hint)
    return Finding("NVDEC", "ok", f"PyNvVideoCodec {module.__version__}")


def _cuda_python() -> Finding:
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        hint = f"{install_hint('cuda13')} with JetPack 7 and current drivers, cuda12 in place of cuda13 with JetPack 6"
        return Finding("cuda-python", "missing", "the module cuda.bindings is not installed", hint)
    return Finding("cuda-python", "ok", f"cuda-bindings {_version('cuda-bindings')}")


def check_cuda() -> Finding:
    """Whether the GPU can be opened: a driver may be too old for the CUDA of cuda-python, or hide its GPUs."""
    try:
        from vision.gpu.cuda import open_device

        device = open_device()
    except DeviceError as error:
        there = has_nvidia_gpu() or not isinstance(error, DeviceMissing)
        return Finding("CUDA", "broken" if there else "missing", error.args[0], error.hint or "")
    version = f"{device.driver_version // 1000}.{device.driver_version % 1000 // 10}"
    return Finding("CUDA", "ok", f"{device.name} ({device.arch}), the driver knows CUDA {version}")


def _tensorrt() -> Finding:
    for name in _TENSORRT_MODULES:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            module = __import__(name)
        except (ImportError, OSError, RuntimeError) as error:
            return Finding("TensorRT", "broken", f"{name}: {error}")
        return Finding("TensorRT", "ok", f"{name} {module.__version__}")
    system, machine = platform.system(), platform.machine()
    hint = missing_hint(system, machine, tegra=TEGRA_RELEASE.exists(), python=sys.version_info[:2])
    return Finding("TensorRT", "missing", f"neither tensorrt nor tensorrt_rtx for {sys.executable}", hint)


def _zeromq() -> Finding:
    try:
        import zmq
    except ImportError as error:
        return Finding("ZeroMQ", "missing", str(error), pip_hint("pyzmq"), needed=True)
    return Finding("ZeroMQ", "ok", f"{zmq.zmq_version()}, pyzmq {zmq.__version__}", needed=True)


def _clock_sync() -> Finding:
    state = _output("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if state == "yes":
        return Finding("clock", "ok", "synchronised")
    detail = "not synchronised" if state == "no" else "timedatectl does not say"
    hint = "capture times in messages are as right as this machine's clock: sudo timedatectl set-ntp true"
    return Finding("clock", "note", detail, hint if state == "no" else "")
