"""`SnapshotStage`: frames of events, as JPEGs in a folder of limited size.

The results thread only copies the frame, while its lease lasts. A thread of the stage encodes and writes the JPEG. So
an event contains the path of a file that exists a moment later, and never exists incomplete. When events come faster
than frames can be written, some events get no snapshot and no path. They are counted.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from vision.errors import ConfigError, VisionError
from vision.stages.frame_copy import FrameCopy
from vision.types import Event, Frame, FrameMeta, Result

log = logging.getLogger(__name__)

_BUFFERS: Final = 4  # frames that wait for the disk
_STOP_S: Final = 1.0  # to write them at the end
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}-\d{8}T\d{6}\.\d{3}Z-\d+-\d+\.jpg")
_PARTIAL: Final = ".part"


class SnapshotStage:
    """Adds the path of a snapshot to events, and writes the snapshot.

    Files in the folder with names of another form are left alone.
    """

    def __init__(
        self,
        folder: Path,
        encode: Callable[[Frame, Result], bytes],
        *,
        kinds: Sequence[str] | None = None,
        max_files: int = 10_000,
        max_bytes: int = 10**9,
        lossless: bool = False,
    ) -> None:
        """
        Args:
            encode: returns the content of the file for a frame (a private copy) and its result, whose events are those
                that get the snapshot. One thread calls it.
            kinds: kinds of events that get a snapshot; None for all.
            lossless: wait for the disk instead of skipping a snapshot.

        Raises:
            ConfigError: the folder cannot be created or is not writable.
        """
        self._folder = folder
        self._encode = encode
        self._kinds = None if kinds is None else frozenset(kinds)
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._lossless = lossless
        self._sizes = _existing_snapshots(folder)
        self._nbytes = sum(self._sizes.values())
        self._free: queue.SimpleQueue[FrameCopy] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(FrameCopy.empty())
        self._waiting: queue.SimpleQueue[FrameCopy | None] = queue.SimpleQueue()
        self._written = self._skipped = self._failed = 0
        self._failing = False
        self._error: Exception | None = None
        self._prune()
        self._thread = threading.Thread(target=self._work, name="snapshots", daemon=True)
        self._thread.start()

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Copy the frame if one of the events needs a snapshot.

        Raises:
            VisionError: the writing thread has failed.
        """
        if self._error is not None:
            raise VisionError(f"snapshots failed: {self._error}") from self._error
        chosen = tuple(event for event in result.events if self._is_chosen(event))
        if not chosen:
            return result
        try:
            shot = self._free.get(block=self._lossless)
        except queue.Empty:
            self._skipped += 1
            return result
        shot.copy(frame, replace(result, events=chosen))
        self._waiting.put(shot)
        path = str(self._folder / _file_name(result.meta))
        events = (replace(event, snapshot=path) if self._is_chosen(event) else event for event in result.events)
        return replace(result, events=tuple(events))

    def counters(self) -> dict[str, int]:
        """Return the number of snapshots written, skipped, failed, and in the folder."""
        return {
            "snapshots.written": self._written,
            "snapshots.skipped": self._skipped,
            "snapshots.failed": self._failed,
            "snapshots.files": len(self._sizes),
        }

    def close(self) -> None:
        """Write the waiting snapshots, for a second at most. Idempotent."""
        self._waiting.put(None)
        self._thread.join(_STOP_S)

    def _is_chosen(self, event: Event) -> bool:
        return self._kinds is None or event.kind in self._kinds

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
            except Exception as error:  # noqa: BLE001 - `with_frame` raises it, whatever it is
                self._error = error
            shot.clear()
            self._free.put(shot)

    def _write(self, shot: FrameCopy) -> None:
        assert shot.frame is not None and shot.result is not None
        name = _file_name(shot.frame.meta)
        content = self._encode(shot.frame, shot.result)
        partial = self._folder / f".{name}{_PARTIAL}"
        try:
            partial.write_bytes(content)
            partial.replace(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        if self._failing:
            log.info("snapshots are written to %s again", self._folder)
        self._failing = False
        self._written += 1
        self._nbytes += len(content) - self._sizes.pop(name, 0)
        self._sizes[name] = len(content)
        self._prune()

    def _prune(self) -> None:
        while len(self._sizes) > 1 and (len(self._sizes) > self._max_files or self._nbytes > self._max_bytes):
            oldest = next(iter(self._sizes))
            with contextlib.suppress(OSError):  # another program deleted it, or it is protected
                (self._folder / oldest).unlink()
            self._nbytes -= self._sizes.pop(oldest)


def _existing_snapshots(folder: Path) -> dict[str, int]:
    """Return the sizes of the snapshots in the folder, the oldest first. Remove incomplete files of a crash.

    Raises:
        ConfigError: the folder cannot be created or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob(f".*{_PARTIAL}"):
            if _NAME.fullmatch(partial.name.removeprefix(".").removesuffix(_PARTIAL)):
                partial.unlink()
        probe = folder / f".probe{_PARTIAL}"
        probe.write_bytes(b"")
        probe.unlink()
        files = [(file.stat(), file.name) for file in folder.iterdir() if _NAME.fullmatch(file.name)]
    except OSError as error:
        raise ConfigError(
            f"snapshots.folder: cannot write to {folder}: {error.strerror}",
            hint="make the folder writable for this user",
            code="snapshot-folder",
        ) from error
    return {name: info.st_size for info, name in sorted(files, key=lambda file: (file[0].st_mtime_ns, file[1]))}


def _file_name(meta: FrameMeta) -> str:
    seconds, ns = divmod(meta.captured_utc_ns, 1_000_000_000)
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))
    return f"{meta.camera_id}-{moment}.{ns // 1_000_000:03d}Z-{meta.epoch}-{meta.index}.jpg"
