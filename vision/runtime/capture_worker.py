"""The program of a capture worker: it reads a group of cameras, and writes their frames to shared buffers.

Each camera has a thread that runs `CameraSupervisor.run`, as in a program without workers. The thread that calls `run`
exchanges messages with the main process.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

from vision.capture.frame_tap import FrameTaps
from vision.capture.open import open_source, supervisor_policy
from vision.capture.packet_tap import PacketTap
from vision.capture.supervisor import CameraSupervisor
from vision.errors import Closed, OutOfMemory, SourceError
from vision.messaging.packets import PacketSocket
from vision.runtime import frame_messages
from vision.runtime.camera_threads import CameraThreads
from vision.runtime.frame_messages import (
    COMMIT,
    DROP,
    END,
    FLUSH,
    CapturedCamera,
    CaptureSetup,
    Close,
    ClosedCamera,
    Configure,
    Configured,
    Open,
    Statuses,
)
from vision.runtime.hang_watchdog import Part, Watchdog
from vision.runtime.shared_frames import map_shared
from vision.runtime.worker_channel import Connection, Message, WorkerChannel
from vision.types import DropReason, FrameBuffer, FrameMeta, PixelFormat, frame_shape

log = logging.getLogger(__name__)

ENTRY: Final = f"{__name__}:run"

_STATUS_S: Final = 0.25  # interval of the messages with the states of the cameras
_SETUP_S: Final = 30.0
_JOIN_S: Final = 0.8
CLOSE_S: Final = 2.0
"""Time in seconds within which the thread of a removed camera must end. After that, the thread counts as abandoned."""

_SEND_S: Final = 0.25
_COLLECT_S: Final = 0.01  # longest time in which one thread waits for the buffers of all cameras


class FrameConnection(Connection):
    """The worker's end of the connection for frames. The threads of all cameras share it."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end)
        self.sinks: dict[int, RemoteSink] = {}  # by the number of the camera
        self._collecting = threading.Lock()
        self._poller = select.poll()
        self._poller.register(end, select.POLLIN)

    def collect(self, is_enough: Callable[[], bool]) -> None:
        """Wait up to 10 ms for buffers that the main process returns, and pass each buffer to the sink of its camera.

        If `is_enough()` is True, return immediately, because a different thread has already received enough buffers.
        """
        with self._collecting:
            if is_enough():  # another thread has collected them
                return
            self._poller.poll(_COLLECT_S * 1e3)
            try:
                while (message := self.receive_short()) is not None:
                    for number, generation, buffer in frame_messages.decode_returns(message):
                        if (sink := self.sinks.get(number)) is not None:
                            sink.returned(generation, buffer)
            except EOFError:  # the thread that called `run` ends the worker
                time.sleep(_COLLECT_S)


