"""Properties of coded frames, recorded before the decoder: damage, arrival time, and the camera's capture time.

Decoders output frames with a delay, in a different order, and without most of these properties. Decoders keep the
presentation time, so it identifies a frame before and after the decoder.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

BACKLOG_NS = 2_000_000_000
"""A decoder that is this far behind the camera skips to the next key frame. A smaller value would also skip frames that
can be decoded quickly after a short stall. Without a limit, waiting coded frames would fill the memory."""

GIVE_UP_NS = 3_000_000_000
"""If skipping does not reduce the lag for this long, the stream itself causes the lag, which is then ignored."""


@dataclass(frozen=True, slots=True)
class PacketInfo:
    """The arrival time, capture time, and damage of one coded frame."""

    arrived_ns: int  # monotonic
    ntp_utc_ns: int | None  # capture time according to the camera's sender reports; None if unknown
    corrupt: bool


class KeyFrameGate:
    """Gate that decides for each coded frame, in decoding order, whether to decode it and whether it is damaged.

    After lost packets, all frames count as damaged until an intact key frame. The first frame after a loss may be the
    frame that lost the packets, so it counts as damaged even if it is a key frame.
    """

    def __init__(self) -> None:
        self.started = False  # True after the first frame that must be decoded, which is a key frame
        self.damaged = False  # whether the last decoded frame counts as damaged
        self._lost = False  # whether packets were lost since the last frame
        self._skipping_since_ns: int | None = None
        self._own_lag_ns = 0

    def lost(self) -> None:
        """Record that packets were lost before the next frame."""
        self._lost = True
        self.damaged = True

    def decoding_failed(self) -> None:
        """Record that the last decoded frame is damaged. Unlike after `lost`, the next key frame counts as intact."""
        self.damaged = True

    def passes(self, *, key: bool, now_ns: int = 0, lag_ns: int = 0) -> bool:
        """Return True if the next frame must be decoded. Call this method once for each frame.

        Args:
            key: True if the frame is a key frame.
            now_ns: current time (monotonic ns).
            lag_ns: time for which the frame waited to be read, or 0 if something else limits this time, such as
                `vision.capture.read_ahead.Backlog`.
        """
        intact = not self._lost
        self._lost = False
        if self._skips(key, now_ns, lag_ns) or not (self.started or key):
            return False
        self.started = True
        if key and intact:
            self.damaged = False
        return True

    def _skips(self, key: bool, now_ns: int, lag_ns: int) -> bool:
        behind = lag_ns - self._own_lag_ns > BACKLOG_NS
        if self._skipping_since_ns is None:
            if not behind:
                return False
            self._skipping_since_ns = now_ns
        if not key:
            return True
        if behind and now_ns - self._skipping_since_ns < GIVE_UP_NS:
            return True
        if behind:
            self._own_lag_ns = lag_ns
        self._skipping_since_ns = None
        return False


class Timeline:
    """Store of the `PacketInfo` of recent frames, by presentation time in ns. Thread-safe."""

    def __init__(self, capacity: int = 64) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._frames: dict[int, PacketInfo] = {}

    def put(self, pts_ns: int, frame: PacketInfo) -> None:
        """Store the properties of a frame. If there are more than `capacity` entries, discard the oldest."""
        with self._lock:
            self._frames[pts_ns] = frame
            if len(self._frames) > self._capacity:
                del self._frames[next(iter(self._frames))]

    def take(self, pts_ns: int | None) -> PacketInfo | None:
        """Remove and return the properties of a frame, as `take_through` does, or None if `pts_ns` is unknown."""
        return self.take_through(pts_ns)[0]

    def take_through(self, pts_ns: int | None) -> tuple[PacketInfo | None, Sequence[int]]:
        """Remove a frame. Return its properties, and the presentation times of the frames that were passed over.

        `pts_ns` is the presentation time of the frame. If it is None or unknown, return None and no times.

        Frames that were stored before this frame and have an earlier presentation time are passed over. They are
        removed too, because the decoder has not output them and will not output them. If a frame that is passed over is
        damaged, the returned frame counts as damaged too: a decoder that flushes a damaged frame at a key frame can
        output it with the key frame's time.
        """
        with self._lock:
            packet = None if pts_ns is None else self._frames.get(pts_ns)
            if pts_ns is None or packet is None:
                return None, ()
            stored_earlier = takewhile(lambda pts: pts != pts_ns, list(self._frames))
            passed_over = [pts for pts in stored_earlier if pts < pts_ns]
            if any(self._frames[pts].corrupt for pts in passed_over):
                packet = replace(packet, corrupt=True)
            for pts in (*passed_over, pts_ns):
                del self._frames[pts]
            return packet, passed_over
