"""What is ours between OpenCV and a camera: options, buffers, negotiation, and the words for a failure.

The cameras themselves are in ``tests/contract/``.
"""

from __future__ import annotations

import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.frame_buffers import wrap
from vision.capture.diagnosis import explain_open
from vision.capture.opencv.ffmpeg_options import open_rtsp
from vision.capture.opencv.reader import FrameReader, describe, position_ns, require_bgr
from vision.capture.opencv.source import LiveCapture, NetworkLink, UsbLink, negotiate
from vision.errors import SizeChanged, SourceError

OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


class Decoded:
    """A capture that has decoded frames, some of another size; a driver that takes some requests and not others."""

    def __init__(self, *frames: NDArray[np.uint8] | None, **properties: float) -> None:
        self.frames = list(frames)
        self.properties = {getattr(cv2, f"CAP_PROP_{name}"): value for name, value in properties.items()}
        self.asked: list[tuple[int, float]] = []
        self.released = 0

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def grab(self) -> bool:
        return bool(self.frames)

    def retrieve(self, image: NDArray[np.uint8]) -> tuple[bool, NDArray[np.uint8]]:
        frame = self.frames.pop(0)
        if frame is None:
            return False, image
        if frame.shape != image.shape:
            return True, frame
        image[...] = frame
        return True, image

    def get(self, propId: int) -> float:  # noqa: N803
        return self.properties.get(propId, 0.0)

    def set(self, propId: int, value: float) -> bool:  # noqa: N803
        self.asked.append((propId, value))
        return True

    def release(self) -> None:
        self.released += 1


def frame(height_px: int, width_px: int, shade: int = 5) -> NDArray[np.uint8]:
    return np.full((height_px, width_px, 3), shade, np.uint8)


# --- buffers ----------------------------------------------------------------------------------------------------------


def test_a_frame_that_fits_is_decoded_in_place() -> None:
    out = frame(4, 6, 0)
    FrameReader(Decoded(frame(4, 6, 9))).retrieve(out)
    assert np.all(out == 9)


def test_a_frame_of_another_size_is_kept_until_its_buffer_is_there() -> None:
    retriever = FrameReader(Decoded(frame(8, 10, 9), frame(8, 10, 10)))
    for _ in range(2):
        with pytest.raises(SizeChanged) as change:
            retriever.retrieve(frame(4, 6))
        assert (change.value.height_px, change.value.width_px) == (8, 10)
    out = frame(8, 10, 0)
    retriever.retrieve(out)
    assert np.all(out == 9)
    retriever.forget()
    retriever.retrieve(out)
    assert np.all(out == 10)


@pytest.mark.parametrize("decoded", [None, np.zeros((8, 10), np.uint8), np.zeros((8, 10, 2), np.uint8)])
def test_what_is_no_frame_of_three_channels(decoded: NDArray[np.uint8] | None) -> None:
    with pytest.raises(SourceError, match=r"could not be decoded|expected a frame of 3 channels"):
        FrameReader(Decoded(decoded)).retrieve(frame(4, 6))


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(25.0, 25.0), (0.0, None), (-1.0, None), (90000.0, None), (float("nan"), None), (1000.0, 1000.0)],
)
def test_a_rate_that_can_be_believed(fps: float, expected: float | None) -> None:
    assert describe(Decoded(FPS=fps, FRAME_WIDTH=64, FRAME_HEIGHT=48), "x").fps == expected


@pytest.mark.parametrize(
    ("position_ms", "expected"),
    [(0.0, None), (40.0, 40_000_000), (-2500.0, -2_500_000_000), (-3.68934881474191e20, None), (float("nan"), None)],
)
def test_a_position_that_can_be_believed(position_ms: float, expected: int | None) -> None:
    assert position_ns(Decoded(POS_MSEC=position_ms)) == expected


def test_a_detector_that_takes_no_bgr() -> None:
    require_bgr(("nv12", "bgr"), "gate")
    with pytest.raises(
        SourceError, match=r"OpenCV delivers bgr frames, the detector takes nv12, i420(.|\n)*reader: gst"
    ):
        require_bgr(("nv12", "i420"), "gate")


# --- USB --------------------------------------------------------------------------------------------------------------


