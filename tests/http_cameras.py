"""HTTP cameras in this process, with correct and with unusual responses. `http_camera` runs a camera."""

from __future__ import annotations

import io
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias

import av
import cv2
import numpy as np

CLIP = Path(__file__).parents[1] / "configs" / "vtest.mp4"
CLIP_FPS, CLIP_GOP = 10, 20
WIDTH_PX, HEIGHT_PX = 64, 48


@cache
def jpeg(number: int) -> bytes:
    """Return a JPEG with a single shade of gray that depends on `number` modulo 24."""
    shade = 10 * (number % 24)
    return bytes(cv2.imencode(".jpg", np.full((HEIGHT_PX, WIDTH_PX, 3), shade, np.uint8))[1].tobytes())


@dataclass
class Request:
    """One request of a client. `wait` sleeps, and returns True if the server is closing."""

    path: str
    write: Callable[[bytes], object]
    wait: Callable[[float], bool]
    user: str  # "Authorization" of the request
    count: int  # number of earlier requests


Answer: TypeAlias = Callable[[Request], None]


def head(content_type: str | None, length: int | None = None, status: str = "200 OK", extra: str = "") -> bytes:
    """Return the status line and the headers of a response."""
    lines = [f"HTTP/1.0 {status}"]
    lines += [f"Content-Type: {content_type}"] * (content_type is not None)
    lines += [f"Content-Length: {length}"] * (length is not None)
    return ("\r\n".join(lines) + f"\r\n{extra}\r\n").encode()


@dataclass(frozen=True)
class MotionJpeg:
    """Response with JPEGs as the parts of a multipart document, at `fps` frames/s."""

    fps: float = 10.0
    boundary: str = "frame"
    announced: str | None = None  # boundary in the header; None means `boundary`
    content_type: str | None = None  # None: multipart/x-mixed-replace with the announced boundary
    part_type: str | None = "image/jpeg"
    length_error: int | None = 0  # added to the right length; None sends no length
    dashes: str = "--"
    newline: str = "\r\n"
    frames: Callable[[int], bytes] = jpeg
    sent: list[float] = field(default_factory=list)  # time of each frame

    def __call__(self, request: Request) -> None:
        announced = self.boundary if self.announced is None else self.announced
        request.write(head(self.content_type or f"multipart/x-mixed-replace; boundary={announced}"))
        number, began = 0, time.monotonic()
        while not request.wait(max(0.0, began + number / self.fps - time.monotonic())):
            data = self.frames(number)
            lines = [self.dashes + self.boundary]
            lines += [f"Content-Type: {self.part_type}"] * (self.part_type is not None)
            if self.length_error is not None:
                lines.append(f"Content-Length: {len(data) + self.length_error}")
            text = self.newline.join([*lines, "", ""]).encode()
            request.write(text + data + self.newline.encode())
            self.sent.append(time.monotonic())
            number += 1


def bare_jpegs(fps: float, content_type: str | None = "image/jpeg") -> Answer:
    """Return a response with a stream of JPEGs, without multipart boundaries between them."""

    def answer(request: Request) -> None:
        request.write(head(content_type))
        number = 0
        while not request.wait(1 / fps if number else 0):
            request.write(jpeg(number))
            number += 1

    return answer


def snapshot(content_type: str | None = "image/jpeg", *, with_length: bool = True) -> Answer:
    """Return a response with one JPEG. The number of the JPEG is the number of previous requests."""

    def answer(request: Request) -> None:
        data = jpeg(request.count)
        request.write(head(content_type, len(data) if with_length else None) + data)

    return answer


def stored(content: bytes | Path, content_type: str | None = None, *, with_length: bool = True) -> Answer:
    """Return a response with the contents of a file, as a web server sends it."""
    data = content if isinstance(content, bytes) else content.read_bytes()

    def answer(request: Request) -> None:
        request.write(head(content_type, len(data) if with_length else None) + data)

    return answer


def refused(status: str, extra: str = "") -> Answer:
    """Return a response with the status `status` and without content."""

    def answer(request: Request) -> None:
        request.write(head(None, 0, status, extra))

    return answer


