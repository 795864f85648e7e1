"""The command `vision check`, which validates a configuration, its model, and its pipeline, and opens its cameras."""

from __future__ import annotations

import json as json_module
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import typer
from rich.console import Console
from rich.table import Table

from vision.capture.open import open_source, require_formats, require_library
from vision.capture.packet_tap import CODECS
from vision.capture.session import DAMAGED_HINT
from vision.capture.source import Source, StreamInfo
from vision.cli.options import ConfigName, Json
from vision.cli.session import command
from vision.config import AppConfig, CameraConfig, check_classes, load_config, resolve_config
from vision.config.document import faulty
from vision.config.recording import recorded_cameras
from vision.config.yaml_reader import read_document
from vision.detect.open import check_model, check_second_model, published_class_names
from vision.errors import (
    EXIT_OK,
    EXIT_RUNTIME,
    ConfigError,
    DeviceMissing,
    ModelError,
    SizeChanged,
    SourceError,
    Unavailable,
    VisionError,
)
from vision.messaging.control_protocol import find_socket
from vision.outputs.page.process import check_page
from vision.outputs.sinks.process import check_sink
from vision.pipelines import load_pipeline
from vision.runtime.builder import find_model, find_second_model
from vision.runtime.process_count import process_count
from vision.stages.analytics import open_accuracy
from vision.types import FrameBuffer

_Result = TypeVar("_Result")

NO_ANSWER = "no answer within the configured timeouts"
_GRACE_S = 2.0  # time added to the timeouts of a camera, because some libraries exceed them


@command(orderly=True)
def check(context: typer.Context, config: ConfigName, json: Json = False) -> int:
    """Validate a configuration and open its cameras.

    Also check the model, the back-end, and the pipeline, and read one frame from each camera.

    Exit codes: 0 if `vision run` can start and every camera delivers frames, 1 if a camera delivers no frames, 78
    if `vision run` cannot start, 75 if it cannot start at present.

    Examples:
      vision check camera.yaml
      vision check /etc/vision/shop.yaml --json
    """
    if json:
        return _check_as_json(config, context.obj.stop)
    path, app_config = check_configuration(config)
    cameras = len(app_config.cameras)
    count = "1 camera" if cameras == 1 else f"{cameras} cameras"
    print(f"{path}: {count}, pipeline {app_config.pipeline}, model {app_config.model}")
    workers = process_count(app_config)
    print("processes: one" if workers == 1 else f"processes: {workers} capture workers and {workers} result workers")
    print("configuration: valid")
    return print_checks(check_cameras(app_config.cameras, context.obj.stop, _recorded(app_config)), Console())


def _check_as_json(name: str, stop: threading.Event) -> int:
    document: dict[str, object] = {"schema": "vision.check/1", "config": name, "fault": None, "cameras": []}
    checks: list[CameraCheck] = []
    code = EXIT_OK
    try:
        path, app_config = check_configuration(name)
        checks = check_cameras(app_config.cameras, stop, _recorded(app_config))
        document |= {"config": str(path), "cameras": [asdict(check) for check in checks]}
    except VisionError as error:
        faults = [asdict(fault) for fault in error.faults]
        document["fault"] = {"code": error.code, "message": error.args[0], "hint": error.hint, "faults": faults}
        code = error.exit_code
    print(json_module.dumps(document, indent=2))
    return EXIT_RUNTIME if any(check.error for check in checks) else code


