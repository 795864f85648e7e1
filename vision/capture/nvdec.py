"""Recorded video through NVDEC, decoded straight into GPU memory: no decoding on the CPU, no copy over the bus.

For graphics cards in x86 and Arm servers, through PyNvVideoCodec. A Jetson has decoders of another kind, which
GStreamer reaches (`vision.capture.gstreamer`).

`retrieve` fills a `DeviceImage` on the GPU, and an ordinary array over the bus, so that every detector can read it.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vision.capture.playback import Playback
from vision.capture.source import Grab, StreamInfo
from vision.cuda import Stream, copy_rows
from vision.device_image import DeviceImage
from vision.errors import EndOfStream, SizeChanged, SourceError
from vision.types import YuvEncoding

log = logging.getLogger(__name__)

_FPS: Final = 25.0  # of files that do not say


def available() -> str | None:
    """Why NVDEC cannot be used; None where it can."""
    try:
        importlib.import_module("PyNvVideoCodec")
    except ImportError as error:
        return f"{error}; `pip install PyNvVideoCodec`"
    except Exception as error:  # noqa: BLE001 - it raises its own when the driver lacks the video libraries
        return str(error).splitlines()[0]
    return None


class NvdecVideo:
    """A file that NVDEC can decode, in nv12. Satisfies `vision.capture.source.Source`."""

    def __init__(
        self,
        path: Path,
        *,
        loop: bool = False,
        offline: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
        utc: Callable[[], int] = time.time_ns,
    ) -> None:
        self._path = path
        self._loop = loop
        self._interrupted = threading.Event()
        self._playback = Playback(offline=offline, clock=clock, utc=utc, wait=self._interrupted.wait)
        self._stream: Stream | None = None
        self._pictures: Iterator[Any] = iter(())
        self._picture: Any = None
        self._info: StreamInfo | None = None
        self._fps = _FPS
        self._yuv: YuvEncoding = "bt601"
        self._count = 0  # pictures so far, over all passes
        self._pass_count = 0
        self._grabbed = False

    @property
    def live(self) -> bool:
        return False

    def open(self) -> StreamInfo:
        self.close()
        reason = available()
        if reason is not None:
            raise SourceError(f"NVDEC cannot be used: {reason}")
        if not self._path.is_file():
            raise SourceError(f"{self._path}: there is no such file")
        self._stream = Stream()
        self._pictures = self._decode()
        self._picture = self._next()
        height, width = _size(self._picture)
        self._info = StreamInfo(width, height, "nv12", self._fps, "nvdec", self._yuv)
        self._playback.start()
        return self._info

    def grab(self, timeout_s: float) -> Grab | None:
        if self._info is None:
            raise SourceError(f"{self._path}: grab before open, or after close")
        if self._grabbed:
            self._grabbed = False
            self._picture = self._next()
            self._count += 1
        media_ns = round(self._count * 1e9 / (self._info.fps or _FPS))
        if self._interrupted.is_set() or not self._playback.due(media_ns, timeout_s):
            return None
        self._grabbed = True
        return self._playback.stamp(media_ns)

    def retrieve(self, out: NDArray[np.uint8]) -> None:
        if self._stream is None or not self._grabbed:
            raise SourceError(f"{self._path}: retrieve without a picture grabbed")
        height, width = _size(self._picture)
        if out.shape != (height * 3 // 2, width):
            raise SizeChanged(height, width)
        target = out.address if isinstance(out, DeviceImage) else out.ctypes.data
        for plane in self._picture.cuda():
            rows, source, pitch = _plane(plane, width)
            copy_rows(target, source, self._stream, rows=rows, row_bytes=width, pitch_bytes=pitch)
            target += rows * width
        self._stream.synchronize()  # the reader begins at once, and the decoder uses this memory again

    def interrupt(self) -> None:
        """Final: from now on `grab` finds nothing."""
        self._interrupted.set()

    def close(self) -> None:
        self._picture = None
        self._pictures = iter(())
        self._info = None
        self._count = self._pass_count = 0
        self._grabbed = False
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _next(self) -> Any:
        """The next decoded picture; from the beginning again where the file is looped.

        Raises:
            EndOfStream: there is none.
        """
        self._picture = None  # its memory is the decoder's
        for _ in range(2):
            try:
                picture = next(self._pictures, None)
            except Exception as error:
                raise SourceError(f"{self._path}: NVDEC cannot decode it: {error}") from error
            if picture is not None:
                self._pass_count += 1
                return picture
            if not self._loop or self._pass_count == 0:
                break
            self._pass_count = 0
            self._pictures = self._decode()
        raise EndOfStream(f"{self._path}: ended after {self._count + 1} pictures")

    def _decode(self) -> Iterator[Any]:
        codec = importlib.import_module("PyNvVideoCodec")
        demuxer = codec.CreateDemuxer(filename=str(self._path.absolute()))
        self._fps = float(demuxer.FrameRate()) or _FPS
        self._yuv = encoding_of(str(demuxer.ColorSpace()))
        decoder = codec.CreateDecoder(gpuid=0, codec=demuxer.GetNvCodecId(), usedevicememory=True)
        for packet in demuxer:
            # Each picture is given out, and copied, before the next packet: the decoder then uses its memory again.
            yield from decoder.Decode(packet)


def encoding_of(color_space: str) -> YuvEncoding:
    """From the demuxer's name of a colour space."""
    return "bt709" if "709" in color_space else "bt601"


def _size(picture: Any) -> tuple[int, int]:
    """Height and width of a decoded picture."""
    rows = picture.cuda()[0].__cuda_array_interface__["shape"]
    return int(rows[0]), int(rows[1])


def _plane(plane: Any, width: int) -> tuple[int, int, int]:
    """Rows, address and distance of two rows of a plane."""
    interface = plane.__cuda_array_interface__
    strides = interface.get("strides")
    return int(interface["shape"][0]), int(interface["data"][0]), int(strides[0]) if strides else width
