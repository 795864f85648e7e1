"""A result worker: a process that tracks, counts, evaluates rules, encodes, and publishes for a group of cameras.

Detections go directly to the proxy of the publisher. Events and counters go to the main process, which stores them
before it publishes the events. Therefore, a crash of this process cannot undo a published event.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Final

import zmq

from vision.errors import Closed, register_secret
from vision.messaging import codec
from vision.messaging.proxy import FIRST_SUBSCRIPTION, connect
from vision.messaging.publisher import DetectionsPublisher
from vision.messaging.schema import EventMessage, ObjectMessage
from vision.runtime.builder import OpenStages, RunOptions
from vision.runtime.result_messages import (
    Answer,
    Begin,
    FrameFiles,
    NewConfig,
    Totals,
    WorkerSetup,
    decode_begin,
    decode_results,
    decode_setup,
    decode_work,
    encode,
)
from vision.runtime.stage_runner import StageRunner
from vision.runtime.worker_channel import Message, WorkerChannel
from vision.stages.analytics import TrackStage
from vision.stages.stage import Reconfigurable, Report
from vision.state.counters import CameraCounters, CounterRow
from vision.types import Counts, Result

_SUBSCRIPTIONS_S: Final = 2.0  # longest wait for the subscriptions of the proxy
_LINGER_MS: Final = 500
_TOTALS_NS: Final = 1_000_000_000
_WAIT_S: Final = 1.0
_SEND_S: Final = 0.2  # interval of heartbeats while the main process does not receive


class HandedOverCounters:
    """The counters of the cameras of a result worker.

    The main process provides their initial values, and receives every change.
    """

    def __init__(self, rows: Sequence[CounterRow]) -> None:
        self.changed: list[CounterRow] = []
        self.rows = list(rows)
        self._opened: dict[str, CameraCounters] = {}

    def counters(self, camera_id: str) -> CameraCounters:
        """Return the counters of a camera. Return the same object until `begin` is called for this camera."""
        if camera_id not in self._opened:
            self._opened[camera_id] = CameraCounters(self, camera_id)
        return self._opened[camera_id]

    def begin(self, camera_ids: Iterable[str], rows: Sequence[CounterRow]) -> None:
        """Replace the counters of these cameras with `rows`, when the cameras are assigned to this worker."""
        for camera_id in camera_ids:
            self._opened.pop(camera_id, None)
        self.rows = [row for row in self.rows if row[0] not in camera_ids] + list(rows)

    def load_counters(self, camera_id: str) -> list[CounterRow]:
        return [row for row in self.rows if row[0] == camera_id]

    def store_counters(self, rows: Sequence[CounterRow]) -> bool:
        self.changed += rows
        return True


class _Socket:
    """The socket of a worker, which sends its messages to the proxy."""

    def __init__(self, private: str, queue: int) -> None:
        self.lock = threading.Lock()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = connect(self._context, private, queue=queue)

    def wait_for_subscriptions(self) -> None:
        """Wait up to 2 s until the proxy has subscribed, because ZeroMQ drops messages without a subscriber."""
        deadline = time.monotonic() + _SUBSCRIPTIONS_S
        while (left_s := deadline - time.monotonic()) > 0:
            if self._socket.poll(int(left_s * 1e3)) and self._socket.recv() == b"\x01" + FIRST_SUBSCRIPTION:
                break
        self.discard_subscriptions()

    def discard_subscriptions(self) -> None:
        """Remove the subscriptions from the queue of the socket, because the socket has already applied them."""
        while self._socket.poll(0):
            self._socket.recv(zmq.NOBLOCK)

    def send(self, topic: str, payload: bytes) -> None:
        self._socket.send(topic.encode(), zmq.SNDMORE | zmq.NOBLOCK)
        self._socket.send(payload, zmq.NOBLOCK)

    def close(self) -> None:
        self._socket.close(linger=_LINGER_MS)
        self._context.term()


class _Outbox:
    """Sink that publishes detections, and collects events and object summaries for the main process."""

    def __init__(self, detections: DetectionsPublisher, cameras: Mapping[str, int]) -> None:
        self.events: list[EventMessage] = []
        self.objects: list[ObjectMessage] = []
        self.counts: dict[int, Counts | None] = {}  # changed counts, by number of the camera
        self._detections = detections
        self.cameras = dict(cameras)
        self._last_counts: dict[str, Counts | None] = {}

    def publish(self, result: Result) -> None:
        self._detections.publish(result)
        if result.events:
            masks = self._detections.masks
            self.events += [codec.event(codec.UNNUMBERED, event, result, masks=masks) for event in result.events]
        names = self._detections.class_names
        self.objects += [codec.object_summary(codec.UNNUMBERED, each, result, names) for each in result.left]
        camera, counts = result.meta.camera_id, result.counts
        if counts is not self._last_counts.get(camera):
            self._last_counts[camera] = self.counts[self.cameras[camera]] = counts

    def report(self, report: Report) -> None:
        """Do nothing. The main process publishes reports."""


class _Records:
    """Collector of detections messages, so that the main process can record the messages."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def write(self, payload: bytes) -> None:
        self.payloads.append(payload)


