"""Capture times of frames, from the camera's own clock if it can be trusted.

RTCP sender reports contain the camera's time in UTC, which shows the delay of the encoder and the network. But the
camera's clock can be wrong. A clock that was never set shows the year 1970 or 1900. If a clock is a minute slow, its
frames seem to be a minute old, and would be dropped as stale. Therefore, the camera's clock is trusted only after it
has agreed with the clock of this machine. If the camera's clock is not trusted, the time of arrival is the capture
time. Staleness and latency are computed from this machine's monotonic clock.
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
"""If all frames are late for this long, the camera's clock was set back, or the network is too slow to be usable."""

STEP_NS = 3_600_000_000_000
"""A larger delay means that the clock was changed, because no network delays a frame by an hour."""

NTP_TO_UNIX_S = 2_208_988_800
"""Seconds from 1900 to 1970 (RFC 5905)."""

_SENDER_REPORT = 200  # RFC 3550, section 6.4.1


def utc_minus_running_time(
    report: bytes, rtp_time: int, base_rtp_time: int, base_running_ns: int, clock_rate_hz: int
) -> int | None:
    """Return the UTC time, in ns, at which the running time of a stream was 0, or None if the report is not usable.

    Args:
        report: an RTCP packet. It is not usable if it does not start with a sender report, or if the report contains
            the time 0, which a camera without a clock sends (RFC 3550).
        rtp_time: the RTP time in the report, extended to 64 bits.
        base_rtp_time: the RTP time at `base_running_ns`.
        base_running_ns: a running time of the stream, in ns.
        clock_rate_hz: the rate of the RTP time. If it is not positive, the report is not usable.
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
    """Source of the capture times of one camera's frames. These times always increase, and are never in the future.

    The camera's clock becomes trusted when it shows a capture time within `trust_ns` of the frame's arrival. After
    that, frames can have longer delays, so that a slow network is visible. The camera's clock loses this trust in two
    cases:

    * It shows a capture time more than `trust_ns` after the frame's arrival, or more than an hour before the arrival.
    * For more than 30 s, it has shown delays of more than `trust_ns` for all frames.
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
        """Return the `Grab` of a frame with its capture times, and with `pts_ns`, `corrupt`, and `yuv`.

        `arrived_ns` is the arrival time (monotonic ns). `ntp_utc_ns` is the capture time (UTC) on the camera's clock,
        or None if this time is unknown.
        """
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
                "camera %s: the camera's clock shows %s, but this machine's clock shows %s, so arrival times are used "
                "as capture times; synchronize both clocks with NTP",
                self._camera_id,
                _text(now_utc_ns - delay_ns),
                _text(now_utc_ns),
            )


def _text(utc_ns: int) -> str:
    return f"{datetime.fromtimestamp(utc_ns / 1e9, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
