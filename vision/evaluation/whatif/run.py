"""Implementation of `vision whatif` with the tracks of an archive."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from rich.console import Console

from vision.config import AppConfig, CameraAnalytics, check_classes, load_config, nearest, resolve_config
from vision.detect.open import published_class_names
from vision.errors import EXIT_OK, ConfigError
from vision.evaluation.progress import show_progress
from vision.evaluation.whatif.changes import Changes
from vision.evaluation.whatif.difference import Comparison
from vision.evaluation.whatif.feet import Feet
from vision.evaluation.whatif.finding import FoundBlock, found_by_process, rare_collections
from vision.evaluation.whatif.judge import Judge
from vision.evaluation.whatif.rejudge import Rejudgment, boxes_of_events
from vision.evaluation.whatif.report import SHOWN_ROWS, CameraReport, Files, WhatIf, publish_report
from vision.outputs.archive.process import require_pyarrow
from vision.outputs.archive.reader import Archive
from vision.outputs.archive.writer import ALL_CAMERAS
from vision.runtime.builder import find_model

_MANY_ROWS: Final = 1_000_000
"""Number of archived rows (one per track and frame) from which a second process saves more time than it costs."""

_CHANGES: Final = 50_000  # number of differences whose boxes are in memory at the same time


@dataclass(frozen=True, slots=True)
class Selection:
    """Configuration, and the part of an archive to which the configuration is applied."""

    config: str  # name or path of the configuration
    since_us: int  # start of the range, in microseconds since 1970 (UTC)
    until_us: int  # end of the range, in microseconds since 1970 (UTC)
    cameras: tuple[str, ...] = ()  # empty means all cameras that both the configuration and the archive have
    archive: Path | None = None  # None means the folder in the configuration


@dataclass(frozen=True, slots=True)
class Selected:
    """Configuration, archive, and cameras that a `Selection` names, already loaded and checked."""

    config: AppConfig
    class_names: Sequence[str]  # class names of the model, by class id
    archive: Archive
    cameras: Sequence[str]  # names of the cameras to judge


@dataclass(frozen=True, slots=True)
class _Task:
    """Data that every camera's evaluation needs: the inputs, the time range, and the files of the report."""

    selected: Selected
    since_us: int  # start of the range, in microseconds since 1970 (UTC)
    until_us: int  # end of the range, in microseconds since 1970 (UTC)
    files: Files  # the files that the report needs


def select(selection: Selection) -> Selected:
    """Read the configuration, and open the archive.

    Raises:
        ConfigError: the configuration is invalid, the configuration or the archive lacks a camera, or there is no
            archive.
        ModelError: the model is missing, or its model.yaml is invalid.
    """
    path = resolve_config(selection.config)
    config = load_config(path, os.environ)
    names = published_class_names(find_model(config.model)[1], config.detect)
    check_classes(config, names, path)
    archive = open_archive(selection.archive, config)
    return Selected(config, names, archive, select_cameras(selection.cameras, config, archive))


