"""Implementation of `vision whatif --video`: two configurations, such as two models, on the same stored video."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vision.config import AppConfig, CameraAnalytics, load_config, resolve_config
from vision.errors import EXIT_OK
from vision.evaluation.passes import select_camera
from vision.evaluation.progress import check_stop, show_progress
from vision.evaluation.whatif.difference import compare
from vision.evaluation.whatif.rejudge import Judgment, boxes_of_tracks
from vision.evaluation.whatif.report import CameraReport, Files, WhatIf, publish_report
from vision.outputs.archive.reader import ArchivedEvent
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions
from vision.stages.stage import Report
from vision.types import Result


@dataclass(frozen=True, slots=True)
class VideoRequest:
    """Arguments of `vision whatif --video`."""

    config: str
    against: str  # the configuration to compare with
    video: Path  # a video file, or a folder of images
    camera: str | None  # None if each configuration has only one camera


def run_on_video(request: VideoRequest, files: Files, stop: threading.Event) -> int:
    """Run both pipelines on the video, print the difference, and write the requested files. Return the exit code.

    Raises:
        Closed: `stop` was set.
        ConfigError: a configuration or an argument is invalid, or a file cannot be written.
        ModelError: a model is missing, or its model.yaml is invalid.
        SourceError: the video cannot be read to its end.
        Unavailable: a file cannot be written at present, for example because the disk is full.
    """
    old, new = (_configuration(name, request) for name in (request.against, request.config))
    before, after = (_judge(config, stop) for config in (old, new))
    name = new.cameras[0].id
    report = CameraReport(
        camera=name,
        section=new.analytics.get(name, CameraAnalytics()),
        before=len(before.events),
        judgment=after,
        difference=compare(name, before.events, after.events, same_tracks=False),
        gaps=(),
    )
    until_us = max((event.at_us for event in (*before.events, *after.events)), default=0)
    publish_report(WhatIf(request.config, 0, until_us, (report,)), Console(), files)
    return EXIT_OK


def _configuration(name: str, request: VideoRequest) -> AppConfig:
    """Return a configuration with only the requested camera, whose source is the video."""
    config = load_config(resolve_config(name), os.environ)
    cameras = tuple(
        camera.model_copy(update={"source": str(request.video.absolute()), "reader": "auto", "loop": False})
        for camera in config.cameras
    )
    return select_camera(config.model_copy(update={"cameras": cameras}), request.camera).model_copy(
        update={"rules": config.rules, "archive": None}
    )


def _judge(config: AppConfig, stop: threading.Event) -> Judgment:
    """Run the pipeline on the video. Return its events, whose times are positions in the video, and its counts."""
    with show_progress(config.model, None, stop) as progress, ExitStack() as resources:
        sink = _Sink(progress)
        build = load_pipeline(config.pipeline)
        build(config, RunOptions(stop, offline=True, sink=sink), resources).run(stop)
    check_stop(stop)
    return sink.judgment


class _Sink:
    """Sink that collects the events, the boxes of their objects, and the last counts."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self.judgment = Judgment()
        self._progress = progress
        self._first_ns: int | None = None

    def publish(self, result: Result) -> None:
        meta, found = result.meta, self.judgment
        first_ns = self._first_ns = meta.captured_ns if self._first_ns is None else self._first_ns
        for event in result.events:
            found.events.append(ArchivedEvent(event, "", meta.epoch, meta.index, (event.at_ns - first_ns) // 1000))
        found.boxes.update(boxes_of_tracks(result, "", [event.track_id for event in result.events]))
        found.counts, found.frame_size_px = result.counts, (meta.width_px, meta.height_px)
        found.frames += 1
        self._progress(found.frames)

    def report(self, report: Report) -> None:
        """Ignore reports."""
