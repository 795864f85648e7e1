"""`SegmentFile` writes packets to a fragmented MP4 file without decoding them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
from av.packet import Packet
from av.video.stream import VideoStream

from vision.outputs.recording.segment_times import HZ
from vision.state.private_files import open_restricted, sync_folder

av.logging.set_level(None)  # FFmpeg's log calls Python code from FFmpeg's threads, which can deadlock

_TIME_BASE: Final = Fraction(1, HZ)
_OPTIONS: Final = {
    # Complete fragments can be played even if the program is killed. Each fragment contains at most 2 s.
    "movflags": "+frag_keyframe+empty_moov+default_base_moof",
    "frag_duration": "2000000",
    "flush_packets": "1",
}
_TAGS: Final = {"hevc": "hvc1"}  # Safari does not play the default, hev1


class SegmentFile:
    """A new MP4 file with packets of one codec and one set of parameters."""

    def __init__(self, path: Path, codec: str, parameters: bytes, key_frame: bytes) -> None:
        """Create the file. `parameters` and `key_frame` are in Annex B.

        Raises:
            OSError: the file cannot be written.
            ValueError: FFmpeg does not understand the key frame.
        """
        self.path = path
        with _template(codec, parameters + key_frame) as template, _os_errors():
            self.width_px, self.height_px = template.codec_context.width, template.codec_context.height
            os.close(open_restricted(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
            self._container = av.open(str(path), "w", format="mp4", options=dict(_OPTIONS))
            self._stream = _add_stream(self._container, template)
        self._stream.time_base = _TIME_BASE
        if codec in _TAGS:
            self._stream.codec_context.codec_tag = _TAGS[codec]

    def write(self, data: bytes, *, pts: int, dts: int, key: bool) -> None:
        """Append a packet in Annex B. Raise `OSError` if the packet cannot be written.

        `pts` and `dts` are the presentation time and the decoding time in ticks of 1 / `HZ` seconds.
        """
        packet: Packet[Any] = Packet(data)
        packet.stream = self._stream
        packet.time_base = _TIME_BASE
        packet.pts, packet.dts, packet.is_keyframe = pts, dts, key
        with _os_errors():
            self._container.mux_one(packet)

    def close(self) -> int:
        """Complete the file, and force it to disk. Return the file size in bytes. Raise `OSError` if this fails."""
        with _os_errors():
            self._container.close()
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(self.path.parent)
        return self.path.stat().st_size

    def abandon(self) -> None:
        """Close the file after a failure. Ignore further errors."""
        with suppress(OSError, av.FFmpegError):
            self._container.close()


@contextmanager
def _os_errors() -> Iterator[None]:
    """Within the `with` block, raise `OSError` instead of FFmpeg errors."""
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from None


@contextmanager
def _template(codec: str, data: bytes) -> Iterator[VideoStream]:
    """Yield a stream with the parameters that FFmpeg finds in a key frame.

    Raise `ValueError` if FFmpeg finds no parameters.
    """
    try:
        container = av.open(io.BytesIO(data), format=codec)
    except av.FFmpegError as error:
        raise ValueError(f"FFmpeg cannot read the key frame: {error.strerror}") from None
    with container:
        stream = container.streams.video[0]
        if not stream.codec_context.width:
            raise ValueError("the key frame does not contain the frame size")
        yield stream


def _add_stream(container: Any, template: VideoStream) -> Any:
    """Add a stream with the parameters of `template`. The method for this depends on the installed version of PyAV."""
    add = getattr(container, "add_stream_from_template", None)
    return container.add_stream(template=template) if add is None else add(template)
