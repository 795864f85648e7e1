"""Monitoring of a stream before and after the decoder: lost packets, backlog, and arrival and capture times.

GStreamer's threads call the ``on_`` methods, `PacketMonitor.replaced`, `DecodedFrames.skip`, and `DecodedFrames.put`.
The camera's thread calls `PacketMonitor.started` and `DecodedFrames.get`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from vision.capture.clock import utc_minus_running_time
from vision.capture.gstreamer.bindings import library
from vision.capture.gstreamer.pipeline import SINK_FRAMES
from vision.capture.packet_info import KeyFrameGate, PacketInfo, Timeline
from vision.capture.planes import Orientation
from vision.capture.sei import HEAD_BYTES, display_orientation
from vision.capture.source import SkippedFrames
from vision.types import DropReason

NO_TIME = 2**64 - 1
"""The value of GST_CLOCK_TIME_NONE, which the jitter buffer also uses for unknown times."""

_KEY_REQUEST_NS = 1_000_000_000  # minimum between two requests, because cameras answer each with a large frame
_MAX_AGE_NS = 30_000_000_000  # a frame that seems older on arrival has a wrong time


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """A decoded frame, its arrival time, capture time, and damage, and the number of missing frames before it."""

    sample: Any  # a GstSample
    packet: PacketInfo
    missing: Counter[DropReason]  # frames between the previous decoded frame and this one, by reason


class DecodedFrames:
    """A queue of the newest decoded frames. If it is full, a new frame replaces the oldest.

    GStreamer's ``appsink`` can replace frames in the same way, but does not report the frames that it discards. The
    times of the frames do not show the discarded frames either, because a decoder can change these times, and several
    frames can have equal times.

    `get` counts the missing frames when it returns the frame that follows them, or when it returns no frame. Therefore,
    missing frames are counted in their place between the returned frames.
    """

    def __init__(self, skipped: SkippedFrames, most: int = SINK_FRAMES) -> None:
        """Create an empty queue for up to `most` frames. `get` adds the missing frames to `skipped`."""
        self._skipped = skipped
        self._most = most
        self._changed = threading.Condition()
        self._frames: deque[DecodedFrame] = deque()
        self._missing: Counter[DropReason] = Counter()  # frames that are missing after the newest frame

    def skip(self, reason: DropReason) -> None:
        """Record that a frame is missing after the newest frame of the queue."""
        with self._changed:
            self._missing[reason] += 1

    def put(self, frame: DecodedFrame) -> None:
        """Add a frame. If the queue is full, discard the oldest frame. One of GStreamer's threads calls this method."""
        with self._changed:
            frame.missing.update(self._missing)
            self._missing.clear()
            self._frames.append(frame)
            if len(self._frames) > self._most:
                discarded = self._frames.popleft()
                missing = self._frames[0].missing
                missing.update(discarded.missing)
                missing[DropReason.SUPERSEDED] += 1
            self._changed.notify()

    def get(self, timeout_s: float) -> DecodedFrame | None:
        """Remove and return the oldest frame, or return None after `timeout_s`. Count the missing frames."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames, timeout_s)
            frame = self._frames.popleft() if self._frames else None
            missing = self._missing if frame is None else frame.missing
            for reason, frames in missing.items():
                self._skipped.add(reason, frames)
            missing.clear()
        return frame


class PacketMonitor:
    """Monitor that selects the coded frames to decode, and stores their arrival times, capture times, and damage.

    The decoder does not pass these properties on, so `on_decoded_frame` adds them to each decoded frame.
    """

    def __init__(self, skip: Callable[[DropReason], None]) -> None:
        """Create the monitor. It calls `skip` with the reason for each frame that it does not pass to the decoder."""
        self._skip = skip
        self._base_ns = 0
        self._gate = KeyFrameGate()
        self._timeline = Timeline()
        self._key_requested_ns = 0
        self._changed_times = 0  # decoded frames whose time the decoder changed
        self._was_damaged = False  # whether the last frame with a known time counts as damaged
        self._utc_offset_ns: int | None = None  # UTC minus running time, from the camera's sender reports
        self.coded_frames = 0
        self.codec: Literal["H264", "H265"] | None = None  # set before the first frame
        self.orientation: Orientation | None = None  # of the last key frame that specifies one

    def started(self, base_ns: int) -> None:
        """Record the monotonic time, in ns, at which the pipeline's running time is 0."""
        self._base_ns = base_ns

    def on_decoded_frame(self, sample: Any) -> DecodedFrame:
        """Return a decoded frame with its arrival time, its capture time, and a flag for damage.

        Frames that the decoder discarded before this frame count as missing. Call this method for every decoded frame.
        """
        pts = int(sample.get_buffer().pts)
        pts_ns = None if pts == NO_TIME else pts
        packet, passed_over = self._timeline.take_through(pts_ns)
        if packet is not None:
            # Frames that the decoder discarded, except frames that it output with a changed time.
            undecoded = max(0, len(passed_over) - self._changed_times)
            self._was_damaged = packet.corrupt
            self._changed_times = 0  # the entries of earlier frames are gone
            return DecodedFrame(sample, packet, Counter({DropReason.CORRUPT: undecoded}))
        self._changed_times += 1
        now_ns = time.monotonic_ns()  # the camera sends raw frames, or the decoder changed the presentation time
        arrived_ns = now_ns if pts_ns is None else self._arrived_ns(pts_ns, now_ns)
        # The gate is ahead of the decoder: it can already have passed the key frame that ends the damage.
        damaged = self._gate.damaged or self._was_damaged
        return DecodedFrame(sample, PacketInfo(arrived_ns, None, damaged), Counter())

    def replaced(self) -> None:
        """Record that the camera continues its stream with a different SSRC, the identifier of an RTP stream.

        Packets may have been lost at the change. Therefore, frames count as damaged until an intact key frame.
        """
        self._gate.lost()

    def _arrived_ns(self, pts_ns: int, now_ns: int) -> int:
        """Compute the arrival time (monotonic ns) of a frame from its presentation time.

        If the result is not plausible, return `now_ns`.
        """
        arrived_ns = self._base_ns + pts_ns
        return arrived_ns if 0 <= now_ns - arrived_ns < _MAX_AGE_NS else now_ns

    def on_sender_report(self, _jitter_buffer: Any, sync: Any) -> None:
        """Store the offset of the camera's clock (UTC) from the running time, as an RTCP sender report states it.

        The property ``add-reference-timestamp-meta`` would be simpler, but JetPack 6 has GStreamer 1.20 without it.
        """
        names = ("sr-ext-rtptime", "base-rtptime", "base-time", "clock-rate")
        if not all(sync.has_field(name) for name in (*names, "sr-buffer")):
            return  # newer versions also report times in RTP header extensions with this signal
        times = [int(sync.get_value(name)) for name in names]
        if times[0] == NO_TIME:
            return
        report = sync.get_value("sr-buffer")
        data = report.extract_dup(0, report.get_size())
        self._utc_offset_ns = utc_minus_running_time(data, *times)

    def on_event(self, _pad: Any, probe: Any) -> Any:
        """Record a loss if the event in `probe` reports lost packets. Return ``OK``, which passes the event on."""
        gst = library().Gst
        event = probe.get_event()
        if event.type == gst.EventType.CUSTOM_DOWNSTREAM and event.get_structure().has_name("GstRTPPacketLost"):
            self._gate.lost()
        return gst.PadProbeReturn.OK

    def on_coded_frame(self, pad: Any, probe: Any) -> Any:
        """Return the ``PadProbeReturn`` that passes a coded frame to the decoder or drops it. Count dropped frames.

        If the frame is dropped or counts as damaged, also request a key frame from the camera.
        """
        gst = library().Gst
        buffer = probe.get_buffer()
        now_ns = time.monotonic_ns()
        arrived_ns = self._arrived_ns(buffer.pts, now_ns)
        key = not buffer.has_flags(gst.BufferFlags.DELTA_UNIT)
        self.coded_frames += 1
        if key and self.codec is not None:
            head = buffer.extract_dup(0, min(HEAD_BYTES, buffer.get_size()))
            self.orientation = display_orientation(head, self.codec) or self.orientation
        passed = self._gate.passes(key=key, now_ns=now_ns, lag_ns=now_ns - arrived_ns)
        if not passed or self._gate.damaged:
            self._request_key_frame(pad, now_ns)
        if not passed:
            self._skip(DropReason.STALE if self._gate.started else DropReason.CORRUPT)
            return gst.PadProbeReturn.DROP
        offset_ns = self._utc_offset_ns
        utc_ns = None if offset_ns is None or buffer.pts == NO_TIME else buffer.pts + offset_ns
        self._timeline.put(buffer.pts, PacketInfo(arrived_ns, utc_ns, self._gate.damaged))
        return gst.PadProbeReturn.OK

    def _request_key_frame(self, pad: Any, now_ns: int) -> None:
        """Request a key frame over RTCP, at most once per second. Some cameras ignore the request."""
        if now_ns - self._key_requested_ns < _KEY_REQUEST_NS:
            return
        self._key_requested_ns = now_ns
        video = library().GstVideo
        pad.send_event(video.video_event_new_upstream_force_key_unit(NO_TIME, True, 0))
