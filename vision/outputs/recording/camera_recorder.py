"""Classes that write the packets of one camera to files: clips of events, and continuous recordings."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from vision.config.recording import RecordingConfig
from vision.outputs.recording.index import Kind, RecordedEvent
from vision.outputs.recording.ring import KeptPacket, PacketRing
from vision.outputs.recording.segment_times import MIN_SPAN_NS, Pace, SegmentTimes
from vision.outputs.recording.store import OpenFile, RecordingStore

log = logging.getLogger(__name__)

_LATE_NS: Final = 1_000_000_000
"""Extra length of a clip in ns. An event has the capture time of its frame, whose packet can arrive up to 1 s later."""
_RETRY_NS: Final = 2_000_000_000  # pause after a failure of the disk


@dataclass(frozen=True, slots=True)
class Trigger:
    """An event that starts or extends a clip."""

    at_ns: int  # monotonic
    event: RecordedEvent


@dataclass(slots=True)
class _Segment:
    """The file of a recording that is being written, the times of its packets, and their connection to the camera."""

    opened: OpenFile
    times: SegmentTimes
    connection: int
    parameters: bytes
    first_ns: int


class Recording:
    """Writer of one recording, which is a clip or a continuous recording of a camera.

    The writer copies packets from the camera's `PacketRing` to files.
    """

    def __init__(
        self, store: RecordingStore, ring: PacketRing, camera: str, kind: Kind, *, position: int, file_s: float
    ) -> None:
        """Add the recording, which starts at `position` of the ring, to the index.

        A file ends before the first key frame after `file_s` seconds.

        Raises:
            OSError: the disk is full or fails.
        """
        self.number = store.add_recording(camera, kind)
        self.files = 0
        self.lost = 0  # packets that are missing from the files
        self._store = store
        self._ring = ring
        self._camera = camera
        self._kind: Kind = kind
        self._position = position
        self._file_ns = round(file_s * 1e9)
        self._segment: _Segment | None = None
        self._pace: tuple[int, Pace] | None = None  # connection of the last file, and its pace
        self._missing = 0  # missing packets since the last packet that was written

    def write(self, until_ns: int | None, *, ends: bool = False) -> None:
        """Write the packets that have arrived, up to the time `until_ns` (monotonic). None means no limit.

        The first file of a connection starts only after 4 s of packets have arrived, unless `ends` is True or a newer
        connection has started.

        Raises:
            OSError: the disk is full or fails. The current file has ended. A subsequent call can write the remaining
                packets.
        """
        packets, removed = self._ring.read(self._position)
        self._position += removed
        self._missing += removed
        for index, packet in enumerate(packets):
            if until_ns is not None and packet.header.arrived_ns > until_ns:
                break
            self._end_before(packet)
            if self._segment is None and packet.key and not ends and self._is_too_early(packet, packets[-1]):
                break
            self._position = packet.position + 1
            self._missing += packet.lost_before
            if self._segment is not None:
                self._append(self._segment, packet)
            elif packet.key:
                self._start(packet, packets[index:])
            else:
                self._missing += 1

    def _is_too_early(self, first: KeptPacket, newest: KeptPacket) -> bool:
        """Return True if too few packets of a connection have arrived to determine the rate of its timestamps."""
        connection = first.header.connection
        if newest.header.connection != connection or (self._pace is not None and self._pace[0] == connection):
            return False
        return newest.header.arrived_ns - first.header.arrived_ns < MIN_SPAN_NS

    def _end_before(self, packet: KeptPacket) -> None:
        """Complete the current file if `packet` belongs to the next file."""
        segment = self._segment
        if segment is None:
            return
        is_long = packet.key and packet.header.arrived_ns - segment.first_ns >= self._file_ns
        if is_long or (packet.header.connection, packet.parameters) != (segment.connection, segment.parameters):
            self.finish()

    def _append(self, segment: _Segment, packet: KeptPacket) -> None:
        times = segment.times.next(packet.header)
        if times is None:
            return
        try:
            self._store.require_room()
            segment.opened.file.write(packet.data, pts=times[0], dts=times[1], key=packet.key)
        except OSError:
            self._missing += 1
            self._segment = None
            with suppress(OSError):
                self._store.complete(segment.opened)
            raise
        entry = segment.opened.entry
        end_utc_ns = max(entry.end_utc_ns, packet.header.arrived_utc_ns)
        lost, self._missing = self._missing, 0
        self.lost += lost
        segment.opened.entry = replace(entry, frames=entry.frames + 1, lost=entry.lost + lost, end_utc_ns=end_utc_ns)

    def _start(self, packet: KeptPacket, following: Sequence[KeptPacket]) -> None:
        """Start a file with a key frame. If FFmpeg does not understand the frame, start no file."""
        connection = packet.header.connection
        same = [each.header for each in following if each.header.connection == connection]
        if self._pace is None or self._pace[0] != connection:
            self._pace = connection, Pace.of(same)
        times = SegmentTimes(same, self._pace[1])
        try:
            opened = self._store.create(self.number, self._camera, self._kind, self.files + 1, packet)
        except ValueError as error:
            log.debug("camera %s: a key frame is left out: %s", self._camera, error)
            self._missing += 1
            return
        except OSError:
            self._missing += 1
            raise
        self.files += 1
        self._segment = _Segment(opened, times, connection, packet.parameters, packet.header.arrived_ns)
        self._append(self._segment, packet)

    @property
    def is_writing(self) -> bool:
        """True if a file of this recording is open for writing."""
        return self._segment is not None

    def finish(self) -> None:
        """Complete the current file, if any. Raise `OSError` if this fails."""
        segment, self._segment = self._segment, None
        if segment is not None:
            self._store.complete(segment.opened)


class CameraRecorder:
    """Writer of the clips and the continuous recording of one camera. Call all methods from one thread."""

    def __init__(
        self,
        camera: str,
        config: RecordingConfig,
        store: RecordingStore,
        ring: PacketRing,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.camera = camera
        self.failures = 0
        self.is_stopped = False  # True from a failure of the disk until the recorder can write again
        self._config = config
        self._store = store
        self._ring = ring
        self._clock = clock
        self._clip: Recording | None = None
        self._clip_start_ns = self._clip_end_ns = 0
        self._continuous: Recording | None = None
        self._lost = 0  # of recordings that have ended
        self._retry_ns = 0

    @property
    def lost(self) -> int:
        """Number of packets of the camera that are missing from its recorded files."""
        return self._lost + sum(each.lost for each in (self._clip, self._continuous) if each is not None)

    def trigger(self, trigger: Trigger) -> None:
        """Start a clip of an event, or extend the current clip. Count an `OSError`, and do not raise it."""
        with_pre_ns = trigger.at_ns - round(self._config.pre_s * 1e9)
        end_ns = trigger.at_ns + round(self._config.post_s * 1e9) + _LATE_NS
        try:
            if self._clip is not None and not self._continues(with_pre_ns, end_ns):
                self._end_clip()
            if self._clip is None:
                start = self._ring.start(with_pre_ns)
                self._clip = self._recording("clip", start, 2 * self._config.max_clip_s)
                self._clip_start_ns, self._clip_end_ns = with_pre_ns, end_ns
            self._clip_end_ns = max(self._clip_end_ns, end_ns)
            self._store.add_event(self._clip.number, trigger.event)
        except OSError as error:
            self._failed(error)

    def _continues(self, with_pre_ns: int, end_ns: int) -> bool:
        """Return True if the current clip can be extended to include a further event.

        The video for this event is from `with_pre_ns` to `end_ns`, on the monotonic clock.
        """
        return (
            with_pre_ns <= self._clip_end_ns
            and end_ns - self._clip_start_ns <= self._config.max_clip_s * 1e9 + _LATE_NS
        )

    def _recording(self, kind: Kind, position: int, file_s: float) -> Recording:
        return Recording(self._store, self._ring, self.camera, kind, position=position, file_s=file_s)

    def write(self) -> None:
        """Write the packets that have arrived, and end a clip that is complete.

        Count an `OSError`, and do not raise it. Do nothing during the pause that follows an error.
        """
        now_ns = self._clock()
        if now_ns < self._retry_ns:
            return
        try:
            if self._config.is_continuous:
                if self._continuous is None:
                    self._continuous = self._recording("continuous", self._ring.start(0), self._config.file_s)
                self._continuous.write(None)
            if self._clip is not None:
                self._clip.write(self._clip_end_ns)
                # An event within `pre_s` after the end would need the same packets, so it extends the clip.
                if now_ns > self._clip_end_ns + self._config.pre_s * 1e9 + _LATE_NS:
                    self._end_clip()
        except OSError as error:
            self._failed(error)
            return
        if self.is_stopped and self._can_write():
            self.is_stopped = False
            log.info("camera %s: recorded again", self.camera)

    def _can_write(self) -> bool:
        """Return True if `write` can write packets.

        If a clip or a continuous recording exists, at least one of them must have an open file. If neither exists, the
        disk must have enough free space.
        """
        present = [each for each in (self._clip, self._continuous) if each is not None]
        return any(each.is_writing for each in present) if present else not self._store.is_full

    def _end_clip(self) -> None:
        clip, self._clip = self._clip, None
        if clip is not None:
            try:
                clip.write(self._clip_end_ns, ends=True)
            finally:
                self._lost += clip.lost
                clip.finish()
            if not clip.files:
                self._store.remove_empty(clip.number)

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        self._retry_ns = self._clock() + _RETRY_NS
        if not self.is_stopped:
            log.error("camera %s: cannot record: %s", self.camera, error.strerror or error)
        self.is_stopped = True

    def close(self) -> None:
        """Write the packets that have arrived, and complete all files. Count an `OSError`, and do not raise it."""
        try:
            self._end_clip()
            if self._continuous is not None:
                self._continuous.write(None, ends=True)
                self._continuous.finish()
        except OSError as error:
            self._failed(error)
