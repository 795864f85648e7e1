"""RTP payloads of coded frames: H.264 (RFC 6184), H.265 (RFC 7798), JPEG (RFC 2435), MPEG-4 (RFC 6416), and VP8.

`payloads` returns one payload for each packet of a frame. The sender sets the marker in the last packet of the frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from vision.capture.zoo.clips import GOP, Clip, CodedFrame

PAYLOAD_BYTES: Final = 700
"""Maximum size of a payload. It is small, so that most frames need several packets although the frames are small."""

JpegTables = Literal["always", "rarely", "never"]
"""Frames with which the quantization tables of JPEGs are sent. ``rarely`` means every tenth frame."""

_JPEG_DYNAMIC_Q: Final = 255  # each frame contains its quantization tables
_JPEG_STATIC_Q: Final = 200  # the tables of an earlier frame remain valid


def payloads(clip: Clip, frame: CodedFrame, *, in_band: bool, aggregated: bool, tables: JpegTables) -> list[bytes]:
    """Return the payloads of a frame, one for each packet.

    Args:
        clip: the clip of the frame.
        frame: the frame to send.
        in_band: if True, send the parameter sets before each key frame (H.264 and H.265).
        aggregated: if True, send these parameter sets in one packet (STAP-A for H.264, AP for H.265).
        tables: the frames that contain the quantization tables of JPEGs: all, every tenth, or none.
    """
    match clip.codec:
        case "h264" | "h265":
            sets = clip.parameter_sets if in_band and frame.key else ()
            before = [_aggregate(clip.codec, sets)] if sets and aggregated else list(sets)
            return [*before, *(part for unit in frame.units for part in _fragments(clip.codec, unit))]
        case "mjpeg":
            return _jpeg(frame, tables)
        case "mpeg4":
            return list(_pieces(frame.units[0], PAYLOAD_BYTES))
        case "vp8":
            pieces = list(_pieces(frame.units[0], PAYLOAD_BYTES))
            return [(b"\0" if index else b"\x10") + piece for index, piece in enumerate(pieces)]


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def _aggregate(codec: Literal["h264", "h265"], units: Sequence[bytes]) -> bytes:
    header = bytes([24 | units[0][0] & 0x60]) if codec == "h264" else bytes([48 << 1, 1])
    return header + b"".join(struct.pack(">H", len(unit)) + unit for unit in units)


def _fragments(codec: Literal["h264", "h265"], unit: bytes) -> Iterator[bytes]:
    """Yield `unit`, a NAL unit, or its fragmentation units (FU-A, FU) if it is too large for one packet."""
    if len(unit) <= PAYLOAD_BYTES:
        yield unit
        return
    if codec == "h264":
        indicator, kind, rest = bytes([28 | unit[0] & 0x60]), unit[0] & 31, unit[1:]
    else:
        indicator, kind, rest = bytes([49 << 1 | unit[0] & 1, unit[1]]), unit[0] >> 1 & 63, unit[2:]
    pieces = list(_pieces(rest, PAYLOAD_BYTES - 3))
    for index, piece in enumerate(pieces):
        first, last = index == 0, index == len(pieces) - 1
        yield indicator + bytes([first << 7 | last << 6 | kind]) + piece


def _jpeg(frame: CodedFrame, tables: JpegTables) -> list[bytes]:
    quantization, scan, width_px, height_px = _parse_jpeg(frame.units[0])
    q = _JPEG_STATIC_Q if tables == "rarely" else _JPEG_DYNAMIC_Q
    sent = quantization if tables == "always" or (tables == "rarely" and frame.number % GOP == 0) else b""
    parts, offset = [], 0
    while offset < len(scan):
        # Type 1 is 4:2:0 without restart markers. The sides are in units of 8 pixels.
        header = struct.pack(">IBBBB", offset, 1, q, width_px // 8, height_px // 8)
        if offset == 0:
            header += struct.pack(">BBH", 0, 0, len(sent)) + sent
        size = PAYLOAD_BYTES - len(header)
        parts.append(header + scan[offset : offset + size])
        offset += size
    return parts


def _parse_jpeg(image: bytes) -> tuple[bytes, bytes, int, int]:
    """Return the two 64-byte quantization tables, the entropy-coded data, the width, and the height of a JPEG."""
    tables: dict[int, bytes] = {}
    width_px = height_px = 0
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", image, at)
        body = image[at + 4 : at + 2 + length]
        at += 2 + length
        if marker == 0xFFDB:
            tables |= {body[start]: body[start + 1 : start + 65] for start in range(0, len(body), 65)}
        elif marker == 0xFFC0:
            height_px, width_px = struct.unpack_from(">HH", body, 1)
        elif marker == 0xFFDA:
            break
    return tables[0] + tables.get(1, tables[0]), image[at:-2], width_px, height_px