class RemoteSink:
    """Sink that writes the frames of one camera to shared buffers. It implements `vision.capture.source.FrameSink`."""

    def __init__(
        self,
        camera: int,
        channel: WorkerChannel,
        frames: FrameConnection,
        *,
        lossless: bool,
        failure: Callable[[], str],
    ) -> None:
        """Create the sink.

        Args:
            camera: number of the camera in messages.
            lossless: if True, `commit` and `configure` wait for the main process instead of dropping frames.
            failure: function that returns the reason why the source has failed, or an empty string if it has not
                failed.
        """
        self._camera = camera
        self._channel = channel
        self._frames = frames
        self._lossless = lossless
        self._failure = failure
        self._changed = threading.Condition()
        self._layout: tuple[int, int, PixelFormat] | None = None
        self._generation = 0
        self._buffers: list[FrameBuffer] = []
        self._free: list[int] = []
        self._writing: int | None = None
        self._reply: tuple[Configured, tuple[int, ...]] | None = None  # to the last request, with descriptors
        self._drops: Counter[DropReason] = Counter()  # not sent yet
        self._closed = False

    # --- methods for the thread of the camera -------------------------------------------------------------------------

    def configure(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> None:
        layout = (height_px, width_px, pixel_format)
        if layout == self._layout:
            return
        frame_shape(*layout)
        self._wait_taken()
        with self._changed:
            self._layout, self._reply, self._writing = None, None, None
            self._buffers, self._free = [], []
            self._generation += 1
            self._request(Configure(self._camera, self._generation, *layout))
            self._buffers = _open_buffers(*self._wait_reply(), layout)
            self._free = list(range(len(self._buffers)))
            self._layout = layout

    def _request(self, request: Configure) -> None:
        while not self._channel.send(frame_messages.encode(request), timeout_s=_SEND_S):
            self._check_open()

    def _wait_taken(self) -> None:
        """If the sink must not lose frames, wait until the main process has returned the buffers of all frames."""
        while self._lossless and not self._is_taken():
            self._check_open()
            self._frames.collect(self._is_taken)

    def _is_taken(self) -> bool:
        with self._changed:
            return len(self._free) + (self._writing is not None) == len(self._buffers)

    def _wait_reply(self) -> tuple[Configured, tuple[int, ...]]:
        while self._reply is None:
            self._check_open()
            self._changed.wait(_SEND_S)
        return self._reply

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the capture worker stops")

    def write_buffer(self, timeout_s: float) -> FrameBuffer | None:
        deadline = time.monotonic() + timeout_s
        while True:
            with self._changed:
                self._check_open()
                if self._writing is None and self._free:
                    self._writing = self._free.pop()
                if self._writing is not None:
                    return self._buffers[self._writing]
            if time.monotonic() > deadline:
                return None
            self._frames.collect(lambda: bool(self._free))

    def commit(self, meta: FrameMeta) -> None:
        with self._changed:
            number, self._writing = self._writing, None
            if number is None:
                raise ValueError(f"camera {meta.camera_id}: `commit` was called without `write_buffer`")
            self._send_drops()
            message = frame_messages.encode_commit(self._camera, self._generation, number, meta)
            while not self._frames.send(COMMIT, message):
                if not self._lossless or self._closed:
                    self._free.append(number)
                    self._drops[DropReason.STOPPED if self._closed else DropReason.SUPERSEDED] += 1
                    return
                self._changed.wait(0.01)

    def drop(self, reason: DropReason) -> None:
        with self._changed:
            self._drops[reason] += 1

    def flush(self, reason: DropReason) -> None:
        self._wait_taken()
        self._frames.send_waiting(FLUSH, frame_messages.encode_drop(self._camera, reason), (), _SEND_S)

    def end(self) -> None:
        message = frame_messages.encode_end(self._camera, self._failure())
        with self._changed:
            self._send_drops()
            while not self._frames.send_waiting(END, message, (), _SEND_S) and not self._closed:
                pass

    # --- methods for the thread that calls `run` ----------------------------------------------------------------------

    def configured(self, reply: Configured, fds: tuple[int, ...]) -> None:
        """Receive the main process's reply to the request for buffers that `configure` has sent."""
        with self._changed:
            self._reply = reply, fds
            self._changed.notify_all()

    def returned(self, generation: int, buffer: int) -> None:
        """Make a buffer that the main process returned free for further frames.

        Ignore the buffer if this sink has requested new buffers since then, which have a new `generation`. The thread
        of any camera can call this method.
        """
        with self._changed:
            if generation == self._generation:
                self._free.append(buffer)

    def forget_buffers(self) -> None:
        """Make the next `configure` request new buffers, because a call that hangs may write to the current buffers."""
        with self._changed:
            self._layout, self._writing = None, None
            self._buffers, self._free = [], []
            self._generation += 1

    def send_drops(self) -> None:
        """Report dropped frames to the main process that no message about a frame has reported yet."""
        with self._changed:
            self._send_drops()

    def close(self) -> None:
        """Make all waiting calls return or raise `Closed`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _send_drops(self) -> None:
        for reason, frames in list(self._drops.items()):
            if self._frames.send(DROP, frame_messages.encode_drop(self._camera, reason, frames)):
                del self._drops[reason]


def _open_buffers(reply: Configured, fds: tuple[int, ...], layout: tuple[int, int, PixelFormat]) -> list[FrameBuffer]:
    """Return the buffers that the main process allocated, and close the descriptors `fds`.

    Raises:
        OutOfMemory: the main process had too little memory.
        MemoryError: the shared memory cannot be mapped.
        DeviceError: the memory of the GPU cannot be opened.
    """
    try:
        if reply.error:
            raise OutOfMemory(reply.error)
        if reply.handle:
            from vision.gpu.memory import open_exported

            return open_exported(reply.handle, reply.buffers, *layout)
        return map_shared(fds[0], reply.buffers, *layout)
    finally:
        for fd in fds:
            os.close(fd)


def run(channel: WorkerChannel, _setup: bytes) -> None:
    """Run a capture worker until the main process stops it. The first message to the worker is a `CaptureSetup`.

    If this message does not arrive within 30 s, return.

    Raises:
        Closed: the main process stopped the worker before the first message.
        VisionError: the GPU failed, or too many calls to the libraries of cameras do not return.
    """
    message = channel.receive(_SETUP_S)
    if message is not None:
        with socket.socket(fileno=message.fds[0]) as end:
            _CaptureWorker(channel, FrameConnection(end), frame_messages.decode_setup(message.data)).run()


class _CaptureWorker:
    """The cameras of a worker, with their threads."""

    def __init__(self, channel: WorkerChannel, frames: FrameConnection, setup: CaptureSetup) -> None:
        self._channel = channel
        self._failure: BaseException | None = None
        self._frames = frames
        self._setup = setup
        self._supervisors: dict[int, CameraSupervisor] = {}
        # The id of each camera that is being closed, and the time at which its thread is abandoned.
        self._closing: dict[int, tuple[str, float]] = {}
        self._packets = None if setup.packets is None else PacketSocket(setup.packets)
        self._frame_taps = None if self._packets is None else FrameTaps(self._packets)
        self._threads = CameraThreads({}, {}, self._guard)
        self._watchdog = Watchdog(self._fail_hung)

    def _open_camera(self, number: int, camera: CapturedCamera) -> None:
        config, setup = camera.config, self._setup
        failure = partial(self._failure_of, number)
        sink = RemoteSink(number, self._channel, self._frames, lossless=camera.lossless, failure=failure)
        opening, formats = setup.opener or open_source, setup.pixel_formats
        factory = partial(opening, config, offline=setup.offline, pixel_formats=formats, nvdec=camera.nvdec)
        if self._packets is not None:
            factory = partial(factory, tap=PacketTap(config.id, self._packets, recorded=camera.recorded))
        policy = supervisor_policy(config)
        frame_tap = None if self._frame_taps is None else self._frame_taps.tap(config.id)
        supervisor = CameraSupervisor(config.id, factory, sink, policy, first_epoch=camera.epoch, frame_tap=frame_tap)
        self._frames.sinks[number], self._supervisors[number] = sink, supervisor
        self._threads.add(config.id, supervisor, sink)
        for part in self._threads.parts_of(config.id, setup.hang_s):
            self._watchdog.watch(part)

    def _close_camera(self, number: int) -> None:
        supervisor = self._supervisors.pop(number)
        self._watchdog.forget(f"camera-{supervisor.camera_id}")
        supervisor.retire()
        self._frames.sinks[number].close()
        self._closing[number] = supervisor.camera_id, time.monotonic() + CLOSE_S

    def _confirm_closed(self) -> None:
        for number, (camera_id, deadline) in list(self._closing.items()):
            if self._threads.is_running(camera_id) and time.monotonic() < deadline:
                continue
            if self._channel.send(frame_messages.encode(ClosedCamera(number))):
                self._threads.remove(camera_id)
                del self._frames.sinks[number], self._closing[number]

    def _failure_of(self, number: int) -> str:
        return self._supervisors[number].failure

    def run(self) -> None:
        """Run until the main process stops the worker. Raise the failure of a camera's thread."""
        for number, camera in self._setup.cameras.items():
            self._open_camera(number, camera)
        self._channel.ready()
        gc.collect()
        gc.freeze()  # garbage collections, during which all threads stop, skip the objects created so far
        try:
            self._exchange()
        except Closed:
            pass
        finally:
            self._stop()

    def _guard(self, _name: str, run: Callable[[], None]) -> None:
        """Run the supervisor of a camera. The thread of this camera calls this method."""
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - stored; `_exchange` raises it
            self._failure = self._failure or error

    def _fail_hung(self, part: Part, still_s: float) -> None:
        """Make the worker fail, because `part` has hung for `still_s` seconds and its thread cannot be replaced."""
        self._failure = SourceError(
            f"{part.name}: the library has not returned for {still_s:.0f} s", code="camera-stuck"
        )

    def _exchange(self) -> None:
        next_status = 0.0
        while self._failure is None:
            message = self._channel.receive(max(0.0, next_status - time.monotonic()))
            if message is not None:
                self._handle(message)
            self._confirm_closed()
            if time.monotonic() >= next_status:
                next_status = time.monotonic() + _STATUS_S
                self._report()
                self._watchdog.check()
        raise self._failure

    def _handle(self, message: Message) -> None:
        request = frame_messages.decode_to_worker(message.data)
        if isinstance(request, Open):
            self._open_camera(request.camera, request.captured)
        elif isinstance(request, Close):
            self._close_camera(request.camera)
        elif (sink := self._frames.sinks.get(request.camera)) is not None:
            sink.configured(request, message.fds)
        else:  # the camera was closed after it had requested buffers
            for fd in message.fds:
                os.close(fd)

    def _report(self) -> None:
        for sink in list(self._frames.sinks.values()):
            sink.send_drops()
        states = [(number, each.status(), each.blocked_in()) for number, each in self._supervisors.items()]
        self._channel.send(frame_messages.encode(Statuses(time.monotonic_ns(), states)))

    def _stop(self) -> None:
        for supervisor in self._supervisors.values():
            supervisor.stop()
        for sink in self._frames.sinks.values():
            sink.close()
        for name in self._threads.join(time.monotonic() + _JOIN_S):
            log.warning("%s did not end within %.1f s", name, _JOIN_S)
        if self._frame_taps is not None:
            self._frame_taps.close()
        if self._packets is not None:
            self._packets.close()
        self._report()
