"""`ResetSchedule` determines when the counters of a camera are reset to zero."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, time, timedelta


class ResetSchedule:
    """Division of time into periods that start at given times of the day, in the local time of the machine.

    If the clock is set back, the current period continues, and the next period starts when the clock first reaches the
    start of the next period.

    Args:
        times: times of the day as HH:MM. If `times` is empty, no period ever starts.
        period_s: start of the current period, in seconds since 1970 (UTC), or None if no period has started yet.
    """

    def __init__(self, times: Sequence[str], period_s: int | None = None) -> None:
        self._times = [time.fromisoformat(text) for text in times]
        self._period_s = period_s
        self._next_ns = -1 if self._times else None  # when a period ends; -1 means not computed yet

    @property
    def next_ns(self) -> int | None:
        """Capture time before which no period starts, in ns since 1970 (UTC), or None if no period ever starts."""
        return self._next_ns

    def starts_period(self, utc_ns: int) -> int | None:
        """Return the start of a new period, in seconds since 1970, or None if no new period has started.

        The first call returns the start of the current period, unless the constructor received the same or a later
        start.

        Args:
            utc_ns: capture time of a frame, in nanoseconds since 1970 (UTC).
        """
        if self._next_ns is None or utc_ns < self._next_ns:
            return None
        now_s = utc_ns // 1_000_000_000
        starts = self._starts(now_s)
        self._next_ns = min(start for start in starts if start > now_s) * 1_000_000_000
        period_s = max(start for start in starts if start <= now_s)
        if self._period_s is not None and period_s <= self._period_s:
            return None
        self._period_s = period_s
        return period_s

    def _starts(self, now_s: int) -> list[int]:
        """Return period starts in seconds since 1970, including all starts within a day before and after `now_s`."""
        today = datetime.fromtimestamp(now_s).date()
        days = [today + timedelta(days=offset) for offset in (-2, -1, 0, 1, 2)]
        return [int(datetime.combine(day, at).timestamp()) for day in days for at in self._times]
