"""Short clips of numbered frames, encoded once per process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Final, Literal

import av
from av.codec.context import CodecContext
from av.video.codeccontext import VideoCodecContext

from vision.capture.zoo.scenes import Scene, Size, draw_scene

Codec = Literal["h264", "h265", "mjpeg", "mpeg4", "vp8"]
FRAMES: Final = 240
GOP: Final = 10
"""Number of frames from one key frame to the next. `FRAMES` is a multiple of `GOP`, so that clips can be looped."""

NORMAL: Final[Size] = (160, 128)
LARGE: Final[Size] = (240, 192)
_TEXTURED: Final[Scene] = "numbers"

_FPS: Final = 10  # used only by the rate control of the codecs
_ENCODERS: Final[dict[Codec, str]] = {
    "h264": "libx264",
    "h265": "libx265",
    "mjpeg": "mjpeg",
    "mpeg4": "mpeg4",
    "vp8": "libvpx",
}
_X264: Final = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:repeat-headers=1:sliced-threads=0:threads=1:b-pyramid=none"
_X265: Final = (
    f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=0:repeat-headers=1:pools=1:frame-threads=1:open-gop=0"
    ":log-level=none"
)


@dataclass(frozen=True, slots=True)
class CodedFrame:
    """One coded frame.

    For H.264 and H.265, `units` contains the slices without start codes. Otherwise, `units` contains the whole frame.
    """

    number: int  # the number that its pixels show, and its position in display order
    key: bool
    units: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Clip:
    """A video of `FRAMES` frames in decoding order. Its key frames also need the NAL units in `parameter_sets`."""

    codec: Codec
    size: Size
    parameter_sets: tuple[bytes, ...]
    frames: tuple[CodedFrame, ...]

    def annexb(self, frame: CodedFrame) -> bytes:
        """Return a frame as a byte stream. If it is a key frame, the parameter sets come first."""
        if self.codec not in ("h264", "h265"):
            return b"".join(frame.units)
        units = (*self.parameter_sets, *frame.units) if frame.key else frame.units
        return b"".join(b"\0\0\0\1" + unit for unit in units)


def can_encode(codec: Codec) -> bool:
    """Return True if the installed PyAV has an encoder for `codec`."""
    return _ENCODERS[codec] in av.codecs_available


@cache
def clip(
    codec: Codec = "h264", size: Size = NORMAL, *, b_frames: bool = False, slices: int = 1, scene: Scene = _TEXTURED
) -> Clip:
    """Return `FRAMES` frames of `scene`, encoded as `codec`.

    `b_frames` (use B-frames) and `slices` (the number of slices per frame) apply only to H.264.

    The first call with given arguments encodes the clip, which takes several seconds for H.265 and less than a second
    for other codecs. Later calls return the same clip.
    """
    context = _encoder(codec, size, b_frames=b_frames, slices=slices)
    packets = [packet for image in draw_scene(scene, size, FRAMES) for packet in context.encode(image)]
    packets += context.encode(None)
    parameter_sets: tuple[bytes, ...] = ()
    frames = []
    for packet in packets:
        units: tuple[bytes, ...] = (bytes(packet),)
        if codec in ("h264", "h265"):
            found = tuple(_split_units(bytes(packet)))
            parameter_sets = parameter_sets or tuple(unit for unit in found if _is_parameter_set(unit, codec))
            units = tuple(unit for unit in found if _is_slice(unit, codec))
        assert packet.pts is not None
        frames.append(CodedFrame(packet.pts, packet.is_keyframe or codec == "mjpeg", units))
    return Clip(codec, size, parameter_sets, tuple(frames))


def _encoder(codec: Codec, size: Size, *, b_frames: bool, slices: int) -> VideoCodecContext:
    context = CodecContext.create(_ENCODERS[codec], "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height = size
    context.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    context.framerate = Fraction(_FPS)
    context.time_base = Fraction(1, _FPS)
    context.gop_size = GOP
    context.thread_count = 1
    context.options = {
        "h264": {
            "preset": "ultrafast",
            "crf": "26",
            "x264-params": f"{_X264}:bframes={2 if b_frames else 0}:slices={slices}:b-adapt=0:rc-lookahead=0",
        },
        "h265": {"preset": "ultrafast", "crf": "28", "x265-params": _X265},
        "mjpeg": {"huffman": "default"},
        "mpeg4": {"qscale": "5", "sc_threshold": "1000000000"},
        "vp8": {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "crf": "20", "b": "500000"},
    }[codec]
    return context


def _split_units(stream: bytes) -> Iterator[bytes]:
    """Yield the NAL units of a byte stream without their start codes."""
    for part in stream.split(b"\0\0\1")[1:]:
        yield part.rstrip(b"\0")


def _is_parameter_set(unit: bytes, codec: Codec) -> bool:
    return unit[0] & 31 in (7, 8) if codec == "h264" else unit[0] >> 1 & 63 in (32, 33, 34)


def _is_slice(unit: bytes, codec: Codec) -> bool:
    return unit[0] & 31 in (1, 5) if codec == "h264" else unit[0] >> 1 & 63 < 32