def run(selection: Selection, files: Files, stop: threading.Event) -> int:
    """Evaluate the archived tracks, print the difference, and write the requested files. Return the exit code.

    Raises:
        Closed: `stop` was set.
        ConfigError: the configuration or an argument is invalid, pyarrow is missing, there is no archive, or a file
            cannot be written.
        ModelError: the model is missing, or its model.yaml is invalid.
        Unavailable: a file cannot currently be written, for example because the disk is full.
    """
    require_pyarrow("vision whatif")
    selected = select(selection)
    limits = selection.since_us, min(selection.until_us, time.time_ns() // 1000)
    reports = _judge_all(_Task(selected, *limits, files), stop)
    report = WhatIf(selection.config, *limits, tuple(reports), _not_judged(selection, selected))
    publish_report(report, Console(), files)
    return EXIT_OK


def _not_judged(selection: Selection, selected: Selected) -> dict[str, str]:
    """Return the reasons why cameras were not evaluated, by camera name. Omit cameras that the user has excluded."""
    archived, configured = selected.archive.cameras(), [camera.id for camera in selected.config.cameras]
    if selection.cameras:
        return {}
    reasons = {name: "the archive does not contain it" for name in configured if name not in archived}
    return reasons | {name: "the configuration does not contain it" for name in archived if name not in configured}


def open_archive(folder: Path | None, config: AppConfig) -> Archive:
    """Open the archive in `folder`, or in the folder of the configuration if `folder` is None.

    Raises:
        ConfigError: no folder is known, or the folder contains no archive.
    """
    if folder is None and config.archive is not None:
        folder = Path(config.archive.folder)
    if folder is None:
        hint = "add the section `archive` to the configuration, or name the folder with --archive"
        raise ConfigError("expected the folder of the archive", hint=hint, code="no-archive")
    return Archive(folder)


def select_cameras(wanted: Sequence[str], config: AppConfig, archive: Archive) -> list[str]:
    """Return the names of the cameras to evaluate, in the order of the configuration.

    The result contains the cameras `wanted`. If `wanted` is empty, the result contains all cameras that both the
    configuration and the archive have.

    Raises:
        ConfigError: the archive or the configuration lacks a wanted camera, or they have no camera in common.
    """
    archived, configured = archive.cameras(), [camera.id for camera in config.cameras]
    for name in wanted:
        for known, place in ((configured, "the configuration"), (archived, "the archive")):
            if name not in known:
                near = nearest(name, known)
                hint = f"did you mean {near}?" if near else f"it has {', '.join(known) or 'no cameras'}"
                raise ConfigError(f"--camera: {place} has no camera {name!r}", hint=hint, code="unknown-camera")
    cameras = [name for name in configured if name in archived and (name in wanted or not wanted)]
    if not cameras:
        hint = f"the archive has {', '.join(archived) or 'no cameras'}"
        raise ConfigError("no camera of the configuration is in the archive", hint=hint, code="unknown-camera")
    return cameras


def _judge_all(task: _Task, stop: threading.Event) -> list[CameraReport]:
    """Evaluate each camera, in parallel if there are several cameras and cores. Raise `Closed` if `stop` is set."""
    cameras, cores = task.selected.cameras, len(os.sched_getaffinity(0))
    workers, spare = min(len(cameras), cores), cores >= 2 * len(cameras)
    if workers == 1:
        reports = []
        for camera in cameras:
            with show_progress(camera, None, stop) as progress:
                reports.append(_judge_camera(task, camera, spare, progress=progress))
        return reports
    with (
        show_progress("cameras", len(cameras), stop, unit="cameras") as progress,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        pending = [pool.submit(_judge_camera, task, camera, spare) for camera in cameras]
        try:
            while not all(each.done() for each in pending):
                progress(sum(each.done() for each in pending))
                time.sleep(0.05)
            return [each.result() for each in pending]
        finally:
            pool.shutdown(cancel_futures=True)


def _judge_camera(
    task: _Task, camera: str, has_spare_core: bool, *, progress: Callable[[int], None] = lambda _frames: None
) -> CameraReport:
    """Evaluate one camera, in two processes if there is a spare core and the archive has many frames."""
    config, class_names, archive = task.selected.config, task.selected.class_names, task.selected.archive
    limits = task.since_us, task.until_us
    rejudgment = Rejudgment(archive, Judge(config, camera, class_names), camera, *limits)
    before, search, needs_all = 0, rejudgment.search, task.files != Files()
    comparison = Comparison(camera, most=None if needs_all else SHOWN_ROWS)
    is_long = has_spare_core and archive.number_of_tracks(camera, *limits) >= _MANY_ROWS
    with rare_collections(), found_by_process(search) if is_long else nullcontext(search.found()) as found:
        _check_class_ids(archive.class_names(camera, search.since_us, search.until_us), class_names, camera)
        for part in rejudgment.parts(_with_progress(found, progress)):
            before += len(part.published)
            comparison.add(*part)
    difference = comparison.finish()
    return CameraReport(
        camera=camera,
        section=config.analytics.get(camera, CameraAnalytics()),
        before=before,
        judgment=rejudgment.judgment,
        difference=difference,
        feet=_feet(archive, camera, difference.changes) if task.files.page is not None else Feet(),
        gaps=tuple(gap for each in (camera, ALL_CAMERAS) for gap in archive.gaps(each, *limits)),
        missing=tuple(rejudgment.coverage.missing),
        set_back=tuple(rejudgment.coverage.set_back),
    )


def _feet(archive: Archive, camera: str, changes: Changes) -> Feet:
    """Return the positions of the objects of all differences, for the drawing in the report.

    To save memory, read the boxes of only some differences at a time from the archive.
    """
    feet, rest = Feet(), iter(changes)
    while some := [*islice(rest, _CHANGES)]:
        events = [event for each in some for event in (each.before, each.after) if event is not None]
        feet.add(some, boxes_of_events(archive, camera, events))
    return feet


def _with_progress(found: Iterable[FoundBlock], progress: Callable[[int], None]) -> Iterator[FoundBlock]:
    frames = 0
    for each in found:
        frames += len(each.block.frames)
        progress(frames)
        yield each


def _check_class_ids(archived: dict[int, str], class_names: Sequence[str], camera: str) -> None:
    """Raise `ConfigError` if the archive was recorded with a model that has different classes."""
    for class_id, name in sorted(archived.items()):
        expected = class_names[class_id] if 0 <= class_id < len(class_names) else f"class {class_id}"
        if name != expected:
            text = (
                f"camera {camera}: class {class_id} is {name!r} in the archive, but {expected!r} in the configuration"
            )
            hint = (
                "use the model with which the archive was recorded; --video judges stored video with a different model"
            )
            raise ConfigError(text, hint=hint, code="different-model")
