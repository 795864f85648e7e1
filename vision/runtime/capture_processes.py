"""The main process's side of the capture workers, which creates and replaces the workers, and receives their frames."""

from __future__ import annotations

import contextlib
import itertools
import logging
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import psutil

from vision.capture.camera_status import CameraStatus
from vision.detect.detector import Detector
from vision.errors import OutOfMemory
from vision.runtime import frame_messages
from vision.runtime.capture_worker import ENTRY
from vision.runtime.frame_messages import (
    COMMIT,
    DROP,
    END,
    FLUSH,
    RETURN,
    CapturedCamera,
    CaptureSetup,
    ClosedCamera,
    Configure,
    Configured,
    Statuses,
)
from vision.runtime.latest_slot import EXTRA_BUFFERS
from vision.runtime.remote_slot import RemoteSlot
from vision.runtime.shared_frames import FrameMemory, Layout, allocate_frames
from vision.runtime.worker_channel import Connection, Message
from vision.runtime.worker_process import SpareProcess, Worker, Workers, WorkerSpec
from vision.types import DropReason

log = logging.getLogger(__name__)

_SILENT_S: Final = 2.0  # time without a message after which the cameras of a worker count as frozen
_IDLE_S: Final = 0.02  # maximum delay until a buffer is returned to its worker
_CLOSING_S: Final = 0.3  # time in which a library closes one camera
_LONGEST_STOP_S: Final = 14.0  # shorter than the time in which a service must stop
_MESSAGES_AT_ONCE: Final = 64
_MEMORY_BYTES: Final = 512 << 20  # memory limit of a worker, plus the same for each of its cameras
_MAX_MEMORY_PART: Final = 0.5  # highest limit, as a fraction of the memory of the machine
BUFFERS_ON_THE_WAY: Final = 1  # number of buffers of a camera that are in messages between the processes

_BAD_MESSAGE: Final = (struct.error, ValueError, IndexError, KeyError, msgspec.MsgspecError)
"""Exceptions that an invalid message from a worker causes. The main process then kills the worker."""


