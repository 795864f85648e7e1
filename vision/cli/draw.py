"""The command `vision draw`, which draws the lines and zones on one frame of each camera."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from vision.capture.frame_reader import read_frames
from vision.capture.open import require_library
from vision.cli.check import NO_ANSWER, look_at_each
from vision.cli.options import ConfigName, read_config
from vision.cli.session import command
from vision.config import AppConfig, CameraAnalytics, CameraConfig, Point
from vision.config.privacy import CameraPrivacy
from vision.config.source_address import RECORDED
from vision.errors import EXIT_OK, EXIT_RUNTIME, SourceError, VisionError
from vision.version import require_cv2

_SETTLE_S: Final = 0.5
"""Time after which the newest frame of a live camera is used, because the first frames of a USB camera are dark."""


@command(orderly=True)
def draw(
    context: typer.Context,
    config: ConfigName,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the images.")] = Path("drawn"),
) -> int:
    """Draw the lines and zones on one frame of each camera.

    Examples:
      vision draw camera.yaml
      vision draw counting --out /tmp/drawn
    """
    app_config = read_config(config)
    require_cv2("vision draw")
    for camera in app_config.cameras:
        require_library(camera)
    return print_drawings(draw_cameras(app_config, out, context.obj.stop), Console())


@dataclass(frozen=True, slots=True)
class Drawing:
    """The drawing of one camera, or the reason why there is none."""

    camera_id: str
    path: Path | None = None  # the image; None if it was not written
    words: str = ""  # the numbers of lines and zones, such as "1 line, 2 zones"
    outside: tuple[str, ...] = ()  # a warning for each line, outline, or hole with points outside the frame
    error: str = ""  # reason if `path` is None; otherwise empty


def draw_cameras(config: AppConfig, folder: Path, stop: threading.Event) -> list[Drawing]:
    """Write a file ``<camera>.png`` for every camera that delivers a frame within its timeouts. Return the results.

    Raises:
        VisionError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VisionError(f"--out: cannot create the folder {folder}: {error.strerror}") from error

    def look(camera: CameraConfig) -> Drawing:
        section = config.analytics.get(camera.id, CameraAnalytics())
        try:
            return draw_camera(camera, section, folder / f"{camera.id}.png", config.privacy)
        except SourceError as error:
            return Drawing(camera.id, error=str(error))

    return look_at_each(config.cameras, look, lambda camera: Drawing(camera.id, error=NO_ANSWER), stop)


def draw_camera(
    camera: CameraConfig,
    section: CameraAnalytics,
    path: Path,
    privacy: Mapping[str, CameraPrivacy] = MappingProxyType({}),
) -> Drawing:
    """Draw the lines and zones of a camera on one of its frames, and write the image to `path`. Return the result.

    If the image cannot be written, the result contains the error.

    Args:
        camera: the camera.
        section: the lines and zones of the camera.
        path: the PNG file to write.
        privacy: the areas and the classes of objects to hide, by camera id. If there are classes to hide, the whole
            frame is made unrecognizable, because this function detects no objects.

    Raises:
        SourceError: the camera cannot be opened, or delivers no intact frame.
    """
    import cv2  # only drawings need OpenCV and the overlay

    from vision.drawing.overlay import Overlay
    from vision.drawing.privacy import PrivacyFilter

    frame = current_frame(camera)
    height_px, width_px = frame.shape[:2]
    PrivacyFilter(privacy).hide_without_objects(frame, camera.id, (width_px, height_px))
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
    """Read a current frame of a camera, or the first intact frame of a recording. Return the pixels (H, W, 3) in BGR.

    Raises:
        SourceError: the camera cannot be opened, or delivers no intact frame.
    """
    recorded = isinstance(camera.address, RECORDED)
    settle_s = 0.0 if recorded else _SETTLE_S
    newest: NDArray[np.uint8] | None = None
    with closing(read_frames(camera, offline=recorded)) as frames:
        began = time.monotonic()
        try:
            for frame in frames:
                passed_s = time.monotonic() - began
                if not frame.grab.corrupt:
                    newest = frame.pixels.copy()
                if passed_s >= (settle_s if newest is not None else camera.read_timeout_s):
                    break
        except SourceError:
            if newest is None:
                raise
    if newest is None:
        raise SourceError("the camera opened, but delivered no intact frame")
    return newest


def outside_words(section: CameraAnalytics, height_px: int, width_px: int) -> Iterator[str]:
    """Yield a warning for each line, outline, or hole with points outside the frame."""
    if section.units != "pixels":  # with percent and fraction, points cannot be outside
        return
    shapes: list[tuple[str, str, Sequence[Point]]] = [("line", line.name, line.points) for line in section.lines]
    shapes += [("zone", zone.name, ring) for zone in section.zones for ring in zone.rings]
    for kind, name, points in shapes:
        beyond = [f"[{x:g}, {y:g}]" for x, y in points if x > width_px or y > height_px]
        if beyond:
            yield f"{kind} {name}: points outside the frame of {width_px}x{height_px}: {', '.join(beyond)}"


def print_drawings(drawings: Sequence[Drawing], console: Console) -> int:
    """Print one line per camera, and each warning. Return the exit code: 1 if a camera has no image, else 0."""

    def show(drawing: Drawing, text: str, style: str = "") -> None:
        console.print(f"{drawing.camera_id}: {text}", style=style, soft_wrap=True, highlight=False, markup=False)

    for drawing in drawings:
        if drawing.path is not None:
            show(drawing, f"{drawing.path}, {drawing.words}")
        else:
            show(drawing, drawing.error, "red")
        for words in drawing.outside:
            show(drawing, words, "yellow")
    return EXIT_RUNTIME if any(drawing.path is None for drawing in drawings) else EXIT_OK
