"""Missed and false counts of lines and zones, for each of several successive blocks of the labeled video.

A true crossing matches a counted crossing if both have the same line and direction, and almost the same time. The same
applies to entries and exits of zones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.analytics.count_accuracy import BLOCK_S, Clip, CountBlock, dump_clips, load_clips
from vision.analytics.geometry import ZoneSet
from vision.config import CameraAnalytics, ZoneConfig
from vision.config.analytics import Units, pixels_per_unit
from vision.config.paths import exists
from vision.config.user_files import write_output
from vision.errors import ConfigError, VisionError
from vision.evaluation.crossings import anchor_points, lines_of_class, timed_crossings
from vision.evaluation.mot import Boxes
from vision.evaluation.passes import Video
from vision.types import Event

_REPORTED_S: Final = 1.0  # maximum delay of a report in seconds, in addition to `lost_s`
_MARGIN: Final = 0.1  # minimum distance from the border of a zone, as a fraction of the longer side of the object's box
_GRAIN_S: Final = 1e-3  # precision of times in seconds

Times: TypeAlias = dict[tuple[str, str], list[float]]
"""Times in seconds of crossings, entries, and exits, by the name of the line or zone and the kind of the passage."""


def count_errors(
    section: CameraAnalytics,
    truth: Boxes,
    events: Sequence[tuple[int, Event]],
    class_name: str,
    video: Video,
    *,
    lost_s: float,
) -> Clip:
    """Compare the counted crossings, entries, and exits with the ground truth.

    Args:
        section: lines and zones of the camera.
        truth: labeled boxes of the class.
        events: events of the pipeline, with their frame numbers from 1.
        class_name: class of the labeled objects.
        video: the labeled video.
        lost_s: the setting `lost_s` of the tracker, in seconds.

    Returns:
        For each line or zone, and for each key, such as ``in``, the true, missed, and false counts in each block of
        `BLOCK_S` seconds.
    """
    true, counted = _true_times(section, truth, class_name, video, lost_s), _counted_times(events, class_name, video)
    clip: dict[str, dict[str, list[CountBlock]]] = {}
    for (name, key), times_s in true.items():
        blocks = match_times(times_s, counted.get((name, key), []), video.duration_s, window_s=lost_s + _REPORTED_S)
        clip.setdefault(name, {})[key] = blocks
    return clip


def _true_times(section: CameraAnalytics, truth: Boxes, class_name: str, video: Video, lost_s: float) -> Times:
    times: Times = {}
    for line in lines_of_class(section, class_name):
        for key in ("in", "out") if line.direction == "both" else (line.direction,):
            times[line.name, key] = []
        for time_s, key in timed_crossings(line, section.units, truth, video, lost_s):
            if (line.name, key) in times:
                times[line.name, key].append(time_s)
    for zone in section.zones:
        if zone.classes is None or class_name in zone.classes:
            times |= {(zone.name, key): [] for key in ("entered", "left")}
            for time_s, key in true_passages(zone, section.units, truth, video, lost_s):
                times[zone.name, key].append(time_s)
    return times


def _counted_times(events: Sequence[tuple[int, Event]], class_name: str, video: Video) -> Times:
    keys = {"zone_entered": "entered", "zone_left": "left"}
    times: Times = {}
    for frame, event in events:
        key = event.data.get("direction") if event.kind == "line_crossed" else keys.get(event.kind)
        if key is not None and event.data.get("class", class_name) == class_name:
            times.setdefault((event.name, str(key)), []).append(frame * video.interval_s)
    return times


def match_times(
    true_s: Sequence[float], counted_s: Sequence[float], duration_s: float, *, window_s: float
) -> list[CountBlock]:
    """Match each true time with a counted time that differs by at most `window_s`, starting with the earliest times.

    All arguments are in seconds. The video lasts `duration_s`. Return the number of true, missed, and false times in
    each block of `BLOCK_S` seconds of the video.
    """
    number = max(1, round(duration_s / BLOCK_S))
    true, missed, false = (np.zeros(number, np.int64) for _ in range(3))

    def block(time_s: float) -> int:
        return min(int(time_s / BLOCK_S), number - 1)

    waiting = sorted(counted_s)
    for time_s in sorted(true_s):
        true[block(time_s)] += 1
        while waiting and waiting[0] < time_s - window_s:
            false[block(waiting.pop(0))] += 1
        if waiting and waiting[0] <= time_s + window_s:
            waiting.pop(0)
        else:
            missed[block(time_s)] += 1
    for time_s in waiting:
        false[block(time_s)] += 1
    return [CountBlock(*values) for values in np.stack([true, missed, false], axis=1).tolist()]


def true_passages(
    zone: ZoneConfig, units: Units, truth: Boxes, video: Video, lost_s: float
) -> Iterator[tuple[float, str]]:
    """Yield (time in seconds, ``entered`` or ``left``) for each true entry into a zone and each true exit from it.

    If the last box of an object is less than `lost_s` before the end of the video, do not yield an exit at this box,
    because the video ends before the pipeline reports such an exit.
    """
    size_px = video.width_px, video.height_px
    scale = np.array(pixels_per_unit(units, *size_px))
    area = ZoneSet([[[tuple(corner) for corner in (np.array(ring) * scale).tolist()] for ring in zone.rings]], size_px)
    points = anchor_points(truth.boxes_xyxy, zone.anchor) @ np.array([1.0, 1.0j])
    inside = area.contain(points[:, None])[:, 0]
    sizes_px = (truth.boxes_xyxy[:, 2:] - truth.boxes_xyxy[:, :2]).max(axis=1)
    far = area.distances_to_border(points, np.zeros(len(points), np.intp)) > _MARGIN * sizes_px
    for object_id in np.unique(truth.ids):
        rows = np.flatnonzero(truth.ids == object_id)
        times_s = truth.frames[rows].astype(np.float64) * video.interval_s
        stays = times_s[-1] > video.duration_s - lost_s  # the video ends before the pipeline reports the exit
        yield from _passages(times_s, inside[rows], far[rows], lost_s, stays=stays)


def _passages(
    times_s: NDArray[np.float64], inside: NDArray[np.bool_], far: NDArray[np.bool_], lost_s: float, *, stays: bool
) -> Iterator[tuple[float, str]]:
    """Yield (time in seconds, ``entered`` or ``left``) for each passage of one object.

    Args:
        times_s: times of the object's boxes, (N,), ascending.
        inside: True if the anchor point of the box is in the zone, (N,).
        far: True if the anchor point is so far from the border of the zone that the jitter of the box has no effect,
            (N,).
        lost_s: time in seconds without a box after which the object is lost.
        stays: if True, the end of the path does not count as an exit.
    """
    is_inside = False
    for at, time_s in enumerate(times_s.tolist()):
        gap = at > 0 and time_s - times_s[at - 1] > lost_s + _GRAIN_S
        if gap and is_inside:
            yield float(times_s[at - 1]), "left"
            is_inside = False
        if bool(inside[at]) is not is_inside and (far[at] or gap or at == 0):
            is_inside = not is_inside
            yield time_s, "entered" if is_inside else "left"
    if is_inside and not stays:
        yield float(times_s[-1]), "left"


# --- file -------------------------------------------------------------------------------------------------------------


def add_clip(path: Path, name: str, clip: Clip) -> int:
    """Add a clip to an accuracy file, or replace the clip of the same name. Create the file if necessary.

    Returns:
        The number of clips in the file.

    Raises:
        ConfigError: the file exists, but cannot be read or is not an accuracy file.
        VisionError: the file cannot be written, or cannot currently be read.
    """
    clips: Mapping[str, Clip] = load_clips(path) if exists(path) else {}
    clips = {**clips, name: clip}
    try:
        write_output(path, dump_clips(clips))
    except OSError as error:
        raise VisionError(f"--accuracy: cannot write {path}: {error.strerror}") from error
    return len(clips)


def check_accuracy_file(path: Path) -> None:
    """Check that `add_clip` can add a clip to the file.

    Raises:
        ConfigError: the name does not end in .json, or the file exists, but cannot be read or is not an accuracy file.
        Unavailable: the file cannot currently be read.
    """
    if path.suffix != ".json":
        raise ConfigError(f"--accuracy: expected a name that ends in .json, got {path}", code="accuracy-format")
    if exists(path):
        load_clips(path)
