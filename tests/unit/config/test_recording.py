"""Tests of conflicts between the section `recording` and the cameras or other sections."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.config.faults import config_faults
from vision.config import load_config


def faults(text: str) -> list[tuple[str, str]]:
    return [(key, code) for _, key, code in config_faults(text)]


RTSP = "{id: gate, source: 'rtsp://a/b'}"


@pytest.mark.parametrize(
    ("cameras", "recording", "expected"),
    [
        (RTSP, "{folder: r}", []),
        ("{id: gate, source: 'http://a/b', reader: nvdec}", "{folder: r}", []),
        (f"{RTSP}, {{id: yard, source: a.mp4}}", "{folder: r, cameras: [gate]}", []),
        (f"{RTSP}, {{id: yard, source: a.mp4}}", "{folder: r}", [("cameras[1].source", "not-recordable")]),
        ("{id: gate, source: 'synthetic:'}", "{folder: r}", [("cameras[0].source", "not-recordable")]),
        ("{id: gate, source: /dev/video0}", "{folder: r}", [("cameras[0].source", "not-recordable")]),
        (
            "{id: gate, source: 'rtsp://a/b', reader: gstreamer}",
            "{folder: r}",
            [("cameras[0].reader", "not-recordable")],
        ),
        (RTSP, "{folder: r, cameras: [gat]}", [("recording.cameras[0]", "unknown-camera")]),
        (RTSP, "{folder: ~/r}", [("recording.folder", "home")]),
        (RTSP, "{mode: both}", [("recording.folder", "missing")]),
        (RTSP, "{folder: r, mode: always}", [("recording.mode", "literal-error")]),
        (RTSP, "{folder: r, pre_s: 61}", [("recording.pre_s", "less-than-equal")]),
    ],
)
def test_section_that_does_not_fit_is_refused(cameras: str, recording: str, expected: list[tuple[str, str]]) -> None:
    assert faults(f"pipeline: count\nstate_dir: s\ncameras: [{cameras}]\nrecording: {recording}\n") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pipeline: count\nrecording: {folder: r}", [("recording", "needs-state-dir")]),
        ("state_dir: s\nrecording: {folder: r}", [("recording", "wrong-pipeline")]),
        ("state_dir: s\npipeline: track\nrecording: {folder: r, mode: both}", [("recording", "wrong-pipeline")]),
        ("state_dir: s\nrecording: {folder: r, mode: continuous}", []),
    ],
)
def test_section_needs_events_and_a_place_for_the_index(text: str, expected: list[tuple[str, str]]) -> None:
    assert faults(f"cameras: [{RTSP}]\n{text}\n") == expected


def test_folder_is_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(f"cameras: [{RTSP}]\nstate_dir: s\nrecording: {{folder: r, mode: continuous}}\n")
    recording = load_config(path, {}).recording
    assert recording is not None
    assert recording.folder == f"{tmp_path}/r"
