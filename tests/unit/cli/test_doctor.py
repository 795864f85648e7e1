"""Tests of the findings of `vision doctor` about the libraries that cameras and evaluations use."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from vision.capture import open as opening
from vision.cli.doctor import (
    Finding,
    Verdict,
    check_evaluation,
    check_nvdec,
    check_pyav,
    judge_gstreamer,
    print_findings,
)
from vision.evaluation.tracks import INSTALL
from vision.version import install_hint


def test_printed_hint_can_be_typed() -> None:
    """Rich interprets brackets as markup. Without escapes, it prints `pip install 'name[cuda12]'` without brackets."""
    console = Console(file=StringIO(), width=200)
    finding = Finding("cuda-python", "missing", "no module [cuda]", install_hint("cuda12"))
    print_findings([finding], console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert install_hint("cuda12") in printed
    assert "[cuda]" in printed


def test_pyav_is_reported_with_its_libavcodec() -> None:
    import av

    finding = check_pyav()
    assert (finding.verdict, finding.hint, finding.needed) == ("ok", "", True)
    assert finding.detail.startswith(f"{av.__version__}; libavcodec ")


@pytest.mark.parametrize("version", [None, "11.0.0"])
def test_missing_or_old_pyav_is_reported(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    opening.missing_pyav.cache_clear()
    if version is None:
        monkeypatch.setitem(sys.modules, "av", None)
    else:
        monkeypatch.setattr("av.__version__", version)
    try:
        finding = check_pyav()
    finally:
        opening.missing_pyav.cache_clear()
    assert finding.verdict == "missing"
    assert (version or "PyAV") in finding.detail
    assert "av>=12.3" in finding.hint


@dataclass(frozen=True)
class Machine:
    spec: bool
    module: str | None = None  # code of PyNvVideoCodec, which runs at its import


@pytest.mark.parametrize(
    ("machine", "expected", "hint"),
    [
        (Machine(spec=False), ("note", "NVIDIA"), ""),
        (
            Machine(spec=True),
            ("missing", "PyNvVideoCodec"),
            install_hint("nvdec"),
        ),
        (Machine(True, "__version__ = '2.2.0'"), ("ok", "PyNvVideoCodec 2.2.0"), ""),
        (
            Machine(True, "raise RuntimeError('no libnvidia-encode.so.1\\n\\n=== STEPS ===')"),
            ("broken", "PyNvVideoCodec: no libnvidia-encode.so.1"),
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video",
        ),
    ],
    ids=["no card", "no library", "all there", "no driver library"],
)
def test_nvdec_is_reported(
    machine: Machine, expected: tuple[Verdict, str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "PyNvVideoCodec", raising=False)
    if machine.spec:
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\necho Card, 580, 8 GiB\n")
        tool.chmod(0o755)
    if machine.module is not None:
        (tmp_path / "PyNvVideoCodec.py").write_text(machine.module + "\n")
    finding = check_nvdec()
    monkeypatch.delitem(sys.modules, "PyNvVideoCodec", raising=False)
    verdict, part = expected
    assert finding.verdict == verdict
    assert part in finding.detail
    assert hint in finding.hint
    assert bool(finding.hint) is bool(hint)


@pytest.mark.parametrize(
    ("missing", "packages"),
    [
        ((), ()),
        (("rtspsrc",), ("gstreamer1.0-plugins-good",)),
        (("h265parse",), ("gstreamer1.0-plugins-bad",)),
        (("avdec_h265", "nvv4l2decoder"), ("gstreamer1.0-libav",)),
        (("rtph264depay", "h264parse"), ("gstreamer1.0-plugins-good", "gstreamer1.0-plugins-bad")),
    ],
)
def test_missing_gstreamer_plugins_are_reported_with_their_packages(
    missing: tuple[str, ...], packages: tuple[str, ...]
) -> None:
    finding = judge_gstreamer("GStreamer 1.22", lambda name: name not in missing)
    assert (finding.verdict == "missing") is bool(packages)
    assert all(package in finding.hint for package in packages)


def test_optional_parts_are_reported_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    findings = {finding.subject: finding for finding in check_evaluation()}
    assert findings.keys() == {"matplotlib", "scipy", "trackeval"}
    assert all(finding.verdict == "note" and INSTALL in finding.hint for finding in findings.values())