class _ResultWorker:
    """The part of a worker that processes the results of its cameras, one message after the other."""

    def __init__(
        self,
        channel: WorkerChannel,
        runner: StageRunner,
        *,
        outbox: _Outbox,
        records: _Records,
        counters: HandedOverCounters,
        numbering: codec.Numbering,
        config: int,
    ) -> None:
        """Create the worker. `config` is the number of the configuration with which the worker starts."""
        self._channel = channel
        self._camera_ids = {number: camera_id for camera_id, number in outbox.cameras.items()}
        self._runner = runner
        self._outbox = outbox
        self._records = records
        self._counters = counters
        self._numbering = numbering
        self._config = config
        self._totals_ns = 0
        self._files = FrameFiles()

    def handle(self, message: Message) -> None:
        """Process a message of the main process: a list of results or a new configuration.

        For results, send an `Answer`, and also `Totals` if the previous `Totals` are at least one second old. For a new
        configuration, send `Totals`.
        """
        content = decode_work(message.data)
        if isinstance(content, NewConfig):
            self._reconfigure(content)
            return
        outcomes = []
        batch = decode_results(content, message.fds, self._camera_ids, self._files)
        begun = self._runner.begin([(result, expires_ns) for result, _, expires_ns in batch])
        for started, (_, frame, expires_ns) in zip(begun, batch, strict=True):
            done = None if started is None else self._runner.run_stages(started, frame, expires_ns)
            outcomes.append((0, 0) if done is None else (self._runner.publish(done), len(done.objects)))
            self._channel.beat()
        self._runner.wait_until_read()
        outbox, records, counters = self._outbox, self._records, self._counters
        self._send(
            encode(Answer(outcomes, outbox.counts, outbox.events, counters.changed, records.payloads, outbox.objects))
        )
        outbox.counts, outbox.events, outbox.objects, counters.changed, records.payloads = {}, [], [], [], []
        if time.monotonic_ns() >= self._totals_ns:
            self._totals_ns = time.monotonic_ns() + _TOTALS_NS
            self.send_totals()

    def _reconfigure(self, new: NewConfig) -> None:
        for secret, shown in new.secrets.items():
            register_secret(secret, shown=shown)
        for camera_id in new.removed:
            self._camera_ids.pop(self._outbox.cameras.pop(camera_id), None)
        self._outbox.cameras |= new.begin.cameras
        self._camera_ids |= {number: camera_id for camera_id, number in new.begin.cameras.items()}
        self._counters.begin(new.begin.cameras, new.begin.counters)
        for camera_id, seq in new.begin.sequences.items():
            self._numbering.continue_after(f"detections/{camera_id}", seq)
        for stage in self._runner.stages:
            part: object = stage
            if isinstance(part, TrackStage) and new.last_id:
                part.continue_after(dict.fromkeys(part.last_ids(), new.last_id))
            if isinstance(part, Reconfigurable):
                part.reconfigure(new.config)
        self._config = new.number
        self.send_totals()

    def send_totals(self) -> None:
        """Send the counters of the stages, and the highest track id of each camera, as `Totals`."""
        last_ids: dict[str, int] = {}
        for stage in self._runner.stages:
            if isinstance(stage, TrackStage):
                last_ids |= stage.last_ids()
        self._send(encode(Totals(self._runner.counters(), last_ids, self._config)))

    def _send(self, data: bytes) -> None:
        while not self._channel.send(data, timeout_s=_SEND_S):
            self._channel.beat()


def run(channel: WorkerChannel, data: bytes, load_stages: Callable[[str], OpenStages]) -> None:
    """Process results until the main process stops the worker. `load_stages` loads a pipeline by name or path.

    Raises:
        Closed: the main process asks the worker to stop, or has ended.
        VisionError: the stages cannot be opened.
    """
    setup = decode_setup(data)
    for secret, shown in setup.secrets.items():
        register_secret(secret, shown=shown)
    begin = _first_message(channel)
    with ExitStack() as resources:
        worker, socket = _open(channel, setup, begin, load_stages(setup.pipeline), resources)
        gc.collect()
        gc.freeze()
        channel.ready()
        try:
            while True:
                message = channel.receive(_WAIT_S)
                socket.discard_subscriptions()
                if message is not None:
                    worker.handle(message)
        except Closed:
            worker.send_totals()
            raise


def _first_message(channel: WorkerChannel) -> Begin:
    while (message := channel.receive(_WAIT_S)) is None:
        pass
    return decode_begin(message.data)


def _open(
    channel: WorkerChannel, setup: WorkerSetup, begin: Begin, open_stages: OpenStages, resources: ExitStack
) -> tuple[_ResultWorker, _Socket]:
    config = setup.config
    counters = HandedOverCounters(begin.counters)
    options = RunOptions(
        stop=threading.Event(),
        offline=setup.offline,
        counters=counters,
        result_workers=True,
        inquiries=setup.inquiries,
        group=tuple(begin.cameras),
    )
    logging.disable(logging.INFO)  # the main process opened the same stages, and logged the same lines
    stages = open_stages(config, options, resources)
    logging.disable(logging.NOTSET)
    for stage in stages:
        if isinstance(stage, TrackStage):
            stage.continue_after(begin.last_ids)
    socket = _Socket(setup.private, config.publish.queue)
    resources.callback(socket.close)
    numbering = codec.Numbering(setup.node, setup.instance)
    for camera_id, seq in begin.sequences.items():
        numbering.continue_after(f"detections/{camera_id}", seq)
    records = _Records()
    detections = DetectionsPublisher(
        socket,
        numbering,
        class_names=setup.class_names,
        encoding=config.publish.encoding,
        masks=config.publish.masks,
        recorder=records if setup.records else None,
    )
    outbox = _Outbox(detections, begin.cameras)
    runner = StageRunner(stages, [outbox], time.monotonic_ns)
    socket.wait_for_subscriptions()
    worker = _ResultWorker(
        channel,
        runner,
        outbox=outbox,
        records=records,
        counters=counters,
        numbering=numbering,
        config=setup.number,
    )
    return worker, socket
