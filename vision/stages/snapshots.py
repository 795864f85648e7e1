"""`SnapshotStage` saves the frames of events as JPEG files in a folder of limited size.

A thread of the stage encodes and writes each file, so an event is published shortly before the file at its path exists.
A file is always complete. If events occur faster than files can be written, the stage skips some snapshots and counts
them. The events of skipped snapshots have no path. If a file cannot be written, the stage counts a failure, and no file
exists at the path.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from msgspec import structs

from vision.config.app import AppConfig, SnapshotConfig
from vision.errors import from_os_error
from vision.stages.frame_worker import FrameWorker
from vision.state.free_space import FreeSpace
from vision.state.private_files import open_restricted
from vision.types import Event, Frame, FrameMeta, Result

log = logging.getLogger(__name__)

_BUFFERS: Final = 4  # number of frames that can wait to be written
_STOP_S: Final = 1.0  # maximum time to write the waiting frames at the end
_NAME: Final = re.compile(r"(?P<camera>[A-Za-z0-9][A-Za-z0-9_-]{0,63})-\d{8}T\d{6}\.\d{3}Z-\d+-\d+\.jpg")
_PARTIAL: Final = ".part"


class SnapshotStage:
    """Stage that saves each frame with events of the configured kinds, and adds the file's path to these events."""

    def __init__(
        self,
        config: SnapshotConfig,
        encode: Callable[[Frame, Result], bytes],
        *,
        lossless: bool = False,
        camera_ids: Collection[str] | None = None,
        use: Callable[[AppConfig], None] | None = None,
    ) -> None:
        """Create the folder and start the thread that writes files.

        Args:
            encode: function that returns the content of a file. Its arguments are a private copy of the frame, and a
                result with only the events of the snapshot. The thread of the stage calls it.
            lossless: if True, wait for the disk instead of skipping a snapshot.
            camera_ids: ids of the cameras of this process. The stage does not count or delete the files of other
                cameras, which belong to other processes. None means that there are no other processes.
            use: function that is called with each new configuration, or None if `encode` does not depend on the
                configuration.

        Raises:
            ConfigError: the folder cannot be created, or is not writable.
            Unavailable: the folder cannot be used at present, for example because the disk is full.
        """
        self._encode = encode
        self._use = use
        self._kinds = config.kinds
        self._folder = _SnapshotFolder(config, camera_ids)
        self._worker = FrameWorker("snapshots", self._write, buffers=_BUFFERS, lossless=lossless)

    def reconfigure(self, config: AppConfig) -> None:
        """Pass a new configuration to the function `use` of `__init__`. Nothing else in this stage can change."""
        if self._use is not None:
            self._use(config)

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Copy the frame if events need a snapshot, and return the result with the path of the file in these events.

        If no buffer is free, skip the snapshot, and return the result unchanged. If the stage is lossless, wait
        instead.

        Raises:
            VisionError: the thread has failed.
        """
        self._worker.check()
        chosen = tuple(event for event in result.events if self._is_chosen(event))
        if not chosen or not self._worker.add(frame, structs.replace(result, events=chosen)):
            return result
        path = str(self._folder.path / _file_name(result.meta))
        events = (replace(event, snapshot=path) if self._is_chosen(event) else event for event in result.events)
        return structs.replace(result, events=tuple(events))

    def counters(self) -> dict[str, int]:
        """Return the numbers of written, skipped, and failed snapshots, and the number of files in the folder.

        ``snapshots.stopped`` is 1 while snapshots cannot be written.
        """
        return {
            "snapshots.written": self._folder.written,
            "snapshots.skipped": self._worker.skipped,
            "snapshots.failed": self._folder.failed,
            "snapshots.stopped": int(self._folder.is_failing),
            "snapshots.files": len(self._folder.sizes),
        }

    def progress(self) -> dict[str, int | None]:
        """Return, by thread name, the number of processed frames, or None if no frame waits."""
        return {"snapshots": self._worker.progress()}

    def close(self) -> None:
        """Write the waiting snapshots. Wait at most one second. Idempotent."""
        self._worker.finish()
        self._worker.join(_STOP_S)

    def _is_chosen(self, event: Event) -> bool:
        return self._kinds is None or event.kind in self._kinds

    def _write(self, copies: Iterator[tuple[Frame, Result]]) -> None:
        for frame, result in copies:
            self._folder.write(_file_name(frame.meta), self._encode(frame, result))


class _SnapshotFolder:
    """The folder that contains the snapshots. Files that do not have the name of a snapshot are never deleted."""

    def __init__(self, config: SnapshotConfig, camera_ids: Collection[str] | None) -> None:
        self.path = Path(config.folder)
        self.sizes = _existing_snapshots(self.path, camera_ids)
        self.written = self.failed = 0
        self._nbytes = sum(self.sizes.values())
        self._max_files, self._max_bytes = config.max_files, config.max_mb * 1_000_000
        self.is_failing = False
        self._space = FreeSpace(self.path)
        self._prune()

    def write(self, name: str, content: bytes) -> None:
        """Write one file. Then delete the oldest files until the limits are met, but keep the newest file.

        If the file cannot be written, count the failure. Log only the first of several failures in a row.
        """
        partial = self.path / f".{name}{_PARTIAL}"
        try:
            self._make_room()
            with open(partial, "wb", opener=open_restricted) as file:
                file.write(content)
            partial.replace(self.path / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            self.failed += 1
            if not self.is_failing:
                log.error("cannot write snapshots to %s: %s", self.path, error.strerror)
            self.is_failing = True
            return
        if self.is_failing:
            log.info("snapshots are written to %s again", self.path)
        self.is_failing = False
        self.written += 1
        self._nbytes += len(content) - self.sizes.pop(name, 0)
        self.sizes[name] = len(content)
        self._prune()

    def _make_room(self) -> None:
        """Delete the oldest files while the disk is nearly full. Raise `OSError` if the disk stays nearly full."""
        if not self._space.is_low():
            return
        while self.sizes and self._space.is_low(now=True):
            self._delete_oldest()
        if self._space.is_low(now=True):
            raise OSError(errno.ENOSPC, "the disk is nearly full")

    def _prune(self) -> None:
        while len(self.sizes) > 1 and (len(self.sizes) > self._max_files or self._nbytes > self._max_bytes):
            self._delete_oldest()

    def _delete_oldest(self) -> None:
        oldest = next(iter(self.sizes))
        with contextlib.suppress(OSError):  # a different program deleted the file, or the file is protected
            (self.path / oldest).unlink()
        self._nbytes -= self.sizes.pop(oldest)


def _existing_snapshots(folder: Path, camera_ids: Collection[str] | None = None) -> dict[str, int]:
    """Create the folder, and remove incomplete files. Return the size in bytes of each snapshot by name, oldest first.

    If `camera_ids` is not None, ignore the files of other cameras.

    Raises:
        ConfigError: the folder cannot be created, or is not writable.
        Unavailable: the folder cannot be used at present, for example because the disk is full.
    """

    def is_own(name: str) -> bool:
        match = _NAME.fullmatch(name)
        return match is not None and (camera_ids is None or match["camera"] in camera_ids)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob(f".*{_PARTIAL}"):
            if is_own(partial.name.removeprefix(".").removesuffix(_PARTIAL)):
                partial.unlink()
        probe = folder / f".probe-{os.getpid()}{_PARTIAL}"
        probe.write_bytes(b"")
        probe.unlink()
        files = [(file.stat(), file.name) for file in folder.iterdir() if is_own(file.name)]
    except OSError as error:
        text, hint = f"snapshots.folder: cannot write to {folder}", "make the folder writable for this user"
        raise from_os_error(text, error, hint=hint, code="snapshot-folder") from error
    return {name: info.st_size for info, name in sorted(files, key=lambda file: (file[0].st_mtime_ns, file[1]))}


def _file_name(meta: FrameMeta) -> str:
    seconds, ns = divmod(meta.captured_utc_ns, 1_000_000_000)
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))
    return f"{meta.camera_id}-{moment}.{ns // 1_000_000:03d}Z-{meta.epoch}-{meta.index}.jpg"
