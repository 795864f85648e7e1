"""Texts of the capture folder."""

from vision.capture.gstreamer import errors
from vision.capture.opencv.source import open_device
from vision.capture.source import not_open
from vision.config import CameraConfig
from vision.errors import SourceError

_GATE = CameraConfig(id="gate", source="rtsp://192.0.2.1/a")


def _refused_device(device: str) -> str:
    try:
        open_device(CameraConfig(id="desk", source="/dev/video0").model_copy(update={"source": device}))
    except SourceError as error:
        return str(error)
    return "no error"


ROWS = [
    (
        "grab before open",
        lambda: str(not_open("clip.mp4", "grab")),
        "clip.mp4: `grab` was called before `open`, or after `close`",
    ),
    (
        "GStreamer without an answer",
        lambda: str(errors.no_frame(_GATE, interrupted=False, connected=False, coded_frames=0)),
        (
            "rtsp://192.0.2.1/a: no answer within 5 s\n"
            "  hint: check address, cable and the camera's power, or raise open_timeout_s"
        ),
    ),
    (
        "a USB camera that is not connected",
        lambda: _refused_device("/dev/video987"),
        "/dev/video987: No such file or directory\n  hint: is it plugged in? v4l2-ctl --list-devices",
    ),
    (
        "a device that is not a camera",
        lambda: _refused_device("/dev/null"),
        (
            "/dev/null: V4L2 cannot open it\n"
            "  hint: check that it is a camera (v4l2-ctl --list-devices), and not in use by a different program"
        ),
    ),
    (
        "a file instead of a USB camera",
        lambda: _refused_device("/etc/passwd"),
        "/etc/passwd: not a video device\n  hint: USB cameras are /dev/video0, /dev/video1, ...",
    ),
    (
        "GStreamer without a key frame",
        lambda: str(errors.no_frame(_GATE, interrupted=False, connected=True, coded_frames=7)),
        (
            "rtsp://192.0.2.1/a: 7 frames arrived, but no key frame within 5 s\n"
            "  hint: shorten the camera's key frame interval (GOP) to 1-2 s, or raise `open_timeout_s`"
        ),
    ),
]
