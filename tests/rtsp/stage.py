"""Real RTSP server in a separate process, and supervised cameras, as in the program."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.capture.camera_status import CameraStatus
from vision.capture.gstreamer.bindings import library
from vision.capture.open import open_source
from vision.capture.source import Source, StreamInfo
from vision.capture.supervisor import CameraSupervisor, SupervisorPolicy
from vision.config import CameraConfig
from vision.errors import SizeChanged
from vision.types import DropReason, FrameBuffer, FrameMeta, PixelFormat

PYTHON = Path("/usr/bin/python3")
SERVER = Path(__file__).with_name("server.py")
CLIP = Path(__file__).parents[2] / "configs" / "vtest.mp4"
FORMATS: tuple[PixelFormat, ...] = ("bgr", "i420", "nv12")
PATIENCE_S = 60.0  # timeout of operations that take a second on an idle machine


@cache
def missing() -> str | None:
    """Return the reason why the server cannot run on this machine, or None if it can run."""
    if not PYTHON.exists():
        return f"there is no {PYTHON}: apt-get install python3"
    check = subprocess.run([PYTHON, SERVER, "--check"], capture_output=True, text=True, timeout=60, check=False)
    return check.stderr.strip().splitlines()[-1] if check.returncode else None


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait until the condition holds. Check every 10 ms, and fail with the text `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.01)


class Server:
    """Running ``server.py``. `lines` contains its output, which reports its clients."""

    def __init__(self, *options: str, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [PYTHON, SERVER, "--port", str(port), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(lambda: any(line.startswith("ready") for line in self.lines) or self._ended, "the server to start")
        assert not self._ended, self.lines
        self.port = int(self.lines[-1].split()[1])

    @property
    def _ended(self) -> bool:
        return self._process.poll() is not None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.strip())

    def url(self, path: str, account: str = "") -> str:
        return f"rtsp://{account}127.0.0.1:{self.port}{path}"

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the server. The server sends no message to its clients, but the kernel closes the connections."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ended:
            self.kill()


def camera(url: str, reader: str, **settings: object) -> CameraConfig:
    return CameraConfig.model_validate({"id": f"by-{reader}", "source": url, "reader": reader, **settings})


def source_of(config: CameraConfig) -> Source:
    return open_source(config, offline=False, pixel_formats=FORMATS)


@contextmanager
def opened(config: CameraConfig) -> Iterator[tuple[Source, StreamInfo]]:
    """Open a source, and close it at the end of the `with` block."""
    source = source_of(config)
    try:
        yield source, source.open()
    finally:
        source.close()


@contextmanager
def silent_port() -> Iterator[int]:
    """Yield a port that accepts connections and never responds, like a camera that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def refusing_port() -> Iterator[int]:
    """Yield a port that refuses connections, and that no other program can use."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def frame(source: Source, info: StreamInfo) -> tuple[NDArray[np.uint8], int, int]:
    """Return the most recently grabbed frame, with the height and width of `info`."""
    height, width = info.height_px, info.width_px
    out = FrameBuffer.allocate(height, width, info.pixel_format)
    try:
        source.retrieve(out)
    except SizeChanged as change:
        height, width = change.height_px, change.width_px
        out = FrameBuffer.allocate(height, width, info.pixel_format)
        source.retrieve(out)
    return out.require_host(), height, width


def luma(pixels: NDArray[np.uint8], pixel_format: PixelFormat) -> NDArray[np.int16]:
    """Return the brightness of every fourth pixel in both directions of a frame."""
    if pixel_format == "bgr":
        pixels = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2YUV_I420), np.uint8)
    return pixels[: pixels.shape[0] * 2 // 3 : 4, ::4].astype(np.int16)


@cache
def clip_luma() -> NDArray[np.int16]:
    """Return the brightness of every frame of the clip (N, H/4, W/4), as decoded by GStreamer from the file.

    Frames that arrive over RTSP must have the same values.
    """
    gst = library().Gst
    pipeline = gst.parse_launch(f'filesrc location="{CLIP}" ! qtdemux ! h264parse ! avdec_h264 ! appsink name=sink')
    sink = pipeline.get_by_name("sink")
    sink.set_property("sync", False)
    pipeline.set_state(gst.State.PLAYING)
    frames = []
    while (sample := sink.try_pull_sample(round(PATIENCE_S * 1e9))) is not None:
        size = sample.get_caps().get_structure(0)
        width, height = size.get_value("width"), size.get_value("height")
        pixels = np.frombuffer(sample.get_buffer().extract_dup(0, width * height * 3 // 2), np.uint8)
        frames.append(luma(pixels.reshape(height * 3 // 2, width), "i420"))
    pipeline.set_state(gst.State.NULL)
    return np.stack(frames)


def place_in_clip(pixels: NDArray[np.uint8], pixel_format: PixelFormat) -> tuple[int, float]:
    """Return the index of the most similar clip frame, and the mean difference between the pixels of both frames.

    The difference is 0 if no color conversion changed the frame.
    """
    errors = np.abs(clip_luma() - luma(pixels, pixel_format)).mean(axis=(1, 2))
    return int(errors.argmin()), float(errors.min())


class Recorder:
    """`FrameSink` that records the metadata of every frame, and the pixels of the most recent frame."""

    def __init__(self) -> None:
        self.metas: list[FrameMeta] = []
        self.arrived_ns: list[int] = []  # monotonic, of each meta
        self.dropped: list[DropReason] = []
        self.pixel_format: PixelFormat = "bgr"
        self._buffer = FrameBuffer.allocate(2, 2, "bgr")

    def configure(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> None:
        self._buffer = FrameBuffer.allocate(height_px, width_px, pixel_format)
        self.pixel_format = pixel_format

    def write_buffer(self, timeout_s: float) -> FrameBuffer | None:
        return self._buffer

    def commit(self, meta: FrameMeta) -> None:
        self.arrived_ns.append(time.monotonic_ns())
        self.metas.append(meta)

    def drop(self, reason: DropReason) -> None:
        self.dropped.append(reason)

    def flush(self, reason: DropReason) -> None:
        pass

    def end(self) -> None:
        pass


class Watched:
    """Supervised camera in a thread, as in the program. The object records its states and errors."""

    def __init__(self, config: CameraConfig) -> None:
        self.recorder = Recorder()
        self.states: list[str] = []
        self.errors: list[str] = []
        policy = SupervisorPolicy(read_timeout_s=config.read_timeout_s, frozen_after_s=None, longest_retry_s=1.0)
        self._supervisor = CameraSupervisor(config.id, lambda: source_of(config), self.recorder, policy)
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=target) for target in (self._supervisor.run, self._note)]

    def _note(self) -> None:
        while not self._ended.wait(0.01):
            status = self._supervisor.status()
            if not self.states or self.states[-1] != status.state:
                self.states.append(status.state)
            error = f"{status.last_error}; {status.last_hint}"
            if status.last_error and error not in self.errors:
                self.errors.append(error)

    @property
    def status(self) -> CameraStatus:
        return self._supervisor.status()

    def wait_state(self, state: str) -> None:
        """Wait until the camera is, or has been, in the state `state`."""
        wait_until(lambda: state in self.states, f"{state!r} after {self.states}")

    def wait_loss(self) -> None:
        """Wait until the supervisor has noticed the loss of the connection, and backs off."""
        wait_until(lambda: self.states[-1] == "backing-off", f"the loss to be noticed after {self.states}")

    def wait_grabbed(self, count: int) -> None:
        """Wait until `count` frames in total have been delivered or dropped."""
        wait_until(lambda: self.status.grabbed >= count, f"{count} frames, {self.states}, {self.errors}")

    def wait_frames(self, count: int) -> None:
        """Wait until `count` more frames have been committed."""
        wanted = len(self.recorder.metas) + count
        wait_until(lambda: len(self.recorder.metas) >= wanted, f"{count} frames, {self.states}, {self.errors}")

    def __enter__(self) -> Watched:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._supervisor.stop()
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def open_files() -> set[str]:
    """Return the open file descriptors of this process."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:
            continue  # the descriptor that lists the others
    return found


def codes_of_wrong_path() -> tuple[str, ...]:
    """Return the error codes for a path without a stream. GStreamer 1.20 reports it like a wrong password."""
    old = library().Gst.version()[:2] < (1, 22)
    return ("no-stream", "unauthorized") if old else ("no-stream",)
