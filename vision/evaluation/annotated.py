"""Annotated video of an evaluation: found, missed, and false objects, trails, lines, zones, and counters."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from vision.analytics.geometry import ZoneSet
from vision.capture.frame_reader import read_frames
from vision.config.analytics import pixels_per_unit
from vision.drawing.overlay import FALSE_COLOR, WHITE, Frame, Overlay, class_color
from vision.evaluation.crossings import anchor_points, lines_of_class
from vision.evaluation.passes import Progress, Scene
from vision.stages.video_encoder import open_encoder
from vision.types import Event

_TRAIL_S: Final = 2.0  # duration of a trail in seconds
_REMIND_S: Final = 1.0  # time in seconds for which a label shows the former track of its object


def write_video(path: Path, scene: Scene, progress: Progress) -> str:
    """Read the labeled video a second time, and write the annotated video to `path`.

    Return the name of the video codec.

    Raises:
        SourceError: the video cannot be read a second time.
        VisionError: the file cannot be written.
    """
    painter, video = _Painter(scene), scene.subject.video
    with (
        closing(read_frames(scene.subject.config.cameras[0], offline=True)) as images,
        open_encoder(path, video.width_px, video.height_px) as encoder,
    ):
        for image in islice(images, video.frames):
            painter.draw(image.pixels, image.index + 1)
            encoder.write(image.pixels, image.index * video.interval_s)
            progress(image.index + 1)
    return encoder.codec


class _Painter:
    """Painter that draws objects, trails, lines, zones, and counters on the video frames, in order.

    It keeps the trails, the counters, and the former track of each object between frames.
    """

    def __init__(self, scene: Scene) -> None:
        subject = scene.subject
        self._video = video = subject.video
        self._scene = scene
        self._color = class_color(subject.class_id)
        self._truth = subject.truth.boxes
        self._true_rows = self._truth.slices(video.frames)
        self._found_rows = scene.found.slices(video.frames)
        self._feet = anchor_points(scene.found.boxes_xyxy, "bottom-center")
        self._former = _former_tracks(scene)
        self._remind = max(1, round(_REMIND_S / video.interval_s))
        self._trail = max(2, round(_TRAIL_S / video.interval_s))
        self._trails: dict[int, list[tuple[int, int]]] = defaultdict(list)  # track id -> (frame, row)
        self._reminders: dict[int, tuple[int, int]] = {}  # track id -> (former track, until frame)
        self._crossed: dict[str, Counter[str]] = defaultdict(Counter)
        self._events: dict[int, list[Event]] = defaultdict(list)
        for frame, event in scene.events:
            self._events[frame].append(event)
        lines = tuple(lines_of_class(subject.section, subject.class_name))
        self._shown = subject.section.model_copy(update={"lines": lines})

    def draw(self, image: Frame, frame: int) -> None:
        scene, rows, true_rows = self._scene, self._found_rows[frame - 1], self._true_rows[frame - 1]
        partners = scene.partners[true_rows]
        hits = set(partners[partners >= 0].tolist())
        missed = self._truth.boxes_xyxy[true_rows][partners < 0]
        overlay = Overlay(image)
        found = len(partners) - len(missed)
        seconds = (frame - 1) * self._video.interval_s
        overlay.banner(
            f"{scene.subject.config.cameras[0].id}   frame {frame} of {self._video.frames}   {seconds:.1f} s",
            f"{found} of {len(partners)} found   {rows.stop - rows.start - found} false",
        )
        if scene.tracked:
            self._draw_trails(overlay, rows, frame)
        overlay.analytics(self._shown, crossed=self._count(frame) if scene.tracked else None, inside=self._inside(rows))
        for box in missed:
            overlay.dashed_box(box.astype(np.float32), WHITE, "missed")
        numbers = range(rows.start, rows.stop)
        colors = [self._color if row in hits else FALSE_COLOR for row in numbers]
        labels = [self._label(row, row in hits, frame) for row in numbers]
        overlay.objects(scene.found.boxes_xyxy[rows].astype(np.float32), labels, colors, scene.shapes.get(frame))

    def _label(self, row: int, is_hit: bool, frame: int) -> str:
        if not self._scene.tracked:
            return f"{self._scene.found.scores[row]:.2f}" + ("" if is_hit else " false")
        track_id = int(self._scene.found.ids[row])
        if row in self._former:
            self._reminders[track_id] = self._former[row], frame + self._remind
        former, until = self._reminders.get(track_id, (0, 0))
        label = f"{track_id}" + (f" was {former}" if frame < until else "")
        return label if is_hit else f"{label} false"

    def _draw_trails(self, overlay: Overlay, rows: slice, frame: int) -> None:
        for row in range(rows.start, rows.stop):
            trail = self._trails[int(self._scene.found.ids[row])]
            trail.append((frame, row))
            while trail[0][0] <= frame - self._trail:
                trail.pop(0)
            overlay.trail(self._feet[[row for _, row in trail]], self._color)

    def _count(self, frame: int) -> Mapping[str, Mapping[str, int]]:
        for event in self._events.pop(frame, []):
            if event.kind == "line_crossed":
                self._crossed[event.name][str(event.data.get("direction"))] += 1
        return self._crossed

    def _inside(self, rows: slice) -> Mapping[str, int]:
        scale = pixels_per_unit(self._shown.units, self._video.width_px, self._video.height_px)
        inside = {}
        for zone in self._shown.zones:
            rings = [[(x * scale[0], y * scale[1]) for x, y in ring] for ring in zone.rings]
            places = anchor_points(self._scene.found.boxes_xyxy[rows], zone.anchor)
            points = (places[:, 0] + 1j * places[:, 1])[:, None]
            contained = ZoneSet([rings], (self._video.width_px, self._video.height_px)).contain(points)
            inside[zone.name] = int(np.count_nonzero(contained))
        return inside


def _former_tracks(scene: Scene) -> dict[int, int]:
    """Return the former track for each row of `scene.found` at which a true object changes to a different track."""
    former: dict[int, int] = {}
    last: dict[int, int] = {}
    for true_id, partner in zip(scene.subject.truth.boxes.ids.tolist(), scene.partners.tolist(), strict=True):
        if partner >= 0:
            track_id = int(scene.found.ids[partner])
            if last.get(true_id, track_id) != track_id:
                former[partner] = last[true_id]
            last[true_id] = track_id
    return former
