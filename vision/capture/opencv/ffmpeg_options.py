"""FFmpeg inside OpenCV: what can be told to it at all, per camera and without one camera holding up the others.

OpenCV passes options on to FFmpeg from one environment variable, which it reads during each open. RTSP's transport must
differ from camera to camera, and FFmpeg 5 and later take it neither from the URL (``?tcp`` goes to the server) nor from
anywhere else. So the variable is changed under a lock for just that moment, and the moment is known exactly: FFmpeg is
sent to a port of this process first, which answers that the stream is elsewhere (RTSP 1.0, RFC 2326 section 11.3). When
that request comes, the options have been read and the lock is free again, usually after less than 1 ms, however long
the camera takes. Verified with the FFmpeg 5.1 and 8 of the OpenCV 4.8 and 5.0 wheels: ``tests/rtsp/test_rtsp.py``.

OpenCV's own lock around every open is switched off (``OPENCV_FFMPEG_IS_THREAD_SAFE``): with it, one camera that does
not answer keeps all others from opening. It dates from FFmpeg before 4.0, where opening codecs was not thread-safe.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Final, cast

import cv2

from vision.capture.opencv.reader import Capture
from vision.errors import SourceError

_OPTIONS: Final = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_OPTIONS_OF_OPENCV: Final = "rtsp_flags;prefer_tcp"  # what it uses where the variable is not there
_REQUEST_BYTES: Final = 4096
_REQUEST_S: Final = 1.0  # on the loopback


def _prepare_process() -> None:
    """Once, before anything is opened. What the operator has set stays.

    FFmpeg and OpenCV print URLs with passwords, and report as errors what a supervisor deals with.
    """
    os.environ.setdefault("OPENCV_FFMPEG_IS_THREAD_SAFE", "1")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    # Set always and only ever replaced: adding a variable later could move the table under a getenv of another thread.
    os.environ.setdefault(_OPTIONS, _OPTIONS_OF_OPENCV)
    if "OPENCV_LOG_LEVEL" not in os.environ:
        _set_log_level(0)  # silent


def _set_log_level(level: int) -> None:
    """OpenCV 5 has moved it."""
    moved = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    moved(level)


_prepare_process()


def open_url(url: str, parameters: Mapping[int, int]) -> Capture:
    """Open what FFmpeg can open; not opened in the end if it cannot. `parameters`: by ``cv2.CAP_PROP_...``."""
    flat = [number for pair in parameters.items() for number in pair]
    return cast(Capture, cv2.VideoCapture(url, cv2.CAP_FFMPEG, flat))


def open_rtsp(
    url: str,
    options: Mapping[str, str],
    parameters: Mapping[int, int],
    timeout_s: float,
    *,
    opener: Callable[[str, Mapping[int, int]], Capture] = open_url,
) -> Capture:
    """As `opener`, for one RTSP camera with options of FFmpeg's RTSP demuxer, such as ``rtsp_transport``.

    Options that other demuxers know too must not be given: a file that is opened in the same moment would get them.

    Raises:
        SourceError: this machine has no free port.
    """
    try:
        hop = _FirstHop(url, timeout_s)
    except OSError as error:
        raise SourceError(f"no port of this machine is free for opening RTSP: {error}") from error
    with hop:
        restore = _replace_options(options)
        hop.answer(when_reached=restore)
        try:
            return opener(hop.url, parameters)
        finally:
            restore()


def n_threads(count: int) -> dict[int, int]:
    """Open parameter for the number of decoding threads; 0: one a core. Empty where OpenCV does not know it."""
    known = getattr(cv2, "CAP_PROP_N_THREADS", None)
    return {} if known is None else {known: count}


_options_lock = threading.Lock()


def _replace_options(options: Mapping[str, str]) -> Callable[[], None]:
    """Add `options` to the environment, until the function returned is called: from any thread, once or more."""
    _options_lock.acquire()
    before = os.environ.get(_OPTIONS, _OPTIONS_OF_OPENCV)
    os.environ[_OPTIONS] = "|".join([before, *(f"{key};{value}" for key, value in options.items())])
    first = threading.Lock()

    def restore() -> None:
        if first.acquire(blocking=False):
            os.environ[_OPTIONS] = before
            _options_lock.release()

    return restore


class _FirstHop:
    """A port on this machine's loopback that sends one RTSP client on to the camera.

    The camera's URL, with its password, is told only to who knows the random path.
    """

    def __init__(self, target: str, timeout_s: float) -> None:
        self._target = target
        self._path = secrets.token_hex(16)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(timeout_s)
        self.url = f"rtsp://127.0.0.1:{self._server.getsockname()[1]}/{self._path}"
        self._thread: threading.Thread | None = None

    def answer(self, when_reached: Callable[[], None]) -> None:
        """Wait for the client on another thread; `when_reached` is called as soon as it has connected."""
        self._thread = threading.Thread(target=self._answer, args=(when_reached,), name="rtsp-options", daemon=True)
        self._thread.start()

    def _answer(self, when_reached: Callable[[], None]) -> None:
        try:
            while not self._answered(self._server.accept()[0], when_reached):
                pass
        except OSError:
            return  # the client is gone or never came: its open fails, which is reported

    def _answered(self, client: socket.socket, when_reached: Callable[[], None]) -> bool:
        with client:
            client.settimeout(_REQUEST_S)
            request = client.recv(_REQUEST_BYTES).decode("latin-1")
            if f"/{self._path} " not in request.partition("\r\n")[0]:
                return False
            when_reached()
            client.sendall(f"RTSP/1.0 302 Found\r\nCSeq: 1\r\nLocation: {self._target}\r\n\r\n".encode())
        return True

    def __enter__(self) -> _FirstHop:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)  # wakes an accept, which close alone does not
        self._server.close()
        if self._thread is not None:
            self._thread.join()
