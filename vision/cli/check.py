"""Validation of a configuration, and one frame from each of its cameras, all at the same time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from vision.capture.open import open_source
from vision.capture.source import Grab, Source, StreamInfo
from vision.config import AppConfig, CameraConfig, check_classes, load_config, resolve_config
from vision.detect.open import check_model, published_class_names
from vision.errors import SizeChanged, SourceError
from vision.pipelines import load_pipeline
from vision.runtime.builder import find_model, open_second_model
from vision.types import FrameBuffer, PixelFormat

_Look = TypeVar("_Look")

_GRACE_S = 2.0  # beyond the camera's own time-outs, for a library that is late


@dataclass(frozen=True, slots=True)
class CameraCheck:
    """Result for one camera: `info` if it gave a frame, else `error`."""

    camera_id: str
    info: StreamInfo | None
    first_frame_s: float
    error: str = ""

    def as_json(self) -> dict[str, object]:
        """Return the result as plain data."""
        document: dict[str, object] = {"camera": self.camera_id, "error": self.error or None}
        if self.info is not None:
            document |= {
                "width": self.info.width_px,
                "height": self.info.height_px,
                "fps": self.info.fps,
                "format": self.info.pixel_format,
                "decoder": self.info.decoder,
                "first_frame_s": round(self.first_frame_s, 3),
            }
        return document


@dataclass(frozen=True, slots=True)
class CheckedConfig:
    """A configuration that `vision run` accepts on this machine."""

    path: Path
    config: AppConfig
    model: str

    @property
    def summary(self) -> str:
        """Number of cameras, pipeline and model."""
        cameras = len(self.config.cameras)
        count = "1 camera" if cameras == 1 else f"{cameras} cameras"
        return f"{count}, pipeline {self.config.pipeline}, model {self.model}"


def check_configuration(name: str) -> CheckedConfig:
    """Validate a configuration, its pipeline and its models, as far as that is possible without building an engine.

    Raises:
        VisionError: `vision run` would refuse to start, with this error.
    """
    path = resolve_config(name)
    config = load_config(path, os.environ)
    load_pipeline(config.pipeline)
    folder, spec = find_model(config)
    check_classes(config, published_class_names(spec, config.detect), path)
    check_model(folder, spec, config.detect)
    if config.cascade is not None:
        open_second_model(config.cascade).close()
    return CheckedConfig(path, config, spec.name)


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
    """Call `look` for all cameras at the same time.

    Returns:
        The results by camera id, without cameras that give no answer within their time-outs.
    """
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
    """Print the table; return 0 if every camera gave a frame, else 1."""
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
            text = f"{check.camera_id}: {check.error}"
            console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    return 1 if any(check.error for check in checks) else 0
