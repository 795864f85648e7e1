"""Comparison of `VideoFile` with FFmpeg's command, frame by frame, for every kind of file that FFmpeg can write.

The collection of the tests determines the kinds: codecs, pixel formats, containers, and orientations. With ``-m
matrix``, the tests cover every codec with each of its pixel formats, and in each container.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from tests.frame_buffers import wrap
from vision.capture.ffmpeg.decoder import FFmpegDecoder
from vision.capture.ffmpeg.file import VideoFile
from vision.capture.pacing import FramePacer
from vision.errors import EndOfStream, SourceError

FRAMES, FPS = 5, 10
HARDWARE = ("_amf", "_cuvid", "_nvenc", "_qsv", "_v4l2m2m", "_vaapi", "_vulkan", "_mf", "_omx", "_videotoolbox")
NO_VIDEO = {"a64multi", "a64multi5", "vnull", "wrapped_avframe", "xface", "bitpacked", "vbn"}
SIZES = {"h261": (176, 144), "h263": (176, 144), "dvvideo": (720, 576), "dnxhd": (1280, 720), "roqvideo": (64, 64)}
RATES = {"dvvideo": 25, "dnxhd": 25, "mpeg1video": 25, "mpeg2video": 25, "roqvideo": 30, "rv10": 25, "rv20": 25}
SPECIAL = {"dnxhd": {"b": "60M"}, "libsvtav1": {"preset": "12"}, "libx265": {"x265-params": "log-level=none"}}
"""Codecs that need a certain size, rate, or option."""

CONTAINERS: Sequence[str] = (
    *("matroska", "mp4", "mov", "avi", "nut", "mpegts", "flv", "webm", "mpeg", "3gp", "asf", "ogg", "gif", "mxf"),
    *("ivf", "h264", "hevc", "obu", "m4v", "mjpeg", "avif", "yuv4mpegpipe", "swf", "dv", "apng", "webp", "roq"),
)
CODECS_OF_CONTAINERS: Sequence[str] = (
    *("libx264", "mpeg4", "mjpeg", "libvpx", "libsvtav1", "libx265", "mpeg2video", "flv", "gif", "wmv2", "mpeg1video"),
    *("rawvideo", "h263", "theora", "dvvideo", "apng", "libwebp_anim", "roqvideo"),
)
"""Codecs for the tests of containers. Each container is tested with the first codec that it accepts."""

DIFFERENCE = 4.0
"""Largest mean difference of pixels. It is not 0, because versions of FFmpeg round colors differently."""

ORIENTATIONS = {
    "upright": (1, 0, 0, 1),
    "turned clockwise": (0, 1, -1, 0),
    "turned by half": (-1, 0, 0, -1),
    "turned counterclockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "flipped": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed along the other diagonal": (0, -1, -1, 0),
}
"""Values a, b, c, d of the display matrix."""


@dataclass(frozen=True)
class Kind:
    """One kind of file. An empty pixel format or container means the first that fits the codec."""

    codec: str
    pixel_format: str = ""
    container: str = ""
    orientation: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.codec, self.pixel_format, self.container, self.orientation)))


@cache
def encoders() -> dict[str, tuple[str, ...]]:
    """Return the pixel formats of every video encoder that needs no hardware."""
    found: dict[str, tuple[str, ...]] = {}
    for name in sorted(av.codecs_available):
        with suppress(ValueError, av.FFmpegError):
            codec = av.Codec(name, "w")
            if codec.type == "video" and not codec.name.endswith(HARDWARE) and codec.name not in NO_VIDEO:
                found[codec.name] = tuple(one.name for one in codec.video_formats or ()) or ("yuv420p",)
    return found


def kinds() -> list[Kind]:
    """Return kinds in which each codec, container, and orientation occurs, and each format of three codecs."""
    chosen = [Kind(codec) for codec in encoders()]
    chosen += [
        Kind(codec, pixel_format)
        for codec in ("ffv1", "libx264", "libvpx-vp9")
        for pixel_format in encoders().get(codec, ())[1:]
    ]
    chosen += [Kind("", container=container) for container in CONTAINERS]
    chosen += [Kind("libx264", "yuv420p", "mp4", orientation) for orientation in ORIENTATIONS]
    chosen += [Kind("mjpeg", "yuvj422p", "mov", orientation) for orientation in ORIENTATIONS]
    return chosen


def all_kinds() -> list[Kind]:
    """Return the kinds that combine each codec with each of its pixel formats, and with each container."""
    formats = [Kind(codec, pixel_format) for codec, names in encoders().items() for pixel_format in names]
    return formats + [Kind(codec, container=container) for codec in encoders() for container in CONTAINERS]


def scene(width_px: int, height_px: int, number: int) -> NDArray[np.uint8]:
    """Return a smooth RGB frame (H, W, 3) whose corners differ, so that all orientations differ."""
    y, x = np.mgrid[0:height_px, 0:width_px]
    red, green = 40 + 160 * x / width_px, 40 + 160 * y / height_px
    return np.stack([red, green, np.full_like(red, 30 + 40 * number)], axis=2).astype(np.uint8)


def write(kind: Kind, path: Path) -> bool:
    """Write a file of this kind. Return False if FFmpeg cannot write it."""
    width_px, height_px = SIZES.get(kind.codec, (64, 48))
    pixel_format = kind.pixel_format or encoders()[kind.codec][0]
    try:
        with av.open(str(path), "w", format=kind.container) as out:
            stream = out.add_stream(kind.codec, rate=RATES.get(kind.codec, FPS), options=SPECIAL.get(kind.codec, {}))
            stream.width, stream.height, stream.pix_fmt = width_px, height_px, pixel_format
            stream.codec_context.options = {"strict": "experimental", **SPECIAL.get(kind.codec, {})}
            for number in range(FRAMES):
                frame = VideoFrame.from_ndarray(scene(width_px, height_px, number), format="rgb24")
                out.mux(stream.encode(frame.reformat(format=pixel_format)))
            out.mux(stream.encode(None))
    except (av.FFmpegError, ValueError, OSError, NotImplementedError):
        return False
    return path.exists() and path.stat().st_size > 0


def create(kind: Kind, folder: Path) -> Path | None:
    """Write a file of this kind with the first codec and container that fit. Return its path, or None if none fit."""
    codecs = [kind.codec] if kind.codec else [codec for codec in CODECS_OF_CONTAINERS if codec in encoders()]
    for codec in codecs:
        for container in [kind.container] if kind.container else CONTAINERS:
            path = folder / f"{codec}-{kind.pixel_format}.{container}"
            if write(Kind(codec, kind.pixel_format, container), path):
                if kind.orientation:
                    turn(path, ORIENTATIONS[kind.orientation])
                return path
    return None


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Change the display matrix of a track in an MP4 or MOV file (ISO/IEC 14496-12, section 8.3.2)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def expected(path: Path) -> NDArray[np.uint8] | None:
    """Return the BGR frames (N, H, W, 3) of FFmpeg's command, or None if the command cannot decode the file."""
    options = ("-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-")
    command = ["ffmpeg", "-v", "error", "-i", str(path), *options]
    shown = subprocess.run(command, capture_output=True, timeout=60, check=False).stdout
    frames, at = [], 0
    while at < len(shown):
        size = shown[at : at + 40].split(b"\n", 3)
        width_px, height_px = map(int, size[1].split())
        begin = at + sum(map(len, size[:3])) + 3
        at = begin + 3 * width_px * height_px
        frames.append(np.frombuffer(shown[begin:at], np.uint8).reshape(height_px, width_px, 3)[..., ::-1])
    return np.stack(frames) if frames else None


