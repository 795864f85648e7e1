"""Frames of events, as JPEGs in a folder that never outgrows its limits.

The results thread only copies the frame, while its lease lasts; a thread here makes the JPEG and writes it. So an
event tells the path of a file that is there a moment later, and is never there half. When events come faster than
frames can be written, some get none and no path; they are counted.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.errors import ConfigError, VisionError
from vision.types import Frame, FrameMeta, Result

log = logging.getLogger(__name__)

_BUFFERS: Final = 4  # frames that wait for the disk
_STOP_S: Final = 1.0  # to write them at the end
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}-\d{8}T\d{6}\.\d{3}Z-\d+-\d+\.jpg")
_HALF: Final = ".part"


@dataclass(slots=True)
class _Shot:
    """One frame's copy, whose memory is used again."""

    memory: NDArray[np.uint8]
    frame: Frame | None = None

    def copy(self, frame: Frame) -> None:
        source = frame.pixels
        size = source.size
        if size > len(self.memory):
            self.memory = np.empty(size, np.uint8)
        pixels = self.memory[:size].reshape(source.shape)
        np.copyto(pixels, source)
        self.frame = Frame.wrap(frame.meta, pixels, frame.pixel_format)


class SnapshotStage:
    """Gives events the path of a frame, and writes it.

    Files in the folder that are named otherwise are never touched.
    """

    def __init__(
        self,
        folder: Path,
        encode: Callable[[Frame], bytes],
        *,
        kinds: Sequence[str] | None = None,
        max_files: int = 10_000,
        most_bytes: int = 10**9,
        lossless: bool = False,
    ) -> None:
        """
        Args:
            encode: makes the file's content; called by one thread.
            kinds: of events that get a frame; all where None.
            lossless: wait for the disk in place of leaving a frame out.

        Raises:
            ConfigError: the folder cannot be made or written to.
        """
        self._folder = folder
        self._encode = encode
        self._kinds = None if kinds is None else frozenset(kinds)
        self._max_files = max_files
        self._most_bytes = most_bytes
        self._lossless = lossless
        self._sizes = _found_in(folder)
        self._nbytes = sum(self._sizes.values())
        self._free: queue.SimpleQueue[_Shot] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(_Shot(np.empty(0, np.uint8)))
        self._waiting: queue.SimpleQueue[_Shot | None] = queue.SimpleQueue()
        self._written = self._skipped = self._failed = 0
        self._failing = False
        self._error: Exception | None = None
        self._prune()
        self._thread = threading.Thread(target=self._work, name="snapshots", daemon=True)
        self._thread.start()

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Copies the frame if one of the events is to have it.

        Raises:
            VisionError: the thread that writes has failed.
        """
        if self._error is not None:
            raise VisionError(f"snapshots cannot be made: {self._error}") from self._error
        if not any(self._wants(event.kind) for event in result.events):
            return result
        try:
            shot = self._free.get(block=self._lossless)
        except queue.Empty:
            self._skipped += 1
            return result
        shot.copy(frame)
        self._waiting.put(shot)
        path = str(self._folder / _name_of(result.meta))
        events = [replace(event, snapshot=path) if self._wants(event.kind) else event for event in result.events]
        return replace(result, events=tuple(events))

    def counters(self) -> dict[str, int]:
        """What an operator should see."""
        return {
            "snapshots.written": self._written,
            "snapshots.skipped": self._skipped,
            "snapshots.failed": self._failed,
            "snapshots.files": len(self._sizes),
        }

    def close(self) -> None:
        """Write what waits, for a second at most. May be called twice."""
        self._waiting.put(None)
        self._thread.join(_STOP_S)

    def _wants(self, kind: str) -> bool:
        return self._kinds is None or kind in self._kinds

    # --- the writing thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (shot := self._waiting.get()) is not None:
            try:
                self._write(shot)
            except OSError as error:
                self._failed += 1
                if not self._failing:
                    log.error("cannot write snapshots to %s: %s", self._folder, error.strerror)
                self._failing = True
            except Exception as error:  # noqa: BLE001 - `with_frame` raises it again, whatever it is
                self._error = error
            shot.frame = None
            self._free.put(shot)

    def _write(self, shot: _Shot) -> None:
        assert shot.frame is not None
        name = _name_of(shot.frame.meta)
        content = self._encode(shot.frame)
        half = self._folder / f".{name}{_HALF}"
        try:
            half.write_bytes(content)
            half.replace(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                half.unlink()
            raise
        if self._failing:
            log.info("snapshots are written to %s again", self._folder)
        self._failing = False
        self._written += 1
        self._nbytes += len(content) - self._sizes.pop(name, 0)
        self._sizes[name] = len(content)
        self._prune()

    def _prune(self) -> None:
        while len(self._sizes) > 1 and (len(self._sizes) > self._max_files or self._nbytes > self._most_bytes):
            oldest = next(iter(self._sizes))
            with contextlib.suppress(OSError):  # somebody was quicker, or keeps it
                (self._folder / oldest).unlink()
            self._nbytes -= self._sizes.pop(oldest)


def _found_in(folder: Path) -> dict[str, int]:
    """Sizes of the snapshots that are there, the oldest first. Halves that a crash has left are removed.

    Raises:
        ConfigError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for half in folder.glob(f".*{_HALF}"):
            if _NAME.fullmatch(half.name.removeprefix(".").removesuffix(_HALF)):
                half.unlink()
        probe = folder / f".probe{_HALF}"
        probe.write_bytes(b"")
        probe.unlink()
        files = [(file.stat(), file.name) for file in folder.iterdir() if _NAME.fullmatch(file.name)]
    except OSError as error:
        raise ConfigError(
            f"snapshots.folder: cannot write to {folder}: {error.strerror}",
            hint="make the folder writable for this user",
        ) from error
    return {name: info.st_size for info, name in sorted(files, key=lambda one: (one[0].st_mtime_ns, one[1]))}


def _name_of(meta: FrameMeta) -> str:
    seconds, ns = divmod(meta.captured_utc_ns, 1_000_000_000)
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))
    return f"{meta.camera_id}-{moment}.{ns // 1_000_000:03d}Z-{meta.epoch}-{meta.index}.jpg"
