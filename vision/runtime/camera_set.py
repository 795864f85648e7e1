"""The cameras of a running program (`CameraSet`), and a queue of changes to these cameras (`StepQueue`)."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vision.capture.supervisor import CameraSupervisor
from vision.errors import Closed
from vision.messaging.schema import CameraReport
from vision.runtime.batcher import Batcher
from vision.runtime.camera_threads import CameraThreads
from vision.runtime.capture_processes import CaptureProcesses, RemoteCamera
from vision.runtime.hang_watchdog import Part, Watchdog
from vision.runtime.latest_slot import MAX_UNFINISHED, LatestSlot

if TYPE_CHECKING:
    from vision.runtime.camera_factory import CameraFactory

FRAMES_HELD_BY_STAGES: Final = MAX_UNFINISHED
"""Number of frames per camera that the results thread may hold, in addition to the frames that the detector holds."""


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera: a supervisor, which reads frames, and a slot, to which the supervisor writes the frames."""

    slot: LatestSlot
    supervisor: CameraSupervisor | RemoteCamera


class CameraSet:
    """The cameras of a program, which threads or capture workers read. Call all methods from the main thread.

    Attributes:
        cameras: the cameras by id.
        departed: final reports of removed cameras that `take_departed` has not returned yet.
        dropped: frames that removed cameras have dropped, by reason.
        factory: object that creates further cameras, or None if the cameras cannot change.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
        batcher: Batcher,
        threads: CameraThreads,
        capture: CaptureProcesses | None,
        factory: CameraFactory | None,
    ) -> None:
        self.cameras = {camera.slot.camera_id: camera for camera in cameras}
        self.departed: list[CameraReport] = []
        self.dropped: Counter[str] = Counter()
        self.batcher, self.threads, self.capture = batcher, threads, capture
        self.factory = factory
        self._watchdog: Watchdog | None = None
        self._hang_s = 0.0
        self._epochs: dict[str, int] = {}  # last epoch of each removed camera

    def observe(self, watchdog: Watchdog, hang_s: float) -> None:
        """Make a watchdog observe the threads of all cameras. After `hang_s` seconds, a read counts as hung."""
        self._watchdog, self._hang_s = watchdog, hang_s
        for part in self.threads.parts(hang_s):
            watchdog.watch(part)

    def watch(self, part: Part) -> None:
        """Make the watchdog, if there is one, observe a part of the program, such as the thread of a camera.

        `part` replaces a previous part with the same name.
        """
        if self._watchdog is not None:
            self._watchdog.forget(part.name)
            self._watchdog.watch(part)

    def next_epoch(self, camera_id: str) -> int:
        """Return the epoch with which a camera that is added or reopened starts: one more than its last epoch, or 0."""
        camera = self.cameras.get(camera_id)
        last = self._epochs.get(camera_id, -1) if camera is None else camera.supervisor.status().epoch
        return last + 1

    def add(self, camera: Camera) -> None:
        """Start reading a camera that is new, or that `retire` has stopped."""
        camera_id = camera.slot.camera_id
        known = camera_id in self.cameras
        self.cameras[camera_id] = camera
        if isinstance(camera.supervisor, RemoteCamera):
            assert self.capture is not None
            self.capture.open_camera(camera.supervisor)
        else:
            self.threads.add(camera_id, camera.supervisor, camera.slot)
            if self._watchdog is not None:
                for part in self.threads.parts_of(camera_id, self._hang_s):
                    self._watchdog.watch(part)
        if not known:
            self.batcher.add(camera.slot)

    def retire(self, camera_id: str, *, for_good: bool) -> None:
        """Stop reading a camera. If `for_good` is True, also close its slot, which then drops all frames."""
        camera = self.cameras[camera_id]
        if self._watchdog is not None:
            self._watchdog.forget(f"camera-{camera_id}")
        if isinstance(camera.supervisor, RemoteCamera):
            assert self.capture is not None
            self.capture.close_camera(camera.supervisor)
        else:
            camera.supervisor.retire()
        if for_good:
            camera.slot.close()

    def is_read(self, camera_id: str) -> bool:
        """Return True if a thread or a worker may still read a camera for which `retire` was called."""
        supervisor = self.cameras[camera_id].supervisor
        if isinstance(supervisor, RemoteCamera):
            return self.capture is not None and self.capture.reads(supervisor)
        return self.threads.is_running(camera_id)

    def detach(self, camera_id: str) -> None:
        """Forget the thread of a retired camera. If the thread has not ended, count it as abandoned."""
        if not isinstance(self.cameras[camera_id].supervisor, RemoteCamera):
            self.threads.remove(camera_id)

    def remove(self, camera_id: str, last: CameraReport) -> None:
        """Forget a camera that was retired for good. Add `last`, the final report of the camera, to `departed`."""
        self._epochs[camera_id] = self.cameras[camera_id].supervisor.status().epoch
        self.batcher.remove(self.cameras.pop(camera_id).slot)
        self.departed.append(last)
        self.dropped.update(last.dropped)

    def take_departed(self) -> list[CameraReport]:
        """Return the reports in `departed`, and clear the list."""
        reports, self.departed = self.departed, []
        return reports


class StepQueue:
    """A queue of iterators that other threads submit, and that the main thread runs one after the other.

    Each item of an iterator is a step. The main thread does other work between two steps.
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Iterator[None], Future[None]]] = queue.SimpleQueue()
        self._present: tuple[Iterator[None], Future[None]] | None = None
        self._closed = False

    def submit(self, steps: Iterator[None]) -> Future[None]:
        """Queue an iterator. Return a future, which is done when the iterator is exhausted or raises an exception.

        If the queue is closed before the iterator ends, the future fails with `Closed`.
        """
        future: Future[None] = Future()
        self._waiting.put((steps, future))
        if self._closed:
            self.close()
        return future

    @property
    def busy(self) -> bool:
        """True if steps remain to be run."""
        return self._present is not None or not self._waiting.empty()

    def advance(self) -> None:
        """Run one step, if any remains.

        If the step raises an exception, store the exception in the future, and raise it.
        """
        if self._present is None:
            if self._waiting.empty():
                return
            self._present = self._waiting.get()
        steps, future = self._present
        try:
            next(steps)
        except StopIteration:
            self._present = None
            future.set_result(None)
        except BaseException as error:
            self._present = None
            future.set_exception(error)
            raise

    def close(self) -> None:
        """Make all pending futures fail with `Closed`. Idempotent."""
        self._closed = True
        ended = [] if self._present is None else [self._present]
        self._present = None
        while not self._waiting.empty():
            ended.append(self._waiting.get())
        for _, future in ended:
            future.set_exception(Closed("the program ends"))
