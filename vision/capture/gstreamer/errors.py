"""What GStreamer says when a camera fails, and what the operator can do about it.

GStreamer's texts name the place in its sources and the URL; its codes name the cause.
"""

from __future__ import annotations

from vision.config import CameraConfig
from vision.config.source_address import Csi
from vision.errors import SourceError, redact

_RESOURCE = "gst-resource-error-quark"
_NOT_FOUND, _BUSY, _OPEN_READ, _OPEN_READ_WRITE, _READ, _NOT_AUTHORIZED = 3, 4, 5, 7, 9, 15
_STREAM = "gst-stream-error-quark"
_NOBODY = "nothing listens there, or it takes no more clients: check address, port and the camera's power"


def explain(camera: CameraConfig, domain: str, code: int, message: str, debug: str) -> SourceError:
    """The error to raise for one that GStreamer posted: `domain`, `code` and `message` are GError's."""
    detail = debug.strip().partition("\n")[2].strip()  # the first line is a place in GStreamer's sources
    text = message if not detail or detail in message else f"{message} ({detail})"
    return SourceError(
        f"{redact(camera.source)}: {redact(text)}", hint=_hint(camera, domain, code, f"{message} {debug}")
    )


def _hint(camera: CameraConfig, domain: str, code: int, text: str) -> str:
    if domain == _STREAM and "not-negotiated" in text:
        return "the camera does not give this size, rate or format; leave out width, height and fps"
    if domain != _RESOURCE:
        return ""
    if isinstance(camera.address, Csi):
        return "is the camera's ribbon cable in, and does nvargus-daemon run? systemctl restart nvargus-daemon"
    return {
        _NOT_AUTHORIZED: "user or password are wrong; in the URL write @ as %40, : as %3A, / as %2F",
        _NOT_FOUND: "the camera has no stream of this path: look it up in its manual or its web page",
        _BUSY: "another program uses the camera",
        _OPEN_READ: _NOBODY,
        _OPEN_READ_WRITE: _NOBODY,
        _READ: _no_answer(camera),
    }.get(code, "")


def silence(camera: CameraConfig, *, interrupted: bool, connected: bool, coded_frames: int) -> SourceError:
    """The error to raise where GStreamer says nothing and no frame has come within `open_timeout_s`."""
    address = redact(camera.source)
    waited = f"within {camera.open_timeout_s:g} s"
    if interrupted:
        return SourceError(f"{address}: interrupted while it opened")
    if coded_frames:
        return SourceError(
            f"{address}: {coded_frames} frames but no key frame {waited}",
            hint="shorten the camera's key frame interval (GOP) to 1-2 s, or raise open_timeout_s",
        )
    if connected:
        return SourceError(f"{address}: connected, but no frame came {waited}", hint=_no_answer(camera))
    return SourceError(f"{address}: no answer {waited}", hint=_no_answer(camera))


def _no_answer(camera: CameraConfig) -> str:
    if camera.transport == "udp":
        return "a firewall may keep UDP out: try `transport: tcp`"
    return "check address, cable and the camera's power, or raise open_timeout_s"
