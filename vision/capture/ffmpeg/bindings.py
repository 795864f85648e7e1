"""PyAV: opening containers, and times in nanoseconds. Importing this module turns FFmpeg's log off.

FFmpeg's log prints URLs with passwords, and calls into Python from threads of its own, which can deadlock.
"""

from __future__ import annotations

from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame

av.logging.set_level(None)


def open_container(address: str, **options: Any) -> InputContainer:
    """Open a file or URL for reading.

    Raises:
        av.FFmpegError, ValueError: it cannot be opened. The text contains the address, secrets included.
    """
    if int(av.__version__.partition(".")[0]) < 19:
        options["metadata_errors"] = "replace"  # metadata that is not UTF-8 must not be an error
    container: InputContainer = av.open(address, mode="r", **options)
    return container


def time_ns(timed: Packet[Any] | VideoFrame) -> int | None:
    """Return the presentation time, or None if there is none."""
    if timed.pts is None or timed.time_base is None:
        return None
    return timed.pts * timed.time_base.numerator * 1_000_000_000 // timed.time_base.denominator
