"""Functions and classes that write coded frames to containers: MPEG-TS, FLV, and MP4."""

from __future__ import annotations

import io
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Final, Literal

import av
from av.packet import Packet
from av.video.stream import VideoStream

from vision.capture.zoo.clips import FRAMES, Clip, CodedFrame

TS_PACKET_BYTES: Final = 188

_TIME_BASE: Final = Fraction(1, 90_000)
_FLV_FLAGS_AT: Final = 4
_FLV_SOUND: Final = 4
_OPTIONS: Final = {
    "mpegts": {"mpegts_flags": "+pat_pmt_at_frames", "flush_packets": "1", "max_interleave_delta": "1"},
    "flv": {"flvflags": "no_duration_filesize", "flush_packets": "1"},
    "mp4": {"movflags": "+faststart"},
}


class _Pipe(io.RawIOBase):
    """A file that does not support seeking. `take` removes and returns the bytes written so far."""

    def __init__(self) -> None:
        super().__init__()
        self._data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._data += data
        return len(data)

    def take(self) -> bytes:
        data, self._data = bytes(self._data), bytearray()
        return data


class LiveMuxer:
    """Muxer that writes a clip in a loop to MPEG-TS or FLV. The timestamps continue when the clip repeats."""

    def __init__(self, clip: Clip, container: Literal["mpegts", "flv"], fps: float, *, announced_sound: bool) -> None:
        """Create the muxer. If `announced_sound` is True, announce an audio stream that has no packets."""
        self._clip = clip
        self._ticks = round(_TIME_BASE.denominator / fps)
        self._pipe = _Pipe()
        self._output = av.open(self._pipe, "w", format=container, options=_OPTIONS[container])
        self._stream = _video_stream(self._output, clip, fps)
        self._marks_sound = announced_sound and container == "flv"
        if announced_sound and container == "mpegts":
            self._output.add_stream("mp2", rate=48_000)
        self._index = 0

    @property
    def next_frame(self) -> CodedFrame:
        return self._clip.frames[self._index % FRAMES]

    def frame(self) -> bytes:
        """Write the next frame, and return the bytes that it adds to the stream."""
        frame = self.next_frame
        packet = Packet(self._clip.annexb(frame))
        packet.stream = self._stream
        packet.time_base = _TIME_BASE
        packet.dts = packet.pts = self._index * self._ticks
        packet.is_keyframe = frame.key
        self._output.mux(packet)
        self._index += 1
        data = self._pipe.take()
        if self._index == 1 and self._marks_sound:
            flags = bytes([data[_FLV_FLAGS_AT] | _FLV_SOUND])
            data = data[:_FLV_FLAGS_AT] + flags + data[_FLV_FLAGS_AT + 1 :]
        return data

    def close(self) -> None:
        self._output.close()


def _video_stream(output: av.container.OutputContainer, clip: Clip, fps: float) -> VideoStream:
    stream = output.add_stream("libx264", rate=round(fps))
    assert isinstance(stream, VideoStream)
    stream.width, stream.height = clip.size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.extradata = b"".join(b"\0\0\0\1" + unit for unit in clip.parameter_sets)
    stream.time_base = _TIME_BASE
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"x264-params": "rc-lookahead=0:sync-lookahead=0"}  # no thread of its own
    return stream


def mp4_file(clip: Clip, fps: float, frames: int) -> bytes:
    """Return an MP4 file with the first `frames` frames of the clip."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with av.open(str(path), "w", options=_OPTIONS["mp4"]) as output:
            stream = _video_stream(output, clip, fps)
            for index, frame in enumerate(clip.frames[:frames]):
                packet = Packet(clip.annexb(frame))
                packet.stream = stream
                packet.time_base = _TIME_BASE
                packet.dts = packet.pts = round(index / fps / _TIME_BASE)
                packet.is_keyframe = frame.key
                output.mux(packet)
        return path.read_bytes()
