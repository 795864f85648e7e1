"""`vision draw`: each camera's lines and zones on a frame of its own, so that people see what they configured."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from vision.capture.frame_reader import read_frames
from vision.cli.check import look_at_each
from vision.config import AppConfig, CameraAnalytics, CameraConfig, Point
from vision.config.source_address import RECORDED
from vision.errors import EXIT_OK, EXIT_RUNTIME, SourceError, VisionError
from vision.overlay import Overlay

_SETTLE_S: Final = 0.5
"""The newest frame after so long is taken of a live camera: the first ones of a USB camera are dark."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """What became of one camera: `path` where a frame was written, `error` where none was."""

    camera_id: str
    path: Path | None = None
    words: str = ""  # what is drawn
    outside: tuple[str, ...] = ()  # points beyond the frame
    error: str = ""


def draw_cameras(config: AppConfig, folder: Path, stop: threading.Event) -> list[Drawing]:
    """Write ``<camera>.png`` for every camera, as far as they give a frame within their time-outs.

    Raises:
        VisionError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VisionError(f"--out: cannot make the folder {folder}: {error.strerror}") from error

    def draw(camera: CameraConfig) -> Drawing:
        section = config.analytics.get(camera.id, CameraAnalytics())
        try:
            return draw_camera(camera, section, folder / f"{camera.id}.png")
        except SourceError as error:
            return Drawing(camera.id, error=str(error))

    found = look_at_each(config.cameras, draw, stop)
    return [found.get(one.id, Drawing(one.id, error="no answer within its time-outs")) for one in config.cameras]


def draw_camera(camera: CameraConfig, section: CameraAnalytics, path: Path) -> Drawing:
    """Write the lines and zones of one camera over its frame.

    Raises:
        SourceError: the camera gave no frame.
    """
    frame = current_frame(camera)
    height_px, width_px = frame.shape[:2]
    overlay = Overlay(frame)
    overlay.banner(camera.id, f"{width_px} x {height_px}")
    overlay.analytics(section)
    encoded, data = cv2.imencode(".png", frame)
    try:
        path.write_bytes(data.tobytes() if encoded else b"")
    except OSError as error:
        return Drawing(camera.id, error=f"cannot write {path}: {error.strerror}")
    numbers = (("line", len(section.lines)), ("zone", len(section.zones)))
    words = ", ".join(f"{number} {kind}{'' if number == 1 else 's'}" for kind, number in numbers)
    return Drawing(camera.id, path, words, tuple(outside_words(section, height_px, width_px)))


def current_frame(camera: CameraConfig) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 BGR of now, or the first one of a file.

    Raises:
        SourceError: the camera cannot be opened, or gives no whole frame.
    """
    recorded = isinstance(camera.address, RECORDED)
    settle_s = 0.0 if recorded else _SETTLE_S
    newest: NDArray[np.uint8] | None = None
    with closing(read_frames(camera, offline=recorded)) as stills:
        began = time.monotonic()
        try:
            for still in stills:
                passed_s = time.monotonic() - began
                if not still.grab.corrupt:
                    newest = still.pixels.copy()
                if passed_s >= (settle_s if newest is not None else camera.read_timeout_s):
                    break
        except SourceError:
            if newest is None:
                raise
    if newest is None:
        raise SourceError("it opened, but gave no whole frame")
    return newest


def outside_words(section: CameraAnalytics, height_px: int, width_px: int) -> Iterator[str]:
    """Yield the points beyond the frame, which no object can cross or enter."""
    if section.units != "pixels":  # others cannot be beyond it
        return
    shapes: list[tuple[str, str, Sequence[Point]]] = [("line", line.name, line.points) for line in section.lines]
    shapes += [("zone", zone.name, zone.polygon) for zone in section.zones]
    for kind, name, points in shapes:
        beyond = [f"[{x:g}, {y:g}]" for x, y in points if x > width_px or y > height_px]
        if beyond:
            yield f"{kind} {name}: {', '.join(beyond)} lies outside of the frame of {width_px}x{height_px}"


def print_drawings(drawings: Sequence[Drawing], console: Console) -> int:
    """Print a line per camera; return 0 if every camera gave a frame, else 1."""
    for drawing in drawings:
        name = escape(drawing.camera_id)
        if drawing.path is not None:
            console.print(f"{name}: {escape(str(drawing.path))}, {drawing.words}", soft_wrap=True, highlight=False)
        else:
            console.print(f"[red]{name}: {escape(drawing.error)}[/]", soft_wrap=True, highlight=False)
        for words in drawing.outside:
            console.print(f"[yellow]{name}: {escape(words)}[/]", soft_wrap=True, highlight=False)
    return EXIT_RUNTIME if any(drawing.path is None for drawing in drawings) else EXIT_OK
