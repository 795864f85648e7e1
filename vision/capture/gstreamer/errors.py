"""Functions that convert GStreamer's failures to errors with hints for the operator.

GStreamer's own texts contain the URL, and a position in GStreamer's source code. GStreamer's error codes identify the
cause.
"""

from __future__ import annotations

from vision.config import CameraConfig
from vision.config.source_address import Csi
from vision.errors import SourceError

_NOT_LISTENING = (
    "no camera listens at this address, or it accepts no more clients: check the address, port, and power of the camera"
)
_READ = 9
_CAUSES = {  # code and hint by GstResourceError
    3: ("no-stream", "the camera has no stream at this path: see its manual or web page"),  # NOT_FOUND
    4: ("busy", "another program uses the camera"),  # BUSY
    5: ("refused", _NOT_LISTENING),  # OPEN_READ
    7: ("refused", _NOT_LISTENING),  # OPEN_READ_WRITE
    15: ("unauthorized", "the user or password is wrong; in the URL, write @ as %40, : as %3A, / as %2F"),
}


_CAUSES_BY_TEXT = {  # checked first
    # GStreamer 1.20 reports this for a wrong path, if the camera responds with a request for a password.
    "No supported authentication": ("unauthorized", "the user, password, or path is wrong"),
    "(503)": ("busy", "the camera accepts no more clients, or is starting"),
}


def explain(camera: CameraConfig, domain: str, code: int, message: str, debug: str) -> SourceError:
    """Return the error to raise for a GError of GStreamer with this domain, code, message, and debug text."""
    detail = debug.strip().partition("\n")[2].strip()  # the first line is a position in GStreamer's source code
    text = message if not detail or detail in message else f"{message} ({detail})"
    cause, hint = _cause(camera, domain, code, f"{message} {debug}")
    return source_error(camera, text, hint, code=cause)


def _cause(camera: CameraConfig, domain: str, code: int, text: str) -> tuple[str, str]:
    """Return the code and the hint for a GError. The FFmpeg reader uses the same codes for the same causes."""
    if domain == "gst-stream-error-quark" and "not-negotiated" in text:
        return "camera-mode", "the camera does not support this size, rate, or format; remove width, height, and fps"
    if domain != "gst-resource-error-quark":
        return "gstreamer", ""
    if isinstance(camera.address, Csi):
        hint = "check the ribbon cable, and restart nvargus-daemon: sudo systemctl restart nvargus-daemon"
        return "csi-camera", hint
    for words, cause in _CAUSES_BY_TEXT.items():
        if words in text:
            return cause
    return ("read", _no_answer(camera)) if code == _READ else _CAUSES.get(code, ("gstreamer", ""))


def no_frame(camera: CameraConfig, *, interrupted: bool, connected: bool, coded_frames: int) -> SourceError:
    """Return the error for a camera that delivered no frame within `open_timeout_s`.

    Args:
        camera: configuration of the camera.
        interrupted: if True, opening the camera was interrupted.
        connected: if True, the camera has announced its video stream.
        coded_frames: number of frames that arrived, none of which was decoded.
    """
    timeout = f"within {camera.open_timeout_s:g} s"
    if interrupted:
        return source_error(camera, "interrupted while opening", code="interrupted")
    if coded_frames:
        hint = "shorten the camera's key frame interval (GOP) to 1-2 s, or raise `open_timeout_s`"
        return source_error(
            camera, f"{coded_frames} frames arrived, but no key frame {timeout}", hint, code="no-key-frame"
        )
    if connected:
        return source_error(camera, f"connected, but no frame arrived {timeout}", _no_answer(camera), code="no-frame")
    return source_error(camera, f"no answer {timeout}", _no_answer(camera), code="no-answer")


def source_error(camera: CameraConfig, text: str, hint: str = "", *, code: str = "gstreamer") -> SourceError:
    """Return an error whose text starts with the camera's address."""
    return SourceError(f"{camera.source}: {text}", hint=hint, code=code)


def _no_answer(camera: CameraConfig) -> str:
    if camera.transport == "udp":
        return "a firewall may block UDP: try `transport: tcp`"
    return "check the address, cable, and power of the camera, or raise `open_timeout_s`"
