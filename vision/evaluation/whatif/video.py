"""Implementation of `vision whatif --against`, which compares two configurations on the same stored video.

The two configurations can have different models. The video is a file, or the recordings of a camera, which the index of
recordings lists.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console

from vision.config import AppConfig, CameraAnalytics, load_config, resolve_config
from vision.errors import EXIT_OK, ConfigError
from vision.evaluation.passes import select_camera
from vision.evaluation.progress import check_stop, show_progress
from vision.evaluation.whatif.difference import compare
from vision.evaluation.whatif.feet import Feet
from vision.evaluation.whatif.rejudge import Box, Judgment, Place, boxes_of_tracks
from vision.evaluation.whatif.report import CameraReport, Files, WhatIf, publish_report
from vision.outputs.archive.reader import ArchivedEvent
from vision.outputs.recording.index import RecordedFile, Recording, open_for_reading
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions
from vision.stages.stage import Report
from vision.types import Result

_ANY_FILE: Final = "/video.mp4"  # takes the place of each camera's source until the video is known


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two configurations to compare on stored video."""

    config: str  # the new configuration
    against: str  # the configuration to compare with
    camera: str | None  # name of the camera; can be None if each configuration has only one camera


@dataclass(frozen=True, slots=True)
class Video:
    """Piece of stored video."""

    path: Path  # a video file, or a folder of images
    name: str = ""  # identifies the video if there are several videos
    start_us: int = 0  # time of the first frame in microseconds since 1970 (UTC); 0 if times are positions in the video


def run_on_video(request: Comparison, path: Path, files: Files, stop: threading.Event) -> int:
    """Run both pipelines on a video, print the difference, and write the requested files. Return the exit code.

    Raises:
        Closed: `stop` was set.
        ConfigError: a configuration or an argument is invalid, or a file cannot be written.
        ModelError: a model is missing, or its model.yaml is invalid.
        SourceError: the video cannot be read to its end.
        Unavailable: a file cannot currently be written, for example because the disk is full.
    """
    old, new = (_configuration(name, request) for name in (request.against, request.config))
    return _compare(request.config, (old, new), [Video(path)], files, stop)


