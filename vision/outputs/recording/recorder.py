"""The process that records cameras.

The packets of the cameras and the events of the program arrive in this process, so that a slow disk delays neither the
cameras nor the program. One thread receives packets, one receives events, and one writes files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from vision.client import EventMessage, Subscription
from vision.config.recording import RecordingConfig
from vision.messaging.curve import KeyPair
from vision.messaging.helper_process import show_life
from vision.messaging.packets import PacketReceiver
from vision.outputs.recording.camera_recorder import CameraRecorder, Trigger
from vision.outputs.recording.index import DamagedIndex, RecordedEvent, RecordingIndex, set_aside
from vision.outputs.recording.repair import find_differences, repair
from vision.outputs.recording.ring import PacketRing
from vision.outputs.recording.store import RecordingStore
from vision.state.private_files import locked

log = logging.getLogger(__name__)

LOCK: Final = "recordings.lock"
"""Name of the lock file in `state_dir`, which the process holds."""

_LOCK_S: Final = 60.0
_RING_S: Final = 15.0  # added to `pre_s`, for packets that wait for the disk
_WRITE_S: Final = 0.2  # time between two calls that write packets
_REPORT_S: Final = 1.0
_NOT_SHOWN: Final = ("camera_lost", "camera_frozen", "camera_back", "counters_reset")
"""Kinds of events that the video does not show. Such an event starts a clip only if `kinds` contains its kind."""


@dataclass(frozen=True, slots=True)
class RecorderOptions:
    """Options that the main process sends to the process that records cameras: the configuration and the addresses."""

    config: RecordingConfig
    state_dir: Path
    cameras: list[str]
    packets: list[str]  # addresses of the packet sockets
    events: str  # address of the publisher
    keys: KeyPair | None

    def as_json(self) -> dict[str, object]:
        """Return the options as values for JSON, from which `parse` creates equal options in the other process."""
        keys = None if self.keys is None else [self.keys.public, self.keys.secret, self.keys.server]
        return {
            "config": self.config.model_dump(mode="json"),
            "state_dir": str(self.state_dir),
            "cameras": self.cameras,
            "packets": self.packets,
            "events": self.events,
            "keys": keys,
        }

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> RecorderOptions:
        """Return the options that `as_json` in the main process has converted to `options`."""
        keys = KeyPair(*options["keys"]) if options["keys"] else None
        config = RecordingConfig.model_validate(options["config"])
        state_dir = Path(options["state_dir"])
        return cls(config, state_dir, options["cameras"], options["packets"], options["events"], keys)


def open_or_replace(state_dir: Path) -> RecordingIndex:
    """Open the index. If it is damaged, rename it, and create an empty index, to which `repair` adds the files.

    Raises:
        ConfigError: the index was written by a newer version of the program.
        OSError, sqlite3.Error: the index cannot be opened.
    """
    try:
        return RecordingIndex(state_dir)
    except DamagedIndex as error:
        aside = set_aside(state_dir)
        log.error("the index of the recordings was damaged (%s), is now %s, and is created again", error, aside)
        return RecordingIndex(state_dir)


class Recorder:
    """Recorder that writes clips of events and continuous recordings of all cameras.

    `receive`, `add_event`, and `write` can run in different threads.
    """

    def __init__(self, options: RecorderOptions, index: RecordingIndex) -> None:
        config = options.config
        self.stopping = threading.Event()
        self._kinds, self._names = config.kinds, config.names
        self._takes_events = config.has_clips
        self._store = RecordingStore(config, index)
        self._events: queue.SimpleQueue[tuple[str, Trigger]] = queue.SimpleQueue()
        self._config = config
        # `follow` replaces the two dictionaries, and never changes them, because other threads use them.
        self._rings: Mapping[str, PacketRing] = {}
        self._cameras: Mapping[str, CameraRecorder] = {}
        self._removed: queue.SimpleQueue[CameraRecorder] = queue.SimpleQueue()
        self._ended = Counter(lost=0, failures=0)  # of cameras that are no longer recorded, and of the store
        self.follow(options.cameras)

    def follow(self, cameras: Collection[str]) -> None:
        """Record `cameras` instead of the previous cameras. The next `step` completes the files of removed cameras."""
        config, before = self._config, self._cameras
        new_ring = partial(PacketRing, config.ring_mb * 1_000_000, config.pre_s + _RING_S)
        self._rings = {camera: self._rings.get(camera) or new_ring() for camera in cameras}
        self._cameras = {
            camera: before.get(camera) or CameraRecorder(camera, config, self._store, ring)
            for camera, ring in self._rings.items()
        }
        for camera in before.keys() - self._cameras.keys():
            self._removed.put(before[camera])

    def receive(self, receiver: PacketReceiver) -> None:
        """Receive the packets of the cameras, and keep them in the ring of each camera, until `stopping` is set."""
        rings = self._rings
        while not self.stopping.is_set():
            packet = receiver.receive(_WRITE_S)
            if packet is not None and packet.camera in rings:
                rings[packet.camera].add(packet)
            if rings is not self._rings:
                rings = self._rings
                receiver.request(rings)

    def add_event(self, event: EventMessage) -> None:
        """Queue an event that starts or extends a clip. Ignore events that the configuration does not select."""
        chosen = event.kind in self._kinds if self._kinds is not None else event.kind not in _NOT_SHOWN
        if not self._takes_events or event.camera not in self._cameras or not chosen or event.amends is not None:
            return
        if self._names is not None and event.name not in self._names:
            return
        entry = RecordedEvent(event.journal, event.number, event.at, event.kind, event.name)
        self._events.put((event.camera, Trigger(event.at_monotonic_ns, entry)))

    def write(self, report: Callable[[dict[str, int]], None]) -> None:
        """Write packets until `stopping` is set, and then complete all files. Pass counters to `report`."""
        reported_s = 0.0
        while not self.stopping.wait(_WRITE_S):
            self.step()
            if time.monotonic() - reported_s >= _REPORT_S:
                reported_s = time.monotonic()
                report(self.counters())
        self._take_events()
        self._close_removed()
        for camera in self._cameras.values():
            camera.close()
        report(self.counters())

    def step(self) -> None:
        """Process the events and packets that have arrived, and delete files that exceed the limits. Count errors."""
        self._take_events()
        for camera in self._cameras.values():
            camera.write()
        self._close_removed()
        try:
            self._store.clean()
        except OSError:
            self._ended["failures"] += 1

    def _close_removed(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                camera = self._removed.get_nowait()
                camera.close()
                self._ended.update(lost=camera.lost, failures=camera.failures)

    def _take_events(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                name, trigger = self._events.get_nowait()
                if (camera := self._cameras.get(name)) is not None:
                    camera.trigger(trigger)

    def counters(self) -> dict[str, int]:
        """Return the totals of all cameras, such as the number of missing packets, by the names of the counters."""
        cameras = self._cameras.values()
        return {
            "recording.files": self._store.written,
            "recording.deleted": self._store.deleted,
            "recording.lost_packets": sum(camera.lost for camera in cameras) + self._ended["lost"],
            "recording.stopped": sum(camera.is_stopped for camera in cameras),
            "recording.failures": sum(camera.failures for camera in cameras) + self._ended["failures"],
        }


class _LinesHandler(logging.Handler):
    """Handler that prints log records as JSON, for the main process."""

    def emit(self, record: logging.LogRecord) -> None:
        _print({"level": record.levelno, "text": record.getMessage()})


def _print(line: object) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
        sys.stdout.flush()


def _follow(recorder: Recorder, options: RecorderOptions) -> None:
    subscription = Subscription(options.events, None, ["events"], key=options.keys, silence_s=1e6)
    with contextlib.suppress(Exception), subscription:
        for item in subscription.items():
            if isinstance(item, EventMessage):
                recorder.add_event(item)


def run(options: RecorderOptions) -> None:
    """Repair the index of the recordings, and then record until standard input closes.

    Raises:
        Held: a different process records into the same state folder.
        Unwritable: the lock file cannot be opened or created.
    """
    with (
        locked(options.state_dir / LOCK, timeout_s=_LOCK_S),
        contextlib.closing(open_or_replace(options.state_dir)) as index,
    ):
        folder = Path(options.config.folder)
        repair(index, folder, find_differences(index, folder, thorough=False))
        recorder = Recorder(options, index)
        receiver = PacketReceiver(options.packets, options.cameras)
        threading.Thread(target=_exit_on_failure, args=(recorder.receive, receiver), daemon=True).start()
        threading.Thread(target=_follow, args=(recorder, options), daemon=True).start()
        threading.Thread(target=_read_input, args=(recorder,), daemon=True).start()
        show_life()  # from now on, the counters show it
        recorder.write(lambda counters: _print({"counters": counters}))


def _exit_on_failure(work: Callable[[PacketReceiver], None], receiver: PacketReceiver) -> None:
    """Do the work of a thread. If the work fails, end the process, so that the main process restarts it."""
    try:
        work(receiver)
    except Exception as error:
        log.exception("the recorder failed: %s", error)
        os._exit(1)


def _read_input(recorder: Recorder) -> None:
    """Record the cameras in the newest line of standard input. When the input closes, stop the recorder."""
    for line in sys.stdin:
        recorder.follow(RecorderOptions.parse(json.loads(line)).cameras)
    recorder.stopping.set()


def main() -> None:
    """Run the process.

    Each line of standard input contains options as JSON. From the second line on, only the cameras can change.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process ends this process
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, handlers=[_LinesHandler()])
    run(RecorderOptions.parse(json.loads(sys.stdin.readline())))
    os._exit(0)  # threads still wait for packets and events
