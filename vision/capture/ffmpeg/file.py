"""Source that reads a video file with FFmpeg (PyAV). FFmpeg or a different packet decoder decodes the packets."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from msgspec.structs import replace

from vision.capture.diagnosis import named
from vision.capture.ffmpeg.bindings import best_video, frame_rate, open_container, orientation_of, time_ns
from vision.capture.ffmpeg.decoder import DecodedFrame, OpenDecoder, PacketDamaged, PacketDecoder
from vision.capture.pacing import FramePacer, PacedSource
from vision.capture.packet_tap import ConnectionTap, PacketTap
from vision.capture.regular_file import require_file
from vision.capture.source import Grab, SkippedFrames, StreamInfo
from vision.errors import EndOfStream, SourceError
from vision.types import DropReason, FrameBuffer, PixelFormat

log = logging.getLogger(__name__)

DEFAULT_FPS: Final = 25.0  # for files that contain neither a frame rate nor times
_LONGEST_STEP_NS: Final = 3_600_000_000_000  # a longer time between two frames is an error in the file
_NOT_A_VIDEO: Final = "not a video that FFmpeg can decode"


@dataclass(slots=True)
class _Frame:
    """A decoded frame of a video file, its decoder, the properties of the stream, and the tap for its packets."""

    decoded: DecodedFrame
    decoder: PacketDecoder
    info: StreamInfo
    tap: ConnectionTap | None


class VideoFile(PacedSource[_Frame]):
    """Source of frames from a video file that FFmpeg can read.

    A truncated file ends after its last readable frame, with a warning. A looped file restarts without a new epoch, so
    its times and frame numbers continue. Each pass opens the file again, because not every file supports seeking, and
    not every decoder can be restarted.
    """

    def __init__(
        self,
        path: Path,
        pixel_formats: tuple[PixelFormat, ...],
        open_decoder: OpenDecoder,
        pacer: FramePacer | None = None,
        *,
        loop: bool = False,
        tap: PacketTap | None = None,
    ) -> None:
        """Create the source.

        `open_decoder` opens the decoder of each pass. If `loop` is True, restart the file at its end. `tap`, if given,
        receives the packets of each pass as a new connection. It receives no packets after a frame that must be rotated
        or mirrored, because receivers of packets do not do this.
        """
        super().__init__(path, pacer)
        self._path = path
        self._pixel_formats = pixel_formats
        self._open_decoder = open_decoder
        self._loop = loop
        self._tap = tap
        self._passes = self._read_passes()
        self._close()

    def _close(self) -> None:
        self._passes.close()
        self._passes = self._read_passes()
        self._timeline = _Timeline(self._path)

    def _open(self) -> StreamInfo:
        """Read the first frame, because only a decoded frame shows the format. Return the properties of the stream."""
        require_file(self._path)
        self._next = _, first = self._read()
        return first.info

    def _read(self) -> tuple[int, _Frame]:
        frame = next(self._passes, None)
        if frame is None:
            raise EndOfStream(self._timeline.summary())
        return self._timeline.count(frame.decoded.pts_ns), frame

    def _mark(self, grab: Grab, frame: _Frame) -> Grab:
        if frame.tap is not None:
            frame.tap.captured(frame.decoded.pts_ns, grab.captured_ns)
        return replace(grab, yuv=frame.decoded.yuv)

    def _write(self, frame: _Frame, out: FrameBuffer) -> None:
        frame.decoder.write(frame.decoded.image, out)

    def _read_passes(self) -> Generator[_Frame, None, None]:
        """Yield the frames of all passes over the file, in the pixel format of the first pass."""
        pixel_formats = self._pixel_formats
        while True:
            with closing(_Pass(self._path, self._open_decoder, pixel_formats, self._tap)) as current:
                self._timeline.begin_pass(current.fps)
                for frame in current.read(self.skipped):
                    if frame.tap is not None and not _is_upright(frame.decoded):
                        self._tap = current.tap = frame.tap = None
                    pixel_formats = (frame.info.pixel_format,)
                    yield frame
            self._timeline.end_pass(current.damage)
            if not self._timeline.frames:
                hint = "`ffmpeg -i FILE` shows its codec, and what is wrong with it"
                raise SourceError(f"{self._path}: no frame could be decoded", hint=hint, code="decoding")
            if not self._loop:
                return


def _is_upright(decoded: DecodedFrame) -> bool:
    """Return False if a decoded frame must be rotated or mirrored before it is shown.

    Receivers of the coded packets would show such frames in the wrong orientation.
    """
    if not isinstance(decoded.image, VideoFrame):
        return True
    orientation = orientation_of(decoded.image)
    return orientation is None or orientation.is_upright


class _Timeline:
    """Counter of the frames of one file. It also computes their times, which continue over all passes of a loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._interval_ns = 0
        self._first_ns: int | None = None  # time of the first frame in the file
        self._pass_ns = 0  # start of this pass, in the time of all passes
        self._media_ns = -1  # time of the last frame, in the time of all passes
        self._damage = ""
        self.frames = 0  # number of frames in this pass

    def begin_pass(self, fps: float | None) -> None:
        """Start a pass over a file with `fps` frames/s (None if unknown)."""
        self._interval_ns = round(1e9 / (fps or DEFAULT_FPS))
        self.frames = 0

    def count(self, pts_ns: int | None) -> int:
        """Count a frame with the presentation time `pts_ns`. Return its time in ns since the start of the first pass.

        If `pts_ns` is None or not plausible, the time is one frame interval after the previous frame.
        """
        self.frames += 1
        pts_ns = pts_ns or 0
        if self._first_ns is None:
            self._first_ns = pts_ns
        media_ns = self._pass_ns + pts_ns - self._first_ns
        if not 0 < media_ns - self._media_ns <= _LONGEST_STEP_NS:
            media_ns = 0 if self._media_ns < 0 else self._media_ns + self._interval_ns
        self._media_ns = media_ns
        return media_ns

    def end_pass(self, damage: str) -> None:
        """End a pass. The next pass starts one frame interval after the last frame.

        `damage` describes the damage that the pass has found, or is empty. Log a warning only after the first damaged
        pass.
        """
        if damage and not self._damage:
            self._damage = damage
            log.warning("%s", self.summary())
        self._pass_ns = self._media_ns + self._interval_ns

    def summary(self) -> str:
        damage = f": the file is truncated or damaged ({self._damage})" if self._damage else ""
        return f"{self._path}: ended after {self.frames} frames{damage}"


