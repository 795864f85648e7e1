"""Tests that the examples and package names in docs/cameras.md are valid."""

from __future__ import annotations

import re

from tests.paths import ROOT
from vision.capture.gstreamer.pipeline import PACKAGES
from vision.config import load_config_text

TEXT = (ROOT / "docs" / "cameras.md").read_text(encoding="utf-8")


def test_documented_cameras_are_valid() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    site = load_config_text(example, {"GATE_PASSWORD": "x"}, name="cameras.md")
    assert [camera.id for camera in site.cameras] == ["gate", "yard", "desk", "lot", "demo", "set", "fake"]


def test_all_packages_are_documented() -> None:
    for package in {*PACKAGES.values(), "python3-gi", "gir1.2-gst-plugins-base-1.0", "gir1.2-gst-rtsp-server-1.0"}:
        assert package in TEXT
