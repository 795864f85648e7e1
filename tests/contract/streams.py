"""Streams of numbered frames, for each kind of source that needs no camera."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.capture.ffmpeg.decoder import FFmpegDecoder
from vision.capture.ffmpeg.file import VideoFile
from vision.capture.ffmpeg.source import FFmpegSource
from vision.capture.opencv.file import ImageFolder
from vision.capture.pacing import FramePacer
from vision.capture.source import Source
from vision.capture.synthetic.source import SyntheticSource
from vision.capture.synthetic.spec import SyntheticSpec
from vision.config import CameraConfig
from vision.types import PixelFormat

HEIGHT_PX, WIDTH_PX = 48, 64
COUNT = 24
FAST_FPS, SLOW_FPS = 100.0, 1.25


def numbered(number: int) -> NDArray[np.uint8]:
    """Return frame `number`. Adjacent frames differ by 10 gray levels, which survive compression."""
    return np.full((HEIGHT_PX, WIDTH_PX, 3), 10 * (number % COUNT), np.uint8)


@dataclass(frozen=True)
class Stream:
    """One kind of source. `make` returns a new source, which begins with the first frame."""

    make: Callable[[], Source]
    make_slow: Callable[[], Source] | None = None  # one frame in 0.8 s after the first few; None: it never waits
    endless: bool = False


def write_video(path: Path, fps: float) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (WIDTH_PX, HEIGHT_PX))
    for number in range(COUNT):
        writer.write(numbered(number))
    writer.release()
    return path


def write_images(path: Path) -> Path:
    path.mkdir()
    for number in range(COUNT):
        cv2.imwrite(str(path / f"{number}.png"), numbered(number))
    return path


class _MotionJpeg(BaseHTTPRequestHandler):
    """Handler of ``/?fps=25``, which sends frames at this rate. With ``&first=5``, five frames come without a delay."""

    protocol_version = "HTTP/1.0"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the library
        """Log nothing."""

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        interval_s = 1 / float(query["fps"][0])
        first = int(query.get("first", ["0"])[0])
        closing = getattr(self.server, "closing", threading.Event())
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        number = 0
        try:
            while not closing.wait(interval_s if number >= first else 0.0):
                jpeg = cv2.imencode(".jpg", numbered(number))[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")
                number += 1
        except OSError:
            return


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    closing: threading.Event


@contextmanager
def motion_jpeg_server() -> Iterator[str]:
    """Run a web camera until the end of the `with` block. Yield its address."""
    with _Server(("127.0.0.1", 0), _MotionJpeg) as server:
        server.closing = threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.closing.set()
        server.shutdown()
        thread.join()


def streams(folder: Path, web_camera: str) -> dict[str, Stream]:
    """Return a stream for each kind of source, by name. `folder` is an empty folder for the files of the streams."""
    fast = write_video(folder / "fast.avi", FAST_FPS)
    slow = write_video(folder / "slow.avi", SLOW_FPS)
    images = write_images(folder / "images")

    def synthetic(pixel_format: PixelFormat, fps: float, *, offline: bool) -> Callable[[], Source]:
        spec = SyntheticSpec.parse(f"synthetic:{WIDTH_PX}x{HEIGHT_PX}@{fps:g}?frames={COUNT}")
        return lambda: SyntheticSource(spec, (pixel_format,), FramePacer(offline=offline))

    def video(path: Path, *formats: PixelFormat, loop: bool = False, offline: bool = False) -> Callable[[], Source]:
        open_decoder = partial(FFmpegDecoder, reading="offline" if offline else "recorded")
        return lambda: VideoFile(path, formats, open_decoder, FramePacer(offline=offline), loop=loop)

    def http_camera(query: str, *pixel_formats: PixelFormat) -> Callable[[], Source]:
        camera = CameraConfig(id="web", source=f"{web_camera}?{query}", reader="ffmpeg")
        return lambda: FFmpegSource(camera, pixel_formats)

    def synthetic_stream(pixel_format: PixelFormat, *, offline: bool) -> Stream:
        slowly = None if offline else synthetic(pixel_format, SLOW_FPS, offline=False)
        return Stream(synthetic(pixel_format, FAST_FPS, offline=offline), slowly)

    return {
        "file bgr": Stream(video(fast, "bgr"), video(slow, "bgr")),
        "file bgr offline": Stream(video(fast, "bgr", offline=True)),
        "file i420": Stream(video(fast, "nv12", "i420"), video(slow, "nv12", "i420")),
        "file i420 offline": Stream(video(fast, "i420", offline=True)),
        "file i420 looped": Stream(video(fast, "i420", loop=True), video(slow, "i420", loop=True), endless=True),
        "images": Stream(lambda: ImageFolder(images, fps=FAST_FPS), lambda: ImageFolder(images, fps=SLOW_FPS)),
        "images offline": Stream(lambda: ImageFolder(images, FramePacer(offline=True))),
        "images looped": Stream(
            lambda: ImageFolder(images, fps=FAST_FPS, loop=True),
            lambda: ImageFolder(images, fps=SLOW_FPS, loop=True),
            endless=True,
        ),
        "synthetic bgr": synthetic_stream("bgr", offline=False),
        "synthetic bgrx": synthetic_stream("bgrx", offline=False),
        "synthetic nv12": synthetic_stream("nv12", offline=True),
        "synthetic i420": synthetic_stream("i420", offline=True),
        "http bgr": Stream(
            http_camera(f"fps={FAST_FPS}", "bgr", "nv12"),
            http_camera(f"fps={SLOW_FPS}&first=8", "bgr", "nv12"),
            endless=True,
        ),
        "http i420": Stream(
            http_camera(f"fps={FAST_FPS}", "nv12", "i420"),
            http_camera(f"fps={SLOW_FPS}&first=8", "nv12", "i420"),
            endless=True,
        ),
    }


NAMES = (
    "file bgr",
    "file bgr offline",
    "file i420",
    "file i420 offline",
    "file i420 looped",
    "images",
    "images offline",
    "images looped",
    "synthetic bgr",
    "synthetic bgrx",
    "synthetic nv12",
    "synthetic i420",
    "http bgr",
    "http i420",
)
SLOW_NAMES = tuple(name for name in NAMES if "offline" not in name and name not in {"synthetic nv12", "synthetic i420"})


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Return True as soon as the condition holds, or False if it does not hold within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
