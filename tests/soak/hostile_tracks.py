"""Apply the crossing counter to hostile tracks, and check the counts with an oracle that knows the true paths.

    python -m tests.soak.hostile_tracks [--tracks 10000000] [--seed 0] [--seconds SECONDS]

Objects stand at lines, turn back, jump, grow, flicker, disappear for seconds, and reach the edge of the frame. The
errors of their boxes reach the limit that docs/analytics.md states. Frame rates are 2 to 60 frames/s. The clock jumps,
and the camera pauses.

The oracle does not imitate the counter. For each object, line, and direction, it computes two bounds from the true
path:

* the number of times that the object truly changes sides. Additional crossings are invented.
* the number of changes between visits that must establish a side, regardless of the errors of the boxes. If the counter
  counts fewer crossings, it has missed some.

The command prints the number of tracks, and the number of each kind of fault, as JSON. The exit code is 1 if there is a
fault.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.analytics.camera_analytics import Analytics
from vision.config.analytics import CameraAnalytics, LineConfig, ZoneConfig
from vision.types import Event, Tracks

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]

WIDTH_PX: Final = 1280
HEIGHT_PX: Final = 720
TRACKS: Final = 2000  # per batch
LIMIT: Final = 0.04  # largest error of an anchor, as a part of the longer side of the box
CUT_LIMIT: Final = 0.02  # the same for boxes at the edge of the frame
MARGIN: Final = 0.1  # distance from a line beyond which a side is certainly established, in the same unit
LOST_S: Final = 1.5
_HOLD_S: Final = 0.5
_REMEMBERED_S: Final = 60.0
_SLACK: Final = 1e-3
_CORNERS: Final = 7  # of each path

CONFIG: Final = CameraAnalytics(
    lines=(
        LineConfig(name="middle", points=((640, 0), (640, HEIGHT_PX))),
        LineConfig(name="edge", points=((WIDTH_PX, 690), (0, 690))),
        LineConfig(name="short", points=((300, 200), (300, 500))),
    ),
    zones=(ZoneConfig(name="area", polygon=((640, 0), (900, 0), (900, HEIGHT_PX), (640, HEIGHT_PX))),),
)
LINES: Final = {line.name: number for number, line in enumerate(CONFIG.lines)}


@dataclass(frozen=True)
class Batch:
    """Batch of N tracks over T frames."""

    times_s: Floats  # (T,) as an observer of the intervals sees them: they never go back
    captured_ns: NDArray[np.int64]  # (T,) as the camera reports them
    seen: Bools  # (T, N) the object is detected
    boxes_xyxy: Floats  # (T, N, 4) detected boxes
    distances: Floats  # (T, N, L) true distances to the right of each line, in sizes of the detected box
    error: Floats  # (N,) largest error of an anchor, in sizes of the detected box
    between: Bools  # (N, L) True: the object can pass the line only between its end points
    around: Bools  # (N, L) True: the object can pass the line only outside its end points


def make_batch(rng: np.random.Generator) -> Batch:
    """Return a batch of random tracks at a random frame rate."""
    fps = float(rng.choice([2.0, 3.0, 5.0, 8.0, 12.5, 25.0, 30.0, 60.0]))
    frames = int(np.clip(5.0 * fps, 20, 75))
    times_s, captured_ns = _clock(rng, frames, fps)
    sizes = np.exp(rng.uniform(np.log(15), np.log(220), TRACKS) + np.linspace(0, 1, frames)[:, None] * _growth(rng))
    feet, between, around = _feet(rng, frames, sizes)
    wide = rng.random(TRACKS) < 0.3
    shape = np.stack([np.where(wide, 1.0, 0.4), np.where(wide, 0.5, 1.0)], axis=-1)
    true = _boxes(feet, sizes[..., None] * shape)
    swollen = sizes * (1 + rng.uniform(-0.08, 0.08, TRACKS) * rng.uniform(-1, 1, sizes.shape))
    visible = _longer_side(_boxes(feet, swollen[..., None] * shape))
    moved = _boxes(feet + _errors(rng, frames) * visible[..., None], swollen[..., None] * shape)
    found: Floats = moved.astype(np.float32).astype(np.float64)
    longer = _longer_side(found)
    wrong = np.abs(_distances(found) - _distances(true)).max(axis=2) / np.maximum(longer, 1.0)
    at_edge = (np.minimum(found, (WIDTH_PX, HEIGHT_PX) * 2 - found).min(axis=2) <= 2.0) | (longer < 4.0)
    seen = _seen(rng, frames) & (wrong < np.where(at_edge, CUT_LIMIT, LIMIT) - _SLACK) & (longer >= 4.0)
    distances = _distances(true) / np.maximum(longer, 1.0)[..., None]
    error = np.where(seen, wrong, 0.0).max(axis=0) + _SLACK
    return Batch(times_s, captured_ns, seen, found, distances, error, between, around)


def _clock(rng: np.random.Generator, frames: int, fps: float) -> tuple[Floats, NDArray[np.int64]]:
    """Return the true times of the frames, and the times reported by a camera whose clock jumps."""
    steps_s = np.full(frames, 1.0 / fps) * rng.uniform(0.8, 1.2, frames)
    pauses = rng.random(frames) < 0.02
    steps_s[pauses] += rng.choice([0.4, 1.4, 3.0, 20.0, 200.0], int(pauses.sum()))
    jumps_s = np.where(rng.random(frames) < 0.01, rng.uniform(-3600, -10, frames), 0.0)
    steps_s[jumps_s < 0] = 1.0 / fps
    times_s = np.cumsum(steps_s)
    captured = np.cumsum(steps_s + np.where(jumps_s < 0, jumps_s - 1.0 / fps, 0.0))
    return times_s, (captured * 1e9).astype(np.int64) + 10**16


def _growth(rng: np.random.Generator) -> Floats:
    return np.where(rng.random(TRACKS) < 0.3, rng.uniform(-1.2, 1.2, TRACKS), 0.0)


def _feet(rng: np.random.Generator, frames: int, sizes: Floats) -> tuple[Floats, Bools, Bools]:
    """Return the true positions (frames, tracks, 2) of the feet, and the masks `Batch.between` and `Batch.around`."""
    aim = rng.integers(0, 4, TRACKS)  # 0: middle line; 1: line at the edge; 2: short line; 3: beyond the short line
    across = _path(rng, frames) * sizes
    x = np.where(aim == 1, rng.uniform(100, 1180, TRACKS), np.where(aim == 0, 640.0, 300.0) + across)
    aside = np.choose(
        aim,
        [rng.uniform(0, 720, TRACKS), np.zeros(TRACKS), rng.uniform(260, 440, TRACKS), rng.uniform(560, 700, TRACKS)],
    )
    y = np.where(aim == 1, 690.0 + across, aside)
    between, around = np.ones((2, TRACKS, len(LINES)), np.bool_)
    between[:, LINES["short"]], around[:] = aim == 2, False
    around[:, LINES["short"]] = aim == 3
    return np.stack([x, y], axis=2), between, around


def _path(rng: np.random.Generator, frames: int) -> Floats:
    """Return the distances (T, N) of objects from a line, in object sizes. The paths have legs, rests, and jumps."""
    near = rng.uniform(-0.35, 0.35, (_CORNERS, TRACKS)) * rng.choice([0.3, 1.0], TRACKS)
    corners = np.where(rng.random((_CORNERS, TRACKS)) < 0.5, near, rng.uniform(-1.6, 1.6, (_CORNERS, TRACKS)))
    for at in range(1, _CORNERS):
        corners[at] = np.where(rng.random(TRACKS) < 0.3, corners[at - 1], corners[at])
    one_sided = rng.random(TRACKS) < 0.3
    corners = np.where(one_sided, np.abs(corners) * rng.choice([-1, 1], TRACKS), corners)
    place = np.linspace(0, _CORNERS - 1, frames)[:, None]
    leg = np.minimum(place.astype(np.intp), _CORNERS - 2)
    share = np.broadcast_to(place - leg, (frames, TRACKS))
    jumps = (rng.random((_CORNERS - 1, TRACKS)) < 0.2)[leg[:, 0]]
    share = np.where(jumps, (share > 0.5).astype(float), share)
    paths: Floats = corners[leg[:, 0]] * (1 - share) + corners[leg[:, 0] + 1] * share
    return paths


def _errors(rng: np.random.Generator, frames: int) -> Floats:
    """Return the errors (T, N, 2) of anchors in object sizes: none, white, alternating between extremes, or sticky."""
    kind = rng.integers(0, 4, TRACKS)[:, None]
    white = rng.uniform(-1, 1, (frames, TRACKS, 2))
    alternating = np.where(np.arange(frames) % 2, 1.0, -1.0)[:, None, None]
    sticky = np.sign(np.sin(np.linspace(0, 1, frames)[:, None, None] * rng.uniform(3, 40, (TRACKS, 2))))
    largest = rng.uniform(0.0, LIMIT, (TRACKS, 1))
    errors: Floats = largest * np.where(kind == 0, 0.0, np.where(kind == 1, white, 1.0))
    errors *= np.where(kind == 2, alternating, np.where(kind == 3, sticky, 1.0))
    return errors


def _seen(rng: np.random.Generator, frames: int) -> Bools:
    """Return a mask (T, N) of detected objects. Tracks start and end at random times, flicker, and have gaps."""
    number = np.arange(frames)[:, None]
    start = np.where(rng.random(TRACKS) < 0.5, 0, rng.integers(0, frames, TRACKS))
    end = np.where(rng.random(TRACKS) < 0.5, frames, rng.integers(0, frames + 1, TRACKS))
    hidden_from = rng.integers(0, frames, TRACKS)
    hidden = (number >= hidden_from) & (number < hidden_from + rng.integers(0, frames // 2, TRACKS))
    flicker = rng.random((frames, TRACKS)) < rng.choice([0.0, 0.0, 0.2, 0.6], TRACKS)
    seen: Bools = (number >= start) & (number < end) & ~hidden & ~flicker
    return seen


def _boxes(feet: Floats, sides: Floats) -> Floats:
    """Return boxes (T, N, 4) with the sizes `sides`, above points on the ground (T, N, 2), clipped to the frame."""
    left, right = feet[..., 0] - sides[..., 0] / 2, feet[..., 0] + sides[..., 0] / 2
    boxes = np.stack([left, feet[..., 1] - sides[..., 1], right, feet[..., 1]], axis=-1)
    return np.clip(boxes, 0.0, (WIDTH_PX, HEIGHT_PX) * 2)


def _longer_side(boxes: Floats) -> Floats:
    longer: Floats = (boxes[..., 2:] - boxes[..., :2]).max(axis=-1)
    return longer


def _distances(boxes: Floats) -> Floats:
    """Return the distances (T, N, L), in pixels, of the bottom centers from each line, positive on its right."""
    x, y = (boxes[..., 0] + boxes[..., 2]) / 2, boxes[..., 3]
    return np.stack([640 - x, 690 - y, 300 - x], axis=-1)


# --- oracle -----------------------------------------------------------------------------------------------------------


@dataclass
class Bounds:
    """Lower and upper bounds (N, L, 2) of the number of crossings to the right (in) and to the left (out)."""

    least: NDArray[np.int64]
    most: NDArray[np.int64]


def bounds(batch: Batch) -> Bounds:
    """Compute the bounds from the true distances of all tracks, frame by frame."""
    shape = batch.distances.shape[1:]
    least, most = np.zeros((*shape, 2), np.int64), np.zeros((*shape, 2), np.int64)
    side = np.zeros(shape, np.int64)  # true side at the last detection; 0: none yet
    sure = np.zeros(shape, np.int64)  # side that is certainly established
    visit, since_s = (
        np.zeros(shape, np.int64),
        np.full(shape, np.inf),
    )  # visit without a possible meeting, and its start
    turned = np.zeros(shape, np.bool_)  # the object has truly changed sides
    last_s = np.full(shape[0], -np.inf)
    error = batch.error[:, None]
    for time_s, seen, distances in zip(batch.times_s, batch.seen, batch.distances, strict=True):
        gap = time_s - last_s
        lost = (seen & (gap > max(4 * LOST_S, 10.0)))[:, None] & (since_s < np.inf)
        _settle(sure, visit, lost, least)
        forgotten = seen & (gap > _REMEMBERED_S)
        side[forgotten], sure[forgotten], visit[forgotten], turned[forgotten] = 0, 0, 0, False
        last_s[seen] = time_s
        now = np.where(distances > 0, 1, -1)
        changed = seen[:, None] & (side == -now)
        turned |= changed
        most[..., 0] += changed & (now > 0)
        most[..., 1] += changed & (now < 0)
        side = np.where(seen[:, None], now, side)
        away = np.abs(distances)
        ended = seen[:, None] & ((away <= error) | (now != visit))
        visit = np.where(ended, np.where(away > error, now, 0), visit)
        since_s[ended | forgotten[:, None]] = np.inf
        starts = seen[:, None] & (visit != 0) & (away > MARGIN + error) & (since_s == np.inf)
        since_s[starts] = time_s
        first = ~turned & (away > MARGIN + error)
        holds = (time_s - since_s >= _HOLD_S + _SLACK) | (away > 2 * MARGIN + error) | first
        _settle(sure, visit, seen[:, None] & (visit != 0) & holds, least)
    _settle(sure, visit, since_s < np.inf, least)
    return Bounds(least * batch.between[..., None], most * ~batch.around[..., None])


def _settle(sure: NDArray[np.int64], visit: NDArray[np.int64], settles: Bools, least: NDArray[np.int64]) -> None:
    """Establish the sides of the visits for which `settles` (N, L) is True. Count the changes of sides in `least`."""
    crossed = settles & (sure == -visit) & (visit != 0)
    least[..., 0] += crossed & (visit > 0)
    least[..., 1] += crossed & (visit < 0)
    np.copyto(sure, visit, where=settles & (visit != 0))


# --- comparison -------------------------------------------------------------------------------------------------------


@dataclass
class Faults:
    """Numbers of tracks and crossings of a run, and numbers of faults."""

    tracks: int = 0
    detections: int = 0
    crossings: int = 0
    required: int = 0  # crossings that must be counted
    invented: int = 0
    missed: int = 0
    zones: int = 0  # batches after which entries and exits of the zone do not balance
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def any(self) -> bool:
        return bool(self.invented or self.missed or self.zones)


def run_batch(batch: Batch, faults: Faults) -> None:
    """Run the counter on a batch. Add the faults of the counter to `faults`."""
    stage = Analytics(CONFIG, "soak", ("person",), WIDTH_PX, HEIGHT_PX, forget_s=LOST_S)
    counted = np.zeros((TRACKS, len(LINES), 2), np.int64)
    for captured_ns, seen, boxes in zip(batch.captured_ns.tolist(), batch.seen, batch.boxes_xyxy, strict=True):
        ids = np.flatnonzero(seen)
        zeros = np.zeros(len(ids), np.int32)
        found = boxes[ids].astype(np.float32)
        tracks = Tracks(found, np.ones(len(ids), np.float32), zeros, ids.astype(np.int64), zeros.astype(np.int64))
        _count(stage.update(tracks, captured_ns), counted)
    _count(stage.restart(WIDTH_PX, HEIGHT_PX, int(batch.captured_ns[-1])), counted)
    limits, zone = bounds(batch), stage.counts().zones["area"]
    invented, missed = np.maximum(counted - limits.most, 0), np.maximum(limits.least - counted, 0)
    faults.tracks += int(batch.seen.any(axis=0).sum())
    faults.detections += int(batch.seen.sum())
    faults.crossings += int(counted.sum())
    faults.required += int(limits.least.sum())
    faults.invented += int(invented.sum())
    faults.missed += int(missed.sum())
    faults.zones += zone["entered"] != zone["left"] or stage.counts().occupancy["area"] != 0
    for name, wrong in (("invented", invented), ("missed", missed)):
        for track, line, _ in np.argwhere(wrong)[: 5 - len(faults.examples)].tolist():
            faults.examples.append({"fault": name, "track": track, "line": line})


def _count(events: tuple[Event, ...], counted: NDArray[np.int64]) -> None:
    for event in events:
        if event.kind == "line_crossed":
            counted[event.track_id, LINES[event.name], int(event.data["direction"] == "out")] += 1


def run(tracks: int, seed: int = 0, seconds: float = float("inf")) -> Faults:
    """Run at least `tracks` tracks, or as many as `seconds` permit. Return the faults."""
    rng, faults, end_s = np.random.default_rng(seed), Faults(), time.monotonic() + seconds
    while faults.tracks < tracks and time.monotonic() < end_s:
        run_batch(make_batch(rng), faults)
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.hostile_tracks")
    parser.add_argument("--tracks", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    arguments = parser.parse_args()
    faults = run(arguments.tracks, arguments.seed, arguments.seconds)
    sys.stdout.write(json.dumps({"seed": arguments.seed, **vars(faults)}, indent=2) + "\n")
    return 1 if faults.any else 0


if __name__ == "__main__":
    sys.exit(main())
