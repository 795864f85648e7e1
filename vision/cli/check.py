"""`vision check`: opens each camera of a configuration once, all at the same time, and says what it gives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from vision.capture.open import open_source
from vision.capture.source import Grab, Source, StreamInfo
from vision.config import CameraConfig
from vision.errors import SizeChanged, SourceError
from vision.types import FrameBuffer, PixelFormat

_Look = TypeVar("_Look")

_GRACE_S = 2.0  # beyond the camera's own time-outs, for a library that is late


@dataclass(frozen=True, slots=True)
class CameraCheck:
    """What became of one camera: `info` where it gave a frame, `error` where it did not."""

    camera_id: str
    info: StreamInfo | None
    first_frame_s: float
    error: str = ""


def check_cameras(
    cameras: Sequence[CameraConfig], pixel_formats: tuple[PixelFormat, ...], stop: threading.Event
) -> list[CameraCheck]:
    """Open every camera and read one frame, within the time-outs of its configuration."""
    found = look_at_each(cameras, lambda camera: _check_camera(camera, pixel_formats), stop)
    silent = [CameraCheck(one.id, None, 0.0, "no answer within its time-outs") for one in cameras]
    return [found.get(one.camera_id, one) for one in silent]


def look_at_each(
    cameras: Sequence[CameraConfig], look: Callable[[CameraConfig], _Look], stop: threading.Event
) -> dict[str, _Look]:
    """What `look` says of every camera, all at the same time; without those that give no answer in their time-outs."""
    found: dict[str, _Look] = {}

    def ask(camera: CameraConfig) -> None:
        found[camera.id] = look(camera)

    threads = [threading.Thread(target=ask, args=(camera,), daemon=True, name=camera.id) for camera in cameras]
    for thread in threads:
        thread.start()
    deadlines = [time.monotonic() + one.open_timeout_s + one.read_timeout_s + _GRACE_S for one in cameras]
    for thread, deadline in zip(threads, deadlines, strict=True):
        while thread.is_alive() and time.monotonic() < deadline and not stop.is_set():
            thread.join(0.1)
    return dict(found)


def _check_camera(camera: CameraConfig, pixel_formats: tuple[PixelFormat, ...]) -> CameraCheck:
    began = time.monotonic()
    try:
        with closing(open_source(camera, offline=False, pixel_formats=pixel_formats)) as source:
            info = source.open()
            _read_frame(source, info, camera.read_timeout_s)
    except SourceError as error:
        return CameraCheck(camera.id, None, time.monotonic() - began, str(error))
    return CameraCheck(camera.id, info, time.monotonic() - began)


def _read_frame(source: Source, info: StreamInfo, timeout_s: float) -> Grab:
    grab = source.grab(timeout_s)
    if grab is None:
        raise SourceError(f"it opened, but gave no frame within {timeout_s:g} s")
    with suppress(SizeChanged):  # a frame of any size shows that the camera works
        source.retrieve(FrameBuffer.allocate(info.height_px, info.width_px, info.pixel_format))
    return grab


def print_checks(checks: Sequence[CameraCheck], console: Console) -> int:
    """Print the table; 0 if every camera gave a frame, else 1."""
    table = Table("camera", "frame", "frames/s", "format", "decoder", "first frame", header_style="bold")
    for check in checks:
        info = check.info
        if info is None:
            table.add_row(check.camera_id, "[red]none[/]", "", "", "", f"after {check.first_frame_s:.1f} s")
        else:
            rate = "" if info.fps is None else f"{info.fps:g}"
            size = f"{info.width_px}x{info.height_px}"
            first = f"{check.first_frame_s:.1f} s"
            table.add_row(check.camera_id, size, rate, info.pixel_format, info.decoder, first)
    console.print(table)
    for check in checks:
        if check.error:
            console.print(f"{check.camera_id}: {check.error}", style="red", markup=False, highlight=False)
    return 1 if any(check.error for check in checks) else 0