def test_what_is_asked_of_a_usb_camera() -> None:
    camera = Decoded(FRAME_WIDTH=1280, FRAME_HEIGHT=720, FPS=30)
    assert negotiate(camera, 1280, 720, 30.0) == []
    assert camera.asked == [
        (cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG")),
        (cv2.CAP_PROP_FRAME_WIDTH, 1280),
        (cv2.CAP_PROP_FRAME_HEIGHT, 720),
        (cv2.CAP_PROP_FPS, 30.0),
        (cv2.CAP_PROP_BUFFERSIZE, 1),
    ]


@pytest.mark.parametrize(
    ("width", "height", "fps", "said"),
    [
        (None, None, None, []),
        (1920, 1080, None, ["asked for 1920x1080, it gives 640x480"]),
        (640, 480, 60.0, ["asked for 60 frames/s, it gives 30"]),
        (640, 480, 30.1, []),
        (320, 480, 5.0, ["asked for 320x480, it gives 640x480", "asked for 5 frames/s, it gives 30"]),
    ],
)
def test_what_a_usb_camera_gives_instead_is_said(
    width: int | None, height: int | None, fps: float | None, said: list[str]
) -> None:
    assert negotiate(Decoded(FRAME_WIDTH=640, FRAME_HEIGHT=480, FPS=30), width, height, fps) == said


def test_nothing_is_asked_of_a_usb_camera_that_is_not_configured() -> None:
    camera = Decoded(FRAME_WIDTH=640, FRAME_HEIGHT=480, FPS=30)
    negotiate(camera, None, None, None)
    assert camera.asked == [(cv2.CAP_PROP_BUFFERSIZE, 1)]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("/dev/video987", "No such file or directory(.|\n)*plugged in"),
        ("/dev/null", "V4L2 cannot open it"),
        (__file__, "expected a video device, this is none"),
    ],
)
def test_usb_cameras_that_are_none(device: str, message: str) -> None:
    source = LiveCapture(UsbLink(device))
    with pytest.raises(SourceError, match=message):
        source.open()
    source.close()


def test_a_usb_camera_that_stops() -> None:
    assert "no frame came for 10.0 s" in str(UsbLink("/dev/video0").ended(10.0))


# --- why a camera cannot be opened ------------------------------------------------------------------------------------


@contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """A port that answers every request like this; None: never."""
    released = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if answer is None:
                released.wait(30)
                return
            self.request.recv(4096)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        released.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("scheme", "answer", "took_s", "message"),
    [
        ("rtsp", b"RTSP/1.0 401 Unauthorized\r\n\r\n", 0.1, "refuses this user or password(.|\n)*%40"),
        ("rtsp", b"RTSP/1.0 404 Not Found\r\n\r\n", 0.1, "no stream of this path"),
        ("rtsp", b"RTSP/1.0 403 Forbidden\r\n\r\n", 0.1, "may not see the stream"),
        ("rtsp", b"RTSP/1.0 453 Not Enough Bandwidth\r\n\r\n", 0.1, "no bandwidth left"),
        ("rtsp", b"RTSP/1.0 200 OK\r\n\r\n", 0.1, "cannot be decoded"),
        ("rtsp", b"RTSP/1.0 200 OK\r\n\r\n", 5.0, "no frame came in time(.|\n)*open_timeout_s"),
        ("rtsp", b"SSH-2.0-OpenSSH\r\n", 0.1, "it answers 'SSH-2.0-OpenSSH'"),
        ("rtsp", b"", 0.1, "it answers nothing"),
        ("rtsp", None, 5.0, "no answer"),
        ("http", b"HTTP/1.1 401 Unauthorized\r\n\r\n", 0.1, "refuses this user or password"),
        ("http", b"HTTP/1.1 404 Not Found\r\n\r\n", 0.1, "no stream of this path"),
        ("http", b"HTTP/1.1 503 Busy\r\n\r\n", 0.1, "serves no further client"),
        ("https", b"HTTP/1.1 200 OK\r\n\r\n", 0.1, "SSL|WRONG|record"),
        ("rtsps", b"RTSP/1.0 200 OK\r\n\r\n", 0.1, "SSL|WRONG|record"),
    ],
)
def test_why_a_camera_cannot_be_opened(scheme: str, answer: bytes | None, took_s: float, message: str) -> None:
    with answering(answer) as port:
        url = f"{scheme}://admin:secret@127.0.0.1:{port}/live?channel=1"
        with pytest.raises(SourceError, match=message) as error:
            raise explain_open(url, open_timeout_s=5.0, took_s=took_s)
    assert "secret" not in str(error.value)
    assert f"{scheme}://***@127.0.0.1:{port}/live?channel=1" in str(error.value)


def test_a_camera_that_asks_for_a_password() -> None:
    with answering(b"RTSP/1.0 401 Unauthorized\r\n\r\n") as port:
        error = explain_open(f"rtsp://127.0.0.1:{port}/live", open_timeout_s=5.0, took_s=0.1)
    assert "it asks for user and password" in str(error)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_port_that_nobody_listens_to(scheme: str) -> None:
    source = LiveCapture(NetworkLink(f"{scheme}://admin:secret@127.0.0.1:{closed_port()}/live"))
    with pytest.raises(SourceError, match="refuses connections") as error:
        source.open()
    assert "secret" not in str(error.value)
    source.close()


# --- options per camera -----------------------------------------------------------------------------------------------


def test_options_are_gone_after_the_open_and_the_operators_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPTIONS, "fflags;nobuffer")
    seen: list[str] = []

    def look(url: str, parameters: Mapping[int, int]) -> Decoded:
        seen.append(os.environ[OPTIONS])
        return Decoded()

    open_rtsp("rtsp://127.0.0.1:1/a", {"rtsp_transport": "udp"}, {}, 1.0, opener=look)
    assert seen == ["fflags;nobuffer|rtsp_transport;udp"]
    assert os.environ[OPTIONS] == "fflags;nobuffer"


