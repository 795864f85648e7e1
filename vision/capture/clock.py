"""The capture time of a frame, from the camera's own clock if that is trustworthy.

A camera's sender reports contain UTC, and thereby the delay of encoder and network. But a camera whose clock was never
set reports 1970 or 1900, and all frames of a camera whose clock is a minute slow would be dropped. The camera's clock
is therefore trusted once it agrees with this machine's. The time on the monotonic clock, which determines staleness and
latency, is valid in every case.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable
from datetime import datetime, timezone

from vision.capture.source import Grab
from vision.types import ClockSource, YuvEncoding

log = logging.getLogger(__name__)

LATE_FOR_NS = 30_000_000_000
"""A clock that makes every frame late for this long was set back, or the network is too slow to be usable."""

STEP_NS = 3_600_000_000_000
"""A larger delay means that the clock was changed, because no network delays a frame by an hour."""

NTP_TO_UNIX_S = 2_208_988_800
"""Seconds from 1900 to 1970: RFC 5905."""

_SENDER_REPORT = 200  # RFC 3550, section 6.4.1


def utc_minus_running_time(
    report: bytes, rtp_time: int, base_rtp_time: int, base_running_ns: int, clock_rate_hz: int
) -> int | None:
    """Return UTC minus running time, in ns, from an RTCP packet that begins with a sender report.

    `rtp_time` is the report's, extended to 64 bits; `base_rtp_time` is the RTP time at `base_running_ns`. Return None
    if the packet is not a sender report, or the sender has no clock (RFC 3550: it then sends zero).
    """
    if len(report) < 20 or report[1] != _SENDER_REPORT or clock_rate_hz <= 0:
        return None
    seconds, fraction = struct.unpack_from("!II", report, 8)
    if seconds == 0 and fraction == 0:
        return None
    utc_ns = (seconds - NTP_TO_UNIX_S) * 1_000_000_000 + (fraction * 1_000_000_000 >> 32)
    running_ns = base_running_ns + (rtp_time - base_rtp_time) * 1_000_000_000 // clock_rate_hz
    return int(utc_ns - running_ns)


class CaptureClock:
    """Capture times of one camera: never in the future, always increasing.

    The camera's clock is trusted from the first frame within `trust_ns` of its arrival. From then on, a frame can be
    later, so that a slow network is visible. The clock is no longer trusted if a frame is more than `trust_ns` in the
    future or an hour in the past, or if all frames are late for 30 s.
    """

    def __init__(
        self,
        camera_id: str,
        trust_ns: int,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        utc: Callable[[], int] = time.time_ns,
    ) -> None:
        self._camera_id = camera_id
        self._trust_ns = trust_ns
        self._clock = clock
        self._utc = utc
        self._trusted = False
        self._warned = False
        self._late_since_ns: int | None = None
        self._last_ns = 0

    def stamp(
        self,
        arrived_ns: int,
        ntp_utc_ns: int | None,
        *,
        pts_ns: int | None = None,
        corrupt: bool = False,
        yuv: YuvEncoding | None = None,
    ) -> Grab:
        """Return a frame that arrived at `arrived_ns` (monotonic), with its capture time on both clocks."""
        now_ns = self._clock()
        utc_ns = self._utc()
        arrived_ns = min(arrived_ns, now_ns)
        delay_ns = 0
        if ntp_utc_ns is not None:
            delay_ns = utc_ns - (now_ns - arrived_ns) - ntp_utc_ns
            self._update_trust(delay_ns, now_ns, utc_ns)
        by_camera = ntp_utc_ns is not None and self._trusted
        captured_ns = arrived_ns - max(0, delay_ns) if by_camera else arrived_ns
        captured_ns = min(max(captured_ns, self._last_ns + 1), now_ns)
        self._last_ns = captured_ns
        clock: ClockSource = "rtcp" if by_camera else "arrival"
        return Grab(captured_ns, utc_ns - (now_ns - captured_ns), clock, pts_ns, corrupt, yuv)

    def _update_trust(self, delay_ns: int, now_ns: int, now_utc_ns: int) -> None:
        on_time = abs(delay_ns) <= self._trust_ns
        if on_time:
            self._trusted = True
        if on_time or not self._trusted:
            self._late_since_ns = None
        elif self._late_since_ns is None:
            self._late_since_ns = now_ns
        impossible = delay_ns < -self._trust_ns or delay_ns > STEP_NS
        set_back = self._late_since_ns is not None and now_ns - self._late_since_ns > LATE_FOR_NS
        if impossible or set_back:
            self._trusted = False
            self._late_since_ns = None
        if not self._trusted and not self._warned:
            self._warned = True
            log.warning(
                "camera %s: the camera's clock is %s, this machine's %s: using times of arrival instead; "
                "synchronize both with NTP",
                self._camera_id,
                _text(now_utc_ns - delay_ns),
                _text(now_utc_ns),
            )


def _text(utc_ns: int) -> str:
    return f"{datetime.fromtimestamp(utc_ns / 1e9, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