def delivered(path: Path) -> NDArray[np.uint8]:
    """Return the BGR frames (N, H, W, 3) of `VideoFile`."""
    frames = []
    open_decoder = partial(FFmpegDecoder, reading="offline")
    with closing(VideoFile(path, ("bgr",), open_decoder, FramePacer(offline=True))) as source:
        info = source.open()
        with suppress(EndOfStream):
            while source.grab(1.0) is not None:
                frames.append(np.empty((info.height_px, info.width_px, 3), np.uint8))
                source.retrieve(wrap(frames[-1]))
        assert not source.skipped.take()
    return np.stack(frames)


def compare(kind: Kind, folder: Path) -> None:
    path = create(kind, folder)
    if path is None:
        return  # FFmpeg itself does not write this
    reference = expected(path)
    try:
        frames = delivered(path)
    except SourceError:
        assert reference is None
        return
    if reference is None:  # the command is older than the library
        return
    assert frames.shape == reference.shape
    difference = np.abs(frames.astype(int) - reference).mean(axis=(1, 2, 3))
    assert difference.max() < DIFFERENCE, difference


@pytest.fixture(scope="module", autouse=True)
def command() -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("there is no command ffmpeg")


@pytest.mark.integration
@pytest.mark.parametrize("kind", kinds(), ids=str)
def test_file_is_delivered_as_ffmpeg_shows_it(kind: Kind, tmp_path: Path) -> None:
    compare(kind, tmp_path)


@pytest.mark.matrix
@pytest.mark.integration
def test_all_files_are_delivered_as_ffmpeg_shows_them(tmp_path: Path) -> None:
    failed = []
    for kind in all_kinds():
        try:
            compare(kind, tmp_path)
        except AssertionError as error:
            failed.append(f"{kind}: {error}".splitlines()[0])
    assert not failed, "\n".join(failed)


@pytest.mark.integration
def test_ffmpeg_writes_most_kinds(tmp_path: Path) -> None:
    """The other tests skip kinds that cannot be written."""
    written = sum(create(kind, tmp_path) is not None for kind in kinds())
    assert written > 0.8 * len(kinds()), written
