"""The binary messages of the live view, and the form in which browsers decode H.264 and H.265.

A message consists of records. A record consists of the length of its header, the length of its data (both as 32-bit
numbers, big-endian), the header as JSON, and the data:

=========== ======================================================= ===============================
kind        header                                                  data
=========== ======================================================= ===============================
``packet``  ``stream``, ``time``, ``key``, ``codec``                a coded frame (Annex B)
``result``  ``stream``, ``time``, ``result``                        none
``image``   ``result``                                              a JPEG
``scene``   ``shapes``: the lines, zones, and masks                 none
``status``  ``text``: why there are no new frames; empty otherwise  none
``counts``  ``texts``, ``view``                                     none
=========== ======================================================= ===============================

All headers contain ``kind`` and ``camera``. ``stream`` and ``time`` (in µs) identify a coded frame and its result.

``key`` is true for a key frame, and only the header of a key frame contains ``codec``, its WebCodecs codec string.
``texts`` contains the text of each count by ``line NAME`` or ``zone NAME``. If the camera was moved and `realign` is
set, ``view`` contains the six numbers of the CSS matrix that moves the lines and zones with the image.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Final

import msgspec

from vision.capture.nvdec.annexb import parameter_sets
from vision.capture.reordering import Bits
from vision.messaging.packets import PacketHeader
from vision.outputs.recording.stream_format import StreamFormat

_START_CODE: Final = b"\x00\x00\x00\x01"
_UNITS: Final = re.compile(b"\x00\x00\x01")
_SPS_TYPES: Final = {"h264": 7, "hevc": 33}
_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder(dict[str, Any]).decode


def record(header: dict[str, Any], data: bytes = b"") -> bytes:
    """Return a record of the live view, encoded from its header and its data."""
    head = _encode_json(header)
    return b"".join((struct.pack("!II", len(head), len(data)), head, data))


def split_record(text: bytes) -> tuple[str, bytes]:
    """Return the kind and the data of `text`, an encoded record of the live view."""
    head, _ = struct.unpack_from("!II", text)
    return _decode_json(text[8 : 8 + head])["kind"], text[8 + head :]


class WebFormat:
    """Converter of H.264 or H.265 packets to the form that browsers decode, for one connection to a camera."""

    def __init__(self, header: PacketHeader) -> None:
        """Create the converter for packets in the format that `header`, the header of a key frame, describes."""
        self._codec = header.codec
        self._format = StreamFormat(header)

    def convert(self, data: bytes) -> bytes:
        """Convert the data of a packet to Annex B, in which start codes separate the NAL units."""
        return self._format.to_annexb(data)

    def start(self, frame: bytes) -> tuple[str, bytes] | None:
        """Return the codec string for WebCodecs, and the key frame `frame` with its parameter sets.

        Return None if a decoder cannot start with this frame. `frame` is in Annex B.
        """
        if not self._format.is_start(frame):
            return None
        parameters = self._format.parameters(frame)
        codec = codec_string(self._codec, parameters)
        if codec is None:
            return None
        return codec, frame if parameter_sets(self._codec, frame) else parameters + frame


def codec_string(codec: str, parameters: bytes) -> str | None:
    """Return the WebCodecs codec string (RFC 6381) of parameter sets in Annex B, or None if no SPS is complete."""
    kind = _SPS_TYPES[codec]
    for unit in _UNITS.split(parameters):
        if unit and (unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63) == kind:
            return _h264_string(unit) if codec == "h264" else _h265_string(unit)
    return None


def _h264_string(unit: bytes) -> str | None:
    return f"avc1.{unit[1:4].hex().upper()}" if len(unit) > 3 else None


def _h265_string(unit: bytes) -> str | None:
    """Return the codec string for an H.265 SPS, such as "hev1.1.6.L93.B0". Return None if the SPS is truncated.

    Rec. ITU-T H.265, section 7.3.3, defines the fields of the SPS, and ISO/IEC 14496-15, annex E, defines the string.
    """
    bits = Bits(unit, header_bytes=2)
    try:
        bits.number(8)
        space, tier, profile = bits.number(2), bits.number(1), bits.number(5)
        compatible = int(f"{bits.number(32):032b}"[::-1], 2)
        constraints = [bits.number(8) for _ in range(6)]
        level = bits.number(8)
    except IndexError:  # the unit is truncated
        return None
    while constraints and not constraints[-1]:
        constraints.pop()
    parts = [f"{' ABC'[space].strip()}{profile}", f"{compatible:X}", f"{'LH'[tier]}{level}"]
    return ".".join(["hev1", *parts, *(f"{each:X}" for each in constraints)])
