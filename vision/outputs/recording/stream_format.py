"""`StreamFormat` converts packets of H.264 and H.265 to Annex B, and finds the parameter sets of key frames."""

from __future__ import annotations

import re
from typing import Final

from vision.capture.nvdec.annexb import parameter_sets
from vision.messaging.packets import PacketHeader

_START_CODE: Final = b"\x00\x00\x00\x01"
_UNIT: Final = re.compile(b"\x00\x00\x01(.)", re.DOTALL)
_STARTS: Final = {"h264": (5,), "hevc": range(16, 22)}
"""Types of NAL units with which all players can start: Rec. ITU-T H.264 and H.265, table 7-1."""
_CONFIGURATION_VERSION: Final = 1  # first byte of an avcC or hvcC record (ISO/IEC 14496-15)


class StreamFormat:
    """Converter of the packets of one connection to a camera, whose format follows from the header of a key frame."""

    def __init__(self, header: PacketHeader) -> None:
        self._codec = header.codec
        self._extradata = header.extradata
        self._length_bytes = 0  # size of the length before each unit; 0 means Annex B
        if header.extradata[:1] == bytes([_CONFIGURATION_VERSION]):
            self._length_bytes, self._extradata = _parse_record(header.codec, header.extradata)

    def to_annexb(self, data: bytes) -> bytes:
        """Return a packet with a start code before each NAL unit."""
        if not self._length_bytes:
            return data
        units, at = [], 0
        while at + self._length_bytes <= len(data):
            length = int.from_bytes(data[at : at + self._length_bytes], "big")
            at += self._length_bytes
            units.append(data[at : at + length])
            at += length
        return b"".join(_START_CODE + unit for unit in units)

    def is_start(self, key_frame: bytes) -> bool:
        """Return True if all players can start with this key frame, which is in Annex B."""
        units = (match[1][0] for match in _UNIT.finditer(key_frame))
        return any((unit & 31 if self._codec == "h264" else unit >> 1 & 63) in _STARTS[self._codec] for unit in units)

    def parameters(self, key_frame: bytes) -> bytes:
        """Return the parameter sets of a key frame or, if it has none, of the connection, in Annex B.

        Return b"" if unknown.
        """
        sets = parameter_sets(self._codec, key_frame) or parameter_sets(self._codec, self._extradata)
        return _START_CODE + sets if sets else b""


def _parse_record(codec: str, record: bytes) -> tuple[int, bytes]:
    """Return the size in bytes of a length field, and the parameter sets in Annex B, from an avcC or hvcC record."""
    try:
        return _parse_avcc(record) if codec == "h264" else _parse_hvcc(record)
    except IndexError:  # the record is truncated
        return 4, b""


def _parse_avcc(record: bytes) -> tuple[int, bytes]:
    sets, at = b"", 5
    for mask in (0x1F, 0xFF):  # first the SPS units, then the PPS units
        count, at = record[at] & mask, at + 1
        for _ in range(count):
            unit, at = _unit(record, at)
            sets += _START_CODE + unit
    return (record[4] & 3) + 1, sets


def _parse_hvcc(record: bytes) -> tuple[int, bytes]:
    sets, at = b"", 23
    for _ in range(record[22]):
        count, at = int.from_bytes(record[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            unit, at = _unit(record, at)
            sets += _START_CODE + unit
    return (record[21] & 3) + 1, sets


def _unit(record: bytes, at: int) -> tuple[bytes, int]:
    """Return the NAL unit at a position, and the position after it. Raise `IndexError` if `record` is truncated."""
    end = at + 2 + int.from_bytes(record[at : at + 2], "big")
    if end > len(record):
        raise IndexError
    return record[at + 2 : end], end
