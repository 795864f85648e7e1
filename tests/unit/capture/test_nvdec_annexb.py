"""Tests of the conversion of H.264 and H.265 to Annex B for hardware decoders."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import av
import pytest

from tests.gpu.coded_video import FAST, coded, video
from vision.capture.nvdec.annexb import AnnexB, parameter_sets

CODE = b"\x00\x00\x01"
X265 = (*FAST.items(), ("x265-params", "log-level=none:keyint=10"))


@pytest.mark.parametrize(
    ("codec", "units", "expected"),
    [
        ("h264", (b"\x67ab", b"\x68c", b"\x65def"), (b"\x67ab", b"\x68c")),
        ("h264", (b"\x09\xf0", b"\x67ab\x00", b"\x68c\x00", b"\x06x", b"\x65d"), (b"\x67ab", b"\x68c")),
        ("h264", (b"\x41def",), ()),
        ("h264", (b"\x65def", b""), ()),
        ("hevc", (b"\x40\x01a", b"\x42\x01b", b"\x44\x01c", b"\x26\x01d"), (b"\x40\x01a", b"\x42\x01b", b"\x44\x01c")),
        ("hevc", (b"\x02\x01d",), ()),
        ("hevc", (), ()),
    ],
)
def test_parameter_sets_are_found(codec: str, units: tuple[bytes, ...], expected: tuple[bytes, ...]) -> None:
    data = b"".join(CODE + unit for unit in units)
    assert parameter_sets(codec, data) == CODE.join(expected)


def converted(data: bytes) -> tuple[AnnexB, list[tuple[bool, bytes]]]:
    """Return the converter and its packets. Each packet has a flag for key frames. The last packet is empty."""
    packets: list[tuple[bool, bytes]] = []
    with av.open(BytesIO(data)) as file:
        stream = file.streams.video[0]
        annexb = AnnexB(stream)
        for packet in file.demux(stream):
            packets += [(one.is_keyframe, bytes(one)) for one in annexb.convert(packet)]
    return annexb, packets


@pytest.mark.parametrize(
    ("codec", "container", "options"),
    [
        ("libx264", "mp4", tuple(FAST.items())),
        ("libx264", "matroska", tuple(FAST.items())),
        ("libx264", "mpegts", tuple(FAST.items())),
        ("libx264", "h264", tuple(FAST.items())),
        ("libx265", "mp4", X265),
        ("libx265", "mpegts", X265),
    ],
)
def test_converted_key_frames_can_be_decoded_alone(codec: str, container: str, options: Any) -> None:
    annexb, packets = converted(video(codec, container, count=12, options=options))
    assert packets.pop()[1] == b""
    assert len(packets) == 12
    name = {"libx264": "h264", "libx265": "hevc"}[codec]
    found = []
    for key, data in packets:
        assert CODE in data[:4]
        if key:
            whole, parameters = annexb.with_parameters(data)
            assert parameters == parameter_sets(name, whole) != b""
            found.append(parameters)
    assert len(found) == 2
    assert len(set(found)) == 1


def test_parameter_sets_precede_each_key_frame() -> None:
    packets = coded(video("libx264", "h264", count=4, options=tuple(FAST.items())))
    sets = CODE + parameter_sets("h264", packets[0])
    bare = packets[0][packets[0].rindex(CODE) :]
    assert parameter_sets("h264", bare) == b""
    context: Any = av.CodecContext.create("h264", "r")
    context.extradata = sets

    class Announced:
        codec_context = context

    annexb = AnnexB(Announced())  # type: ignore[arg-type]  # a stream with parameters from its announcement
    assert annexb.with_parameters(bare) == (sets + bare, sets[3:])
    assert annexb.with_parameters(packets[0])[0] == packets[0]


def test_other_codecs_are_not_converted() -> None:
    data = video("libvpx-vp9", "webm", count=3, options=(("deadline", "realtime"), ("cpu-used", "8")))
    annexb, packets = converted(data)
    assert [packet for _, packet in packets] == [*coded(data), b""]
    assert annexb.with_parameters(packets[0][1]) == (packets[0][1], packets[0][1])
