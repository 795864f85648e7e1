"""JPEG comment with the original size of a frame, for JPEG files that contain the frame at a smaller scale.

The boxes in messages are in pixels of the original frame. With the comment, a program can convert a box to pixels of
the smaller image.
"""

from __future__ import annotations

import re
from typing import Final

_START: Final = b"\xff\xd8"
_COMMENT: Final = 0xFE
_SCAN: Final = 0xDA  # a comment can only precede this marker
_TEXT: Final = re.compile(rb"vision frame ([1-9]\d{0,4})x([1-9]\d{0,4})")


def with_frame_size(jpeg: bytes, width_px: int, height_px: int) -> bytes:
    """Return a copy of a JPEG file with a comment that contains the original size of its frame."""
    text = b"vision frame %dx%d" % (width_px, height_px)
    return jpeg[:2] + bytes((0xFF, _COMMENT)) + (len(text) + 2).to_bytes(2, "big") + text + jpeg[2:]


def frame_size(file: bytes) -> tuple[int, int] | None:
    """Return the original width and height of the frame in a JPEG file, in pixels, from the comment of the file.

    Return None if the file has no such comment, or is not a JPEG file.
    """
    place = len(_START) if file.startswith(_START) else len(file)
    while len(file) >= place + 4 and file[place] == 0xFF and file[place + 1] != _SCAN:
        length = int.from_bytes(file[place + 2 : place + 4], "big")
        match = _TEXT.fullmatch(file[place + 4 : place + 2 + length])
        if file[place + 1] == _COMMENT and match is not None:
            return int(match[1]), int(match[2])
        place += 2 + length
    return None
