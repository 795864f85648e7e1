"""Functions that create coded video, as packets of a camera, for tests of recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from vision.messaging.packets import CodedPacket, PacketHeader

FPS = 10
GOP = 10
START_NS = 1_000_000_000_000
START_UTC_NS = 1_800_000_000_000_000_000
NS = 1_000_000_000


@dataclass(frozen=True)
class Coded:
    """One coded frame in Annex B. The unit of `pts` is one frame."""

    data: bytes
    pts: int
    key: bool


@cache
def coded(
    codec: str = "h264", *, b_frames: int = 0, width: int = 128, frames: int = 60, open_gop: bool = False
) -> tuple[Coded, ...]:
    """Encode frames whose brightness shows their number (0 to 63), with a key frame every 10 frames."""
    context = av.CodecContext.create({"h264": "libx264", "hevc": "libx265"}[codec], "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, 96, "yuv420p"
    context.time_base, context.framerate = Fraction(1, FPS), Fraction(FPS)
    shared = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes={b_frames}"
    options = {
        "h264": {
            "preset": "ultrafast",
            "x264-params": f"{shared}:b-adapt=0:open-gop={int(open_gop)}:sliced-threads=0:threads=1",
        },
        "hevc": {"preset": "ultrafast", "x265-params": f"{shared}:log-level=none:repeat-headers=1:pools=1"},
    }
    context.options = options[codec]
    packets: list[Any] = []
    for number in range(frames):
        frame = av.VideoFrame.from_ndarray(np.full((144, width), 16 + number % 64 * 3, np.uint8), format="yuv420p")
        frame.pts, frame.time_base = number, Fraction(1, FPS)
        packets += context.encode(frame)
    packets += context.encode(None)
    return tuple(Coded(bytes(packet), int(packet.pts or 0), packet.is_keyframe) for packet in packets)


def packets(
    frames: Sequence[Coded],
    *,
    connection: int = 1,
    start_s: float = 0.0,
    pace: float = 1.0,
    timed: bool = True,
    codec: str = "h264",
    offset_ns: int = 5_000_000_000,
) -> list[CodedPacket]:
    """Return frames as packets that arrive from `start_s` on. `pace` is the speed of their presentation times."""
    made = []
    for seq, frame in enumerate(frames):
        at_ns = round((start_s + seq / FPS) * NS)
        pts_ns = offset_ns + round(frame.pts * pace / FPS * NS) if timed else None
        header = PacketHeader(connection, seq, codec, frame.key, pts_ns, START_NS + at_ns, START_UTC_NS + at_ns)
        made.append(CodedPacket("gate", header, frame.data))
    return made


@dataclass(frozen=True)
class Decoded:
    """Frames of a file: their times in seconds, and their numbers, which the brightness shows."""

    times_s: list[float]
    numbers: list[int]
    codec: str
    width_px: int

    @property
    def steps_s(self) -> list[float]:
        return [round(later - earlier, 3) for earlier, later in pairwise(self.times_s)]


def decoded(path: Path) -> Decoded:
    """Decode a file completely. Fail if FFmpeg reports an error."""
    times_s, numbers = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            assert not frame.is_corrupt
            times_s.append(float(frame.pts * frame.time_base))
            numbers.append(round((float(frame.to_ndarray()[:96].mean()) - 16) / 3))
        return Decoded(times_s, numbers, stream.codec_context.name, stream.codec_context.width)