@dataclass(slots=True)
class _PassCounts:
    """Counts of the packets and frames of one pass over a video file, in total and by kind of damage."""

    packets: int = 0
    corrupt: int = 0  # packets that are incomplete, as the container says
    refused: int = 0  # packets that the decoder refused
    frames: int = 0
    distorted: int = 0  # frames that were only partly decoded

    @property
    def damaged(self) -> int:
        return max(self.corrupt, self.refused + self.distorted)

    @property
    def lost(self) -> int:
        """Number of incomplete packets that the decoder ignored without an error, as multithreaded decoders do."""
        return max(0, min(self.corrupt - self.refused, self.packets - self.refused - self.frames))


class _Pass:
    """One pass over a file, from its start to its end. The pass opens the file, and `close` closes it."""

    def __init__(
        self, path: Path, open_decoder: OpenDecoder, pixel_formats: tuple[PixelFormat, ...], tap: PacketTap | None
    ) -> None:
        self._path = path
        self._container = self._open_container()
        try:
            self._stream = self._video()
            self.decoder: PacketDecoder = open_decoder(self._stream, pixel_formats)
        except SourceError as error:
            self._container.close()
            raise named(self._path, error) from error
        self.fps = frame_rate(self._container, self._stream)
        self.tap = None if tap is None else tap.connected(self._stream)
        self._counts = _PassCounts()
        self._read_error = ""

    @property
    def damage(self) -> str:
        """Text that describes the damage to the file, or an empty string if no damage was found.

        A file that is shorter than its header states does not count as damaged.
        """
        damaged = self._counts.damaged
        return "; ".join(filter(None, (f"damaged frames: {damaged}" if damaged else "", self._read_error)))

    def read(self, skipped: SkippedFrames) -> Iterator[_Frame]:
        """Yield the decoded frames. In `skipped`, count the frames that cannot be decoded."""
        info: StreamInfo | None = None
        counts = self._counts
        for packet in self._packets():
            counts.packets += bool(packet.size)
            counts.corrupt += packet.is_corrupt
            try:
                frames = self.decoder.decode(packet)
                if frames and info is None:
                    info = self.decoder.describe(frames[0].image, self.fps)
            except PacketDamaged:
                counts.refused += 1
                skipped.add(DropReason.CORRUPT)
                continue
            except SourceError as error:
                raise named(self._path, error) from error
            for decoded in frames:
                assert info is not None
                counts.frames += 1
                counts.distorted += decoded.corrupt
                yield _Frame(decoded, self.decoder, info, self.tap)
        skipped.add(DropReason.CORRUPT, counts.lost)

    def close(self) -> None:
        self.decoder.close()
        self._container.close()

    def _open_container(self) -> InputContainer:
        try:  # an absolute path, because FFmpeg interprets a word before a colon as a protocol
            return open_container(str(self._path.absolute()))
        except (av.FFmpegError, ValueError) as error:
            hint = "a truncated recording can lack its index: `ffmpeg -i FILE` shows details"
            raise SourceError(f"{self._path}: {_NOT_A_VIDEO}", hint=hint, code="not-a-video") from error

    def _video(self) -> VideoStream:
        stream = best_video(self._container)
        if stream is None:
            raise SourceError("the file contains no video", code="not-a-video")
        if getattr(stream, "codec_context", None) is None:
            raise SourceError(_NOT_A_VIDEO, hint="`ffmpeg -i FILE` shows its codec", code="not-a-video")
        return stream

    def _packets(self) -> Iterator[Packet[Any]]:
        """Yield all packets, or the packets before an error. The last packet is empty, and flushes the decoder."""
        try:
            for packet in self._container.demux(self._stream):
                last = not packet.size  # read before `yield`, because a decoder can remove the data from the packet
                if self.tap is not None and not last:
                    self.tap.offer(packet, time_ns(packet))
                yield packet
                if last:
                    return
        except av.FFmpegError as error:
            self._read_error = f"the rest cannot be read: {error.strerror}"
        except IndexError:  # a stream appears in mid-file
            self._read_error = "the rest has a different layout"
        flush: Packet[Any] = Packet(0)
        flush.stream = self._stream
        yield flush
