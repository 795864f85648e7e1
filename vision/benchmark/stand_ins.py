"""Stand-ins for the cameras of a deployment: local videos of the same size and rate.

The stand-ins of files, folders of images, and synthetic cameras are these sources themselves, because they are on this
machine. For a network, USB, or CSI camera, this module encodes the shipped clip once as H.264 at the camera's size and
rate. Therefore, decoding costs about as much as for the camera's stream, and the detector and the stages process real
scenes.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import av

from vision.benchmark.frames import load_frames, shipped_clip
from vision.capture.open import NamedOpener, chooses_nvdec, open_source
from vision.capture.source import Source
from vision.config import AppConfig, CameraConfig
from vision.config.source_address import RECORDED, File, Folder
from vision.errors import SourceError

_WIDTH_PX, _HEIGHT_PX, _FPS = 1920, 1080, 25.0  # assumed if a camera does not answer and the keys are not set
_FORMATS: Final = ("nv12", "i420", "bgrx", "bgr")
_PROBES: Final = 8  # number of cameras that are opened at the same time
_CLIP_FRAMES: Final = 60  # number of different frames
_SPARE_S: Final = 1.0  # time by which a clip is longer than a run
_GOLDEN: Final = (math.sqrt(5) - 1) / 2  # multiples of it, modulo 1, are evenly spread


@dataclass(frozen=True, slots=True)
class StandIn:
    """Camera of the deployment, and the source that replaces the camera."""

    camera_id: str
    source: str  # "the camera's own source", or a description of the clip
    width_px: int
    height_px: int
    fps: float  # rate that the camera delivers
    config: CameraConfig  # configuration of the stand-in
    phase: bool  # True if the start is delayed, so that the frames of different cameras do not arrive together
    note: str = ""  # an assumption about the camera, for the user; empty if there is none

    @property
    def asked_fps(self) -> float:
        """Frames to process per second: the rate of the camera, limited by `max_fps`."""
        return min(self.fps, self.config.max_fps or self.fps)


def stand_ins(config: AppConfig, seconds: float, folder: Path) -> tuple[StandIn, ...]:
    """Probe every camera, and return its stand-in. `folder` receives clips for runs of up to `seconds` seconds.

    Raises:
        ConfigError: the library that a camera needs is missing.
        SourceError: a file or a synthetic camera cannot be opened.
    """
    cameras = probe_cameras(config)
    clips: dict[tuple[int, int, float], Path] = {}
    return tuple(_with_clip(camera, clips, seconds, folder) if camera.phase else camera for camera in cameras)


def probe_cameras(config: AppConfig) -> list[StandIn]:
    """Open every camera once to find out its frame size and rate. Return stand-ins without clips.

    If a live camera does not respond, assume its frame size and rate, and add the assumed values to the note of the
    stand-in.

    Raises:
        ConfigError: the library that a camera needs is missing.
        SourceError: a file or a synthetic camera cannot be opened.
    """
    with ThreadPoolExecutor(_PROBES) as pool:
        return list(pool.map(_probe, config.cameras))


def repeated(config: AppConfig, cameras: Sequence[StandIn], count: int) -> AppConfig:
    """Return the configuration with `count` stand-ins as its cameras.

    The stand-ins are the first `count` of `cameras`. If there are fewer than `count`, add copies with the lines and
    zones of the original cameras. Rules and the second model stay unchanged.
    """
    configs, analytics = [], {}
    for index in range(count):
        camera = cameras[index % len(cameras)]
        copy = index // len(cameras)
        camera_id = f"{camera.camera_id}.{copy + 1}" if copy else camera.camera_id
        configs.append(camera.config.model_copy(update={"id": camera_id}))
        if camera.camera_id in config.analytics:
            analytics[camera_id] = config.analytics[camera.camera_id]
    return config.model_copy(update={"cameras": tuple(configs), "analytics": analytics})


def phased_sources(cameras: Sequence[StandIn]) -> NamedOpener:
    """Return an opener that starts clips at different times, like independent cameras.

    Otherwise, the frames of all clips would arrive at the same times.
    """
    periods = {camera.config.source: 1 / camera.fps for camera in cameras if camera.phase}
    return NamedOpener(f"{__name__}:_open_phased", {"periods": periods})


def _open_phased(config: CameraConfig, *, periods: Mapping[str, float], **options: Any) -> Source:
    """Open and return a source. If the source is a clip, first wait for a fraction of the frame interval.

    This fraction is different for each camera.
    """
    if config.source in periods:
        phase = zlib.crc32(config.id.encode()) / 2**32  # the same in every process
        time.sleep(phase * periods[config.source])
    return open_source(config, **options)


def _probe(camera: CameraConfig) -> StandIn:
    local = isinstance(camera.address, RECORDED)
    assumed = StandIn(
        camera.id,
        "the camera's own source",
        camera.width or _WIDTH_PX,
        camera.height or _HEIGHT_PX,
        camera.fps or _FPS,
        camera.model_copy(update={"loop": True}) if isinstance(camera.address, (File, Folder)) else camera,
        phase=not local,
    )
    try:
        with closing(open_source(camera, offline=False, pixel_formats=_FORMATS)) as source:
            info = source.open()
    except SourceError as error:
        if local:
            raise SourceError(f"{camera.id}: {error.args[0]}", hint=error.hint) from error
        size = f"{assumed.width_px}x{assumed.height_px} at {assumed.fps:g} frames/s"
        return replace(assumed, note=f"{camera.id} did not answer ({error.args[0]}), so {size} is assumed")
    fps = info.fps or assumed.fps
    note = "" if info.fps else f"{camera.id} does not report its frame rate, so {fps:g} frames/s is assumed"
    return replace(assumed, width_px=info.width_px, height_px=info.height_px, fps=fps, note=note)


def _with_clip(camera: StandIn, clips: dict[tuple[int, int, float], Path], seconds: float, folder: Path) -> StandIn:
    width_px, height_px = max(16, camera.width_px // 2 * 2), max(16, camera.height_px // 2 * 2)
    size, rate = f"{width_px}x{height_px}", f"{camera.fps:g} frames/s"
    nvdec = camera.config.reader == "nvdec" or chooses_nvdec(camera.config)
    changes = {"reader": "nvdec" if nvdec else "auto", "loop": not nvdec, "width": None, "height": None, "fps": None}
    source, note = f"shipped clip as H.264, {size}, {rate}", camera.note
    key = (width_px, height_px, camera.fps)
    try:
        if key not in clips:
            path = folder / f"{size}-{len(clips)}.mp4"
            encode_clip(path, width_px, height_px, camera.fps, seconds + _SPARE_S)
            clips[key] = path
        changes["source"] = str(clips[key])
    except ValueError as error:
        note = f"{camera.camera_id}: decoding is not included, because PyAV cannot encode the clip ({error})"
        source = f"synthetic camera, {size}, {rate}"
        changes |= {"reader": "auto", "loop": False, "source": f"synthetic:{size}@{f'{camera.fps:.6f}'[:8]}"}
    return replace(camera, source=source, config=camera.config.model_copy(update=changes), note=note)


def encode_clip(path: Path, width_px: int, height_px: int, fps: float, seconds: float) -> None:
    """Encode `seconds` seconds of H.264 video of the given size and rate to `path`.

    The video is the start of the shipped clip, repeated forward and backward.

    Raises:
        ValueError: PyAV has no H.264 encoder, the encoder refuses the size, or the file cannot be written.
    """
    rate = Fraction(fps).limit_denominator(1000)
    frames = [av.VideoFrame.from_ndarray(image, format="bgr24") for image in load_frames(shipped_clip(), _CLIP_FRAMES)]
    scaled = [frame.reformat(width=width_px, height=height_px, format="yuv420p") for frame in frames]
    there_and_back = [*scaled, *scaled[-2:0:-1]]
    try:
        with av.open(str(path), "w") as container:
            # Cameras send no B-frames, and a key frame every one to two seconds.
            options = {"preset": "veryfast", "bf": "0", "g": str(max(1, round(2 * fps)))}
            stream = container.add_stream("libx264", rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
            for number, frame in enumerate(islice(cycle(there_and_back), math.ceil(seconds * fps))):
                frame.pts, frame.time_base = number, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except (OSError, av.FFmpegError) as error:
        raise ValueError(str(error)) from error
