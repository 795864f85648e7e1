"""Synthetic video in many codecs and containers, and the frames that FFmpeg decodes from it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vision.capture.ffmpeg.bindings import FrameWriter, time_ns
from vision.types import frame_shape

Image = NDArray[np.uint8]

FPS = 25
FAST = {"preset": "ultrafast", "g": "10"}
"""Options of x264 and x265."""


def scene(count: int, height_px: int, width_px: int) -> Iterator[Image]:
    """Yield BGR frames (H, W, 3). The upper quarter does not change, and the rest moves."""
    random = np.random.default_rng(5)
    shades = random.integers(0, 255, (height_px // 8 + 1, (width_px + 4 * count) // 8 + 1, 3), np.uint8)
    wide = shades.repeat(8, 0).repeat(8, 1)
    for number in range(count):
        image = wide[:height_px, 4 * number : 4 * number + width_px].copy()
        image[: height_px // 4] = wide[: height_px // 4, :width_px]
        yield image


@cache
def video(
    codec: str,
    container: str,
    *,
    count: int = 30,
    size: tuple[int, int] = (192, 320),
    pixels: str = "yuv420p",
    options: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """Return the contents of a video file in the format `container`. `size` is (height, width)."""
    return written(list(scene(count, *size)), codec, container, pixels=pixels, options=dict(options))


def written(
    images: Sequence[Image], codec: str, container: str, *, pixels: str = "yuv420p", options: dict[str, str]
) -> bytes:
    """Encode BGR frames. Return the contents of the video file."""
    muxing = {"movflags": "+faststart"} if container == "mp4" else {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "video"
        _write(path, images, (codec, container, pixels), options, muxing)
        return path.read_bytes()


def _write(
    path: Path, images: Sequence[Image], kind: tuple[str, str, str], options: dict[str, str], muxing: dict[str, str]
) -> None:
    codec, container, pixels = kind
    with av.open(str(path), "w", format=container, options=muxing) as file:
        stream: Any = file.add_stream(codec, rate=FPS)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        stream.options = options
        stream.codec_context.thread_count = 2
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def coded(data: bytes) -> list[bytes]:
    """Return the packets of a video file in decoding order."""
    with av.open(BytesIO(data)) as file:
        return [bytes(packet) for packet in file.demux(file.streams.video[0]) if packet.size]


def decoded(data: bytes | Path, count: int | None = None) -> Iterator[tuple[int | None, Image]]:
    """Decode at most `count` frames with FFmpeg. Yield their presentation times in ns and their NV12 pixels."""
    with av.open(BytesIO(data) if isinstance(data, bytes) else str(data)) as file:
        for number, frame in enumerate(file.decode(video=0)):
            if number == count:
                return
            yield time_ns(frame), _nv12(frame)


def _nv12(frame: av.VideoFrame) -> Image:
    """Reorder the samples of a 4:2:0 frame to NV12, without converting values."""
    height_px, width_px = frame.height, frame.width
    planar = np.zeros(frame_shape(height_px, width_px, "i420"), np.uint8)
    FrameWriter("i420").write(frame, planar)
    out: Image = planar.copy()
    chroma = planar[height_px:].reshape(2, -1)
    out[height_px:] = chroma.T.reshape(height_px // 2, width_px)
    return out


@contextmanager
def served(*parts: bytes, name: str, pause_s: float = 0.0, interval_s: float = 0.0) -> Iterator[str]:
    """Serve `parts` over HTTP, one after another, until the end of the `with` block. Yield the URL.

    The server waits for `interval_s` after each part. After the last part, it waits for `pause_s`, and then closes the
    connection.
    """

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the library
            """Log nothing."""

        def do_GET(self) -> None:
            self.send_response(200)
            if not pause_s:
                self.send_header("Content-Length", str(sum(map(len, parts))))
            self.end_headers()
            try:
                for part in parts:
                    self.wfile.write(part)
                    self.wfile.flush()
                    if ended.wait(interval_s):
                        return
            except OSError:
                return
            ended.wait(pause_s)

    ended = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/{name}"
        finally:
            ended.set()
            server.shutdown()
            thread.join()