class RemoteCamera:
    """One camera of a capture worker. The runtime uses it like a `CameraSupervisor`, but without a thread."""

    def __init__(
        self,
        camera: CapturedCamera,
        slot: RemoteSlot,
        *,
        on_gpu: bool,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.slot = slot
        self.on_gpu = on_gpu  # True if the GPU decodes its frames
        self._camera = camera
        self._clock = clock
        self._status = replace(_initial_status(clock()), epoch=camera.epoch)
        self._status_ns = clock()
        self._blocked_in = ""
        self._connections = 0  # number of connections that earlier processes have made
        self.is_retired = False
        self._connected = False  # True if the present process has connected to the camera
        self._failure, self._ended = "", False
        self.number = -1  # number of the camera in messages; -1 before a worker reads it
        self._lost: _Loss | None = None  # the end of the last process, until the next process delivers a frame

    def status(self) -> CameraStatus:
        """Return the state of the camera.

        Its number of connections includes those of previous worker processes, but its number of frames does not.
        """
        status, lost, now_ns = self._status, self._lost, self._clock()
        elapsed_s = (now_ns - self._status_ns) / 1e9
        age_s, retry_s = status.last_frame_age_s, status.next_retry_in_s
        status = replace(
            status,
            reconnects=max(0, self._connections + self._present_connections() - 1),
            last_frame_age_s=None if age_s is None else age_s + elapsed_s,
            next_retry_in_s=None if retry_s is None else max(0.0, retry_s - elapsed_s),
        )
        if lost is None and elapsed_s > _SILENT_S and status.state == "streaming":
            return replace(status, state="frozen", since_ns=self._status_ns, fps=0.0)
        if lost is None:
            return status
        status = replace(status, last_error=status.last_error or lost.reason)
        if self._status_ns > lost.at_ns:
            return status
        wait_s = max(0.0, (lost.retry_ns - now_ns) / 1e9)
        return replace(status, state="backing-off", since_ns=lost.at_ns, fps=0.0, next_retry_in_s=wait_s)

    def stop(self) -> None:
        """Do nothing, because the worker stops its cameras."""

    @property
    def failure(self) -> str:
        """The reason why the source has failed permanently, or an empty string if it has not failed permanently."""
        return self._failure

    def blocked_in(self) -> str:
        """Return the source's call in progress and its last reported duration, or "" if no call is in progress."""
        return self._blocked_in

    # --- methods for the thread that polls the workers, except `ended` ------------------------------------------------

    def next_process(self) -> CapturedCamera | None:
        """Return the camera's description for a new worker process. Return None if the camera's source has ended."""
        return None if self._ended else self._camera

    def connected(self) -> None:
        """Record that the worker has connected to the camera. The camera's state arrives after its first frames."""
        self._connected = True

    def _present_connections(self) -> int:
        """Return the number of connections that the current worker process has made to the camera."""
        return self._status.reconnects + (self._connected or self._status.width_px > 0)

    def received(self, status: CameraStatus, blocked_in: str, at_ns: int) -> None:
        """Store the state of the camera, and the call to its library in progress, which the worker sent at `at_ns`."""
        self._status, self._blocked_in, self._status_ns = status, blocked_in, at_ns
        if self._lost is not None and status.grabbed:
            self._lost = None

    def retire(self) -> None:
        """Record that no worker may read the camera any longer. Its slot can then be used for a different camera."""
        self.is_retired = self._ended = True

    def ended(self, failure: str) -> None:
        """Record that the source has ended. `failure` is empty if the source has not failed."""
        if self.is_retired:
            return
        self._failure, self._ended = failure, True
        self.slot.end()

    def lost(self, reason: str, retry_ns: int) -> None:
        """Drop the waiting frames, and start a new epoch, because the worker process has ended.

        A lossless camera ends with a failure instead. `retry_ns` is the monotonic time of the next start.
        """
        self.slot.abandon(DropReason.WORKER)
        if self._ended:
            return
        if self._camera.lossless:
            self.ended(f"its {reason}")  # a new process would read the file from the start
        epoch = max(self.slot.epoch, self._status.epoch) + 1
        self._camera = msgspec.structs.replace(self._camera, epoch=epoch)
        self._connections += self._present_connections()
        self._connected = False
        self._status = replace(self._status, epoch=epoch, grabbed=0, reconnects=0, width_px=0, height_px=0)
        self._lost = _Loss(self._clock(), retry_ns, reason)


@dataclass(frozen=True, slots=True)
class _Loss:
    """The time and the reason of the end of a worker process, and the time at which the next process starts."""

    at_ns: int
    retry_ns: int
    reason: str


def _initial_status(now_ns: int) -> CameraStatus:
    return CameraStatus(
        state="connecting",
        since_ns=now_ns,
        epoch=0,
        grabbed=0,
        fps=0.0,
        last_frame_age_s=None,
        reconnects=0,
        last_error="",
        last_hint="",
        last_code="",
        width_px=0,
        height_px=0,
        decoder="",
        clock=None,
        next_retry_in_s=None,
    )


class _Link:
    """The connection to one capture worker. It implements `vision.runtime.worker_process.WorkerHandler`."""

    def __init__(
        self, setup: CaptureSetup, detector: Detector, count: int, arrivals: select.epoll, changed: threading.Condition
    ) -> None:
        """Create the link, without cameras.

        Args:
            setup: the setup that all workers share.
            detector: the owner of the frame buffers.
            count: number of buffers of each camera.
            arrivals: object that reports which connections have frames to read.
            changed: the condition of all slots.
        """
        self.cameras: dict[int, RemoteCamera] = {}
        self._requests: deque[frame_messages.Open | frame_messages.Close] = deque()  # requests to send
        self._last_number = -1  # highest number of a camera so far
        self._changed = changed
        self.broken = ""  # why the worker must be killed; empty if it works
        self.frames: Connection | None = None  # None while no process runs
        self._setup = setup
        self._detector = detector
        self._count = count
        self._arrivals = arrivals
        self._reading = threading.Lock()
        self._returns: deque[tuple[int, int, int]] = deque()  # buffers to return, as in `encode_returns`
        self._memory: dict[int, FrameMemory] = {}  # memory of the present process, by number of the camera
        self._former: dict[int, FrameMemory] = {}  # memory of an earlier process, to which no process writes

    # --- methods for the thread that polls the workers ----------------------------------------------------------------

    def started(self, worker: Worker) -> None:
        self.broken = ""
        self._returns.clear()
        self._requests.clear()
        cameras = {number: captured for number, each in self.cameras.items() if (captured := each.next_process())}
        frames, other = Connection.pair()
        with other:
            setup = msgspec.structs.replace(self._setup, cameras=cameras)
            worker.send(frame_messages.encode(setup), [other.fileno()])
        self.frames = frames
        self._arrivals.register(frames, select.EPOLLIN)

    def received(self, worker: Worker, message: Message) -> None:
        try:
            content = frame_messages.decode_from_worker(message.data)
            if isinstance(content, Configure):
                self._configure(worker, content)
            elif isinstance(content, ClosedCamera):
                self._forget(content.camera)
            else:
                self._store(content)
        except _BAD_MESSAGE as error:
            self.broken = f"sent a message that is not valid: {error}"

    def _store(self, statuses: Statuses) -> None:
        for number, status, blocked_in in statuses.cameras:
            self.cameras[number].received(status, blocked_in, statuses.at_ns)

    def _configure(self, worker: Worker, request: Configure) -> None:
        number, generation = request.camera, request.generation
        layout = (request.height_px, request.width_px, request.pixel_format)
        camera = self.cameras[number]
        camera.connected()
        camera.slot.abandon(DropReason.EPOCH)  # before the allocation, because there may be too little memory for both
        self._memory.pop(number, None)
        reply = Configured(number, generation, self._count)
        try:
            memory = self._reused(camera, layout)
            if memory is None:
                memory = allocate_frames(self._detector, self._count, layout, on_gpu=camera.on_gpu)
        except (OutOfMemory, MemoryError, OSError) as error:
            reply.error = str(error) if isinstance(error, OSError) else str(error.args[0])
            worker.send(frame_messages.encode(reply))
            return
        self._memory[number], reply.handle = memory, memory.handle
        camera.slot.adopt(generation, layout, memory.buffers, self._give_back(number, lossless=camera.slot.lossless))
        worker.send(frame_messages.encode(reply), memory.fds)

    def _reused(self, camera: RemoteCamera, layout: Layout) -> FrameMemory | None:
        """Return the camera's unused frame memory with this layout from the previous worker process, or None."""
        # Freeing and allocating GPU memory stops all work on the GPU, including work for cameras of other workers.
        memory = self._former.pop(camera.number, None)
        return memory if memory is not None and memory.layout == layout and camera.slot.is_idle else None

    def _give_back(self, number: int, *, lossless: bool) -> Callable[[int, int], None]:
        def give_back(generation: int, buffer: int) -> None:
            self._returns.append((number, generation, buffer))
            if lossless:  # the worker waits for it
                self.return_buffers()

        return give_back

    def lost(self, worker: Worker, reason: str) -> None:
        """Receive the last frames, and then drop all waiting frames. If `reason` is not empty, start a new epoch."""
        frames = self.frames
        if frames is not None:
            while self.read(1024):
                pass
            self.frames = None
            frames.close()
        self._former, self._memory = self._memory, {}
        for camera in self.cameras.values():
            if reason:
                camera.lost(f"capture worker {reason}", worker.due_ns)
            else:
                camera.slot.abandon(DropReason.STOPPED)
        self.cameras = {number: camera for number, camera in self.cameras.items() if not camera.is_retired}
        self._former = {number: memory for number, memory in self._former.items() if number in self.cameras}

    def open_camera(self, camera: RemoteCamera) -> None:
        """Make the worker read one more camera."""
        self.cameras[camera.number] = camera
        self._last_number = camera.number
        captured = camera.next_process()
        assert captured is not None
        self._requests.append(frame_messages.Open(camera.number, captured))

    def close_camera(self, camera: RemoteCamera, worker: Worker) -> None:
        """Make the worker stop reading a camera. The camera stays in `cameras` until a running worker confirms this."""
        camera.retire()
        if worker.pid is None:
            self._forget(camera.number)
        else:
            self._requests.append(frame_messages.Close(camera.number))

    def _forget(self, number: int) -> None:
        """Forget a camera that no process reads any longer. Also forget the camera's memory."""
        for of_camera in (self.cameras, self._memory, self._former):
            of_camera.pop(number, None)

    def send_requests(self, worker: Worker) -> None:
        """Send the waiting requests to open or close cameras. If the worker has no room, keep them for later."""
        while self._requests and worker.send(frame_messages.encode(self._requests[0])):
            self._requests.popleft()

    # --- methods for the thread that receives frames, and for `lost` --------------------------------------------------

    def read(self, limit: int) -> bool:
        """Process up to `limit` messages of the worker about frames. Return True if more messages may be waiting."""
        with self._reading:
            if self.frames is None or self.broken:
                return False
            messages: list[bytes] = []
            try:
                while len(messages) < limit and (message := self.frames.receive_short()) is not None:
                    messages.append(message)
            except EOFError:
                with contextlib.suppress(OSError):  # already done
                    self._arrivals.unregister(self.frames)
            if messages:
                self._apply(messages)
            return len(messages) == limit

    def _apply(self, messages: Sequence[bytes]) -> None:
        with self._changed:
            try:
                for message in messages:
                    self._apply_one(message)
            except _BAD_MESSAGE as error:
                self.broken = f"sent a message that is not valid: {error}"

    def _apply_one(self, message: bytes) -> None:
        kind = message[:1]
        if kind == COMMIT:
            number, generation, buffer, frame = frame_messages.decode_commit(message)
            if (camera := self._camera(number)) is not None:
                camera.slot.receive(generation, buffer, frame)
        elif kind == END:
            number, failure = frame_messages.decode_end(message)
            if (camera := self._camera(number)) is not None:
                camera.ended(failure)
        elif kind in (DROP, FLUSH):
            number, reason, frames = frame_messages.decode_drop(message)
            if (camera := self._camera(number)) is None:
                return
            slot = camera.slot
            if kind == FLUSH:
                slot.flush(reason)
            for _ in range(frames):
                slot.drop(reason)
        else:
            raise ValueError(f"unknown kind {kind!r}")

    def _camera(self, number: int) -> RemoteCamera | None:
        """Return the camera with this number, or None if the camera was retired, so that its slot must not change.

        Raises:
            KeyError: the number is higher than the number of any camera that the worker was assigned.
        """
        camera = self.cameras.get(number)
        if number > self._last_number:
            raise KeyError(number)
        return None if camera is None or camera.is_retired else camera

    def return_buffers(self) -> None:
        """Tell the worker which buffers are free. If the connection has no room, keep them for the next call."""
        frames, returns = self.frames, []
        while self._returns:
            returns.append(self._returns.popleft())
        if returns and (frames is None or not frames.send(RETURN, frame_messages.encode_returns(returns))):
            self._returns.extendleft(reversed(returns))


class CaptureProcesses:
    """The capture workers of a program. Call all methods except `receive_frames` from one thread."""

    def __init__(
        self,
        cameras: Sequence[RemoteCamera],
        setup: CaptureSetup,
        detector: Detector,
        *,
        workers: int,
        leases: int,
        changed: threading.Condition,
        packets: Sequence[str] = (),
        spare: SpareProcess | None = None,
    ) -> None:
        """Create the workers. `poll` starts them.

        Args:
            cameras: all cameras. The cameras are assigned to the workers in rotation.
            setup: the setup that all workers share. Its `cameras` are ignored.
            detector: the owner of the frame buffers.
            workers: number of processes, at most one per camera.
            leases: maximum number of frames of a camera that are leased at the same time.
            changed: the condition of all slots.
            packets: address of the packet socket of each worker, or an empty sequence if no packets are passed on.
            spare: spare process, which `poll` starts and `stop` ends, or None if there is no spare process.
        """
        self._numbers = itertools.count()
        self._workers = Workers(spare=spare, keeps_spare=True)
        self._links: list[tuple[Worker, _Link]] = []
        self._stopped, self._arrivals = threading.Event(), select.epoll()
        count = leases + EXTRA_BUFFERS + BUFFERS_ON_THE_WAY
        for index in range(min(workers, len(cameras))):
            own = msgspec.structs.replace(setup, packets=packets[index]) if packets else setup
            link = _Link(own, detector, count, self._arrivals, changed)
            spec = WorkerSpec(f"capture worker {index + 1}", ENTRY, hang_s=setup.hang_s)
            self._links.append((self._workers.add(spec, link), link))
        for camera in cameras:
            self.open_camera(camera)

    def open_camera(self, camera: RemoteCamera) -> None:
        """Read a camera in the worker that has the fewest cameras."""
        camera.number = next(self._numbers)
        worker, link = min(self._links, key=lambda pair: len(pair[1].cameras))
        link.open_camera(camera)
        _limit_memory(worker, len(link.cameras))

    def close_camera(self, camera: RemoteCamera) -> None:
        """Stop reading a camera. `reads` returns False once the camera's worker has confirmed this."""
        for worker, link in self._links:
            if camera.number in link.cameras:
                link.close_camera(camera, worker)

    def reads(self, camera: RemoteCamera) -> bool:
        """Return True if a worker may still read a camera."""
        return any(camera.number in link.cameras for _, link in self._links)

    def poll(self, timeout_s: float) -> None:
        """Start and check the workers, and handle their requests, for up to `timeout_s` seconds.

        Raises:
            VisionError: a worker failed before it was ready for the first time.
            DeviceError: the GPU failed.
            OSError: too many files are open.
        """
        for worker, link in self._links:
            if link.broken:
                self._workers.kill(worker, link.broken)
            link.send_requests(worker)
        self._workers.poll(timeout_s)

    def receive_frames(self) -> None:
        """Receive frames until `stop` is called. The thread `frames` runs this method."""
        links = [link for _, link in self._links]
        while not self._stopped.is_set():
            arrived = {fd for fd, _ in self._arrivals.poll(_IDLE_S)}
            for link in links:
                frames = link.frames
                if frames is not None and frames.fileno() in arrived:
                    link.read(_MESSAGES_AT_ONCE)
                link.return_buffers()

    def stop(self, timeout_s: float) -> None:
        """Stop the workers, and receive their last frames.

        Kill the workers that still run after `timeout_s` seconds. If a worker has many cameras, wait longer, because
        some libraries close one camera after the other. Allow 0.3 s per camera of the largest worker, at most 14 s.
        """
        most = max(len(link.cameras) for _, link in self._links)
        self._workers.stop(max(timeout_s, min(_CLOSING_S * most, _LONGEST_STOP_S)))
        self._stopped.set()


def _limit_memory(worker: Worker, cameras: int) -> None:
    """Set the memory limit of a worker according to the number of cameras that it reads."""
    limit = min(_MEMORY_BYTES * (1 + cameras), int(psutil.virtual_memory().total * _MAX_MEMORY_PART))
    worker.spec = replace(worker.spec, memory_limit_bytes=limit)
