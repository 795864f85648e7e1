"""Tests of display orientations in coded frames. ``tests/rtsp/test_odd_cameras.py`` uses real streams."""

from __future__ import annotations

from typing import Literal

import pytest

from vision.capture.planes import Orientation
from vision.capture.sei import display_orientation

QUARTER, HALF, THREE_QUARTERS = 0x4000, 0x8000, 0xC000
HEADERS: dict[Literal["H264", "H265"], bytes] = {"H264": b"\x06", "H265": b"\x4e\x01"}
SLICES: dict[Literal["H264", "H265"], bytes] = {"H264": b"\x65\x88\x84", "H265": b"\x26\x01\xaf"}


def message(turn: int, *, flip_x: bool = False, flip_y: bool = False, cancel: bool = False) -> bytes:
    bits = cancel << 23 | flip_x << 22 | flip_y << 21 | turn << 5 | 0x18
    payload = bits.to_bytes(3, "big").replace(b"\x00\x00\x00", b"\x00\x00\x03\x00")
    return bytes([47, 3]) + payload + b"\x80"


def frame(codec: Literal["H264", "H265"], *messages: bytes, lengths: bool = False) -> bytes:
    """Return a coded frame with SEI messages, and with start codes or, if `lengths` is True, with length fields."""
    units = [HEADERS[codec] + b"".join(messages), SLICES[codec]]
    return b"".join((len(unit).to_bytes(4, "big") if lengths else b"\x00\x00\x01") + unit for unit in units)


@pytest.mark.parametrize("codec", HEADERS)
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize(
    ("turn", "flip_x", "flip_y", "expected"),
    [
        (0, True, False, Orientation(flip_x=True)),
        (0, False, True, Orientation(flip_y=True)),
        (HALF, False, False, Orientation(flip_x=True, flip_y=True)),
        (QUARTER, False, False, Orientation(transposed=True, flip_y=True)),
        (THREE_QUARTERS, False, False, Orientation(transposed=True, flip_x=True)),
        (0x2000, False, False, None),
    ],
)
def test_orientation_is_found(
    codec: Literal["H264", "H265"],
    turn: int,
    expected: Orientation | None,
    *,
    flip_x: bool,
    flip_y: bool,
    lengths: bool,
) -> None:
    sent = message(turn, flip_x=flip_x, flip_y=flip_y)
    assert display_orientation(frame(codec, b"\x05\x02ab", sent, lengths=lengths), codec) == expected


@pytest.mark.parametrize("codec", HEADERS)
def test_frames_without_an_orientation_have_none(codec: Literal["H264", "H265"]) -> None:
    assert display_orientation(frame(codec, b"\x05\x02ab"), codec) is None
    assert display_orientation(frame(codec, message(QUARTER, cancel=True)), codec) is None
    assert display_orientation(SLICES[codec], codec) is None


@pytest.mark.parametrize("codec", HEADERS)
@pytest.mark.parametrize("lengths", [False, True])
def test_truncated_frames_are_no_error(codec: Literal["H264", "H265"], *, lengths: bool) -> None:
    whole = frame(codec, b"\xff\xff\x05\xff\x01", message(QUARTER), lengths=lengths)
    for end in range(len(whole)):
        display_orientation(whole[:end], codec)
