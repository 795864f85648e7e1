"""Recorded video through NVDEC: read by FFmpeg, decoded into GPU memory, at its own pace or as fast as it goes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from numpy.typing import NDArray

from vision.capture.nvdec_stream import NvdecDecoder
from vision.capture.packets import Damaged, Decoded, open_container
from vision.capture.playback import Playback
from vision.capture.recording import Recording, require_file
from vision.capture.source import Grab, StreamInfo
from vision.errors import SourceError
from vision.types import PixelFormat

av.logging.set_level(None)  # FFmpeg's log calls into Python from threads of its own, which can lock up


class NvdecFile:
    """A file that FFmpeg can read and NVDEC decode, in nv12. Satisfies `vision.capture.source.Source`.

    Ends and loops as `vision.capture.videofile.VideoFile` does; each pass has a decoder of its own.
    """

    def __init__(
        self,
        path: Path,
        pixel_formats: tuple[PixelFormat, ...],
        *,
        loop: bool = False,
        offline: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
        utc: Callable[[], int] = time.time_ns,
    ) -> None:
        self._path = path
        self._pixel_formats = pixel_formats
        self._loop = loop
        self._interrupted = threading.Event()
        self._playback = Playback(offline=offline, clock=clock, utc=utc, wait=self._interrupted.wait)
        self._container: InputContainer | None = None
        self._decoder: NvdecDecoder | None = None
        self._reset()

    def _reset(self) -> None:
        self._recording = Recording(self._path, loop=self._loop)
        self._packets: Iterator[Packet[Any]] = iter(())
        self._drained = False  # the decoder has given out all of this pass
        self._waiting: deque[Decoded] = deque()
        self._decoded: Decoded | None = None  # the picture at hand
        self._pending = False  # it is not yet due
        self._is_open = False

    @property
    def live(self) -> bool:
        return False

    def open(self) -> StreamInfo:
        self.close()
        require_file(self._path)
        decoder, fps = self._begin_pass()
        self._playback.start()
        self._advance()
        self._pending = self._is_open = True
        assert self._decoded is not None
        return decoder.describe(self._decoded.picture, fps)

    def grab(self, timeout_s: float) -> Grab | None:
        if not self._is_open:
            raise SourceError(f"{self._path}: grab before open, or after close")
        if not self._pending:
            self._decoded = None  # its memory is the decoder's
            self._advance()
            self._pending = True
        if self._interrupted.is_set() or not self._playback.due(self._recording.media_ns, timeout_s):
            return None
        self._pending = False
        return self._playback.stamp(self._recording.media_ns)

    def retrieve(self, out: NDArray[np.uint8]) -> None:
        if self._decoder is None or self._decoded is None or self._pending:
            raise SourceError(f"{self._path}: retrieve without a picture grabbed")
        self._decoder.write(self._decoded.picture, out)

    def interrupt(self) -> None:
        """Final: from now on `grab` finds nothing."""
        self._interrupted.set()

    def close(self) -> None:
        self._end_pass()
        self._reset()

    def _begin_pass(self) -> tuple[NvdecDecoder, float | None]:
        try:
            container = self._container = open_container(str(self._path.absolute()))
        except (av.FFmpegError, ValueError) as error:
            raise SourceError(
                f"{self._path}: not a video that FFmpeg can read",
                hint="a recording that was cut off may lack its index: `ffmpeg -i FILE` says more",
            ) from error
        if not container.streams.video:
            raise SourceError(f"{self._path}: there is no video in it")
        stream = container.streams.video[0]
        try:
            decoder = self._decoder = NvdecDecoder(stream, self._pixel_formats, live=False)
        except SourceError as error:
            raise self._located(error) from error
        self._packets, self._drained = container.demux(stream), False
        fps = float(stream.average_rate) if stream.average_rate else None
        self._recording.opened(fps, stream.frames)
        return decoder, fps

    def _end_pass(self) -> None:
        self._packets = iter(())
        self._waiting.clear()
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            decoder.close()
        container, self._container = self._container, None
        if container is not None:
            container.close()

    def _advance(self) -> None:
        """The next picture, with its time.

        Raises:
            EndOfStream: there is none.
        """
        while not self._waiting and not self._decode_next():
            self._recording.finish_pass()
            self._end_pass()
            self._begin_pass()
        self._decoded = self._waiting.popleft()
        self._recording.count(self._decoded.pts_ns)

    def _decode_next(self) -> bool:
        """Decode until there are pictures. False: there are no more in the file."""
        while not self._waiting:
            if self._decoder is None or self._drained:
                return False
            packet = self._read()
            self._drained = not packet.size
            try:
                self._waiting.extend(self._decoder.decode(packet))
            except Damaged:
                continue
            except SourceError as error:
                raise self._located(error) from error
        return True

    def _read(self) -> Packet[Any]:
        """The next packet; an empty one behind the last, and where the file cannot be read on."""
        try:
            return next(self._packets, None) or Packet(0)
        except av.FFmpegError:
            return Packet(0)

    def _located(self, error: SourceError) -> SourceError:
        return SourceError(f"{self._path}: {error.args[0]}", hint=error.hint)
