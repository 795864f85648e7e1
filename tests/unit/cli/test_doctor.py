"""What `vision doctor` says of the libraries that cameras are opened with."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from vision.capture import open as opening
from vision.cli.doctor import Finding, Verdict, _nvdec, _pyav, print_findings
from vision.version import install_hint


def test_what_is_printed_can_be_typed() -> None:
    """Brackets are Rich's markup: `pip install 'name[cuda12]'` was printed as `pip install 'name'`."""
    console = Console(file=StringIO(), width=200)
    finding = Finding("cuda-python", "missing", "no module [cuda]", install_hint("cuda12"))
    assert print_findings([finding], console) == 0
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert install_hint("cuda12") in printed
    assert "no module [cuda]" in printed


def test_pyav_is_reported_with_its_libavcodec() -> None:
    import av

    found = _pyav()
    assert (found.verdict, found.hint, found.needed) == ("ok", "", True)
    assert found.detail.startswith(f"{av.__version__}; libavcodec ")


@pytest.mark.parametrize(
    ("reason", "missing"), [("PyAV is not installed", None), ("PyAV is 11.0.0, expected 12 or later", "11.0.0")]
)
def test_pyav_that_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch, reason: str, missing: str | None) -> None:
    opening.missing_pyav.cache_clear()
    if missing is None:
        monkeypatch.setitem(sys.modules, "av", None)
    else:
        monkeypatch.setattr("av.__version__", missing)
    try:
        found = _pyav()
    finally:
        opening.missing_pyav.cache_clear()
    assert found.verdict == "missing"
    assert reason in found.detail
    assert "av>=12.3" in found.hint


@dataclass(frozen=True)
class Machine:
    spec: bool
    module: str | None = None  # what PyNvVideoCodec does when it is imported


@pytest.mark.parametrize(
    ("machine", "said", "hint"),
    [
        (Machine(spec=False), ("note", "no graphics card of NVIDIA"), ""),
        (
            Machine(spec=True),
            ("missing", "the module PyNvVideoCodec is not installed"),
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
def test_nvdec(
    machine: Machine, said: tuple[Verdict, str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    found = _nvdec()
    monkeypatch.delitem(sys.modules, "PyNvVideoCodec", raising=False)
    assert (found.verdict, found.detail) == said
    assert hint in found.hint
    assert bool(found.hint) is bool(hint)
