"""Sources that crash, hang, leak, do not return, or close slowly. The camera id selects the fault."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any

from vision.capture.open import open_source
from vision.capture.source import Grab, Source, StreamInfo
from vision.config import CameraConfig
from vision.types import FrameBuffer

FRAMES = 10
"""Number of frames before the fault."""


_library = threading.Lock()  # of a library that closes one camera after the other
_stuck: list[bool] = []  # contains an item once a source of this process is stuck


class Faulty:
    """Source that works for `FRAMES` frames, and then has the fault `kind`."""

    def __init__(self, source: Source, kind: str) -> None:
        self._source = source
        self._kind = kind
        self.skipped = source.skipped
        self._frames = 0
        self._kept: list[bytearray] = []

    @property
    def live(self) -> bool:
        return self._source.live

    def open(self) -> StreamInfo:
        if self._kind == "open":
            time.sleep(60)
        return self._source.open()

    def grab(self, timeout_s: float) -> Grab | None:
        self._frames += 1
        if self._frames > FRAMES:
            self._fail()
        return self._source.grab(timeout_s)

    def _fail(self) -> None:
        match self._kind:
            case "crash":
                ctypes.string_at(0)  # as a decoder that reads address 0
            case "gil":
                ctypes.PyDLL(None).sleep(60)  # does not let other threads run
            case "stuck" if not _stuck:
                _stuck.append(True)
                time.sleep(60)
            case "leak":
                self._kept.append(bytearray(b"\1" * (50 << 20)))

    def retrieve(self, out: FrameBuffer) -> None:
        self._source.retrieve(out)

    def interrupt(self) -> None:
        self._source.interrupt()

    def close(self) -> None:
        if self._kind == "slow":
            with _library:
                time.sleep(0.2)
        self._source.close()


def open_faulty(config: CameraConfig, **options: Any) -> Source:
    """Open the source of a camera. The first part of the camera id names the fault."""
    return Faulty(open_source(config, **options), config.id.partition("-")[0])
