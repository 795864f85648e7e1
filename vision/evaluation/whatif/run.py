"""Implementation of `vision whatif` with the tracks of an archive."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

from rich.console import Console

from vision.config import AppConfig, CameraAnalytics, check_classes, load_config, nearest, resolve_config
from vision.detect.open import published_class_names
from vision.errors import EXIT_OK, ConfigError
from vision.evaluation.progress import show_progress
from vision.evaluation.whatif.difference import compare
from vision.evaluation.whatif.rejudge import WARM_UP_US, Judge, rejudge
from vision.evaluation.whatif.report import CameraReport, Files, WhatIf, publish_report
from vision.outputs.archive.process import require_pyarrow
from vision.outputs.archive.reader import Archive
from vision.runtime.builder import find_model


class _Work(Protocol):
    """`_judge_camera` with its first arguments."""

    def __call__(self, camera: str, /, *, progress: Callable[[int], None] = ...) -> CameraReport: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """A configuration, and the part of an archive to which it is applied."""

    config: str
    since_us: int  # microseconds since 1970 (UTC)
    until_us: int
    cameras: tuple[str, ...] = ()  # empty means all cameras that both the configuration and the archive have
    archive: Path | None = None  # None means the folder in the configuration


@dataclass(frozen=True, slots=True)
class Selected:
    """The checked inputs that a `Selection` refers to."""

    config: AppConfig
    class_names: Sequence[str]
    archive: Archive
    cameras: Sequence[str]


def select(selection: Selection) -> Selected:
    """Read the configuration, and open the archive.

    Raises:
        ConfigError: the configuration is invalid, it or the archive lacks a camera, or there is no archive.
        ModelError: the model is missing, or its model.yaml is invalid.
    """
    path = resolve_config(selection.config)
    config = load_config(path, os.environ)
    names = published_class_names(find_model(config.model)[1], config.detect)
    check_classes(config, names, path)
    archive = open_archive(selection.archive, config)
    return Selected(config, names, archive, select_cameras(selection.cameras, config, archive))


def run(selection: Selection, files: Files, stop: threading.Event) -> int:
    """Judge the archived tracks again, print the difference, and write the requested files. Return the exit code.

    Raises:
        Closed: `stop` was set.
        ConfigError: the configuration or an argument is invalid, pyarrow is missing, there is no archive, or a file
            cannot be written.
        ModelError: the model is missing, or its model.yaml is invalid.
        Unavailable: a file cannot be written at present, for example because the disk is full.
    """
    require_pyarrow("vision whatif")
    selected = select(selection)
    limits = selection.since_us, selection.until_us
    reports = _judge_all(partial(_judge_camera, selected, *limits), selected.cameras, stop)
    publish_report(WhatIf(selection.config, *limits, tuple(reports)), Console(), files)
    return EXIT_OK


def open_archive(folder: Path | None, config: AppConfig) -> Archive:
    """Return the archive in `folder`, or in that of the configuration if `folder` is None.

    Raises:
        ConfigError: neither is set, or the folder contains no archive.
    """
    if folder is None and config.archive is not None:
        folder = Path(config.archive.folder)
    if folder is None:
        hint = "add the section `archive` to the configuration, or name the folder with --archive"
        raise ConfigError("expected the folder of the archive", hint=hint, code="no-archive")
    return Archive(folder)


def select_cameras(wanted: Sequence[str], config: AppConfig, archive: Archive) -> list[str]:
    """Return the cameras to judge: `wanted`, or, if it is empty, all that both the configuration and the archive have.

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


def _judge_all(work: _Work, cameras: Sequence[str], stop: threading.Event) -> list[CameraReport]:
    """Judge each camera, in parallel if there are several cameras and cores. Raise `Closed` if `stop` is set."""
    workers = min(len(cameras), len(os.sched_getaffinity(0)))
    with show_progress("cameras", len(cameras), stop, unit="cameras") as progress:
        if workers == 1:
            reports = list[CameraReport]()
            for camera in cameras:
                reports.append(work(camera, progress=lambda _frames: progress(len(reports))))
                progress(len(reports))
            return reports
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            pending = [pool.submit(work, camera) for camera in cameras]
            try:
                while not all(each.done() for each in pending):
                    progress(sum(each.done() for each in pending))
                    time.sleep(0.05)
                return [each.result() for each in pending]
            finally:
                pool.shutdown(cancel_futures=True)


def _judge_camera(
    selected: Selected,
    since_us: int,
    until_us: int,
    camera: str,
    *,
    progress: Callable[[int], None] = lambda _frames: None,
) -> CameraReport:
    config, class_names, archive = selected.config, selected.class_names, selected.archive
    limits = since_us, until_us
    _check_class_ids(archive.class_names(camera, since_us - WARM_UP_US, until_us), class_names, camera)
    judgment = rejudge(archive, Judge(config, camera, class_names), camera, *limits, progress=progress)
    return CameraReport(
        camera=camera,
        section=config.analytics.get(camera, CameraAnalytics()),
        before=len(judgment.published),
        judgment=judgment,
        difference=compare(camera, judgment.published, judgment.events),
        gaps=tuple(archive.gaps(camera, *limits)),
    )


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
