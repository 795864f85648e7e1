"""Implementation of `vision eval`: a run of a pipeline on a labeled video, and a comparison with ground truth."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from vision.config import AppConfig, check_classes, load_config, nearest, resolve_config
from vision.config.paths import can_write
from vision.detect.open import published_class_names
from vision.errors import EXIT_OK, ConfigError
from vision.evaluation import passes
from vision.evaluation.count_errors import add_clip, check_accuracy_file, count_errors
from vision.evaluation.crossings import LineScore, lines_of_class, score_lines
from vision.evaluation.detection import score_detections
from vision.evaluation.mot import read_truth, write_boxes
from vision.evaluation.passes import Findings, Scene, Subject, boxes_of_class, shapes_of_class
from vision.evaluation.plots import plot_detection, plot_objects, plot_tracks, require_matplotlib
from vision.evaluation.progress import check_stop, show_progress
from vision.evaluation.report import Evaluation, print_evaluation, write_json
from vision.evaluation.tracks import load_metrics, match_frames, score_tracks
from vision.pipelines import load_pipeline
from vision.runtime.builder import find_model
from vision.version import require_cv2


@dataclass(frozen=True, slots=True)
class Request:
    """Arguments of `vision eval`."""

    config: str
    truth: Path
    camera: str | None = None
    class_name: str = "person"
    json: Path | None = None
    plots: Path | None = None
    video: Path | None = None
    result: Path | None = None
    accuracy: Path | None = None

    def check_outputs(self) -> None:
        """Check that all outputs can be written, and create the folder for plots. Call this before the pipeline runs.

        Raises:
            ConfigError: an output cannot be written, has the wrong extension, or needs a package that is missing, or
                `--accuracy` names an existing file that is not an accuracy file.
        """
        for option, path in self._files():
            if path is not None and not can_write(path):
                hint = "name a file that you can write, in an existing folder"
                raise ConfigError(f"{option}: cannot write {path}", hint=hint, code="not-writable")
        if self.accuracy is not None:
            check_accuracy_file(self.accuracy)
        if self.video is not None and self.video.suffix.lower() != ".mp4":
            raise ConfigError(f"--video: expected a name that ends in .mp4, got {self.video}", code="video-format")
        if self.video is not None:
            require_cv2("--video")
        if self.plots is not None:
            require_matplotlib()
            try:
                self.plots.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                fault = f"--plots: cannot create the folder {self.plots}: {error.strerror}"
                raise ConfigError(fault, code="not-writable") from error

    def _files(self) -> Iterator[tuple[str, Path | None]]:
        yield "--json", self.json
        yield "--video", self.video
        yield "--result", self.result
        yield "--accuracy", self.accuracy


def run(request: Request, stop: threading.Event) -> int:
    """Evaluate the pipeline, print the table, and write the requested files. Return the exit code.

    Raises:
        Closed: `stop` was set.
        ConfigError: an argument, the configuration, or the ground truth is invalid, or a package is missing.
        VisionError: the run failed, or a file cannot be written.
    """
    request.check_outputs()
    load_metrics()  # before the pipeline runs
    subject = open_subject(request, stop)
    began = time.monotonic()
    with show_progress("running the pipeline", subject.video.frames) as progress:
        findings = passes.run_pipeline(subject.build, subject.config, progress, stop)
    check_stop(stop)
    evaluation, scene = evaluate(subject, findings, request.config, time.monotonic() - began)
    console = Console()
    print_evaluation(evaluation, console)
    for path in _write(request, evaluation, scene, stop):
        console.print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)
    return EXIT_OK


def open_subject(request: Request, stop: threading.Event) -> Subject:
    """Load and check the configuration, the ground truth, and the video.

    Raises:
        Closed: `stop` was set.
        ConfigError: the configuration, its camera, the class, or the ground truth is invalid, or they do not match.
        ModelError: the model is missing or unknown.
        SourceError: the video cannot be read.
    """
    path = resolve_config(request.config)
    config = load_config(path, os.environ)
    build = load_pipeline(config.pipeline)
    names = published_class_names(find_model(config.model)[1], config.detect)
    check_classes(config, names, path)
    config = passes.select_camera(config, request.camera)
    class_id = _class_id(request.class_name, names, config)
    truth = read_truth(request.truth)
    with show_progress("reading the video", int(truth.boxes.frames[-1]), stop) as progress:
        video = passes.survey(config.cameras[0], progress)
    truth.check_length(video.frames, video.name)
    return Subject(config, build, class_id, request.class_name, truth, video)


def evaluate(subject: Subject, findings: Findings, config_name: str, seconds: float) -> tuple[Evaluation, Scene]:
    """Compute all metrics. Return the metrics, and the data for the plots and the annotated video.

    Args:
        subject: the checked inputs.
        findings: the results of the pipeline.
        config_name: name of the configuration, as specified by the user.
        seconds: duration of the pipeline run.
    """
    config, video, truth = subject.config, subject.video, subject.truth.boxes
    camera = config.cameras[0]
    published = boxes_of_class(findings.objects, subject.class_id)
    partners = match_frames(truth, published, video.frames)
    lines: Sequence[LineScore] = ()
    if findings.tracked:
        events, lost_s = findings.events, config.track.lost_s
        lines = score_lines(subject.section, truth, events, subject.class_name, video, lost_s=lost_s)
    evaluation = Evaluation(
        config=config_name,
        camera=camera.id,
        pipeline=config.pipeline,
        model=config.model,
        backend=findings.backend,
        class_name=subject.class_name,
        truth=str(subject.truth.path),
        video=video,
        detection=score_detections(
            truth,
            boxes_of_class(findings.detections, subject.class_id),
            score=config.detect.score_threshold,
            lowest_score=min(passes.LOWEST_SCORE, config.detect.score_threshold),
        ),
        tracking=score_tracks(truth, published, video.frames, partners) if findings.tracked else None,
        lines=tuple(lines),
        notes=tuple(_notes(subject, findings)),
        seconds=seconds,
    )
    shapes = shapes_of_class(findings.objects, subject.class_id)
    return evaluation, Scene(subject, published, partners, findings.tracked, tuple(findings.events), shapes)


def _notes(subject: Subject, findings: Findings) -> Iterator[str]:
    """Yield a note on each fact that limits the validity of the metrics."""
    truth, frames = subject.truth, subject.video.frames
    empty, last = frames - len(np.unique(truth.boxes.frames)), int(truth.boxes.frames[-1])
    if empty:
        yield f"{empty} of {frames} frames have no rows in {truth.path}, so every object found in them counts as false"
    if last < frames:
        yield f"the last row of {truth.path} is for frame {last}. If the rest is not labeled, cut the video there"
    if truth.invalid:
        yield f"{truth.invalid} rows of {truth.path} have 0 in column 7 and are ignored"
    if len(findings.objects) < frames:
        yield f"{frames - len(findings.objects)} of {frames} frames have no result, because they are damaged"
    if not findings.tracked:
        yield f"the pipeline {subject.config.pipeline} has no tracker, so there are no tracking metrics"
    unused = len(subject.section.lines) - len(lines_of_class(subject.section, subject.class_name))
    if unused:
        yield f"{unused} lines do not count objects of the class {subject.class_name}"


def _class_id(name: str, names: Sequence[str], config: AppConfig) -> int:
    if name not in names:
        near = nearest(name, names)
        few = f"the classes of {config.model} are {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
        hint = f"did you mean {near}?" if near is not None else few
        raise ConfigError(f"--class: no class {name!r}", hint=hint, code="unknown-class")
    if config.detect.classes is not None and name not in config.detect.classes:
        raise ConfigError(f"--class: `detect.classes` does not include {name}", code="class-left-out")
    return names.index(name)


def _write(request: Request, evaluation: Evaluation, scene: Scene, stop: threading.Event) -> Iterator[str]:
    if request.json is not None:
        write_json(evaluation, request.json)
        yield str(request.json)
    if request.result is not None:
        write_boxes(request.result, scene.found)
        yield str(request.result)
    if request.accuracy is not None:
        subject, lost_s = scene.subject, scene.subject.config.track.lost_s
        truth, class_name = subject.truth.boxes, subject.class_name
        clip = count_errors(subject.section, truth, scene.events, class_name, subject.video, lost_s=lost_s)
        clips = add_clip(request.accuracy, f"{subject.video.name} {subject.truth.path}", clip)
        yield f"{request.accuracy} ({'1 clip' if clips == 1 else f'{clips} clips'})"
    if request.plots is not None:
        yield from _plot(request.plots, evaluation, scene)
    if request.video is not None:
        from vision.evaluation.annotated import write_video  # needs OpenCV

        with show_progress("drawing the video", evaluation.video.frames, stop) as progress:
            codec = write_video(request.video, scene, progress)
        yield f"{request.video} ({codec})"


def _plot(folder: Path, evaluation: Evaluation, scene: Scene) -> Iterator[str]:
    boxes = scene.subject.truth.boxes, scene.found, scene.partners, evaluation.video
    plots: dict[str, Callable[[Path], None]] = {
        "precision-recall": partial(plot_detection, evaluation.detection, evaluation.class_name),
        "objects": partial(plot_objects, *boxes),
    }
    if scene.tracked:
        plots["tracks"] = partial(plot_tracks, *boxes)
    for name, plot in plots.items():
        path = folder / f"{name}.png"
        plot(path)
        yield str(path)
