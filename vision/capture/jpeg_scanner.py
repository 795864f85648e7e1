"""Scanner that finds the JPEGs in a stream of bytes (ITU-T T.81, annex B).

Cameras separate the JPEGs of a stream in many ways. The boundary can differ from the announced boundary, the length can
be missing or wrong, the content type can be any, or nothing separates the JPEGs. Only the markers within the JPEGs are
reliable.
"""

from __future__ import annotations

import re
from typing import Final

_START: Final = b"\xff\xd8\xff"
_END: Final = b"\xff\xd9"
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_FILLER: Final = 0xFF
_METADATA: Final = frozenset({0xFE, *range(0xE0, 0xF0)})  # comments and applications' data, such as a thumbnail
_WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD8)})
_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # ends scan data, unlike FF 00 (data), FF D0-D7 (restarts)
_LENGTH: Final = re.compile(rb"content-length:[ \t]*([0-9]{1,9})", re.IGNORECASE)
_HEADER_BYTES: Final = 512  # number of bytes before a JPEG that are searched for its length
_PADDING: Final = b"\r\n\0"  # bytes after a JPEG that cameras include in its length
_PADDING_BYTES: Final = 64
_MAX_BYTES: Final = 1 << 26
"""Maximum size of a JPEG. A longer JPEG counts as damaged."""


class JpegScanner:
    """Scanner that splits a stream of bytes into JPEGs.

    `damaged` counts the JPEGs that were removed because they have no end, have invalid markers, or exceed 64 MiB.
    """

    def __init__(self) -> None:
        self._data = bytearray()  # from the start of a JPEG on, if `_inside`
        self._inside = False
        self._in_scan = False
        self._at = 0  # position of the next marker, or of the scan data to search
        self._after_metadata = 2  # a JPEG that starts at or after this position is the next one, not a thumbnail
        self._length = 0  # announced length of this JPEG; 0 if there is none
        self.damaged = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Add `chunk` to the stream. Return the JPEGs that it completes."""
        self._data += chunk
        jpegs: list[bytes] = []
        while self._inside or self._find_start():
            end = self._find_end()
            if end is None:
                break
            if end:
                jpegs.append(bytes(self._data[:end]))
                self._leave(end)
        return jpegs

    def finish(self) -> list[bytes]:
        """End the stream. Return the JPEGs that were held back because `Content-Length` announces more bytes.

        If the last JPEG has no end, count it as damaged.
        """
        self._length = 0
        jpegs = self.feed(b"")
        self.damaged += self._inside
        self._leave(len(self._data))
        return jpegs

    def _find_start(self) -> bool:
        start = self._data.find(_START)
        if start < 0:
            del self._data[:-_HEADER_BYTES]
            return False
        self._enter(start)
        return True

    def _enter(self, start: int) -> None:
        """Start to scan the JPEG at position `start`. Read its length from the header before it, if any.

        The header is the `Content-Length` of the JPEG in a stream of JPEGs over HTTP.
        """
        lengths = _LENGTH.findall(self._data, max(0, start - _HEADER_BYTES), start)
        self._length = int(lengths[-1]) if lengths else 0
        del self._data[:start]
        self._inside, self._in_scan, self._at, self._after_metadata = True, False, 2, 2

    def _leave(self, end: int) -> None:
        del self._data[:end]
        self._inside = False

    def _find_end(self) -> int | None:
        """Return the length of the JPEG in bytes, None if more bytes are needed, or 0 if it was damaged and removed."""
        data = self._data
        if self._length:
            if len(data) < self._length:
                return None
            tail = bytes(data[max(0, self._length - _PADDING_BYTES) : self._length])
            jpeg = tail.rstrip(_PADDING)
            if jpeg.endswith(_END):
                return self._length - len(tail) + len(jpeg)
            self._length = 0  # the announced length is wrong
        while self._at + 2 <= len(data):
            if self._in_scan:
                marker = _MARKER.search(data, self._at)
                self._at = marker.start() if marker else len(data) - 1
                self._in_scan = marker is None
                continue
            kind = data[self._at + 1]
            if data[self._at] != 0xFF or kind == _START_OF_IMAGE:
                return self._restart()
            if kind == _END_OF_IMAGE:
                return self._at + 2
            end = self._segment_end(kind)
            if end is None:
                break
            if kind not in _METADATA and data.find(_START, self._at, end + 2) >= 0:
                return self._restart()
            self._at = end
            self._in_scan = kind == _START_OF_SCAN
            if kind in _METADATA:
                self._after_metadata = end
        return self._restart() if len(data) > _MAX_BYTES else None

    def _segment_end(self, kind: int) -> int | None:
        """Return the end position of the segment at `_at`, or None if more bytes of the segment are needed."""
        if kind == _FILLER:
            return self._at + 1
        if kind in _WITHOUT_LENGTH:
            return self._at + 2
        if self._at + 4 > len(self._data):
            return None
        end = self._at + 2 + int.from_bytes(self._data[self._at + 2 : self._at + 4], "big")
        return end if kind in _METADATA or end + 2 <= len(self._data) else None

    def _restart(self) -> int:
        """Count the JPEG as damaged, and remove it. Return 0, which `_find_end` returns for a damaged JPEG."""
        self.damaged += 1
        start = self._data.find(_START, self._after_metadata)
        if start < 0:
            self._leave(max(len(_START), len(self._data) - _HEADER_BYTES))
        else:
            self._enter(start)
        return 0


def is_truncated_jpeg(data: bytes) -> bool:
    """Return True if `data` starts with a JPEG that has no end, or that has invalid markers."""
    if not data.startswith(_START):
        return False
    scanner = JpegScanner()
    return not scanner.feed(data) or bool(scanner.damaged)
