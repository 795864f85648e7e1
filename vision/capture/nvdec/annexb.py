"""Conversion of H.264 and H.265 streams to Annex B, the format that hardware decoders require.

In Annex B, each NAL unit follows a start code, and parameter sets are part of the stream. Files store each unit after
its length, and parameter sets separately (ISO/IEC 14496-15). Cameras may send parameter sets only once, when the
connection is made (RFC 6184, ``sprop-parameter-sets``).

FFmpeg's bitstream filters convert the packets. The filter ``extract_extradata`` attaches changed parameter sets as side
data, which older supported versions of PyAV do not expose. Therefore, `parameter_sets` finds them in the packets.
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
    """Converter of the packets of one H.264 or H.265 stream to Annex B. It does not change packets of other codecs."""

    def __init__(self, stream: VideoStream) -> None:
        self._codec = stream.codec_context.name
        extradata = bytes(stream.codec_context.extradata or b"")
        lengths = self._codec in _FILTERS and extradata[:1] == b"\x01"  # configurationVersion
        self._filter = BitStreamFilterContext(_FILTERS[self._codec], stream) if lengths else None
        self._extradata = b"" if lengths else extradata

    def convert(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Yield the packets that result from `packet`. Also pass on the empty packet that ends a stream."""
        if self._filter is None:
            yield packet
            return
        if packet.size:
            yield from self._filter.filter(packet)
        else:
            yield from self._filter.filter(None)
            yield packet

    @property
    def has_parameters(self) -> bool:
        """True if the codec has parameter sets."""
        return self._codec in _FILTERS

    def with_parameters(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the key frame `data` with its parameter sets, and the part that specifies the format of the stream.

        For H.264 and H.265, this part consists of the parameter sets. For other codecs, it is the whole frame.
        """
        if not self.has_parameters:
            return data, data
        parameters = parameter_sets(self._codec, data)
        if parameters:
            return data, parameters
        return self._extradata + data, parameter_sets(self._codec, self._extradata)


def parameter_sets(codec: str, data: bytes) -> bytes:
    """Return the parameter sets in `data` (Annex B), with start codes between them."""
    units = []
    starts = [match.end() for match in _START_CODE.finditer(data)]
    for start, end in pairwise([*starts, len(data) + 3]):
        if start >= len(data):
            break
        kind = data[start] & 31 if codec == "h264" else data[start] >> 1 & 63
        if kind in (_H264_PARAMETERS if codec == "h264" else _HEVC_PARAMETERS):
            units.append(data[start : end - 3].rstrip(b"\x00"))
    return b"\x00\x00\x01".join(units)
