"""Expected texts of errors about cameras and video files."""

from vision.capture.gstreamer import errors
from vision.capture.source import not_open
from vision.config import CameraConfig

_GATE = CameraConfig(id="gate", source="rtsp://192.0.2.1/a")

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
            "  hint: check the address, cable, and power of the camera, or raise `open_timeout_s`"
        ),
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