def test_a_camera_that_hangs_does_not_keep_the_others_from_opening() -> None:
    """Both what OpenCV locks and what we lock: the second camera gets its turn while the first one still waits."""
    with answering(None) as silent, answering(b"RTSP/1.0 404 Not Found\r\n\r\n") as quick:

        def hang() -> None:
            with pytest.raises(SourceError):
                open_link(f"rtsp://127.0.0.1:{silent}/a", 20.0)

        def answer() -> None:
            with pytest.raises(SourceError, match="no stream of this path"):
                open_link(f"rtsp://127.0.0.1:{quick}/a", 20.0)
            answered.set()

        answered = threading.Event()
        threads = [threading.Thread(target=hang), threading.Thread(target=answer)]
        threads[0].start()
        time.sleep(0.2)  # so that the first one is likely to be inside: it must hold either way
        threads[1].start()
        assert answered.wait(10), "half the time-out of the first one"
        assert threads[0].is_alive()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def open_link(url: str, timeout_s: float) -> None:
    source = LiveCapture(NetworkLink(url, open_timeout_s=timeout_s))
    try:
        source.open()
    finally:
        source.close()


def test_only_who_knows_the_way_is_told_the_cameras_url() -> None:
    answers: list[bytes] = []

    def intrude(url: str, parameters: Mapping[int, int]) -> Decoded:
        address, _, path = url.removeprefix("rtsp://").partition("/")
        host, _, port = address.partition(":")
        assert len(path) == 32
        for target in ("/", f"/{path[:-1]}", f"/{path}"):
            with socket.create_connection((host, int(port)), 5) as client:
                client.sendall(f"OPTIONS rtsp://{address}{target} RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode())
                answers.append(client.recv(4096))
        return Decoded()

    open_rtsp("rtsp://admin:secret@10.0.0.4/live?x=1", {}, {}, 5.0, opener=intrude)
    assert answers[:2] == [b"", b""]
    assert b"302" in answers[2]
    assert b"Location: rtsp://admin:secret@10.0.0.4/live?x=1\r\n" in answers[2]


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """FFmpeg and OpenCV would print the URL, password and all, or what they think of a file."""
    broken = tmp_path / "a.png"
    broken.write_bytes(b"no image")
    cv2.imread(str(broken))
    with answering(b"RTSP/1.0 404 Not Found\r\n\r\n") as port, pytest.raises(SourceError):
        open_link(f"rtsp://admin:secret@127.0.0.1:{port}/a", 5.0)
    with answering(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nno video") as port, pytest.raises(SourceError):
        open_link(f"http://admin:secret@127.0.0.1:{port}/a", 5.0)
    out, err = capfd.readouterr()
    assert out + err == ""


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [lambda source: source.grab(0.1), lambda source: source.retrieve(wrap(frame(4, 6)))],
    ids=["grab", "retrieve"],
)
def test_a_capture_that_is_not_open(use: Callable[[LiveCapture], object]) -> None:
    source = LiveCapture(UsbLink("/dev/video987"))
    with pytest.raises(SourceError, match=r"grab before open|without a frame"):
        use(source)


class DecodedLink:
    """A camera that is there."""

    decoder = "decoded"
    patience_s = 5.0

    def __init__(self, capture: Decoded) -> None:
        self._capture = capture

    def open(self) -> Decoded:
        return self._capture

    def ended(self, waited_s: float) -> SourceError:
        return SourceError("ended")


def test_a_frame_of_another_size_that_nobody_took_is_not_the_next_one() -> None:
    capture = Decoded(frame(8, 10, 1), frame(8, 10, 2), FRAME_WIDTH=6, FRAME_HEIGHT=4)
    source = LiveCapture(DecodedLink(capture))
    assert source.open().width_px == 6
    assert source.grab(5) is not None
    with pytest.raises(SizeChanged):
        source.retrieve(wrap(frame(4, 6)))
    assert source.grab(5) is not None
    out = frame(8, 10, 0)
    source.retrieve(wrap(out))
    assert np.all(out == 2)
    with pytest.raises(SourceError, match="ended"):
        source.grab(5)
    source.close()
    assert capture.released == 1


def test_a_grab_that_goes_on_is_not_begun_again() -> None:
    """The library must not read a frame while another is copied out of it."""

    class Slow(Decoded):
        arrived = threading.Event()
        grabs = 0

        def grab(self) -> bool:
            self.grabs += 1
            return self.arrived.wait(30)

    capture = Slow(frame(4, 6, 1), FRAME_WIDTH=6, FRAME_HEIGHT=4)
    source = LiveCapture(DecodedLink(capture))
    source.open()
    assert [source.grab(0.01) for _ in range(3)] == [None, None, None]
    with pytest.raises(SourceError, match="without a frame"):
        source.retrieve(wrap(frame(4, 6)))
    capture.arrived.set()
    assert source.grab(10) is not None
    source.close()
    assert capture.grabs == 1


def test_interrupted_before_it_opens() -> None:
    source = LiveCapture(NetworkLink("rtsp://127.0.0.1:1/a"))
    source.interrupt()
    with pytest.raises(SourceError, match="interrupted"):
        source.open()
    source.close()
