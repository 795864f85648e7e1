"""H.264 and H.265 as hardware decoders want them: units behind start codes, with their parameter sets among them.

Files keep units behind lengths, and parameter sets apart (ISO/IEC 14496-15). Cameras may send theirs once, when the
connection is made (RFC 6184, ``sprop-parameter-sets``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

from av.bitstream import BitStreamFilterContext
from av.packet import Packet
from av.video.stream import VideoStream

_START_CODE: Final = re.compile(b"\x00\x00\x01")
_FILTERS: Final = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}
_H264_PARAMETERS: Final = (7, 8)  # Rec. ITU-T H.264, table 7-1: sequence, frame
_HEVC_PARAMETERS: Final = (32, 33, 34)  # Rec. ITU-T H.265, table 7-1: video, sequence, frame


class AnnexB:
    """Converts the packets of one stream, where they have to be; those of other codecs stay as they are."""

    def __init__(self, stream: VideoStream) -> None:
        self._codec = stream.codec_context.name
        extradata = bytes(stream.codec_context.extradata or b"")
        lengths = self._codec in _FILTERS and extradata[:1] == b"\x01"  # configurationVersion
        self._filter = BitStreamFilterContext(_FILTERS[self._codec], stream) if lengths else None
        self._known = b"" if lengths else extradata

    def convert(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """The packets that this one makes; an empty one, which is the last, included."""
        if self._filter is None:
            yield packet
            return
        if packet.size:
            yield from self._filter.filter(packet)
        else:
            yield from self._filter.filter(None)
            yield packet

    def with_parameters(self, data: bytes) -> tuple[bytes, bytes]:
        """A key frame that can be decoded by itself, and what tells whether the format may be another one now.

        H.264 and H.265: its parameter sets. Other codecs: all of it, since the format stands in the frame.
        """
        if self._codec not in _FILTERS:
            return data, data
        found = parameter_sets(self._codec, data)
        return (data, found) if found else (self._known + data, parameter_sets(self._codec, self._known))


def parameter_sets(codec: str, data: bytes) -> bytes:
    """The units of `data` that say how the others are coded, one after the other."""
    found = []
    starts = [match.end() for match in _START_CODE.finditer(data)]
    for start, end in pairwise([*starts, len(data) + 3]):
        if start >= len(data):
            break
        kind = data[start] & 31 if codec == "h264" else data[start] >> 1 & 63
        if kind in (_H264_PARAMETERS if codec == "h264" else _HEVC_PARAMETERS):
            found.append(data[start : end - 3].rstrip(b"\x00"))
    return b"\x00\x00\x01".join(found)
