"""`SegmentTimes`, which computes the times of the packets in a file.

Containers need a decoding time for each packet, which RTP does not transmit, and which never decreases. The times of a
stream can be missing, can jump, or can pass at a wrong rate. The arrival times replace them then.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from vision.messaging.packets import PacketHeader

HZ: Final = 90_000
"""Ticks per second of all times in files."""

MIN_SPAN_NS: Final = 2_000_000_000
"""Duration of the packets from which the order and the rate of the presentation times can be determined."""

_DEFAULT_INTERVAL_NS: Final = 40_000_000
_MAX_DRIFT_NS: Final = 2_000_000_000  # between presentation and arrival times
_MAX_DRIFT: Final = 0.15  # of the time since the first packet
_RATE_RANGE: Final = (0.9, 1.1)  # of plausible presentation times, relative to arrival times
_MAX_DEPTH: Final = 16  # frames, as in H.264 and H.265


class SegmentTimes:
    """The times of the packets of one file, in ticks. The first decoding time is 0."""

    def __init__(self, packets: Sequence[PacketHeader]) -> None:
        """Choose the source of the times. `packets` are the packets that are known already, from the first on."""
        self._first_ns = packets[0].arrived_ns
        self._base_ns = _plausible_base_ns(packets)  # of presentation times; None means that arrival times are used
        self._last_dts = -1
        self._leading = True  # only the first packet and leading packets were passed to `next`
        times = [header.pts_ns for header in packets if header.pts_ns is not None]
        self._depth = 0 if self._base_ns is None else _reorder_depth(times)
        self._interval_ns = _interval_ns(times)
        self._window: list[int] = []
        self._fill_window(0)

    def _fill_window(self, from_ns: int) -> None:
        """Assume frames before `from_ns`, so that the decoding times are ahead of the presentation times."""
        self._window = [from_ns + (number - self._depth) * self._interval_ns for number in range(self._depth)]

    def next(self, header: PacketHeader) -> tuple[int, int] | None:
        """Return the presentation and decoding time of the next packet.

        Return None for a packet after the first key frame that is displayed before it, because it cannot be decoded
        without earlier packets.
        """
        arrived_ns = header.arrived_ns - self._first_ns
        if self._base_ns is None or header.pts_ns is None:
            return self._after_last(arrived_ns, arrived_ns)
        pts_ns = header.pts_ns - self._base_ns
        if abs(pts_ns - arrived_ns) > _MAX_DRIFT_NS + _MAX_DRIFT * arrived_ns:  # the camera changed its clock
            self._base_ns = header.pts_ns - arrived_ns
            pts_ns = arrived_ns
            self._fill_window(pts_ns)
        if self._leading and pts_ns < 0:
            return None
        self._leading = self._leading and pts_ns == 0
        insort(self._window, pts_ns)
        return self._after_last(pts_ns, self._window.pop(0))

    def _after_last(self, pts_ns: int, dts_ns: int) -> tuple[int, int]:
        shift_ns = self._depth * self._interval_ns
        dts = max(_ticks(dts_ns + shift_ns), self._last_dts + 1)
        self._last_dts = dts
        return max(_ticks(pts_ns + shift_ns), dts), dts


def _ticks(ns: int) -> int:
    return ns * HZ // 1_000_000_000


def _plausible_base_ns(packets: Sequence[PacketHeader]) -> int | None:
    """Return the presentation time of the first packet; None if the presentation times are missing or wrong."""
    times = [header.pts_ns for header in packets if header.pts_ns is not None]
    if len(times) < len(packets) or len(set(times)) < len(times):
        return None
    arrived_ns = packets[-1].arrived_ns - packets[0].arrived_ns
    if arrived_ns >= MIN_SPAN_NS * 3 // 4:
        rate = (max(times) - times[0]) / arrived_ns
        if not _RATE_RANGE[0] <= rate <= _RATE_RANGE[1]:
            return None
    return times[0]


def _reorder_depth(times: Sequence[int]) -> int:
    """Return by how many frames the decoder must be ahead: the most frames before a frame that are displayed later."""
    latest: list[int] = []
    depth = 0
    for time_ns in times:
        later = sum(each > time_ns for each in latest)
        depth = max(depth, later)
        latest = [*latest[-_MAX_DEPTH:], time_ns]
    return depth


def _interval_ns(times: Sequence[int]) -> int:
    """Return the median time between two frames that are displayed one after the other."""
    steps = sorted(later - earlier for earlier, later in pairwise(sorted(times)))
    return steps[len(steps) // 2] if steps else _DEFAULT_INTERVAL_NS
