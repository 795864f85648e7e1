"""Parser of the display orientation in a coded H.264 or H.265 frame, for libraries that do not report the orientation.

The orientation is in supplemental enhancement information (SEI): Rec. ITU-T H.264, D.1.27, and H.265, D.2.17.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final, Literal

from vision.capture.planes import Orientation

HEAD_BYTES: Final = 4096
"""Number of bytes at the start of a frame that are searched for messages, which precede the first slice."""

_DISPLAY_ORIENTATION: Final = 47  # payloadType
_START_CODE: Final = re.compile(b"\x00\x00\x01")


def display_orientation(frame: bytes, codec: Literal["H264", "H265"]) -> Orientation | None:
    """Return the orientation that the start of a coded frame specifies, or None if it is missing or oblique.

    `frame` contains NAL units, each after a start code or after its length.
    """
    for unit in _units(frame):
        is_sei = unit[0] & 31 == 6 if codec == "H264" else unit[0] >> 1 & 63 == 39
        if not is_sei:
            continue
        for kind, payload in _messages(unit[1 if codec == "H264" else 2 :].replace(b"\x00\x00\x03", b"\x00\x00")):
            cancelled = bool(payload[:1]) and bool(payload[0] & 0x80)
            if kind == _DISPLAY_ORIENTATION and len(payload) >= 3 and not cancelled:
                return _orientation(int.from_bytes(payload[:3], "big"))
    return None


def _units(frame: bytes) -> Iterator[bytes]:
    """Yield the NAL units of a frame. Each follows a start code or a length of 4 bytes."""
    starts = list(_START_CODE.finditer(frame[:HEAD_BYTES]))
    if frame[:3] == b"\x00\x00\x01" or frame[:4] == b"\x00\x00\x00\x01":
        ends = [*(start.start() for start in starts[1:]), len(frame)]
        yield from (frame[start.end() : end] for start, end in zip(starts, ends, strict=True) if start.end() < end)
        return
    at = 0
    while at + 4 < len(frame):
        length = int.from_bytes(frame[at : at + 4], "big")
        yield frame[at + 4 : at + 4 + max(1, length)]
        at += 4 + length


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the type and payload of each message in an SEI unit (H.264, section 7.3.2.3.1)."""
    at = 0
    while at + 2 < len(data):
        kind, at = _number(data, at)
        size, at = _number(data, at)
        yield kind, data[at : at + size]
        at += size


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at position `at` of an SEI unit (a type or a size), and the position after the number.

    The number is the sum of its bytes. All bytes except the last are 255.
    """
    value = 0
    while at < len(data) and data[at] == 0xFF:
        value, at = value + 0xFF, at + 1
    return value + (data[at] if at < len(data) else 0), at + 1


def _orientation(bits: int) -> Orientation | None:
    """Return the orientation from the first 24 bits of a display orientation message, or None for an oblique angle.

    The bits are a cancel flag, a flip in x, a flip in y, a counterclockwise rotation (16 bits), and 5 unused bits.
    """
    flip_x, flip_y = 1 - 2 * (bits >> 22 & 1), 1 - 2 * (bits >> 21 & 1)
    angle = (bits >> 5 & 0xFFFF) / 65536 * 2 * math.pi * flip_x * flip_y
    cosine, sine = math.cos(angle), math.sin(angle)
    return Orientation.from_matrix(cosine * flip_x, -sine * flip_y, sine * flip_x, cosine * flip_y)
