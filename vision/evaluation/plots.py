"""Plots of an evaluation, drawn by matplotlib without a display."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vision.evaluation.detection import DetectionScores
from vision.evaluation.figure_file import write_figure
from vision.evaluation.language.judgments import Judgments
from vision.evaluation.mot import Boxes
from vision.evaluation.passes import Video
from vision.evaluation.tracks import INSTALL
from vision.version import require_package

_BLUE, _ORANGE, _GREEN, _RED, _GRAY = "#2f7ebc", "#e8833a", "#3a9d5d", "#c93b3b", "#8a8f98"
_TRACK_COLORS: Final = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#edc948", "#76b7b2", "#9c755f", "#d37295")
_DPI: Final = 130


def require_matplotlib() -> None:
    """Raise ConfigError if matplotlib is not installed."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # at INFO, matplotlib logs its search for fonts
    require_package("matplotlib.figure", "--plots needs matplotlib", INSTALL)


def plot_detection(found: DetectionScores, class_name: str, path: Path) -> None:
    """Write two plots to the file `path`: precision against recall, and metrics against the score threshold.

    The metrics are precision, recall, and F1.
    """
    figure, (left, right) = _figure(10.0, 4.4, 2)
    curve = found.curve
    left.plot(curve.recall, curve.precision, color=_BLUE, linewidth=2)
    left.fill_between(curve.recall, curve.precision, color=_BLUE, alpha=0.12, linewidth=0)
    left.plot([found.recall], [found.precision], "o", color=_ORANGE, markersize=8)
    label = f"score {found.score:g}\nprecision {found.precision:.3f}\nrecall {found.recall:.3f}"
    left.annotate(label, (found.recall, found.precision), (-12, -12), textcoords="offset points", ha="right", va="top")
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    left.set_title(f"{class_name}: AP@0.5 {found.ap50:.3f}, AP@[.5:.95] {found.ap:.3f}", loc="left")
    if len(curve.scores):
        shown = (("precision", curve.precision, _BLUE), ("recall", curve.recall, _GREEN), ("F1", curve.f1, _GRAY))
        for name, values, color in shown:
            right.plot(curve.scores, values, color=color, linewidth=1.8, label=name)
    right.axvline(found.score, color=_ORANGE, linewidth=1.5, linestyle="--", label=f"published from {found.score:g}")
    right.set(xlabel="score threshold", xlim=(0, 1), ylim=(0, 1.02))
    right.set_title("at different score thresholds, overlap 0.5", loc="left")
    right.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=9)
    _save(figure, path)


def plot_objects(truth: Boxes, found: Boxes, partners: NDArray[np.int64], video: Video, path: Path) -> None:
    """Plot the numbers of true, found, missed, and false objects in each frame to the file `path`.

    `partners` is the result of `match_frames`.
    """
    figure, (axes,) = _figure(10.0, 3.6, 1)
    seconds = np.arange(video.frames) * video.interval_s
    true = np.bincount(truth.frames - 1, minlength=video.frames)
    hits = np.bincount(truth.frames[partners >= 0] - 1, minlength=video.frames)
    false = np.bincount(found.frames - 1, minlength=video.frames) - hits
    axes.step(seconds, true, where="post", color=_GRAY, linewidth=1.5, label="true objects")
    axes.step(seconds, hits, where="post", color=_BLUE, linewidth=1.5, label="found")
    axes.fill_between(seconds, hits, true, step="post", color=_ORANGE, alpha=0.35, linewidth=0, label="missed")
    axes.fill_between(seconds, 0, false, step="post", color=_RED, alpha=0.6, linewidth=0, label="false")
    axes.set(xlabel="seconds", ylabel="objects", xlim=(0, video.duration_s))
    axes.set_ylim(bottom=0)
    axes.set_title("objects per frame: found, missed and false", loc="left")
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=9)
    _save(figure, path)


def plot_tracks(truth: Boxes, found: Boxes, partners: NDArray[np.int64], video: Video, path: Path) -> None:
    """Plot a bar over time for each true object to the file `path`.

    The bar is gray while the detector or tracker misses the object, and has a different color for each track.
    `partners` is the result of `match_frames`.
    """
    ids = np.unique(truth.ids)
    figure, (axes,) = _figure(10.0, min(30.0, 1.4 + 0.26 * len(ids)), 1)
    for at, object_id in enumerate(ids):
        rows = np.flatnonzero(truth.ids == object_id)
        switches = -1
        last: int | None = None
        for start, length, track_id in _spells(truth.frames[rows], partners[rows], found.ids):
            if track_id is not None and track_id != last:
                switches, last = switches + 1, track_id
            color = "#d9dce1" if track_id is None else _TRACK_COLORS[switches % len(_TRACK_COLORS)]
            began_s = (start - 1) * video.interval_s
            axes.barh(at, length * video.interval_s, left=began_s, height=0.72, color=color, linewidth=0)
        if switches > 0:
            label = f"  {switches} switch{'es' if switches > 1 else ''}"
            axes.text(truth.frames[rows[-1]] * video.interval_s, at, label, va="center", fontsize=7, color=_RED)
    axes.set_yticks(range(len(ids)), [str(each) for each in ids], fontsize=7 if len(ids) > 12 else 9)
    axes.set(xlabel="seconds", ylabel="true object", xlim=(0, video.duration_s * 1.06), ylim=(len(ids) - 0.4, -0.6))
    axes.set_title("track of each object: a new color is an identity switch, gray is missed", loc="left")
    _save(figure, path)


def plot_removals(results: Mapping[str, Judgments], path: Path) -> None:
    """Plot the share of removed false alarms against the share of lost true events, with one curve per prompt.

    Each point of a curve is the effect of a threshold on the probability that an event is true, according to the model.
    A marker shows the effect of the model's answers without a threshold. The keys of `results` are the names of the
    prompts.
    """
    figure, (axes,) = _figure(7.0, 5.0, 1)
    for number, (name, result) in enumerate(results.items()):
        color = _TRACK_COLORS[number % len(_TRACK_COLORS)]
        lost_of, removed_of = result.lost.total, result.removed.total
        points = [(point.lost / max(1, lost_of), point.removed / max(1, removed_of)) for point in result.curve()]
        lost, removed = zip(*points, strict=True)
        axes.step(lost, removed, where="post", color=color, linewidth=1.8, label=name)
        axes.plot([result.lost.share], [result.removed.share], "o", color=color, markersize=8)
    axes.set(xlabel="true events lost", ylabel="false alarms removed", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title("effect of each threshold; the markers are the answers", loc="left")
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    _save(figure, path, "--plot")


def _spells(
    frames: NDArray[np.int64], partners: NDArray[np.int64], track_ids: NDArray[np.int64]
) -> Iterator[tuple[int, int, int | None]]:
    """Yield (first frame, number of frames, track id) of each period in which one object keeps the same track.

    The track id is None for a period in which the object is missed.
    """
    tracks = np.where(partners >= 0, track_ids[partners] if len(track_ids) else -1, -1)
    edges = np.flatnonzero((np.diff(frames) > 1) | (np.diff(tracks) != 0)) + 1
    for spell in np.split(np.arange(len(frames)), edges):
        track = int(tracks[spell[0]])
        yield int(frames[spell[0]]), len(spell), track if track >= 0 else None


def _figure(width_in: float, height_in: float, columns: int) -> tuple[Any, list[Any]]:
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(width_in, height_in), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, columns)))
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color="#e6e8ec", linewidth=0.8)
        each.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, path: Path, option: str = "--plots") -> None:
    write_figure(figure, path, option, dpi=_DPI)
