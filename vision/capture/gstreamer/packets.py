"""Monitoring of an RTSP stream before the decoder: lost packets, backlog, and arrival and capture times.

GStreamer's threads call the ``on_`` methods; the camera's thread calls the others.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Literal

from vision.capture.clock import utc_minus_running_time
from vision.capture.gstreamer.bindings import library
from vision.capture.packet_info import KeyFrameGate, PacketInfo, Timeline
from vision.capture.planes import Orientation
from vision.capture.sei import HEAD_BYTES, display_orientation
from vision.capture.source import SkippedFrames
from vision.types import DropReason

NO_TIME = 2**64 - 1
"""The value of GST_CLOCK_TIME_NONE, which the jitter buffer also uses for unknown times."""

_KEY_REQUEST_NS = 1_000_000_000  # minimum between two requests, because cameras answer each with a large frame
_MAX_AGE_NS = 30_000_000_000  # a frame that seems older on arrival has a wrong time


class PacketMonitor:
    """Decides which coded frames are decoded, and stores the properties that the decoder does not pass on."""

    def __init__(self, skipped: SkippedFrames) -> None:
        """Create the monitor. `skipped` counts the frames that do not reach the program."""
        self._skipped = skipped
        self._base_ns = 0
        self._gate = KeyFrameGate()
        self._timeline = Timeline()
        self._key_requested_ns = 0
        self._decoded: deque[int] = deque()  # times of the frames that entered the appsink and were not pulled
        self._changed_times = 0  # pulled frames whose time the decoder changed
        self._was_damaged = False  # whether the last frame with a known time counts as damaged
        self._utc_offset_ns: int | None = None  # UTC minus running time, from the camera's sender reports
        self.coded_frames = 0
        self.codec: Literal["H264", "H265"] | None = None  # set before the first frame
        self.orientation: Orientation | None = None  # of the last key frame that specifies one

    def started(self, base_ns: int) -> None:
        """Record the monotonic time, in ns, at which the pipeline's running time is 0."""
        self._base_ns = base_ns

    def info(self, pts_ns: int | None) -> PacketInfo:
        """Return the arrival time, capture time, and damage of a decoded frame. Count the frames lost before it.

        `pts_ns` is the presentation time of the frame; None if it has none.
        """
        dropped = self._dropped_by_sink(pts_ns)
        packet, passed_over = self._timeline.take_through(pts_ns)
        self._count_undecoded(len(set(passed_over) - dropped))
        if packet is not None:
            self._was_damaged = packet.corrupt
            self._changed_times = 0  # the entries of earlier frames are gone
            return packet
        self._changed_times += 1
        now_ns = time.monotonic_ns()  # the camera sends raw frames, or the decoder changed the presentation time
        arrived_ns = now_ns if pts_ns is None else self._arrived_ns(pts_ns, now_ns)
        # The gate is ahead of the decoder: it can already have passed the key frame that ends the damage.
        return PacketInfo(arrived_ns, None, self._gate.damaged or self._was_damaged)

    def _dropped_by_sink(self, pts_ns: int | None) -> set[int]:
        """Count the frames that the appsink dropped before the frame at `pts_ns`. Return their presentation times."""
        dropped = set()
        wanted = NO_TIME if pts_ns is None else pts_ns
        while self._decoded and (entered := self._decoded.popleft()) != wanted:
            dropped.add(entered)
            self._skipped.add(DropReason.SUPERSEDED)
        return dropped

    def _count_undecoded(self, frames: int) -> None:
        """Count frames that the decoder discarded, except frames that were pulled with a changed time."""
        changed = min(frames, self._changed_times)
        self._changed_times -= changed
        if frames > changed:
            self._skipped.add(DropReason.CORRUPT, frames - changed)

    def on_decoded_frame(self, _pad: Any, probe: Any) -> Any:
        """Record a frame that enters the appsink, which drops frames without a report."""
        self._decoded.append(int(probe.get_buffer().pts))
        return library().Gst.PadProbeReturn.OK

    def replaced(self) -> None:
        """Record that a different sender continues the stream. Frames may be missing at the change."""
        self._gate.lost()

    def _arrived_ns(self, pts_ns: int, now_ns: int) -> int:
        """Convert a presentation time to the arrival time (monotonic ns); `now_ns` if the result is implausible."""
        arrived_ns = self._base_ns + pts_ns
        return arrived_ns if 0 <= now_ns - arrived_ns < _MAX_AGE_NS else now_ns

    def on_sender_report(self, _jitter_buffer: Any, sync: Any) -> None:
        """Read the camera's clock from an RTCP sender report.

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
        """Record the loss if an event reports lost packets."""
        gst = library().Gst
        event = probe.get_event()
        if event.type == gst.EventType.CUSTOM_DOWNSTREAM and event.get_structure().has_name("GstRTPPacketLost"):
            self._gate.lost()
        return gst.PadProbeReturn.OK

    def on_coded_frame(self, pad: Any, probe: Any) -> Any:
        """Pass a coded frame to the decoder, or drop the frame and count it as skipped."""
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
            self._skipped.add(DropReason.STALE if self._gate.started else DropReason.CORRUPT)
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