def run_on_recordings(request: Comparison, since_us: int, until_us: int, files: Files, stop: threading.Event) -> int:
    """Run both pipelines on the recordings of a camera in a time range, as `run_on_video` does on one video.

    The index of the configuration `request.against` lists the recordings, and `selected_files` selects the files.
    Return the exit code.

    Args:
        request: the two configurations, and the camera.
        since_us: start of the time range, in microseconds since 1970 (UTC).
        until_us: end of the time range, in microseconds since 1970 (UTC).
        files: files to write.
        stop: event that ends the run when it is set.

    Raises:
        Closed: `stop` was set.
        ConfigError: a configuration or an argument is invalid, `request.against` does not record or has no complete
            recording of this time, or a file cannot be written.
        ModelError: a model is missing, or its model.yaml is invalid.
        SourceError: a recording cannot be read to its end.
        Unavailable: the index cannot currently be read, or a file cannot currently be written, for example because the
            disk is full.
    """
    old, new = (_configuration(name, request) for name in (request.against, request.config))
    if old.recording is None or old.state_dir is None:
        hint = "add the section `recording`, or name a video with --video"
        raise ConfigError(f"{request.against} has no section `recording`", hint=hint, code="no-recordings")
    with closing(open_for_reading(Path(old.state_dir))) as index:
        recordings = index.recordings(old.cameras[0].id, since_us * 1000)
    videos = [
        Video(Path(old.recording.folder) / file.name, file.name, file.start_utc_ns // 1000)
        for file in selected_files(recordings, since_us, until_us)
    ]
    if not videos:
        text = f"camera {old.cameras[0].id} has no complete recording in this time"
        raise ConfigError(text, hint="`vision clips` lists the recordings", code="no-recordings")
    return _compare(request.config, (old, new), videos, files, stop)


def selected_files(recordings: Sequence[Recording], since_us: int, until_us: int) -> list[RecordedFile]:
    """Return the complete files in a time range, oldest first.

    No two of the returned files overlap. If a clip shows the same time as a continuous recording, the result contains
    only the continuous recording.

    Args:
        recordings: all recordings of the camera.
        since_us: start of the range, in microseconds since 1970 (UTC).
        until_us: end of the range, in microseconds since 1970 (UTC).
    """
    selected: list[RecordedFile] = []
    for recording in sorted(recordings, key=lambda each: each.kind == "clip"):
        for file in recording.files:
            in_range = file.start_utc_ns < until_us * 1000 and file.end_utc_ns >= since_us * 1000
            if in_range and file.state == "complete" and not any(_overlap(file, each) for each in selected):
                selected.append(file)
    return sorted(selected, key=lambda file: file.start_utc_ns)


def _overlap(file: RecordedFile, other: RecordedFile) -> bool:
    return file.start_utc_ns < other.end_utc_ns and other.start_utc_ns < file.end_utc_ns


def _compare(
    name: str, configs: tuple[AppConfig, AppConfig], videos: Sequence[Video], files: Files, stop: threading.Event
) -> int:
    """Run both pipelines on each video, print the difference, and write the requested files. Return the exit code."""
    before, after = (_judge(config, videos, stop) for config in configs)
    camera = configs[1].cameras[0].id
    difference, feet = compare(camera, before.events, after.events, same_tracks=False), Feet()
    feet.add(difference.changes, after.boxes)
    report = CameraReport(
        camera=camera,
        section=configs[1].analytics.get(camera, CameraAnalytics()),
        before=len(before.events),
        judgment=after.judgment,
        difference=difference,
        feet=feet,
    )
    until_us = max((event.at_us for event in (*before.events, *after.events)), default=videos[0].start_us)
    publish_report(WhatIf(name, videos[0].start_us, until_us, (report,)), Console(), files)
    return EXIT_OK


def _configuration(name: str, request: Comparison) -> AppConfig:
    """Load a configuration, and return a copy with only the requested camera and without the outputs of a live run.

    The result keeps the rules and `state_dir`. The source of its camera is a placeholder.
    """
    config = load_config(resolve_config(name), os.environ)
    cameras = tuple(
        camera.model_copy(update={"source": _ANY_FILE, "reader": "auto", "loop": False}) for camera in config.cameras
    )
    selected = select_camera(config.model_copy(update={"cameras": cameras}), request.camera)
    return selected.model_copy(update={"rules": config.rules, "archive": None, "state_dir": config.state_dir})


@dataclass(slots=True)
class _Found:
    """Events that one configuration causes on the stored videos, the boxes of their objects, and a summary."""

    events: list[ArchivedEvent] = field(default_factory=list)
    boxes: dict[Place, Box] = field(default_factory=dict)
    judgment: Judgment = field(default_factory=Judgment)


def _judge(config: AppConfig, videos: Sequence[Video], stop: threading.Event) -> _Found:
    """Run the pipeline of a configuration on each video. Return the events, the boxes of their objects, and a summary.

    The counts in the summary are the counts of the last video.
    """
    found = _Found()
    for video in videos:
        camera = config.cameras[0].model_copy(update={"source": str(video.path.absolute())})
        stored_nowhere = {"cameras": (camera,), "state_dir": None, "recording": None}
        with show_progress(f"{config.model} {video.name}".strip(), None, stop) as progress, ExitStack() as resources:
            sink = _Sink(video, found, progress)
            build = load_pipeline(config.pipeline)
            build(config.model_copy(update=stored_nowhere), RunOptions(stop, offline=True, sink=sink), resources).run(
                stop
            )
        check_stop(stop)
    return found


class _Sink:
    """Sink that adds the events of one video, the boxes of their objects, and the latest counts to `found`."""

    def __init__(self, video: Video, found: _Found, progress: Callable[[int], None]) -> None:
        self._video = video
        self._found = found
        self._progress = progress
        self._first_ns: int | None = None

    def publish(self, result: Result) -> None:
        meta, found, name = result.meta, self._found, self._video.name
        first_ns = self._first_ns = meta.captured_ns if self._first_ns is None else self._first_ns
        for event in result.events:
            at_us = self._video.start_us + (event.at_ns - first_ns) // 1000
            found.events.append(ArchivedEvent(event, name, meta.epoch, meta.index, at_us))
            found.judgment.add(found.events[-1:])
        found.boxes.update(boxes_of_tracks(result, name, [event.track_id for event in result.events]))
        judgment = found.judgment
        judgment.counts, judgment.frame_size_px = result.counts, (meta.width_px, meta.height_px)
        judgment.frames += 1
        self._progress(judgment.frames)

    def report(self, report: Report) -> None:
        """Ignore the status reports of the pipeline, because the comparison needs only its events."""
