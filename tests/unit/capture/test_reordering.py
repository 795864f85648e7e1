"""Comparison of the frame order that a parameter set declares with the order that real encoders produce."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Literal, cast

import av
import numpy as np
import pytest

from vision.capture.reordering import keeps_order

START_CODE = re.compile(b"\x00\x00\x00?\x01")


def encoded(codec: str, options: dict[str, str], pixels: str = "yuv420p", size: int = 64) -> tuple[list[bytes], bool]:
    """Encode a moving pattern. Return the NAL units, and whether the display order equals the decoding order."""
    context = cast(Any, av.CodecContext.create(codec, "w"))
    context.width, context.height, context.pix_fmt, context.framerate = size, size, pixels, 25
    context.time_base = Fraction(1, 25)
    context.options = options
    random = np.random.default_rng(0)
    scene = random.integers(0, 255, (size, 3 * size, 3), dtype=np.uint8)
    packets = []
    for number in range(20):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[:, number : number + size]), format="rgb24")
        frame.pts = number
        packets += context.encode(frame.reformat(format=pixels))
    packets += context.encode(None)
    times = [packet.pts for packet in packets]
    stream = b"".join(bytes(packet) for packet in packets)
    return [unit for unit in START_CODE.split(stream) if unit], times == sorted(times)


def parameter_sets(units: list[bytes], codec: str) -> list[bytes]:
    if codec == "libx264":
        return [unit for unit in units if unit[0] & 31 == 7]
    return [unit for unit in units if unit[0] >> 1 & 63 == 33]


HRD = "nal-hrd=vbr:vbv-maxrate=500:vbv-bufsize=500"
VUI = "interlaced=1:sar=40/33:overscan=show:colorprim=bt709:transfer=bt709"
CASES: list[tuple[str, dict[str, str], str]] = [
    *(("libx264", {"profile": profile, "bf": "0"}, "yuv420p") for profile in ("baseline", "main", "high")),
    *(("libx264", {"profile": profile, "bf": "3", "b_strategy": "0"}, "yuv420p") for profile in ("main", "high")),
    ("libx264", {"bf": "0", "x264-params": HRD}, "yuv420p"),
    ("libx264", {"bf": "2", "b_strategy": "0", "x264-params": HRD}, "yuv420p"),
    ("libx264", {"bf": "0", "tune": "zerolatency"}, "yuv444p"),
    ("libx264", {"bf": "0", "x264-params": VUI}, "yuv420p"),
    ("libx265", {"x265-params": "bframes=0:log-level=none"}, "yuv420p"),
    ("libx265", {"x265-params": "bframes=3:b-adapt=0:log-level=none"}, "yuv420p"),
    ("libx265", {"x265-params": "bframes=0:log-level=none"}, "yuv444p"),
]


@pytest.mark.parametrize(("codec", "options", "pixels"), CASES)
def test_parameter_set_tells_the_order_of_real_streams(codec: str, options: dict[str, str], pixels: str) -> None:
    units, in_order = encoded(codec, options, pixels)
    assert in_order == (options.get("bf") == "0" or "bframes=0" in options.get("x265-params", ""))
    kind: Literal["H264", "H265"] = "H264" if codec == "libx264" else "H265"
    found = [keeps_order(kind, unit) for unit in parameter_sets(units, codec)]
    assert found
    assert set(found) == {in_order}


@pytest.mark.parametrize("kind", ["H264", "H265"])
def test_damaged_parameter_sets_are_unknown(kind: Literal["H264", "H265"]) -> None:
    codec = "libx264" if kind == "H264" else "libx265"
    units, _ = encoded(codec, {"bf": "0"} if kind == "H264" else {"x265-params": "bframes=0:log-level=none"})
    (whole, *_) = parameter_sets(units, codec)
    assert keeps_order(kind, whole)
    for length in range(5):
        assert not keeps_order(kind, whole[:length])
    assert not keeps_order(kind, b"\xff" * 40)
    assert not keeps_order(kind, bytes(40))
