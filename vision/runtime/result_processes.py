"""The main process's side of the result workers, which sends results, and counts published and dropped results.

The inference thread calls `put`. The results thread runs `run`, which receives answers, and replaces workers that end.
A camera stays with its worker. When a worker ends, the frames that the worker has not answered count as dropped, and
the worker's cameras start a new epoch.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import msgspec
from msgspec import structs

from vision.config import AppConfig
from vision.errors import VisionError, registered_secrets
from vision.messaging.publisher import Publisher, RecordsResults
from vision.runtime.camera_sequence import SKIPPED_IDS, CameraSequence, WorkerConfig, WorkerTotals
from vision.runtime.event_desk import EventDesk
from vision.runtime.inference_loop import InferredFrame
from vision.runtime.latest_slot import Clock, finish_together, hand_over
from vision.runtime.result_messages import (
    Answer,
    Begin,
    NewConfig,
    WorkerSetup,
    decode_reply,
    encode,
    encode_result,
    join_results,
)
from vision.runtime.stage_runner import Observe, ResultMetrics
from vision.runtime.worker_channel import Message
from vision.runtime.worker_process import SpareProcess, Worker, Workers, WorkerSpec
from vision.stages.stage import Sink
from vision.state.database import StateDatabase
from vision.types import DropReason, Result, SharedMemory

ENTRY: Final = "vision.pipelines:run_result_worker"

_HANG_PART: Final = 0.5
"""Fraction of `hang_s` after which a worker counts as hanging. It is below 1, so that the worker is replaced before the
watchdog ends the run."""

_MEMORY_BYTES: Final = 1 << 30
_POLL_S: Final = 0.05  # longest time until the results thread notices that the program stops
_START_S: Final = 60.0
_STOP_S: Final = 1.0
_FILES_AT_ONCE: Final = 8  # maximum number in one message, which can contain only a few descriptors


class _Link:
    """The connection to one result worker. It implements `vision.runtime.worker_process.WorkerHandler`.

    The inference thread calls `put`. The thread that polls the workers calls `flush` and the methods of a
    `WorkerHandler`.
    """

    def __init__(
        self,
        cameras: dict[str, int],
        metrics: ResultMetrics,
        desk: EventDesk,
        recorder: RecordsResults | None,
        *,
        with_frames: bool,
    ) -> None:
        """Create the link.

        Args:
            cameras: for each camera of the worker, its number in messages.
            metrics: counters of published results.
            desk: receiver of events and counters.
            recorder: recorder of detections, or None if detections are not recorded.
            with_frames: if True, a stage of the worker reads pixels, so the worker gets the frames.
        """
        self.worker: Worker | None = None
        self.totals = WorkerTotals()
        self.sequences = {camera_id: CameraSequence() for camera_id in cameras}
        self.is_lost = False
        self.answered = 0
        self.config = WorkerConfig()
        self.cameras = cameras
        self._metrics = metrics
        self._desk = desk
        self._recorder = recorder
        self._lock = threading.Lock()
        self._runs = False
        self._unsent: deque[tuple[InferredFrame, bytes]] = deque()
        self._sent: deque[InferredFrame] = deque()
        self._files: dict[str, int] | None = {} if with_frames else None
        """For each camera, the number of the frame file that the process has mapped. None if no stage needs frames."""

    @property
    def unfinished(self) -> int:
        """Number of results that the worker has not answered."""
        return len(self._unsent) + len(self._sent)

    def put(self, frames: Sequence[InferredFrame]) -> None:
        """Send results to the worker. If no process runs, drop the results."""
        with self._lock:
            if self._runs:
                self._unsent.extend((frame, self._encode(frame)) for frame in frames)
                self._send()
                return
            for frame in frames:
                carried = self.sequences[frame.result.meta.camera_id].carried
                carried.update(frame.result.dropped_before)
                carried[DropReason.WORKER.value] += 1
        finish_together([frame.lease for frame in frames], [DropReason.WORKER] * len(frames))

    def flush(self) -> None:
        """Send the results and the configuration for which the worker previously had no room."""
        with self._lock:
            self._send()
        unsent = self.config.unsent
        if unsent is not None and self.worker is not None and self.worker.send(unsent):
            self.config.unsent = None

    def add(self, camera_id: str, number: int, sequence: CameraSequence) -> None:
        """Assign one more camera to the worker. `reconfigure` informs the worker.

        `number` identifies the camera in messages. `sequence` contains the message numbers, track ids, and epochs of
        the camera.
        """
        self.cameras[camera_id], self.sequences[camera_id] = number, sequence

    def remove(self, camera_id: str) -> CameraSequence:
        """Forget a camera, which must have no unfinished results.

        Return the message numbers, track ids, and epochs of the camera, so that they continue if the camera is added
        again.
        """
        del self.cameras[camera_id]
        return self.sequences.pop(camera_id)

    def reconfigure(self, setup: WorkerSetup, added: Sequence[str], removed: Sequence[str], last_id: int) -> None:
        """Queue a new configuration for the worker. Once the worker uses it, `config.used` is the number of `setup`.

        Args:
            setup: the setup with the new configuration. Processes that replace the worker also start with this setup.
            added: cameras that were added to the worker.
            removed: cameras that were removed from the worker.
            last_id: upper limit of all assigned track ids, or 0 if the program has no new camera.
        """
        assert self.worker is not None
        self.worker.spec = replace(self.worker.spec, setup=setup.encode())
        begin = self._begin(added)
        new = NewConfig(setup.number, setup.config, setup.secrets, begin, removed, last_id)
        self.config.unsent = encode(new)
        self.config.newest = setup.number
        if not self._runs:
            self.config.unsent, self.config.used = None, setup.number  # the next process starts with it
        self.flush()

    def _begin(self, camera_ids: Sequence[str]) -> Begin:
        sequences = {camera_id: self.sequences[camera_id].seq for camera_id in camera_ids}
        last_ids = {camera_id: self.sequences[camera_id].last_id for camera_id in camera_ids}
        cameras = {camera_id: self.cameras[camera_id] for camera_id in camera_ids}
        return Begin(cameras, sequences, last_ids, self._desk.rows(camera_ids))

    def discard(self, reason: DropReason) -> None:
        """Drop all results that the worker has not answered."""
        with self._lock:
            frames = [*self._sent, *(frame for frame, _ in self._unsent)]
            self._sent.clear()
            self._unsent.clear()
        finish_together([frame.lease for frame in frames], [reason] * len(frames))

    def _encode(self, frame: InferredFrame) -> bytes:
        result, camera_id = frame.result, frame.result.meta.camera_id
        sequence = self.sequences[camera_id]
        changes: dict[str, object] = {}
        if sequence.epochs:
            changes["meta"] = sequence.shifted(result.meta)
        if sequence.carried:
            changes["dropped_before"] = dict(sequence.carried + Counter(result.dropped_before))
            sequence.carried = Counter()
        changed: Result = structs.replace(result, **changes) if changes else result
        buffer = None if self._files is None else frame.lease.frame.buffer
        return encode_result(changed, self.cameras[camera_id], frame.expires_ns, buffer)

    def _send(self) -> None:
        if not self._unsent or self.worker is None or not self._runs:
            return
        while self._unsent:
            frames, files = self._next_message()
            data = join_results([encoded for _, encoded in frames], list(files.values()))
            if not self.worker.send(data, [file.fileno() for file in files.values()]):
                return
            if self._files is not None:
                self._files |= {camera_id: file.number for camera_id, file in files.items()}
            for frame, _ in frames:
                self._sent.append(frame)
                self._unsent.popleft()

    def _next_message(self) -> tuple[list[tuple[InferredFrame, bytes]], dict[str, SharedMemory]]:
        """Return the next results of different cameras, and the files that the process has not mapped, by camera."""
        frames: dict[str, tuple[InferredFrame, bytes]] = {}
        files: dict[str, SharedMemory] = {}
        for frame, encoded in self._unsent:
            shared, camera_id = frame.lease.frame.buffer.shared, frame.result.meta.camera_id
            if camera_id in frames or len(files) == _FILES_AT_ONCE:
                break
            if self._files is not None and shared is not None and self._files.get(camera_id) != shared[0].number:
                files[camera_id] = shared[0]
            frames[camera_id] = frame, encoded
        return list(frames.values()), files

    # --- methods of a `WorkerHandler` ---------------------------------------------------------------------------------

    def started(self, worker: Worker) -> None:
        worker.send(encode(self._begin(list(self.cameras))))
        self.config.unsent, self.config.used = None, self.config.newest
        with self._lock:
            self.worker, self._runs = worker, True

    def received(self, _worker: Worker, message: Message) -> None:
        reply = decode_reply(message.data)
        if isinstance(reply, Answer):
            self._finish(reply)
            self._desk.take(reply)
            self.flush()
            return
        self.totals.update(reply.counters)
        self.config.used = reply.config
        for camera_id, last_id in reply.last_ids.items():
            if camera_id in self.sequences:
                self.sequences[camera_id].last_id = last_id

    def _finish(self, answer: Answer) -> None:
        """Finish the results of an answer: update the metrics, release the leases, and record the detections."""
        with self._lock:
            if len(self._sent) < len(answer.outcomes):  # discarded, because the program stops and could not wait longer
                return
            frames = [self._sent.popleft() for _ in answer.outcomes]
        self.answered += len(frames)
        reasons: list[DropReason | None] = []
        for frame, (published_ns, objects) in zip(frames, answer.outcomes, strict=True):
            result, sequence = frame.result, self.sequences[frame.result.meta.camera_id]
            if published_ns:
                sequence.seq += 1
                sequence.unreported.clear()
                self._metrics.published(result.meta, result.timing, objects, published_ns)
            else:
                sequence.unreported.update(result.dropped_before)
                sequence.unreported[DropReason.STALE.value] += 1
            reasons.append(None if published_ns else DropReason.STALE)
        finish_together([frame.lease for frame in frames], reasons)
        for camera_id, number in self.cameras.items() if answer.counts else ():
            if number in answer.counts:
                self._metrics.cameras[camera_id].counts = answer.counts[number]
        if self._recorder is not None:
            for payload in answer.records:
                self._recorder.write(payload)

    def lost(self, _worker: Worker, reason: str) -> None:
        with self._lock:
            self._runs = False
            sent, unsent = list(self._sent), [frame for frame, _ in self._unsent]
            self._sent.clear()
            self._unsent.clear()
            for camera_id, sequence in self.sequences.items():
                own = [frame.result for frame in (*sent, *unsent) if frame.result.meta.camera_id == camera_id]
                drops: Counter[str] = Counter()
                for result in own:
                    drops.update(result.dropped_before)
                    drops[DropReason.WORKER.value] += 1
                unanswered = sum(frame.result.meta.camera_id == camera_id for frame in sent)
                if reason:
                    sequence.lost(drops, unanswered)
        frames = [*sent, *unsent]
        dropped = DropReason.WORKER if reason else DropReason.STOPPED
        finish_together([frame.lease for frame in frames], [dropped] * len(frames))
        self.totals.process_ended()
        if self._files is not None:
            self._files.clear()
        if reason:
            self.is_lost = True
            self._desk.worker_ended(list(self.cameras))


class ResultProcesses:
    """The result workers of a program. The class has the methods of `ResultHandler`, except `add_stage`."""

    def __init__(
        self,
        setup: WorkerSetup,
        count: int,
        publisher: Publisher,
        *,
        state: StateDatabase | None,
        recorder: RecordsResults | None,
        observe: Observe | None = None,
        with_frames: bool = False,
        spare: SpareProcess | None = None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """Create the workers, and start their processes. `wait_ready` waits until they are ready.

        Args:
            setup: the configuration that all workers share.
            count: number of workers, at most one per camera. The cameras are assigned to the workers in rotation.
            publisher: the publisher of events and reports. The workers publish through its proxy.
            state: database for events and counters. If None, events are not stored, and counters are only in memory.
            recorder: recorder of detections, or None if detections are not recorded.
            observe: see `ResultMetrics`.
            with_frames: if True, a stage reads pixels, so the frames must be in shared memory.
            spare: spare process, which the capture workers keep, or None if there is no spare process.
            clock: function that returns the monotonic time in ns.
        """
        camera_ids = [camera.id for camera in setup.config.cameras]
        self._setup = setup
        self._numbers = itertools.count(len(camera_ids))
        self._former: dict[str, CameraSequence] = {}  # sequences of removed cameras
        self._changes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.metrics = ResultMetrics(camera_ids, clock, observe)
        self.sinks: list[Sink] = [publisher]
        self._publisher = publisher
        self._lossless = setup.offline
        self._with_frames = with_frames
        self._workers = Workers(spare=spare)
        self._links: list[_Link] = []
        self._link_of: dict[str, _Link] = {}
        self._ending = threading.Event()
        self._aborted = False
        self._desk, hang_s = EventDesk(publisher, state), _HANG_PART * setup.config.hang_s
        for first in range(min(count, len(camera_ids))):
            group = {camera_ids[number]: number for number in range(first, len(camera_ids), count)}
            link = _Link(group, self.metrics, self._desk, recorder, with_frames=with_frames)
            spec = WorkerSpec(f"result worker {first + 1}", ENTRY, setup.encode(), hang_s, _MEMORY_BYTES)
            link.worker = self._workers.add(spec, link)
            self._links.append(link)
            self._link_of |= dict.fromkeys(group, link)
        self._workers.poll(0.0)

    def wait_ready(self, stop: threading.Event) -> None:
        """Wait until all workers are ready, or `stop` is set.

        Raises:
            VisionError: a worker failed, or is not ready after a minute.
        """
        deadline = time.monotonic() + _START_S
        while not self._workers.ready and not stop.is_set():
            if time.monotonic() > deadline:
                raise VisionError(f"the result workers are not ready after {_START_S:.0f} s", code="worker-start")
            self._workers.poll(_POLL_S)

    @property
    def parts(self) -> list[object]:
        """The sinks of this process, which receive the results. The stages are in the workers."""
        return list(self.sinks)

    def progress(self) -> int | None:
        """Return the number of answered results. Return None if no worker has results to process."""
        return self.handled if any(link.unfinished for link in self._links) else None

    @property
    def handled(self) -> int:
        """Number of answered results, including those that were too old."""
        return sum(link.answered for link in self._links)

    def counters(self) -> dict[str, int]:
        """Return the counters of the stages, summed over all workers, and of the publisher."""
        total: Counter[str] = Counter()
        for link in self._links:
            total.update(link.totals.counters)
        return dict(total) | self._publisher.counters()

    def new_epochs(self, camera_id: str) -> int:
        """Return how often the end of a result worker has started a new epoch of this camera."""
        link = self._link_of.get(camera_id)
        return 0 if link is None else link.sequences[camera_id].epochs

    def reconfigure(self, config: AppConfig, added: Sequence[str]) -> Callable[[], bool]:
        """Make the stages use a new configuration. Return a function that returns True once all stages use it.

        The results thread informs the workers after this call. It assigns each camera in `added` to the worker that has
        the fewest cameras. Cameras that `config` does not contain must have no unfinished results.
        """
        self._setup = setup = msgspec.structs.replace(
            self._setup, config=config, secrets=registered_secrets(), number=self._setup.number + 1
        )
        self._changes.put(partial(self._reconfigure, setup, added))
        return lambda: all(link.config.used == setup.number for link in self._links)

    def _reconfigure(self, setup: WorkerSetup, added: Sequence[str]) -> None:
        sequences = [sequence for link in self._links for sequence in link.sequences.values()]
        last_id = max(sequence.last_id for sequence in [*sequences, *self._former.values()]) + SKIPPED_IDS
        kept = {camera.id for camera in setup.config.cameras}
        removed = {link: [camera_id for camera_id in link.cameras if camera_id not in kept] for link in self._links}
        for link, camera_ids in removed.items():
            for camera_id in camera_ids:
                self._former[camera_id] = link.remove(camera_id)
                self._desk.forget(camera_id)
                del self._link_of[camera_id]
        for camera_id in added:
            link = min(self._links, key=lambda each: len(each.cameras))
            link.add(camera_id, next(self._numbers), self._former.pop(camera_id, CameraSequence()))
            self._link_of[camera_id] = link
        for link in self._links:
            own = [camera_id for camera_id in added if camera_id in link.cameras]
            link.reconfigure(setup, own, removed[link], last_id if added else 0)

    def put(self, batch: list[InferredFrame]) -> None:
        """Send a batch to the workers, or drop the batch after `abort`.

        If no stage reads pixels, release the leases of the batch.
        """
        hand_over([frame.lease for frame in batch], keep=self._with_frames)
        if self._aborted:
            finish_together([frame.lease for frame in batch], [DropReason.STOPPED] * len(batch))
            return
        groups: dict[int, list[InferredFrame]] = {}
        for frame in batch:
            self.metrics.truncated_candidates += frame.result.objects.truncated_candidates
            groups.setdefault(id(self._link_of[frame.result.meta.camera_id]), []).append(frame)
        for frames in groups.values():
            self._link_of[frames[0].result.meta.camera_id].put(frames)

    def end(self) -> None:
        """Make `run` return once the workers have answered all results."""
        self._ending.set()

    def abort(self) -> None:
        """Make `run` return without waiting for the workers, and make `put` discard new batches."""
        self._aborted = True
        self._ending.set()

    def run(self) -> None:
        """Receive answers. After `end` and the answers to all results, or after `abort`, stop the workers, and return.

        Raises:
            VisionError: a worker ended during an offline run, or cannot be used on this machine.
        """
        try:
            while not self._ending.is_set() or (not self._aborted and any(link.unfinished for link in self._links)):
                self._workers.poll(_POLL_S)
                while not self._changes.empty():
                    self._changes.get()()
                for link in self._links:
                    link.flush()
                    self._check(link)
        finally:
            self._workers.stop(_STOP_S)

    def release_queued(self) -> None:
        """Discard the results that no worker has answered. Call this after `run` has ended."""
        for link in self._links:
            link.discard(DropReason.STOPPED)

    def close(self) -> None:
        """Stop the workers. Do nothing if `end` or `abort` was called, because `run` then stops the workers.

        Idempotent.
        """
        if not self._ending.is_set():
            self._ending.set()
            self._workers.stop(_STOP_S)

    def _check(self, link: _Link) -> None:
        if self._lossless and link.is_lost:
            raise VisionError(
                "a result worker ended, so results are missing",
                hint="the log contains the reason; run the command again",
                code="worker-lost",
            )
