"""Recorded video through PyAV: read by FFmpeg, and decoded by it or by another decoder of its packets."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from vision.capture.ffmpeg.bindings import open_container, plausible_fps
from vision.capture.ffmpeg.decoder import DecodedFrame, OpenDecoder, PacketDamaged, PacketDecoder
from vision.capture.ffmpeg.frames import encoding_of
from vision.capture.ffmpeg.recording import Recording, require_file
from vision.capture.pacing import FramePacer
from vision.capture.source import Grab, StreamInfo, not_open
from vision.errors import SourceError
from vision.types import FrameBuffer, PixelFormat


class VideoFile:
    """A file that FFmpeg can read. Satisfies `vision.capture.source.Source`.

    A file that is cut short ends with its last readable frame, and a warning. A looped file restarts without a new
    epoch: its times and frame numbers continue. Each pass opens the file again, because not every file can be sought
    and not every decoder restarted.
    """

    def __init__(
        self,
        path: Path,
        pixel_formats: tuple[PixelFormat, ...],
        open_decoder: OpenDecoder,
        *,
        loop: bool = False,
        offline: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
        utc: Callable[[], int] = time.time_ns,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """Create the source.

        Args:
            path: the file.
            pixel_formats: the formats that the detector accepts, cheapest first.
            open_decoder: makes the decoder of each pass.
            loop: restart the file at its end.
            offline: read it as fast as possible.
            clock: the monotonic clock, in ns.
            utc: UTC, in ns.
            wait: sleeps for a number of seconds, or until an interrupt.
        """
        self._path = path
        self._pixel_formats = pixel_formats
        self._open_decoder = open_decoder
        self._loop = loop
        self._interrupted = threading.Event()
        self._pacer = FramePacer(offline=offline, clock=clock, utc=utc, wait=wait or self._interrupted.wait)
        self._pass: _Pass | None = None
        self._reset()

    def _reset(self) -> None:
        self._recording = Recording(self._path, loop=self._loop)
        self._info: StreamInfo | None = None  # None: not open
        self._waiting: deque[DecodedFrame] = deque()
        self._decoded: DecodedFrame | None = None  # the current frame
        self._pending = False  # it is not yet due

    @property
    def live(self) -> bool:
        return False

    def open(self) -> StreamInfo:
        """Read the first frame: only a decoded frame shows its format."""
        self.close()
        require_file(self._path)
        self._pacer.start()
        self._advance()
        self._pending = True
        assert self._info is not None
        return self._info

    def grab(self, timeout_s: float) -> Grab | None:
        if self._info is None:
            raise not_open(self._path, "grab")
        if not self._pending:
            self._decoded = None  # its memory belongs to the decoder
            self._advance()
            self._pending = True
        if self._interrupted.is_set() or not self._pacer.due(self._recording.media_ns, timeout_s):
            return None
        self._pending = False
        assert self._decoded is not None
        return replace(self._pacer.stamp(self._recording.media_ns), yuv=encoding_of(self._decoded.image))

    def retrieve(self, out: FrameBuffer) -> None:
        if self._pass is None or self._decoded is None or self._pending:
            raise not_open(self._path, "retrieve")
        self._pass.decoder.write(self._decoded.image, out)

    def interrupt(self) -> None:
        """Make `grab` return None from now on."""
        self._interrupted.set()

    def close(self) -> None:
        self._end_pass()
        self._reset()

    def _end_pass(self) -> None:
        ended, self._pass = self._pass, None
        if ended is not None:
            ended.close()

    def _advance(self) -> None:
        """Advance to the next frame.

        Raises:
            EndOfStream: there are no more frames.
        """
        while not self._waiting:
            if self._pass is None:
                self._pass = self._begin_pass()
            frames = self._pass.read()
            if frames is None:
                self._recording.finish_pass()
                self._end_pass()
            else:
                self._take(self._pass, frames)
        self._decoded = self._waiting.popleft()
        self._recording.count(self._decoded.pts_ns)

    def _begin_pass(self) -> _Pass:
        """Open the file. Later passes deliver the format of the first one, because the reader has buffers for it."""
        pixel_formats = self._pixel_formats if self._info is None else (self._info.pixel_format,)
        begun = _Pass(self._path, self._open_decoder, pixel_formats)
        self._recording.opened(begun.fps, begun.expected)
        return begun

    def _take(self, begun: _Pass, images: Sequence[DecodedFrame]) -> None:
        if images and not begun.described:
            info = begun.describe(images[0])
            self._info = self._info or info
        self._waiting.extend(images)


class _Pass:
    """One pass over the file, from its beginning to its end."""

    def __init__(self, path: Path, open_decoder: OpenDecoder, pixel_formats: tuple[PixelFormat, ...]) -> None:
        """Open the file.

        Raises:
            SourceError: it is not a video, or the decoder does not support it.
        """
        self._path = path
        self.described = False
        self._drained = False
        self._container = self._open()
        try:
            self._stream = self._video()
            self.decoder: PacketDecoder = open_decoder(self._stream, pixel_formats)
        except SourceError as error:
            self._container.close()
            raise self._located(error) from error
        self._packets: Iterator[Packet[Any]] = self._container.demux(self._stream)
        self.fps = plausible_fps(self._stream.average_rate or self._stream.guessed_rate)
        self.expected = _expected_frames(self._stream, (self._container.duration or 0) / av.time_base, self.fps)

    def describe(self, first: DecodedFrame) -> StreamInfo:
        """Return the properties of the frames that are delivered for frames like `first`.

        Raises:
            SourceError: the detector accepts none of the possible formats.
        """
        self.described = True
        try:
            return self.decoder.describe(first.image, self.fps)
        except SourceError as error:
            raise self._located(error) from error

    def read(self) -> Sequence[DecodedFrame] | None:
        """Return the frames that the next packet completes, or None at the end.

        Raises:
            SourceError: the decoder failed.
        """
        packet = self._next()
        if packet is None:
            return None
        try:
            return self.decoder.decode(packet)
        except PacketDamaged:
            return ()
        except SourceError as error:
            raise self._located(error) from error

    def close(self) -> None:
        self.decoder.close()
        self._container.close()

    def _open(self) -> InputContainer:
        try:  # an absolute path, because FFmpeg takes a word before a colon for a protocol
            return open_container(str(self._path.absolute()))
        except (av.FFmpegError, ValueError) as error:
            raise SourceError(
                f"{self._path}: not a video that FFmpeg can decode",
                hint="a recording that was cut off may lack its index: `ffmpeg -i FILE` says more",
            ) from error

    def _video(self) -> VideoStream:
        stream = next(iter(self._container.streams.video), None)
        if stream is None:
            raise SourceError("there is no video in it")
        if getattr(stream, "codec_context", None) is None:
            raise SourceError("not a video that FFmpeg can decode", hint="`ffmpeg -i FILE` says what it is coded in")
        return stream

    def _next(self) -> Packet[Any] | None:
        """Return the next packet, after the last an empty one, which flushes the decoder, then None."""
        if self._drained:
            return None
        try:
            packet = next(self._packets, None)
        except (av.FFmpegError, IndexError):  # it cannot be read further, or a stream appears in mid-file
            packet = None
        if packet is None:
            packet = Packet(0)
            packet.stream = self._stream
        self._drained = not packet.size
        return packet

    def _located(self, error: SourceError) -> SourceError:
        return SourceError(f"{self._path}: {error.args[0]}", hint=error.hint)


def _expected_frames(stream: VideoStream, seconds: float, fps: float | None) -> int:
    """Return the expected number of frames, or 0 if the file does not say."""
    return stream.frames or int(max(0.0, seconds) * (fps or 0.0) + 0.5)
