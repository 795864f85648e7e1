"""RTSP camera in pure Python, over TCP and TLS. A test chooses its RTP times, pauses, and packets.

GStreamer's server (``tests/rtsp/server.py``) behaves correctly. In contrast, this camera sends any data that a test
specifies, such as times that advance at half the normal speed.
"""

from __future__ import annotations

import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
from av.bitstream import BitStreamFilterContext

CLIP = Path(__file__).parents[1] / "configs" / "vtest.mp4"
RTP_HZ = 90_000
_PAYLOAD_BYTES = 1400
_START_CODE = b"\x00\x00\x00\x01"


@cache
def clip_frames() -> tuple[bytes, ...]:
    """Return the coded frames of the shipped clip: H.264 in Annex B, 10 frames/s, and a key frame every 20 frames."""
    with av.open(str(CLIP)) as container:
        stream = container.streams.video[0]
        convert = BitStreamFilterContext("h264_mp4toannexb", stream)
        return tuple(bytes(out) for packet in container.demux(stream) if packet.size for out in convert.filter(packet))


@cache
def small_frames() -> tuple[bytes, ...]:
    """Return the first 40 frames of the clip, scaled to 128x96 pixels, so that their decoding takes little time."""
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 128, 96, "yuv420p", Fraction(1, 10)
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "20", "x264-params": "sliced-threads=0"}
    coded: list[bytes] = []
    with av.open(str(CLIP)) as container:
        for number, frame in zip(range(40), container.decode(video=0), strict=False):
            small = frame.reformat(128, 96, "yuv420p")
            small.pts, small.time_base = number, Fraction(1, 10)
            coded += [bytes(packet) for packet in encoder.encode(small)]
    return tuple(coded)


def regular(index: int) -> float:
    return index / 10


@dataclass
class RtspCamera:
    """Behavior of the camera. Frame `index` is due `due_s(index)` after the start. Its RTP time is `time_s(index)`."""

    frames: Sequence[bytes] = field(default_factory=clip_frames)  # repeated forever
    due_s: Callable[[int], float] = regular
    time_s: Callable[[int], float] = regular
    media: str = "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\n"
    loses: Callable[[int], bool] | None = None  # frames that are not sent
    status: str = "200 OK"  # of every answer
    sent: list[int] = field(default_factory=list)  # indices of the frames that were sent to the last client


def units(frame: bytes) -> list[bytes]:
    """Return the NAL units of a frame in Annex B."""
    parts = frame.replace(b"\x00\x00\x00\x01", b"\x00\x00\x01").split(b"\x00\x00\x01")
    return [part for part in parts if part]


def payloads(unit: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield each RTP payload (RFC 6184) of a NAL unit, and a flag that is True for the last payload."""
    if len(unit) <= _PAYLOAD_BYTES:
        yield unit, True
        return
    head, body = unit[0], unit[1:]
    for at in range(0, len(body), _PAYLOAD_BYTES):
        first, last = at == 0, at + _PAYLOAD_BYTES >= len(body)
        yield bytes([head & 0xE0 | 28, head & 0x1F | first << 7 | last << 6]) + body[at : at + _PAYLOAD_BYTES], last


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        with suppress(OSError):
            playing = False
            while not playing and (line := self.rfile.readline().decode()).strip():
                headers = {}
                while header := self.rfile.readline().decode().strip():
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                playing = line.startswith("PLAY")
                self._answer(line.split()[0], headers.get("cseq", "0"))

    def _answer(self, method: str, number: str) -> None:
        camera = self.server.camera
        body, extra = "", ""
        if method == "DESCRIBE":
            body = f"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\n{camera.media}a=control:track1\r\n"
            extra = "Content-Type: application/sdp\r\n"
        if method == "SETUP":
            extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
        if method == "OPTIONS":
            extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        head = f"RTSP/1.0 {camera.status}\r\nCSeq: {number}\r\nSession: 1\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
        self.wfile.write((head + body).encode())
        if method == "PLAY":
            self._play(camera)

    def _play(self, camera: RtspCamera) -> None:
        started_s, number, index = time.monotonic(), 0, 0
        camera.sent.clear()
        while not self.server.closing.wait(max(0.0, started_s + camera.due_s(index) - time.monotonic())):
            stamp = round(camera.time_s(index) * RTP_HZ) & 0xFFFFFFFF
            packets = [one for unit in units(camera.frames[index % len(camera.frames)]) for one in payloads(unit)]
            for at, (payload, _) in enumerate(packets):
                number += 1
                if camera.loses is not None and camera.loses(index):
                    continue
                marker = 0x80 if at == len(packets) - 1 else 0
                packet = struct.pack("!BBHII", 0x80, 96 | marker, number & 0xFFFF, stamp, 7) + payload
                self.wfile.write(b"$\x00" + struct.pack("!H", len(packet)) + packet)
            camera.sent.append(index)
            index += 1


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    camera: RtspCamera
    closing: threading.Event


@contextmanager
def rtsp_camera(camera: RtspCamera, *, certificate: Path | None = None) -> Iterator[str]:
    """Serve the camera until the end of the `with` block, and yield its address.

    `certificate` is a PEM file with a certificate and its key. If it is not None, the server uses TLS.
    """
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.camera, server.closing = camera, threading.Event()
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        scheme = "rtsp" if certificate is None else "rtsps"
        try:
            yield f"{scheme}://127.0.0.1:{server.server_address[1]}/live"
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