def check_configuration(name: str) -> tuple[Path, AppConfig]:
    """Validate a configuration, its pipeline, and its models. Return the path and the configuration.

    `name` is the path or the shipped name of the configuration.

    Raises:
        VisionError: `vision run` would not start, and would report this error.
    """
    path = resolve_config(name)
    config = load_config(path, os.environ)
    with _faults_at(path, "pipeline"):
        load_pipeline(config.pipeline)
    with _faults_at(path, "model"):
        folder, spec = find_model(config.model)
        check_classes(config, published_class_names(spec, config.detect), path)
        with _faults_at(path, "detect", "backend", of=(ConfigError, DeviceMissing)):
            formats = check_model(folder, spec, config.detect)
    for index, camera in enumerate(config.cameras):
        with _faults_at(path, "cameras", index, "source"):
            require_library(camera)
        with _faults_at(path, "cameras", index, "reader"):
            require_formats(camera, formats)
    for camera_id, section in config.analytics.items():
        with _faults_at(path, "analytics", camera_id, "accuracy"):
            open_accuracy({camera_id: section})
    for index, sink in enumerate(config.sinks):
        with _faults_at(path, "sinks", index, "address"):
            check_sink(sink)
    if config.page is not None:
        with _faults_at(path, "page", "bind", of=(ConfigError, Unavailable)):
            check_page(config.page, can_bind=not _is_running(path))
    if config.cascade is not None:
        with _faults_at(path, "cascade", "model"):
            check_second_model(*find_second_model(config.cascade), config.cascade)
    return path, config


def _is_running(path: Path) -> bool:
    """Return True if at least one program is running with the configuration `path`, so its addresses are in use."""
    try:
        find_socket(path)
    except Unavailable:
        return False
    except ConfigError:  # several programs are running with this configuration
        return True
    return True


@contextmanager
def _faults_at(
    path: Path, *loc: int | str, of: tuple[type[VisionError], ...] = (ConfigError, ModelError, DeviceMissing)
) -> Iterator[None]:
    """Add the location of a key to the errors that the body of the `with` block raises.

    Re-raise errors of the types `of` that have no `faults`, with the file, the line, and the key added. Pass on other
    errors unchanged.

    Args:
        path: the configuration file.
        loc: path of the key in the file, for example "cameras", 0, "source".
        of: types of the errors.
    """
    try:
        yield
    except of as error:
        if error.faults:
            raise
        document = read_document(path, os.environ)
        fault = document.fault(loc, error.code, error.args[0].removeprefix(f"{loc[-1]}: "))
        located = faulty(document.name, [fault], document.text)
        raise type(error)(located.args[0], hint=error.hint, code=error.code, faults=located.faults) from error


@dataclass(frozen=True, slots=True)
class CameraCheck:
    """The result for one camera: the properties of its first frame, or the error if it delivered no frame."""

    camera: str
    first_frame_s: float  # time until the first frame, or until the error
    error: str | None = None  # text of the error; None if the camera delivered a frame
    code: str | None = None  # stable name of the error, such as "no-stream"
    hint: str | None = None  # advice to the operator, which `error` also contains
    width: int | None = None  # in pixels
    height: int | None = None  # in pixels
    fps: float | None = None  # frame rate; None if the camera does not report it
    format: str = ""  # pixel format
    decoder: str = ""


def check_cameras(
    cameras: Sequence[CameraConfig], stop: threading.Event, recorded: Collection[str] = ()
) -> list[CameraCheck]:
    """Open all cameras in parallel, and read one frame from each within its timeouts. Return one result per camera.

    A camera whose id is in `recorded` is opened with FFmpeg, and its codec must be one that can be recorded.
    """

    def check_camera(camera: CameraConfig) -> CameraCheck:
        return _check_camera(camera, recorded=camera.id in recorded)

    return look_at_each(cameras, check_camera, _no_answer, stop)


def _no_answer(camera: CameraConfig) -> CameraCheck:
    return CameraCheck(camera.id, 0.0, NO_ANSWER, "no-answer", "check the address, cable and power of the camera")


