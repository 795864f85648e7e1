from __future__ import annotations

import pytest

from vision.capture.gstreamer import errors
from vision.config import CameraConfig

RESOURCE, STREAM = "gst-resource-error-quark", "gst-stream-error-quark"


def camera(source: str = "rtsp://ann:hunter2@10.0.0.4/s?token=t0ken", transport: str = "tcp") -> CameraConfig:
    settings = {"transport": transport} if source.startswith("rtsp") else {}
    return CameraConfig.model_validate({"id": "gate", "source": source, **settings})


@pytest.mark.parametrize(
    ("domain", "number", "debug", "code"),
    [
        (RESOURCE, 15, "Unauthorized (401)", "unauthorized"),
        (RESOURCE, 3, "Not Found (404)", "no-stream"),
        (RESOURCE, 4, "", "busy"),
        (RESOURCE, 5, "", "refused"),
        (RESOURCE, 7, "Failed to connect. (Generic error)", "refused"),
        (RESOURCE, 9, "", "read"),
        (STREAM, 1, "streaming stopped, reason not-negotiated (-4)", "camera-mode"),
        (STREAM, 7, "", "gstreamer"),
        ("gst-core-error-quark", 1, "", "gstreamer"),
    ],
)
def test_causes_have_codes_and_hints(domain: str, number: int, debug: str, code: str) -> None:
    error = errors.explain(camera(), domain, number, "It failed.", f"gstrtspsrc.c(1): open ():\n{debug}")
    assert error.code == code
    assert bool(error.hint) is (code != "gstreamer")
    assert debug in str(error)
    assert "gstrtspsrc.c" not in str(error)


def test_csi_camera_has_its_own_hint() -> None:
    error = errors.explain(camera("csi:0"), RESOURCE, 5, "No cameras available", "")
    assert error.code == "csi-camera"
    assert "nvargus-daemon" in error.hint


def test_errors_contain_no_secrets() -> None:
    said = "Could not open rtsp://ann:hunter2@10.0.0.4/s?token=t0ken for reading"
    error = errors.explain(camera(), RESOURCE, 5, said, f"x.c(1):\n{said}")
    assert "hunter2" not in str(error)
    assert "t0ken" not in str(error)
    assert "10.0.0.4" in str(error)


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ((True, False, 0), "interrupted"),
        ((False, False, 0), "no-answer"),
        ((False, True, 0), "no-frame"),
        ((False, True, 37), "no-key-frame"),
    ],
)
def test_missing_frame_names_its_cause(state: tuple[bool, bool, int], code: str) -> None:
    interrupted, connected, count = state
    error = errors.no_frame(camera(), interrupted=interrupted, connected=connected, coded_frames=count)
    assert error.code == code
    assert bool(error.hint) is not interrupted
    assert "hunter2" not in str(error)


def test_missing_frame_over_udp_suggests_tcp() -> None:
    assert (
        "transport: tcp"
        in errors.no_frame(camera(transport="udp"), interrupted=False, connected=True, coded_frames=0).hint
    )
