"""`RecordedObjects` stores the objects of archived frames. It computes positions for many frames at once.

The table of `TrackedObjects` has one row per object. Here, a row is brought up to date only in the frames that matter.
`vision.analytics.recorded_analytics` selects these frames.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.analytics.frame_clock import CLOCK_GRAIN_S, FrameTimes
from vision.analytics.geometry import BoolArray, FloatArray, IndexArray, Points
from vision.analytics.tracked_objects import (
    FIRST_JITTER,
    JITTER_S,
    SAMPLES,
    SPACING_S,
    WINDOW_S,
    TableLayout,
    TrackedObjects,
    jitter_of,
    packed,
    product_factor,
    square_factor,
)


@dataclass(frozen=True, slots=True)
class RecordedTracks:
    """The N tracks of F successive frames of one epoch, in the order in which the live analytics received them."""

    captured_ns: Sequence[int]  # (F,) capture times of the frames on the monotonic clock
    frames: IndexArray  # (N,) index of the frame of each track, in ascending order
    boxes_xyxy: NDArray[np.float32]  # (N, 4)
    class_ids: NDArray[np.int32]  # (N,)
    track_ids: NDArray[np.int64]  # (N,)
    hidden_px: NDArray[np.float32]  # (N,) as in `Tracks`; 0 if nothing is hidden
    previous_xyxy: NDArray[np.float32]  # (N, 4) as in `Tracks`

    @staticmethod
    def empty() -> RecordedTracks:
        """Return an instance without frames."""
        none, boxes = np.zeros(0, np.int64), np.zeros((0, 4), np.float32)
        return RecordedTracks((), none, boxes, np.zeros(0, np.int32), none, np.zeros(0, np.float32), boxes)


@dataclass(frozen=True, slots=True)
class RecordedRows:
    """The tracks of some frames, with one row for each track and frame."""

    frames: IndexArray  # (N,)
    places: IndexArray  # (N,) place in the order of `RecordedTracks`
    track_ids: NDArray[np.int64]  # (N,)
    class_ids: NDArray[np.int32]  # (N,)
    boxes_xyxy: NDArray[np.float32]  # (N, 4)
    previous_xyxy: NDArray[np.float32]  # (N, 4)
    columns: FloatArray  # (N, 2 A + 2 + 2 L) as `_box_transform` of `tracked_objects.py` defines them
    sizes: FloatArray  # (N,)
    cut: BoolArray  # (N, 4)

    def take(self, where: IndexArray) -> RecordedRows:
        """Return the rows with these indices."""
        return RecordedRows(*(getattr(self, name)[where] for name in self.__slots__))

    def joined(self, other: RecordedRows) -> RecordedRows:
        """Return the rows of this instance, followed by those of `other`."""
        return RecordedRows(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in self.__slots__))


class _Steps:
    """The steps, which are the times when the positions of all objects are stored. Their numbers start at 1."""

    def __init__(self) -> None:
        self.number = 0  # of the last step
        self.times_s: dict[int, float] = {}
        self.ratios: dict[int, float] = {}  # of the interval before a step and the previous interval
        self.fades: dict[int, float] = {}  # factors of the weight of earlier jitter; the first two steps have none

    def add_if_due(self, now_s: float) -> None:
        """Add a step if at least `SPACING_S` has passed since the last one."""
        last_s = self.times_s.get(self.number, -math.inf)
        if now_s - last_s < SPACING_S:
            return
        self.number += 1
        self.times_s[self.number] = now_s
        before_s = self.times_s.get(self.number - 2)
        if before_s is not None:
            self.ratios[self.number] = (now_s - last_s) / (last_s - before_s)
            self.fades[self.number] = math.exp((last_s - now_s) / JITTER_S)

    def ratios_of(self, steps: IndexArray) -> FloatArray:
        """Return the ratio of each of `steps`; NaN if a step has none."""
        if not len(steps):
            return np.zeros(0)
        lowest = int(steps.min())
        known = [self.ratios.get(step, math.nan) for step in range(lowest, self.number + 1)]
        return np.array(known)[steps - lowest]

    def forget_before(self, step: int) -> None:
        """Forget the steps before `step`."""
        for values in (self.times_s, self.ratios, self.fades):
            for number in [each for each in values if each < step]:
                del values[number]


@dataclass(frozen=True, slots=True)
class Lives:
    """The lives of the tracks in memory.

    A life of a track ends when the object counts as gone. If its track id occurs again later, a new life starts.
    """

    starts: list[int]  # first row
    ends: list[int]  # row after the last one
    gone: list[int]  # frame in which the object counts as gone; the number of frames if there is none yet
    of_row: IndexArray  # (N,) life of each row
    frames: list[int]  # (N,) frame of each row


@dataclass(frozen=True, slots=True)
class _Samples:
    """The rows whose positions are stored for the motion of objects, in the order of rows."""

    rows: list[int]
    steps: list[int]
    points: list[complex]  # on the ground
    jitter: list[tuple[float, float]]  # `jitter` and `jitter_weight` of the object, as `TrackedObjects` measures them


class RecordedObjects(TrackedObjects):
    """State and motion of the objects in archived frames.

    `load` adds frames, and a row to the table for each object in them. `finish` goes to the end of these frames, where
    the table is the same as if `TrackedObjects` had seen all frames, except for the column `trail`.

    Frames and rows are numbered from 0 in memory, which also contains the last frames before those of `load`.
    """

    def __init__(self, layout: TableLayout) -> None:
        super().__init__(layout)
        self.first = 0
        """First frame of the latest `load`."""
        self.now_s: FloatArray = np.zeros(0)
        """Time of each frame (F,) on the clock of the objects."""
        self.lives = Lives([], [], [], np.zeros(0, np.intp), [])
        self.rows = self._rows_of(RecordedTracks.empty(), np.zeros(0, np.intp))
        self._steps = _Steps()
        self._step = 0  # last step at the present time
        self._step_of: IndexArray = np.zeros(0, np.intp)  # last step at each frame
        self._is_step: BoolArray = np.zeros(0, np.bool_)
        self._limits_s: FloatArray = np.zeros(0)  # objects last detected before this time are gone
        self._samples = _Samples([], [], [], [])
        self._life_of: dict[int, int] = {}  # life of tracks that have an event, by track id
        self._carried: dict[int, tuple[float, float]] = {}  # jitter and weight before the latest `load`, by track id
        self._last_rows: IndexArray = np.zeros(0, np.intp)  # last row of each object after `finish`

    @property
    def points(self) -> Points:
        """Positions of the anchors (N, A) in all rows."""
        return self.points_of(self.rows.columns)

    @property
    def distances(self) -> FloatArray:
        """Signed distances (N, L) from all lines in pixels, in all rows."""
        number = (self.rows.columns.shape[1] - self._end - 2) // 2
        return self.rows.columns[:, self._end + 2 : self._end + 2 + number]

    def points_of(self, columns: FloatArray) -> Points:
        """Return the positions of the anchors (M, A) in `columns` (M, ...), which are like `RecordedRows.columns`."""
        return columns.view(np.complex128)[:, : self._end // 2]

    def distances_of(self, columns: FloatArray) -> FloatArray:
        """Return the distances (M, 2 L) from the lines, twice, in `columns`, which are like `RecordedRows.columns`."""
        return columns[:, self._end + 2 :]

    # --- loading ------------------------------------------------------------------------------------------------------

    def load(self, tracks: RecordedTracks, forget_s: float) -> None:
        """Add the next frames, and forget most of the frames before.

        Args:
            tracks: tracks of the frames.
            forget_s: time in seconds after which an undetected object counts as gone, as in `Analytics`.
        """
        kept = self._trimmed()
        self.times = FrameTimes(self.clock, tracks.captured_ns)
        counts = np.bincount(tracks.frames, minlength=len(tracks.captured_ns))
        now_s, memory_s = np.array(self.times.now_s), np.array(self.times.memory_s(forget_s))
        steps = [self._steps.number]
        for at_s, has_objects in zip(self.times.now_s, (counts > 0).tolist(), strict=True):
            if has_objects:
                self._steps.add_if_due(at_s)
            steps.append(self._steps.number)
        self.now_s = np.concatenate([self.now_s, now_s])
        self._limits_s = np.concatenate([self._limits_s, now_s - memory_s - CLOCK_GRAIN_S])
        self._step_of = np.concatenate([self._step_of, np.array(steps[1:], np.intp)])
        self._is_step = np.concatenate([self._is_step, np.diff(steps) > 0])
        joined = kept.joined(self._rows_of(tracks, counts))
        self.rows = joined.take(np.lexsort((joined.frames, joined.track_ids)))
        self.lives = self._find_lives(forget_s)
        self._samples = self._find_samples()
        self.table.rows_of(self.rows.track_ids[self.rows.frames >= self.first])

    def _trimmed(self) -> RecordedRows:
        """Forget the frames that are no longer needed. Return the rows of the others, in the order of frames."""
        number = len(self.now_s)
        first = bisect_left(self._step_of, self._step - SAMPLES + 1)
        first = min([first, *self.rows.frames[self._last_rows].tolist()])
        self.now_s, self._limits_s = self.now_s[first:], self._limits_s[first:]
        self._step_of, self._is_step = self._step_of[first:], self._is_step[first:]
        self.first = number - first
        self._steps.forget_before(self._step - SAMPLES)
        (kept,) = (self.rows.frames >= first).nonzero()
        rows = self.rows.take(kept[self.rows.places[kept].argsort()])
        rows.frames[:] -= first
        rows.places[:] = np.arange(len(kept)) - len(kept)
        return rows

    def _rows_of(self, tracks: RecordedTracks, counts: IndexArray) -> RecordedRows:
        """Return the rows of `tracks`, in the same order. `counts` (F,) is the number of tracks in each frame."""
        boxes = tracks.boxes_xyxy.astype(np.float64)
        cut = self.is_cut(boxes)
        boxes[:, 3] += tracks.hidden_px
        columns = self._transformed(boxes, counts)
        return RecordedRows(
            tracks.frames + self.first,
            np.arange(len(boxes)),
            tracks.track_ids,
            tracks.class_ids,
            tracks.boxes_xyxy,
            tracks.previous_xyxy,
            columns,
            np.maximum(columns[:, self._end], columns[:, self._end + 1]),
            cut,
        )

    def _transformed(self, boxes: FloatArray, counts: IndexArray) -> FloatArray:
        """Return the columns of boxes (N, 4), with a product of matrices per frame, as in the live program.

        `counts` (F,) is the number of boxes in each frame. Products of larger matrices can differ in the last bit.
        """
        columns = np.empty((len(boxes), self._matrix.shape[1]))
        firsts = counts.cumsum() - counts
        for number in np.unique(counts[counts > 0]).tolist():
            rows = firsts[counts == number, None] + np.arange(number)
            columns[rows] = boxes[rows] @ self._matrix
        columns += self._offset.of(len(columns))
        return columns

    def _find_lives(self, forget_s: float) -> Lives:
        """Divide the rows of each track into lives."""
        rows, number, limits_s = self.rows, len(self.rows.frames), np.maximum.accumulate(self._limits_s)
        seen_s = self.now_s[rows.frames]
        is_first = np.ones(number, np.bool_)
        is_first[1:] = rows.track_ids[1:] != rows.track_ids[:-1]
        pauses = (~is_first[1:] & (np.diff(seen_s) > forget_s)).nonzero()[0]
        is_first[pauses + 1] = limits_s.searchsorted(seen_s[pauses], "right") <= rows.frames[pauses + 1]
        (starts,) = is_first.nonzero()
        ends = np.append(starts[1:], number)[: len(starts)]
        gone = limits_s.searchsorted(seen_s[ends - 1], "right")
        of_row = np.repeat(np.arange(len(starts)), ends - starts)
        return Lives(starts.tolist(), ends.tolist(), gone.tolist(), of_row, rows.frames.tolist())

    def _find_samples(self) -> _Samples:
        """Return the stored positions, and the jitter, which `TrackedObjects._measure_jitter` defines."""
        (found,) = self._is_step[self.rows.frames].nonzero()
        steps, lives = self._step_of[self.rows.frames[found]], self.lives.of_row[found]
        points, first, newest = self.points[found, 0], *np.full((2, len(found)), np.nan)
        if self._has_lines and len(found) > 3:
            sizes, ratios = self.rows.sizes[found], self._steps.ratios_of(steps)
            moved = points[2:] - (1.0 + ratios[2:]) * points[1:-1] + ratios[2:] * points[:-2]
            first[2:] = jitter_of(moved, moved, sizes[2:], square_factor(ratios[2:]))
            newest[3:] = jitter_of(moved[1:], moved[:-1], sizes[3:], product_factor(ratios[2:-1], ratios[3:]))
            for values, number in ((first, 2), (newest, 3)):
                is_known = (lives[number:] == lives[:-number]) & (steps[number:] - steps[:-number] == number)
                values[number:][~is_known] = np.nan
        jitter = self._jitter(lives.tolist(), steps.tolist(), first.tolist(), newest.tolist())
        return _Samples(found.tolist(), steps.tolist(), points.tolist(), jitter)

    def _jitter(
        self, lives: Sequence[int], steps: Sequence[int], first: Sequence[float], newest: Sequence[float]
    ) -> list[tuple[float, float]]:
        """Return the jitter and its weight after each sample.

        Args:
            lives: life of each sample.
            steps: step of each sample.
            first: jitter that counts until `newest` is known for the first time; NaN if unknown.
            newest: jitter that each sample adds to the moving average; NaN if unknown.
        """
        carried, fades = self._carried_by_life(), self._steps.fades
        jitter, present = [], -1
        value, weight = FIRST_JITTER, 0.0
        for life, step, alone, added in zip(lives, steps, first, newest, strict=True):
            if life != present:
                present = life
                value, weight = carried.get(life, (FIRST_JITTER, 0.0))
            if step > self._step:
                if weight == 0.0 and not math.isnan(alone):
                    value = alone
                if not math.isnan(added):
                    weight = weight * fades[step] + 1.0
                    value += (added - value) / weight
            jitter.append((value, weight))
        return jitter

    def _carried_by_life(self) -> dict[int, tuple[float, float]]:
        """Return, by life, the jitter and its weight of the objects that were present before the latest `load`."""
        return {
            life: self._carried[self.rows.track_ids[start]]
            for life, (start, gone) in enumerate(zip(self.lives.starts, self.lives.gone, strict=True))
            if self.lives.frames[start] < self.first <= gone
        }

    # --- lives and samples --------------------------------------------------------------------------------------------

    def new_rows(self) -> tuple[IndexArray, IndexArray]:
        """Return the rows of the latest `load` in which lives start, and those in which earlier lives continue.

        An earlier life continues in the first of its rows since the latest `load`.
        """
        starts, first = np.array(self.lives.starts, np.intp), self.first
        fresh = starts[self.rows.frames[starts] >= first]
        is_new = self.rows.frames >= first
        is_new[1:] &= ~is_new[:-1] & (self.lives.of_row[1:] == self.lives.of_row[:-1])
        is_new[:1] = False
        return fresh, is_new.nonzero()[0]

    def first_columns(self, fresh: IndexArray) -> FloatArray:
        """Return the columns (F, ...) of the objects that appear in the rows `fresh`, at their previous detection.

        If an object has no previous detection (`Tracks.previous_xyxy`), use the present one.
        """
        before = self._columns_of(self.rows.previous_xyxy[fresh])
        return np.where(np.isnan(before), self.rows.columns[fresh], before)

    def row_at(self, row: int, at_s: float) -> int:
        """Return the first row of a life, from `row` on, whose time is `at_s` or later.

        If there is none, return the row after the last one of the life.
        """
        end = self.lives.ends[self.lives.of_row[row]]
        return bisect_left(self.lives.frames, bisect_left(self.now_s, at_s), row, end)

    def jitter_at(self, row: int) -> tuple[float, float]:
        """Return the jitter and its weight of an object at its detection `row`, and until its next detection."""
        samples, start = self._samples, self.lives.starts[self.lives.of_row[row]]
        at = bisect_right(samples.rows, row) - 1
        if at >= 0 and samples.rows[at] >= start:
            return samples.jitter[at]
        if self.lives.frames[start] < self.first:
            return self._carried[int(self.rows.track_ids[row])]
        return FIRST_JITTER, 0.0

    # --- one frame ----------------------------------------------------------------------------------------------------

    def seek(self, frame: int) -> None:
        """Set the clock to the time before a frame."""
        self.times.seek(self.clock, frame - self.first)

    def look_at(self, row: int, frame: int) -> int:
        """Write the class and the size of an object into the table, so that `motion` and an event can read them.

        Args:
            row: the last row of the object up to the event.
            frame: the last frame whose positions `motion` uses; negative if there is none.

        Returns:
            The row of the object in the table.
        """
        at = int(self.table.ids.searchsorted(self.rows.track_ids[row]))
        self.table["class_id"][at] = self.rows.class_ids[row]
        self.table["size"][at] = self.rows.sizes[row]
        self._life_of[int(self.rows.track_ids[row])] = int(self.lives.of_row[row])
        self._step = int(self._step_of[frame]) if frame >= 0 else 0
        return at

    def finish(self) -> None:
        """Go to the end of the frames. Remove the objects that are gone, and store the last state of the others.

        The next frames continue with this state.
        """
        table, number = self.table, len(self.now_s)
        self.seek(number)
        self._step = self._steps.number
        alive = [life for life, gone in enumerate(self.lives.gone) if gone == number]
        last = np.array([self.lives.ends[life] - 1 for life in alive], np.intp)
        ids = self.rows.track_ids[last]
        table.keep(np.isin(table.ids, ids))
        last = self._last_rows = last[ids.argsort()]
        self._life_of = dict(zip(ids.tolist(), alive, strict=True))
        table["seen_s"][:] = self.now_s[self.rows.frames[last]]
        table["size"][:] = self.rows.sizes[last]
        table["class_id"][:] = self.rows.class_ids[last]
        table["cut"][:] = packed(self.rows.cut[last])
        table["points"][:] = self.points_of(self.rows.columns[last])
        jitter = [self.jitter_at(row) for row in last.tolist()]
        table["jitter"][:], table["jitter_weight"][:] = np.array(jitter).reshape(-1, 2).T
        self._carried = dict(zip(table.ids.tolist(), jitter, strict=True))

    def _recent(self, row: int) -> tuple[list[float], list[complex]]:
        samples, now_s, life = self._samples, self.clock.now_s, self._life_of[int(self.table.ids[row])]
        first, end = (bisect_left(samples.rows, rows[life]) for rows in (self.lives.starts, self.lives.ends))
        found = []
        for at in range(bisect_right(samples.steps, self._step, first, end) - 1, first - 1, -1):
            step = samples.steps[at]
            if step <= self._step - SAMPLES or self._steps.times_s[step] < now_s - WINDOW_S:
                break
            found.append((step % SAMPLES, self._steps.times_s[step] - now_s, samples.points[at]))
        # The order is that of `TrackedObjects`, because sums of floating-point numbers depend on the order.
        found.sort()
        return [time_s for _, time_s, _ in found], [point for _, _, point in found]
