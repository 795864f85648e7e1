"""`Pace` and `SegmentTimes` compute the times of the packets in a file.

Containers need a decoding time for each packet. Decoding times must increase, and RTP does not transmit them. The
presentation times of a stream can be missing, can jump, or can pass at a wrong rate. The arrival times of the packets
reveal such faults, and replace missing times.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from vision.messaging.packets import PacketHeader

HZ: Final = 90_000
"""Ticks per second of all times in files."""

MIN_SPAN_NS: Final = 4_000_000_000
"""Duration of the packets from which `Pace.of` determines the order and the rate of the presentation times."""

_DEFAULT_INTERVAL_NS: Final = 40_000_000
_JUMP_NS: Final = 2_000_000_000  # change of the difference between presentation and arrival times
_RATES: Final = (0.7, 1.4)  # of plausible presentation times, relative to arrival times, which vary
_PARTS: Final = 4
_MAX_VARIATION: Final = 2.0  # maximum ratio between the durations in which two parts arrive
_MIN_RATE: Final = 0.1  # a camera with a lower rate repeats its times
_MAX_DEPTH: Final = 16  # frames, as in H.264 and H.265


@dataclass(frozen=True, slots=True)
class Pace:
    """Order, rate, and interval of the presentation times of one connection to a camera."""

    has_times: bool  # False if the presentation times are missing or repeated
    rate: float  # relative to the arrival times; 1 if it is plausible
    depth: int  # number of frames by which the decoder must be ahead
    interval_ns: int  # between two frames

    @classmethod
    def of(cls, packets: Sequence[PacketHeader]) -> Pace:
        """Return the pace of successive packets.

        FFmpeg does not know the time of the first frame of some streams, so individual times can be missing.
        """
        times = [header.pts_ns for header in packets if header.pts_ns is not None]
        interval_ns = _interval_ns(times)
        if len(times) <= len(packets) // 2 or len(set(times)) < len(times):
            return cls(False, 1.0, 0, interval_ns)
        rate = _rate(packets, interval_ns)
        if rate < _MIN_RATE:
            return cls(False, 1.0, 0, interval_ns)
        return cls(True, rate, _reorder_depth(times, interval_ns), round(interval_ns / rate))


def _rate(packets: Sequence[PacketHeader], interval_ns: int) -> float:
    """Return the rate of the presentation times relative to the arrival times, or 1 if the times are plausible.

    If the machine or the network is overloaded, packets also arrive at a wrong rate. Therefore, the presentation times
    count as wrong only if the rate is similar in all parts of the packets.
    """
    if packets[-1].arrived_ns - packets[0].arrived_ns < MIN_SPAN_NS // 2:
        return 1.0
    edges = [packets[number * (len(packets) - 1) // _PARTS] for number in range(_PARTS + 1)]
    arrived_ns = [max(1, later.arrived_ns - earlier.arrived_ns) for earlier, later in pairwise(edges)]
    if max(arrived_ns) > _MAX_VARIATION * min(arrived_ns):
        return 1.0
    rate = interval_ns * (len(packets) - 1) / sum(arrived_ns)
    return 1.0 if _RATES[0] <= rate <= _RATES[1] else rate


class SegmentTimes:
    """The presentation and decoding times of the packets of one file, in ticks. The first decoding time is 0."""

    def __init__(self, packets: Sequence[PacketHeader], pace: Pace) -> None:
        """Create the times of a file. `packets` are the packets that have already arrived, starting with the first."""
        self.pace = pace
        self._first_ns = packets[0].arrived_ns
        self._base_ns = packets[0].pts_ns  # presentation time of the first packet; None if unknown
        later = [header.pts_ns for header in packets if header.pts_ns is not None]
        if self._base_ns is None and later:
            self._base_ns = min(later) - round(pace.interval_ns * pace.rate)
        self._ahead_ns = 0  # presentation time of the last packet, minus its arrival time
        self._last_dts = -1
        self._leading = True  # only the first packet and leading packets were passed to `next`
        self._window: list[int] = []
        self._fill_window(0)

    def _fill_window(self, from_ns: int) -> None:
        """Assume frames before `from_ns`, the time in ns since the first packet, and store their times in the window.

        Decoding times are taken from this window of sorted times, so that they precede the presentation times.
        """
        depth, interval_ns = self.pace.depth, self.pace.interval_ns
        self._window = [from_ns + (number - depth) * interval_ns for number in range(depth)]

    def next(self, header: PacketHeader) -> tuple[int, int] | None:
        """Return the presentation and decoding time of the next packet.

        Return None for a packet that follows the first key frame but is displayed before that frame, because such a
        packet cannot be decoded without the packets before the key frame.
        """
        arrived_ns = header.arrived_ns - self._first_ns
        if not self.pace.has_times:
            return self._after_last(arrived_ns, arrived_ns)
        pts_ns = self._pts_ns(header, arrived_ns)
        self._ahead_ns = pts_ns - arrived_ns
        if self._leading and pts_ns < 0:
            return None
        self._leading = self._leading and pts_ns == 0
        insort(self._window, pts_ns)
        return self._after_last(pts_ns, self._window.pop(0))

    def _pts_ns(self, header: PacketHeader, arrived_ns: int) -> int:
        """Return the presentation time of a packet in ns since the first packet.

        If the timestamps of the camera jump, the presentation times continue without a jump. If the packet has no
        timestamp, its presentation time follows from `arrived_ns`, its arrival time in ns since the first packet.
        """
        rate = self.pace.rate
        if header.pts_ns is None:
            return arrived_ns + self._ahead_ns
        if self._base_ns is not None:
            pts_ns = round((header.pts_ns - self._base_ns) / rate)
            if abs(pts_ns - arrived_ns - self._ahead_ns) <= _JUMP_NS:
                return pts_ns
        self._base_ns = header.pts_ns - round(arrived_ns * rate)  # the camera changed its clock
        self._fill_window(arrived_ns)
        return arrived_ns

    def _after_last(self, pts_ns: int, dts_ns: int) -> tuple[int, int]:
        shift_ns = self.pace.depth * self.pace.interval_ns
        dts = max(_ticks(dts_ns + shift_ns), self._last_dts + 1)
        self._last_dts = dts
        return max(_ticks(pts_ns + shift_ns), dts), dts


def _ticks(ns: int) -> int:
    return ns * HZ // 1_000_000_000


def _reorder_depth(times: Sequence[int], interval_ns: int) -> int:
    """Return the number of frames by which decoding must be ahead of presentation. `times` are in ns, in stream order.

    This is the maximum number of frames that precede a frame in the stream but are displayed after it. A difference of
    more than 16 frames, which no codec allows, is a jump and does not count.
    """
    latest: list[int] = []
    depth = 0
    for time_ns in times:
        later = sum(0 < each - time_ns <= _MAX_DEPTH * interval_ns for each in latest)
        depth = max(depth, later)
        latest = [*latest[-_MAX_DEPTH:], time_ns]
    return depth


def _interval_ns(times: Sequence[int]) -> int:
    """Return the median time between two successively displayed frames. Return 40 ms if the time is unknown."""
    steps = sorted(later - earlier for earlier, later in pairwise(sorted(times)))
    return steps[len(steps) // 2] if steps else _DEFAULT_INTERVAL_NS
