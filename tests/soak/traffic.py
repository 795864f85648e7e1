"""Simulated traffic with known counts: objects on scripted paths, and the crossings that the script implies.

The true counts are computed from the positions of an object on one axis, without code of the project. Paths include
cases that are difficult for a counter: an object turns back on either side of a line, stands on a line while its box
jitters, stands at the border of a zone, or jumps over a line between two frames.

Each object moves in a separate lane, so that a tracker cannot confuse two objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np

from vision.config.analytics import CameraAnalytics, LineConfig, ZoneConfig
from vision.types import Detections

WIDTH_PX: Final = 1280
HEIGHT_PX: Final = 720
CLASS_NAMES: Final = ("person", "bicycle", "car")

LINES_X: Final = {"west": 400.0, "east": 900.0}
ZONE_X: Final = (560.0, 740.0)
DWELL_S: Final = 8.0

_LEFT, _RIGHT = 60.0, 1220.0
_LANES: Final = 12
_BOX_HEIGHT_PX: Final = 44.0
_REST_S: Final = 5.0  # a lane stays empty for longer than a lost track is kept

_CLEARLY_S: Final = 1.5  # minimum difference between the time in the zone and DWELL_S

_SECOND_NS: Final = 1_000_000_000

ANALYTICS: Final = CameraAnalytics(
    lines=tuple(LineConfig(name=name, points=((x, 0), (x, HEIGHT_PX))) for name, x in LINES_X.items()),
    zones=(
        ZoneConfig(
            name="middle",
            polygon=((ZONE_X[0], 0), (ZONE_X[1], 0), (ZONE_X[1], HEIGHT_PX), (ZONE_X[0], HEIGHT_PX)),
            dwell_s=DWELL_S,
        ),
    ),
)
"""Two lines drawn downwards (movement to the left crosses `in`) and a zone, over the whole height."""


@dataclass
class Truth:
    """True counts of all objects that have left the scene so far."""

    objects: int = 0
    crossings: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # line, direction, class
    entered: Counter[str] = field(default_factory=Counter)  # class
    dwellers: int = 0


@dataclass(frozen=True)
class Frame:
    """One frame of the simulation."""

    captured_ns: int
    detections: Detections
    visible: int  # number of objects in the frame, detected or not


@dataclass(frozen=True)
class _Walk:
    """Path of one object. Its position is linear between the points `times_s` and `places_x`."""

    times_s: np.ndarray[tuple[int], np.dtype[np.float64]]
    places_x: np.ndarray[tuple[int], np.dtype[np.float64]]
    class_id: int
    score: float

    def x(self, now_s: float) -> float:
        return float(np.interp(now_s, self.times_s, self.places_x))


class Traffic:
    """Stream of frames over `seconds` simulated seconds, and the true counts of this stream.

    Args:
        seconds: duration of the traffic, excluding the time that the last objects need to leave.
        fps: frames per simulated second.
        seed: seed of the traffic.
        busy: approximate fraction of the lanes that contain an object.
        missed: fraction of missed detections.
        jitter: standard deviation of the corners of a box, relative to the height of the box.
    """

    def __init__(
        self,
        seconds: float,
        *,
        fps: float = 5.0,
        seed: int = 0,
        busy: float = 0.6,
        missed: float = 0.03,
        jitter: float = 0.008,
    ) -> None:
        self._seconds, self._fps, self._busy, self._missed, self._jitter = seconds, fps, busy, missed, jitter
        self._random = np.random.default_rng(seed)
        self._walks: list[_Walk | None] = [None] * _LANES
        self._free_s = [0.0] * _LANES
        self._seen_last = [False] * _LANES
        self.truth = Truth()

    def __iter__(self) -> Iterator[Frame]:
        index, now_s = 0, 0.0
        while now_s < self._seconds or any(walk is not None for walk in self._walks) or now_s < max(self._free_s):
            yield self._frame(now_s)
            index += 1
            now_s = index / self._fps

    def _frame(self, now_s: float) -> Frame:
        boxes, scores, classes = [], [], []
        for lane, walk in enumerate(self._walks):
            if walk is None:
                self._perhaps_begin(lane, now_s)
                continue
            if now_s > walk.times_s[-1]:
                self._end(lane, walk, now_s)
                continue
            missed = self._seen_last[lane] and self._random.random() < self._missed
            self._seen_last[lane] = not missed
            if missed:
                continue
            boxes.append(self._box(lane, walk.x(now_s)))
            scores.append(walk.score)
            classes.append(walk.class_id)
        visible = sum(walk is not None for walk in self._walks)
        detections = Detections(
            np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(classes, np.int32)
        )
        return Frame(round(now_s * _SECOND_NS), detections, visible)

    def _box(self, lane: int, x: float) -> tuple[float, float, float, float]:
        foot_y = (lane + 1) * HEIGHT_PX / (_LANES + 1)
        e = self._random.normal(0.0, self._jitter * _BOX_HEIGHT_PX, 4)
        half = 0.3 * _BOX_HEIGHT_PX
        return (x - half + e[0], foot_y - _BOX_HEIGHT_PX + e[1], x + half + e[2], foot_y + e[3])

    def _perhaps_begin(self, lane: int, now_s: float) -> None:
        if now_s >= self._seconds or now_s < self._free_s[lane]:
            return
        if self._random.random() > self._busy / self._fps:
            return
        walk = self._walk(now_s)
        while any(abs(stay_s - DWELL_S) < _CLEARLY_S for stay_s in _stays_s(walk)):
            walk = self._walk(now_s)
        self._walks[lane] = walk
        self._seen_last[lane] = False

    def _walk(self, now_s: float) -> _Walk:
        places, waits_s = self._script()
        # No object stops or turns suddenly at high speed, because no motion model could predict this at 5 frames/s.
        speed = self._random.uniform(25.0, 130.0 if len(places) == 2 else 45.0)
        times_s, places_x = [now_s], [places[0]]
        for place, wait_s in zip(places[1:], waits_s[1:], strict=True):
            arrival_s = times_s[-1] + abs(place - places_x[-1]) / speed
            times_s += [arrival_s, arrival_s + wait_s]
            places_x += [place, place]
        return _Walk(
            np.array(times_s),
            np.array(places_x),
            int(self._random.integers(len(CLASS_NAMES))),
            float(self._random.uniform(0.7, 0.95)),
        )

    def _script(self) -> tuple[list[float], list[float]]:
        """Return the positions on the path of an object, and the time, in seconds, that it stays at each position."""
        here, there = (_LEFT, _RIGHT) if self._random.random() < 0.5 else (_RIGHT, _LEFT)
        line = float(self._random.choice(list(LINES_X.values())))
        beyond = line + (60.0 if there > here else -60.0)
        before = line - (60.0 if there > here else -60.0)
        middle = sum(ZONE_X) / 2
        stay_s = float(self._random.uniform(0.0, 20.0))
        scripts: Sequence[tuple[list[float], list[float]]] = (
            ([here, there], [0, 0]),
            ([here, beyond, here], [0, 1, 0]),  # turns back behind a line
            ([here, before, here], [0, 1, 0]),  # turns back before it
            ([here, line, there], [0, stay_s, 0]),  # stands on it, and continues
            ([here, line, here], [0, stay_s, 0]),  # stands on it and turns back
            ([here, beyond, before, there], [0, 0.5, 0.5, 0]),  # hesitates
            ([here, middle, there], [0, stay_s, 0]),  # waits in the zone
            ([here, ZONE_X[0], there], [0, stay_s, 0]),  # stands at its border
        )
        return scripts[int(self._random.integers(len(scripts)))]

    def _end(self, lane: int, walk: _Walk, now_s: float) -> None:
        self._walks[lane] = None
        self._free_s[lane] = now_s + _REST_S
        truth, name = self.truth, CLASS_NAMES[walk.class_id]
        truth.objects += 1
        for line, x in LINES_X.items():
            sides = [place > x for place in walk.places_x if place != x]
            for was_right, is_right in pairwise(sides):
                if was_right != is_right:
                    truth.crossings[line, "in" if was_right else "out", name] += 1
        stays_s = list(_stays_s(walk))
        truth.entered[name] += len(stays_s)
        truth.dwellers += sum(stay_s > DWELL_S for stay_s in stays_s)


def _stays_s(walk: _Walk) -> Iterator[float]:
    """Yield the duration, in seconds, of each stay in the zone. An object on the border keeps its previous state."""
    entered_s = None
    for (t0, x0), (t1, x1) in _legs(walk):
        for border in sorted(ZONE_X, reverse=x1 < x0):
            if min(x0, x1) < border < max(x0, x1):
                now_s = t0 + (t1 - t0) * (border - x0) / (x1 - x0)
            elif x0 == border != x1:
                now_s = t0
            else:
                continue
            is_inside = (x1 > x0) == (border == ZONE_X[0])
            if is_inside and entered_s is None:
                entered_s = now_s
            elif not is_inside and entered_s is not None:
                yield now_s - entered_s
                entered_s = None


def _legs(walk: _Walk) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    points = list(zip(walk.times_s.tolist(), walk.places_x.tolist(), strict=True))
    return pairwise(points)