def look_at_each(
    cameras: Sequence[CameraConfig],
    look: Callable[[CameraConfig], _Result],
    give_up: Callable[[CameraConfig], _Result],
    stop: threading.Event,
) -> list[_Result]:
    """Call `look` for all cameras in parallel. Return one result per camera, in the order of `cameras`.

    If `look` has no result within the timeouts of the camera, or when `stop` is set, use the result of `give_up`.
    `look` runs in a separate thread for each camera.
    """
    results: dict[str, _Result] = {}

    def ask(camera: CameraConfig) -> None:
        results[camera.id] = look(camera)

    threads = [threading.Thread(target=ask, args=(camera,), daemon=True, name=camera.id) for camera in cameras]
    for thread in threads:
        thread.start()
    deadlines = [time.monotonic() + c.open_timeout_s + c.read_timeout_s + _GRACE_S for c in cameras]
    for thread, deadline in zip(threads, deadlines, strict=True):
        while thread.is_alive() and time.monotonic() < deadline and not stop.is_set():
            thread.join(0.1)
    return [results[camera.id] if camera.id in results else give_up(camera) for camera in cameras]


def _recorded(config: AppConfig) -> list[str]:
    return recorded_cameras(config.recording, [camera.id for camera in config.cameras])


def _check_camera(camera: CameraConfig, *, recorded: bool) -> CameraCheck:
    if recorded and camera.reader == "auto":
        camera = camera.model_copy(update={"reader": "ffmpeg"})
    began = time.monotonic()
    try:
        with closing(open_source(camera, offline=False, pixel_formats=("bgr",))) as source:
            info = source.open()
            _read_frame(source, info, camera.read_timeout_s)
        if recorded:
            _require_recordable(info)
    except SourceError as error:
        return CameraCheck(camera.id, round(time.monotonic() - began, 3), str(error), error.code, error.hint)
    seconds = round(time.monotonic() - began, 3)
    size = (info.width_px, info.height_px)
    return CameraCheck(camera.id, seconds, None, None, None, *size, info.fps, info.pixel_format, info.decoder)


def _require_recordable(info: StreamInfo) -> None:
    """Raise `SourceError` if the codec of a camera, which FFmpeg decodes, cannot be recorded."""
    codec = info.decoder.rpartition("-")[2]
    if codec not in CODECS:
        text = f"expected H.264 or H.265, because the camera is recorded, got {codec}"
        hint = "choose a different stream of this camera, or leave it out of recording.cameras"
        raise SourceError(text, hint=hint, code="not-recordable")


def _read_frame(source: Source, info: StreamInfo, timeout_s: float) -> None:
    """Read frames until a frame is intact. Raise `SourceError` if no frame is intact within `timeout_s`."""
    deadline_s, damaged = time.monotonic() + timeout_s, 0
    while (grab := source.grab(max(0.0, deadline_s - time.monotonic()))) is None or grab.corrupt:
        damaged += grab is not None
        if time.monotonic() < deadline_s:
            continue
        if damaged:
            raise SourceError(
                f"all {damaged} frames within {timeout_s:g} s are damaged", hint=DAMAGED_HINT, code="corrupt"
            )
        raise SourceError(f"the camera opened, but delivered no frame within {timeout_s:g} s", code="no-frame")
    with suppress(SizeChanged):  # a frame of any size shows that the camera works
        source.retrieve(FrameBuffer.allocate(info.height_px, info.width_px, info.pixel_format))


def print_checks(checks: Sequence[CameraCheck], console: Console) -> int:
    """Print a table of the results, and all errors. Return the exit code: 1 if a camera delivered no frame, else 0."""
    table = Table("camera", "frame", "frames/s", "format", "decoder", "first frame", header_style="bold")
    for check in checks:
        if check.error is not None:
            table.add_row(check.camera, "[red]none[/]", "", "", "", f"after {check.first_frame_s:.1f} s")
            continue
        rate = "" if check.fps is None else f"{check.fps:g}"
        size, seconds = f"{check.width}x{check.height}", f"{check.first_frame_s:.1f} s"
        table.add_row(check.camera, size, rate, check.format, check.decoder, seconds)
    console.print(table)
    failed = [f"{check.camera}: {check.error}" for check in checks if check.error is not None]
    for text in failed:
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    return EXIT_RUNTIME if failed else EXIT_OK