def live_container(name: str, *, announces_sound: bool) -> Answer:
    """Return a response that sends the clip in the container `name` of FFmpeg, in real time.

    If `announces_sound` is True, the container announces a sound track that contains no data.
    """

    class Output(io.RawIOBase):
        def __init__(self, write: Callable[[bytes], object]) -> None:
            self.write_bytes = write

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.write_bytes(bytes(data))
            return len(data)

    def answer(request: Request) -> None:
        request.write(head("video/x-flv" if name == "flv" else "video/mp2t"))
        with (
            av.open(str(CLIP)) as clip,
            av.open(Output(request.write), "w", format=name, options={"max_interleave_delta": "1"}) as out,
        ):
            source = clip.streams.video[0]
            video = out.add_stream_from_template(source)
            if announces_sound:
                out.add_stream("aac", rate=48_000)
            began = time.monotonic()
            for number, packet in enumerate(clip.demux(source)):
                if not packet.size or request.wait(max(0.0, began + number / CLIP_FPS - time.monotonic())):
                    return
                packet.stream = video
                out.mux(packet)

    return answer


class LiveHls:
    """Live HLS playlist of the clip. Each MPEG-TS segment contains `gops` groups of frames (GOPs) of 2 s each."""

    def __init__(self, gops: int = 1, window: int = 3) -> None:
        self._window = window
        self._segment_s = gops * CLIP_GOP / CLIP_FPS
        self._began = time.monotonic() - self._window * self._segment_s
        self._segments = _segments(gops)

    def __call__(self, request: Request) -> None:
        if request.path.endswith(".ts"):
            data = self._segments[int(request.path.rpartition("/")[2][:-3]) % len(self._segments)]
            request.write(head("video/mp2t", len(data)) + data)
            return
        newest = int((time.monotonic() - self._began) / self._segment_s)
        first = max(0, newest - self._window)
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{self._segment_s:.0f}"]
        lines.append(f"#EXT-X-MEDIA-SEQUENCE:{first}")
        for number in range(first, newest):
            again = number and number % len(self._segments) == 0
            lines += ["#EXT-X-DISCONTINUITY"] * bool(again) + [f"#EXTINF:{self._segment_s:.3f},", f"{number}.ts"]
        text = "\n".join([*lines, ""]).encode()
        request.write(head("application/vnd.apple.mpegurl", len(text)) + text)


@cache
def _segments(gops: int) -> tuple[bytes, ...]:
    """Return the clip as MPEG-TS segments, which FFmpeg's HLS muxer creates."""
    options = {"hls_time": str(gops * CLIP_GOP / CLIP_FPS), "hls_list_size": "0"}
    with tempfile.TemporaryDirectory() as folder:
        options["hls_segment_filename"] = f"{folder}/%03d.ts"
        with av.open(str(CLIP)) as clip, av.open(f"{folder}/all.m3u8", "w", format="hls", options=options) as out:
            source = clip.streams.video[0]
            video = out.add_stream_from_template(source)
            for packet in clip.demux(source):
                if packet.size:
                    packet.stream = video
                    out.mux(packet)
        return tuple(file.read_bytes() for file in sorted(Path(folder).glob("*.ts")))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    answer: Answer
    closing: threading.Event
    requests = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the errors of clients that reject a certificate."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the library
        """Log nothing."""

    def do_GET(self) -> None:
        count = self.server.requests
        self.server.requests += 1
        user = self.headers.get("Authorization", "")
        with suppress(OSError, av.FFmpegError):
            self.server.answer(Request(self.path, self.wfile.write, self.server.closing.wait, user, count))


@contextmanager
def http_camera(answer: Answer, *, certificate: Path | None = None) -> Iterator[str]:
    """Run an HTTP camera that sends the response `answer` until the end of the `with` block. Yield its address.

    `certificate` is a PEM file with a certificate and its key. If it is not None, the server uses TLS.
    """
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.answer, server.closing = answer, threading.Event()
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{'http' if certificate is None else 'https'}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
