"""Frames of a site for calibration, read from images or cameras, scaled to the model's input, and stored on disk."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import av
import numpy as np

from vision.capture.frame_reader import read_frames
from vision.config import CameraConfig, InputSpec
from vision.config.paths import is_dir
from vision.config.source_address import RECORDED
from vision.errors import Closed, ConfigError, SourceError, VisionError, from_os_error
from vision.optimize.feed import Image, Letterboxer
from vision.optimize.sampling import Candidate, choose, gray_cells, is_near_duplicate

FEWEST: Final = 8
"""Minimum number of different frames for a calibration."""

_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
_NAMED: Final = 5  # unreadable images and cameras that a text names
_COMPARED: Final = 64  # latest candidates of a camera with which each frame is compared

_log = logging.getLogger(__name__)

Step = Callable[[int], None]
"""Function that receives the number of frames read so far. It raises `Closed` to stop."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The numbers of frames that were read and that were left out, and the sources that could not be read."""

    read: int
    """Number of frames that were read."""
    duplicates: int
    """Number of frames that were left out because they are near-duplicates of others."""
    unreadable: tuple[str, ...]
    """Images and cameras that could not be read, each with the reason."""

    def names_of_unreadable(self) -> str:
        """Return text with the names of up to five unreadable images and cameras, and the number of the others."""
        names = [reason.partition(": ")[0] for reason in self.unreadable]
        more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
        return ", ".join([*names[:_NAMED], *more])


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames that were chosen for the calibration of a model, stored as files in a folder."""

    paths: tuple[Path, ...]
    sources: Sources
    sha256: str
    """SHA-256 of the files of all chosen frames, which contain the pixels."""

    def images(self, most: int | None = None) -> Iterator[Image]:
        """Yield the frames, uint8 BGR (height, width, 3). If `most` is set, yield at most `most`, spread evenly."""
        paths = self.paths
        if most is not None and most < len(paths):
            paths = tuple(paths[index * len(paths) // most] for index in range(most))
        for path in paths:
            yield np.load(path)


class Collector:
    """Collector that stores candidates for calibration frames, spread evenly over a time of unknown length.

    The candidates are a limited number of frames of one camera, on disk.

    Whenever there are twice as many candidates as needed, the collector removes every second candidate, and halves the
    rate at which it takes further frames.
    """

    def __init__(self, camera: str, folder: Path, spec: InputSpec, most: int) -> None:
        self._camera = camera
        self._folder = folder
        self._letterboxer = Letterboxer(spec)
        self._most = 2 * most
        self._every = 1
        self._kept = 0
        self.read = 0
        self.duplicates = 0
        self.candidates: list[Candidate] = []

    def add(self, frame: Image) -> None:
        """Store a BGR frame as a candidate, unless the frame is skipped or is a near-duplicate.

        Raises:
            VisionError: the frame cannot be stored, for example because the disk is full.
        """
        self.read += 1
        if (self.read - 1) % self._every:
            return
        cells = gray_cells(frame)
        if is_near_duplicate(cells, [each.cells for each in self.candidates[-_COMPARED:]]):
            self.duplicates += 1
            return
        candidate = Candidate(self._camera, self._kept, cells)
        self._kept += 1
        try:
            np.save(self.path(candidate), self._letterboxer.scale(frame)[0])
        except OSError as error:
            raise from_os_error(f"cannot store frames in {self._folder}", error, code="not-writable") from error
        self.candidates.append(candidate)
        if len(self.candidates) >= self._most:
            for dropped in self.candidates[1::2]:
                self.path(dropped).unlink()
            self.candidates = self.candidates[::2]
            self._every *= 2

    def path(self, candidate: Candidate) -> Path:
        return self._folder / f"{candidate.camera}-{candidate.number}.npy"


def frames_of_images(folder: Path, temporary: Path, spec: InputSpec, count: int, step: Step) -> Frames:
    """Read all images in a folder and its subfolders, and choose up to `count` of them. Skip unreadable images.

    Raises:
        Closed: `step` raised this error.
        ConfigError: the folder does not exist, or has too few different images.
        Unavailable: a frame cannot be stored at present, for example because the disk is full.
    """
    if not is_dir(folder):
        raise ConfigError(f"--images: expected a folder, got {folder}", code="no-images")
    named = (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    paths = sorted(path for path in named if path.is_file() or (path.is_symlink() and not path.exists()))
    if not paths:
        names = ", ".join(sorted(_SUFFIXES))
        raise ConfigError(f"--images: {folder} contains no images ({names})", code="no-images")
    unreadable: list[str] = []
    collector = Collector("images", temporary, spec, count)
    for index, path in enumerate(paths):
        try:
            image = read_image(path)
        except (av.FFmpegError, OSError, ValueError, StopIteration) as error:
            unreadable.append(f"{path}: {error or 'it contains no image'}")
        else:
            collector.add(image)
        step(index + 1)
    return _chosen([collector], unreadable, count)


def read_image(path: Path) -> Image:
    """Read an image as uint8 BGR (height, width, 3).

    If the image cannot be read, raise `av.FFmpegError`, `OSError`, `ValueError`, or `StopIteration`.
    """
    with av.open(str(path)) as container:
        return np.asarray(next(container.decode(video=0)).to_ndarray(format="bgr24"), np.uint8)


def frames_of_cameras(
    cameras: Sequence[CameraConfig], temporary: Path, spec: InputSpec, count: int, *, seconds: float, step: Step
) -> Frames:
    """Read recordings to their end, and live cameras for `seconds`, all at the same time. Choose up to `count` frames.

    If a camera cannot be opened, or fails while it is read, use only the frames that were read before the failure.

    Raises:
        Closed: `step` raised this error.
        ConfigError: there are too few different frames.
        VisionError: a frame cannot be stored, for example because the disk is full.
    """
    collectors = [Collector(camera.id, temporary, spec, count) for camera in cameras]
    unreadable: list[str] = []
    stop = threading.Event()
    errors: list[VisionError] = []

    def read(camera: CameraConfig, collector: Collector) -> None:
        try:
            _read_camera(camera, collector, seconds, stop)
        except SourceError as error:
            unreadable.append(f"camera {camera.id}: {error.args[0]}")
        except VisionError as error:
            errors.append(error)
            stop.set()

    threads = [
        threading.Thread(target=read, args=pair, name=f"sample-{pair[0].id}", daemon=True)
        for pair in zip(cameras, collectors, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.1)
            step(sum(collector.read for collector in collectors))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return _chosen(collectors, unreadable, count)


def collected(frames: Iterable[Image], temporary: Path, spec: InputSpec, count: int) -> Frames:
    """Choose up to `count` of the BGR images `frames`. For the errors, see `frames_of_images`."""
    collector = Collector("frames", temporary, spec, count)
    for frame in frames:
        collector.add(frame)
    return _chosen([collector], (), count)


def _read_camera(camera: CameraConfig, collector: Collector, seconds: float, stop: threading.Event) -> None:
    is_live = not isinstance(camera.address, RECORDED)
    deadline = time.monotonic() + seconds
    with closing(read_frames(camera.model_copy(update={"loop": False}), offline=True)) as frames:
        for frame in frames:
            collector.add(frame.pixels)
            if stop.is_set() or (is_live and time.monotonic() >= deadline):
                return


def _chosen(collectors: Sequence[Collector], unreadable: Sequence[str], count: int) -> Frames:
    """Choose up to `count` candidates from all collectors. Delete the files of the other candidates.

    `unreadable` contains a text for each source that could not be read. Log these texts.

    Raises:
        ConfigError: there are fewer than `FEWEST` candidates.
    """
    for reason in unreadable:
        _log.warning("skipped: %s", reason)
    read = sum(collector.read for collector in collectors)
    sources = Sources(read, sum(collector.duplicates for collector in collectors), tuple(unreadable))
    candidates = [candidate for collector in collectors for candidate in collector.candidates]
    if len(candidates) < FEWEST:
        raise ConfigError(
            f"calibration needs at least {FEWEST} different frames, got {len(candidates)}: {sources.read} were read, "
            f"{sources.duplicates} of them almost equal others, and {len(sources.unreadable)} images or cameras could "
            f"not be read{': ' if unreadable else ''}{sources.names_of_unreadable()}",
            hint="300 frames from all cameras, by day and by night, are a good choice",
            code="too-few-frames",
        )
    chosen = {(candidate.camera, candidate.number) for candidate in choose(candidates, count)}
    digest, paths = hashlib.sha256(), []
    for collector in collectors:
        for candidate in collector.candidates:
            path = collector.path(candidate)
            if (candidate.camera, candidate.number) in chosen:
                digest.update(path.read_bytes())
                paths.append(path)
            else:
                path.unlink()
    return Frames(tuple(paths), sources, digest.hexdigest())


def check_not_stopped(stop: threading.Event) -> None:
    """Raise `Closed` if `stop` is set."""
    if stop.is_set():
        raise Closed("stopped; nothing was written")
