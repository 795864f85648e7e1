"""Times in the format of RFC 3339, which messages contain."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from functools import lru_cache


def rfc3339(utc_ns: int) -> str:
    """Format nanoseconds since 1970 as ``2026-01-31T12:00:00.123456Z``."""
    seconds, ns = divmod(utc_ns, 1_000_000_000)
    return f"{_second(seconds)}.{ns // 1000:06d}Z"


@lru_cache(maxsize=64)
def _second(utc_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(utc_s))


def utc_ns(text: str) -> int:
    """Parse a time in the format of `rfc3339`, and return it in nanoseconds since 1970."""
    since_1970 = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z") - datetime.fromtimestamp(0, timezone.utc)
    return since_1970 // timedelta(microseconds=1) * 1000
