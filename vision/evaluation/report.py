"""Report of one evaluation, as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vision.config.user_files import write_output
from vision.errors import VisionError
from vision.evaluation.crossings import LineScore
from vision.evaluation.detection import OVERLAPS, Curve, DetectionScores
from vision.evaluation.passes import Video
from vision.evaluation.tracks import TrackingScores
from vision.version import version

SCHEMA: Final = "vision.evaluation/1"
_CURVE_STEP: Final = 0.01  # distance of the score thresholds of the curve


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All metrics of one evaluation."""

    config: str  # name of the configuration, as the user has written it
    camera: str
    pipeline: str
    model: str
    backend: str
    class_name: str  # class of the labeled objects
    truth: str  # path of the ground truth
    video: Video
    detection: DetectionScores
    tracking: TrackingScores | None  # None if the pipeline has no tracker
    lines: tuple[LineScore, ...]  # empty if the pipeline has no tracker
    notes: tuple[str, ...]  # facts that limit the validity of the metrics
    seconds: float  # duration of the pipeline run

    @property
    def line_error(self) -> float | None:
        """Sum of the errors of all lines, divided by the number of true crossings, or None without true crossings."""
        true = sum(line.true for line in self.lines)
        return sum(abs(line.counted - line.true) for line in self.lines) / true if true else None


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print a table with the metrics of the detector, of the tracks, and of the lines, and then the notes."""
    video, found = evaluation.video, evaluation.detection
    about = f"{video.frames} frames of {video.width_px}x{video.height_px}, {video.duration_s:.1f} s"
    rate = f"{video.frames / max(evaluation.seconds, 1e-9):.1f} frames/s"
    run = f"pipeline {evaluation.pipeline}, model {evaluation.model} ({evaluation.backend}), {rate}"
    for line in (f"{evaluation.camera}: {video.name}, {about}", run):
        console.print(escape(line), highlight=False, soft_wrap=True)
    console.print(f"class {escape(evaluation.class_name)}, {found.true_boxes} true boxes", highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    blocks = {"detector": _detection_rows(found)}
    if evaluation.tracking is not None:
        blocks["tracks"] = _tracking_rows(evaluation.tracking)
    if evaluation.lines:
        blocks["lines"] = _line_rows(evaluation)
    for heading, rows in blocks.items():
        table.add_row()
        table.add_row(f"[bold]{heading}[/]")
        for name, value, details in rows:
            table.add_row(f"  {name}", value, details)
    console.print(table)
    for note in evaluation.notes:
        console.print(f"[yellow]{escape(note)}[/]", highlight=False, soft_wrap=True)


def _detection_rows(found: DetectionScores) -> Iterator[tuple[str, str, str]]:
    yield "AP@0.5", _part(found.ap50), f"all detections with a score of at least {found.lowest_score:g}"
    yield "AP@[.5:.95]", _part(found.ap), "mean over overlaps 0.50, 0.55, … 0.95"
    yield "precision", _part(found.precision), f"{found.found_boxes} boxes with a score of at least {found.score:g}"
    yield "recall", _part(found.recall), ""
    yield "F1", _part(found.f1), f"highest {found.best_f1:.3f}, at a score threshold of {found.best_score:.2f}"


def _tracking_rows(found: TrackingScores) -> Iterator[tuple[str, str, str]]:
    parts = f"{found.misses} missed, {found.false_boxes} false, {found.switches} switches"
    yield "MOTA", _part(found.mota), parts
    yield "IDF1", _part(found.idf1), f"{found.tracks} tracks for {found.true_objects} objects"
    parts = f"detection {found.detection_accuracy:.3f}, association {found.association_accuracy:.3f}"
    yield "HOTA", _part(found.hota), parts
    yield "identity switches", str(found.switches), f"{found.fragments} interruptions"
    yield "precision", _part(found.precision), "of the boxes of the tracks"
    yield "recall", _part(found.recall), f"{found.mostly_tracked} mostly tracked, {found.mostly_lost} mostly lost"


def _line_rows(evaluation: Evaluation) -> Iterator[tuple[str, str, str]]:
    for line in evaluation.lines:
        name = f"{escape(line.line)}, {line.direction}"
        yield name, _percent(line.error), f"{line.counted} counted, {line.true} true"
    if evaluation.line_error is not None:
        yield "all lines", _percent(evaluation.line_error), "error of the counts"


def _part(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return "-" if math.isinf(value) else f"{value * 100:.1f} %"


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Write the report as JSON.

    Raises:
        VisionError: the file cannot be written.
    """
    try:
        write_output(path, json.dumps(as_json(evaluation), indent=2) + "\n")
    except OSError as error:
        raise VisionError(f"--json: cannot write {path}: {error.strerror}") from error


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the report as data that JSON can represent. Ratios are fractions of 1, not percentages."""
    plain = asdict(evaluation)
    plain["class"] = plain.pop("class_name")
    plain["video"]["duration_s"] = evaluation.video.duration_s
    for line, score in zip(plain["lines"], evaluation.lines, strict=True):
        line["error"] = score.error if math.isfinite(score.error) else None
    found, detection = evaluation.detection, plain["detection"]
    by_overlap = zip(OVERLAPS, detection.pop("by_overlap"), strict=True)
    detection |= {
        "ap_by_overlap": {f"{overlap:.2f}": ap for overlap, ap in by_overlap},
        "interpolation": "all points",
        "f1": found.f1,
        "best": {"score": detection.pop("best_score"), "f1": detection.pop("best_f1")},
        "curve": list(_curve(found.curve, found.lowest_score)),
    }
    return {"schema": SCHEMA, "version": version(), **plain, "line_error": evaluation.line_error}


def _curve(curve: Curve, lowest_score: float) -> Iterator[dict[str, float]]:
    """Yield precision and recall for score thresholds from `lowest_score` to 1, in steps of 0.01."""
    for score in np.arange(lowest_score, 1.0, _CURVE_STEP):
        precision, recall = curve.at(float(score))
        yield {"score": round(float(score), 2), "precision": precision, "recall": recall}
