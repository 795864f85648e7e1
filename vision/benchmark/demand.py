"""What the cameras of a site ask of the machine: how many frames, of which size, and what decoding one costs.

Recordings and generators are read as fast as they go. A live camera is opened and watched for a moment; one that does
not answer is assumed to be what its configuration says, and the plan says what was assumed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from vision.benchmark.document import DecodeCost
from vision.capture.open import open_source
from vision.capture.source import Source, StreamInfo
from vision.config import CameraConfig
from vision.config.source_address import RECORDED, File, Folder, Synthetic
from vision.errors import EndOfStream, SizeChanged, SourceError
from vision.types import FrameBuffer, PixelFormat, frame_shape

ASSUMED_WIDTH_PX: Final = 1920
ASSUMED_HEIGHT_PX: Final = 1080
ASSUMED_FPS: Final = 25.0

_FILE_FRAMES: Final = 60
_FILE_S: Final = 1.0
_LIVE_S: Final = 3.0
_WARM_FRAMES: Final = 3  # as many as buffers, tables, the first key frame


@dataclass(frozen=True, slots=True)
class Demand:
    """One camera. Times are CPU time, so that a busy machine does not make them longer."""

    camera_id: str
    fps: float  # frames that it gives
    max_fps: float | None  # of them, most that may be inferred
    width_px: int
    height_px: int
    pixel_format: PixelFormat
    grab_ms: float  # of its thread, a frame
    retrieve_ms: float  # of its thread, a frame
    cpu_ms: float  # of all threads, a frame
    max_frame_age_s: float = 0.5
    assumed: str = ""  # what could not be measured
    in_step: bool = False  # begins with the program, as recordings do: its frames come when those of the others do
    open_ms: float = 0.0  # of the CPU, until its first frame has been read
    drawn: bool = False  # made up by its thread: retrieving is a turn of Python

    @property
    def nbytes(self) -> int:
        """Of one frame."""
        return int(np.prod(frame_shape(self.height_px, self.width_px, self.pixel_format)))


@dataclass(frozen=True, slots=True)
class _Watched:
    info: StreamInfo
    frames: int
    seconds: float
    grab_ms: float
    retrieve_ms: float
    cpu_ms: float
    open_ms: float


def demands(
    cameras: Sequence[CameraConfig], pixel_formats: tuple[PixelFormat, ...], known: Sequence[DecodeCost] = ()
) -> list[Demand]:
    """Look at every camera, one after the other: each must have the machine for itself.

    Args:
        known: of a benchmark, for cameras that cannot be reached.

    Raises:
        SourceError: recordings and generators that give no frame: all of them.
    """
    measured: dict[tuple[object, ...], Demand] = {}
    found = []
    faults = []
    for camera in cameras:
        # What cameras of one kind cost is measured once: a site often has 32 of a kind.
        alike = (_form(camera.source), camera.width, camera.height, camera.fps, camera.reader, camera.transport)
        try:
            if alike not in measured:
                measured[alike] = demand(camera, pixel_formats, known)
        except SourceError as error:
            faults.append(f"{camera.id}: {error}")
            continue
        found.append(
            replace(
                measured[alike], camera_id=camera.id, max_fps=camera.max_fps, max_frame_age_s=camera.max_frame_age_s
            )
        )
    if faults:
        raise SourceError("\n".join(faults))
    return found


def _form(source: str) -> str:
    """A source without what makes one generator different from another of its kind."""
    return source.partition("?")[0] if source.startswith("synthetic:") else source


def demand(camera: CameraConfig, pixel_formats: tuple[PixelFormat, ...], known: Sequence[DecodeCost] = ()) -> Demand:
    """What one camera asks for.

    Raises:
        SourceError: a recording or generator gives no frame. It is here, so it will give none later either.
    """
    here = isinstance(camera.address, RECORDED)
    try:
        seen = _watch(camera, pixel_formats)
    except SourceError as error:
        if here:
            raise
        return assumed(camera, known, f"it gave no frame ({error.args[0]})")
    fps, said = seen.info.fps, ""
    if not fps:
        fps = camera.fps or (ASSUMED_FPS if here else seen.frames / seen.seconds)
        said = f"it does not say its rate, {fps:.3g} frames/s were taken"
    return Demand(
        camera.id,
        fps,
        camera.max_fps,
        seen.info.width_px,
        seen.info.height_px,
        seen.info.pixel_format,
        seen.grab_ms,
        seen.retrieve_ms,
        seen.cpu_ms,
        camera.max_frame_age_s,
        said,
        here,
        seen.open_ms,
        isinstance(camera.address, Synthetic),
    )


def assumed(camera: CameraConfig, known: Sequence[DecodeCost], why: str) -> Demand:
    """A camera that was not seen: as configured, and by its pixels as costly as the dearest that is known."""
    width_px, height_px = camera.width or ASSUMED_WIDTH_PX, camera.height or ASSUMED_HEIGHT_PX
    fps = camera.fps or ASSUMED_FPS
    reference = max((cost for cost in known if cost.kind != "synthetic"), key=lambda cost: cost.cpu_ms, default=None)
    what = f"{why}; taken as {width_px}x{height_px} at {fps:g} frames/s"
    if reference is None:
        times = (0.0, 0.0, 0.0)
        what += ", decoding not counted"
    else:
        larger = width_px * height_px / (reference.width_px * reference.height_px)
        times = (reference.grab_ms * larger, reference.retrieve_ms * larger, reference.cpu_ms * larger)
    return Demand(camera.id, fps, camera.max_fps, width_px, height_px, "bgr", *times, camera.max_frame_age_s, what)


def decode_costs(sources: Iterable[str]) -> tuple[DecodeCost, ...]:
    """What frames of these recordings and generators cost; those that cannot be read are left out."""
    costs = []
    for source in sources:
        camera = CameraConfig.model_validate({"id": "bench", "source": source})
        try:
            seen = _watch(camera, ("bgr",))
        except SourceError:
            continue
        info = seen.info
        kind = "synthetic" if isinstance(camera.address, Synthetic) else "path"
        costs.append(DecodeCost(kind, info.width_px, info.height_px, seen.grab_ms, seen.retrieve_ms, seen.cpu_ms))
    return tuple(costs)


def _watch(camera: CameraConfig, pixel_formats: tuple[PixelFormat, ...]) -> _Watched:
    """Read some frames.

    Raises:
        SourceError: it cannot be opened, or nothing comes.
    """
    finite = isinstance(camera.address, RECORDED)
    clock = hurried(time.monotonic_ns) if finite else time.monotonic_ns
    looped = camera.model_copy(update={"loop": True}) if isinstance(camera.address, (File, Folder)) else camera
    try:
        source = open_source(looped, offline=False, pixel_formats=pixel_formats, clock=clock)
    except SourceError:
        source = open_source(looped, offline=False, pixel_formats=("bgr",), clock=clock)
    timer = threading.Timer(camera.open_timeout_s + camera.read_timeout_s + _LIVE_S, source.interrupt)
    timer.daemon = True
    timer.start()
    try:
        with closing(source):
            begin_ns = time.process_time_ns()
            info = source.open()
            limits = (_FILE_FRAMES, _FILE_S) if finite else (1_000_000, _LIVE_S)
            return _read(source, info, begin_ns, camera.read_timeout_s, limits)
    finally:
        timer.cancel()


def _read(source: Source, info: StreamInfo, opened_ns: int, timeout_s: float, limits: tuple[int, float]) -> _Watched:
    """
    Args:
        opened_ns: CPU time of the process before the source was opened.
        limits: frames and seconds, at most.
    """
    most, most_s = limits
    size = (info.height_px, info.width_px)
    buffers = [FrameBuffer.allocate(*size, info.pixel_format) for _ in range(_WARM_FRAMES)]
    frames, grab_ns, retrieve_ns, open_ns = -_WARM_FRAMES, 0, 0, 0
    begin, cpu_ns = time.monotonic(), time.process_time_ns()
    while frames < most and time.monotonic() - begin < most_s:
        if frames == 0:
            grab_ns = retrieve_ns = 0
            begin, cpu_ns = time.monotonic(), time.process_time_ns()
        started_ns = time.thread_time_ns()
        try:
            grab = source.grab(timeout_s)
        except EndOfStream:
            break
        if grab is None:
            raise SourceError(f"no frame came within {timeout_s:g} s")
        grabbed_ns = time.thread_time_ns()
        try:
            source.retrieve(buffers[frames % _WARM_FRAMES])
        except SizeChanged as change:
            size = (change.height_px, change.width_px)
            buffers = [FrameBuffer.allocate(*size, info.pixel_format) for _ in range(_WARM_FRAMES)]
            continue
        grab_ns += grabbed_ns - started_ns
        retrieve_ns += time.thread_time_ns() - grabbed_ns
        open_ns = open_ns or time.process_time_ns() - opened_ns
        frames += 1
    if frames <= 0:
        raise SourceError(f"only {frames + _WARM_FRAMES} frames came")
    cpu_ms = (time.process_time_ns() - cpu_ns) / 1e6 / frames
    per_frame = 1 / 1e6 / frames
    took_s = time.monotonic() - begin
    return _Watched(info, frames, took_s, grab_ns * per_frame, retrieve_ns * per_frame, cpu_ms, open_ns / 1e6)


def hurried(clock: Callable[[], int]) -> Callable[[], int]:
    """A clock by which every frame of a recording is due: it goes a million times as fast."""
    begin_ns = clock()
    return lambda: begin_ns + (clock() - begin_ns) * 1_000_000
