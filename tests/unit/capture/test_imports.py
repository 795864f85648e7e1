"""Tests that processes that read cameras import `ssl` and `http.client` only for cameras that need these modules."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import sys
import vision.capture.ffmpeg.file, vision.capture.ffmpeg.source, vision.runtime.builder, vision.runtime.capture_worker

print([name for name in ("ssl", "http.client") if name in sys.modules])
"""


@pytest.mark.integration
def test_reading_rtsp_and_files_imports_no_tls() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
