"""`RecordedObjects` stores the objects of archived frames. It computes positions for many frames together.

The table of `TrackedObjects` has one row per object, which the live analytics update in each frame. `RecordedObjects`
updates a row only when the state of its object at a line or zone can change.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.analytics.frame_clock import CLOCK_GRAIN_S, FrameTimes
from vision.analytics.geometry import BoolArray, FloatArray, IndexArray, Points
from vision.analytics.recorded_samples import Lives, Samples, Steps, sorted_order
from vision.analytics.tracked_objects import FIRST_JITTER, SAMPLES, TableLayout, TrackedObjects, motion_of, packed


@dataclass(frozen=True, slots=True)
class RecordedTracks:
    """N tracks of F successive frames of one epoch, in the order in which the live analytics received them."""

    captured_ns: Sequence[int]  # (F,) capture times of the frames on the monotonic clock
    frames: IndexArray  # (N,) index of the frame of each track, in ascending order
    boxes_xyxy: NDArray[np.float32]  # (N, 4)
    class_ids: NDArray[np.int32]  # (N,)
    track_ids: NDArray[np.int64]  # (N,)
    hidden_px: NDArray[np.float32]  # (N,) as in `Tracks`; 0 if nothing is hidden
    previous_xyxy: NDArray[np.float32]  # (N, 4) as in `Tracks`

    @staticmethod
    def empty() -> RecordedTracks:
        """Return an instance without frames and without tracks."""
        none, boxes = np.zeros(0, np.int64), np.zeros((0, 4), np.float32)
        return RecordedTracks((), none, boxes, np.zeros(0, np.int32), none, np.zeros(0, np.float32), boxes)


@dataclass(frozen=True, slots=True)
class RecordedRows:
    """Tracks of some frames, with one row for each track and frame."""

    frames: IndexArray  # (N,) index of the frame in memory
    places: IndexArray  # (N,) place in the order of `RecordedTracks`
    track_ids: NDArray[np.int64]  # (N,)
    class_ids: NDArray[np.int32]  # (N,)
    boxes_xyxy: NDArray[np.float32]  # (N, 4)
    previous_xyxy: NDArray[np.float32]  # (N, 4)
    columns: FloatArray  # (N, 2 A + 2 + 2 L) as `_box_transform` of `tracked_objects.py` defines them
    sizes: FloatArray  # (N,) longer side of each box in pixels
    cut: BoolArray  # (N, 4) as in `TrackSnapshot`

    def take(self, where: IndexArray) -> RecordedRows:
        """Return the rows with the indices `where` (M,)."""
        return RecordedRows(*(getattr(self, name)[where] for name in self.__slots__))

    def joined(self, other: RecordedRows) -> RecordedRows:
        """Return the rows of this instance, followed by the rows of `other`."""
        return RecordedRows(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in self.__slots__))


class RecordedObjects(TrackedObjects):
    """State and motion of the objects in archived frames.

    `load` adds frames, and a row to the table for each object in them. `finish` goes to the end of these frames. Then
    the table is the same as if `TrackedObjects` had seen all frames, except for the column `trail`.

    An instance keeps the frames of the latest `load` and some frames before them. Frames and rows are numbered from 0,
    starting with the first kept frame.
    """

    def __init__(self, layout: TableLayout) -> None:
        super().__init__(layout)
        self.first = 0
        """Number of the first frame of the latest `load`."""
        self.now_s: FloatArray = np.zeros(0)
        """Time of each frame (F,) in seconds, on the clock of the objects."""
        none = np.zeros(0, np.intp)
        self.lives = Lives(none, none, none, none)
        self.rows = self._rows_of(RecordedTracks.empty(), none)
        self._keys = none  # life and frame of each row
        self._steps = Steps()
        self._step = 0  # last step before the latest `load`
        self._step_of = none  # last step at each frame
        self._is_step: BoolArray = np.zeros(0, np.bool_)
        self._limits_s: FloatArray = np.zeros(0)  # objects last detected before this time are gone
        self._samples = Samples(self._steps, none, none, none, np.zeros(0, np.complex128))
        self._last_rows = none  # last row of each object after `finish`

    @property
    def points(self) -> Points:
        """Positions of the anchors (N, A) in all rows."""
        return self.points_of(self.rows.columns)

    @property
    def distances(self) -> FloatArray:
        """Signed distances (N, L) in pixels of the object's anchor from each line, in all rows."""
        number = (self.rows.columns.shape[1] - self._end - 2) // 2
        return self.rows.columns[:, self._end + 2 : self._end + 2 + number]

    def points_of(self, columns: FloatArray) -> Points:
        """Return the positions of the anchors (M, A) of M boxes, from the values `columns` (M, ...) of the boxes.

        `columns` contains positions and distances, as `RecordedRows.columns` does.
        """
        return columns.view(np.complex128)[:, : self._end // 2]

    def distances_of(self, columns: FloatArray) -> FloatArray:
        """Return the distances (M, 2 L) of M boxes from the lines, each line twice, from the values `columns` of boxes.

        `columns` contains positions and distances, as `RecordedRows.columns` does.
        """
        return columns[:, self._end + 2 :]

    # --- loading ------------------------------------------------------------------------------------------------------

    def load(self, tracks: RecordedTracks, forget_s: float) -> None:
        """Add the next frames, and forget the frames that are no longer needed.

        Args:
            tracks: tracks of the frames.
            forget_s: time in seconds after which an undetected object counts as gone, as in `Analytics`.
        """
        kept = self._trimmed()
        self.times = FrameTimes(self.clock, tracks.captured_ns)
        counts = np.bincount(tracks.frames, minlength=len(tracks.captured_ns))
        now_s, memory_s = np.array(self.times.now_s), self.times.memory_s(forget_s)
        steps = [self._steps.number, *self._steps.add_due(self.times.now_s, (counts > 0).tolist())]
        self.now_s = np.concatenate([self.now_s, now_s])
        self._limits_s = np.concatenate([self._limits_s, now_s - memory_s - CLOCK_GRAIN_S])
        self._step_of = np.concatenate([self._step_of, np.array(steps[1:], np.intp)])
        self._is_step = np.concatenate([self._is_step, np.diff(steps) > 0])
        joined = kept.joined(self._rows_of(tracks, counts))
        self.rows = joined.take(sorted_order(joined.track_ids))  # the rows of each track stay in the order of frames
        self.lives = self._find_lives(forget_s)
        self._keys = self.lives.of_row * _KEY + self.rows.frames
        self._samples = self._find_samples()
        self.table.rows_of(self.rows.track_ids[self.rows.frames >= self.first])

    def _trimmed(self) -> RecordedRows:
        """Forget the frames that are no longer needed. Return the rows of the remaining frames, sorted by frame."""
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
        """Return `RecordedRows.columns` for boxes (N, 4): the positions of their anchors, and the distances from lines.

        Compute one matrix product per frame, as in the live program, because the product of a larger matrix can differ
        in the last bit. `counts` (F,) is the number of boxes in each frame.
        """
        columns = np.empty((len(boxes), self._matrix.shape[1]))
        firsts = counts.cumsum() - counts
        for number in np.unique(counts[counts > 0]).tolist():
            rows = firsts[counts == number, None] + np.arange(number)
            columns[rows] = boxes[rows] @ self._matrix
        columns += self._offset.of(len(columns))
        return columns

    def _find_lives(self, forget_s: float) -> Lives:
        """Divide each track's rows into lives. A new life starts after the object has counted as gone (see `Lives`)."""
        rows, number, limits_s = self.rows, len(self.rows.frames), np.maximum.accumulate(self._limits_s)
        seen_s = self.now_s[rows.frames]
        is_first = np.ones(number, np.bool_)
        is_first[1:] = rows.track_ids[1:] != rows.track_ids[:-1]
        pauses = (~is_first[1:] & (np.diff(seen_s) > forget_s)).nonzero()[0]
        is_first[pauses + 1] = limits_s.searchsorted(seen_s[pauses], "right") <= rows.frames[pauses + 1]
        (starts,) = is_first.nonzero()
        ends = np.append(starts[1:], number)[: len(starts)]
        gone = limits_s.searchsorted(seen_s[ends - 1], "right")
        return Lives(starts, ends, gone, np.repeat(np.arange(len(starts)), ends - starts))

    def _find_samples(self) -> Samples:
        (found,) = self._is_step[self.rows.frames].nonzero()
        steps, lives = self._step_of[self.rows.frames[found]], self.lives.of_row[found]
        samples = Samples(self._steps, found, steps, lives, self.points[found, 0])
        if self._has_lines:
            samples.measure_jitter(self.rows.sizes[found], self._carried_jitter(), self._step)
        return samples

    def _carried_jitter(self) -> FloatArray:
        """Return an array (L, 2) of the jitter of each life before the latest `load`, and the weight of this value."""
        lives, found = self.lives, np.tile((FIRST_JITTER, 0.0), (len(self.lives.starts), 1))
        (alive,) = ((self.rows.frames[lives.starts] < self.first) & (lives.gone >= self.first)).nonzero()
        at = self.table.ids.searchsorted(self.rows.track_ids[lives.starts[alive]])
        for column, name in enumerate(("jitter", "jitter_weight")):
            found[alive, column] = self.table[name][at]
        return found

    # --- lives and samples --------------------------------------------------------------------------------------------

    def new_rows(self) -> tuple[IndexArray, IndexArray]:
        """Return the rows of the latest `load` in which lives start, and the rows in which previous lives continue.

        A previous life continues in the first of its rows since the latest `load`.
        """
        starts, first = self.lives.starts, self.first
        fresh = starts[self.rows.frames[starts] >= first]
        is_new = self.rows.frames >= first
        is_new[1:] &= ~is_new[:-1] & (self.lives.of_row[1:] == self.lives.of_row[:-1])
        is_new[:1] = False
        return fresh, is_new.nonzero()[0]

    def first_columns(self, fresh: IndexArray) -> FloatArray:
        """Return values like `RecordedRows.columns` for the previous detections of F objects that newly appear.

        `fresh` (F,) are the rows in which the objects appear. If an object has no previous detection
        (`Tracks.previous_xyxy`), use its current detection.
        """
        before = self._columns_of(self.rows.previous_xyxy[fresh])
        return np.where(np.isnan(before), self.rows.columns[fresh], before)

    def rows_at(self, lives: IndexArray, frames: IndexArray) -> IndexArray:
        """Return, for each of `lives` (M,), its first row in or after its frame in `frames` (M,).

        If a life has no such row, the result is the row after its last row.
        """
        found: IndexArray = self._keys.searchsorted(lives * _KEY + frames)
        return found

    def jitter_at(self, rows: IndexArray) -> FloatArray:
        """Return an array (M, 2) of the jitter and the jitter weight of M objects at their detections `rows` (M,)."""
        if not self._has_lines:
            return np.tile((FIRST_JITTER, 0.0), (len(rows), 1))
        return self._samples.jitter_at(rows, self.lives.of_row[rows])

    def motions(self, rows: IndexArray, frames: IndexArray, last_frames: IndexArray) -> list[tuple[float, float]]:
        """Return the speed in km/h and the direction in degrees of M objects, each at a different time.

        Unknown values are NaN.

        Args:
            rows: last row (M,) of each object up to its time.
            frames: frame (M,) that defines each time.
            last_frames: last frame (M,) whose positions the velocity uses.
        """
        lives, steps = self.lives.of_row[rows], self._step_of[last_frames]
        moves, on_ground = self._samples.velocities(lives, steps, self.now_s[frames], self._ground)
        return [*map(motion_of, moves, on_ground, self.rows.sizes[rows].tolist())]

    # --- one frame ----------------------------------------------------------------------------------------------------

    def seek(self, frame: int) -> None:
        """Set the clock to its state at `frame`.

        The frame `first - 1` is the last frame before the latest `load`.
        """
        self.times.seek(self.clock, frame + 1 - self.first)

    def finish(self) -> None:
        """Go to the end of the frames. Remove the objects that are gone, and store the final state of all others.

        The next `load` continues with this state.
        """
        table, number = self.table, len(self.now_s)
        self.seek(number - 1)
        (alive,) = (self.lives.gone == number).nonzero()
        last = self.lives.ends[alive] - 1
        ids = self.rows.track_ids[last]
        table.keep(np.isin(table.ids, ids))
        last = self._last_rows = last[ids.argsort()]
        table["seen_s"][:] = self.now_s[self.rows.frames[last]]
        table["size"][:] = self.rows.sizes[last]
        table["class_id"][:] = self.rows.class_ids[last]
        table["cut"][:] = packed(self.rows.cut[last])
        table["points"][:] = self.points_of(self.rows.columns[last])
        table["jitter"][:], table["jitter_weight"][:] = self.jitter_at(last).T
        self._step = self._steps.number

    def motion(self, row: int) -> tuple[float, float]:
        """Return the speed and the direction of the object in `row` of the table, as `TrackedObjects.motion` does.

        Call this method only after `finish`.
        """
        last = np.array([len(self.now_s) - 1])
        return self.motions(self._last_rows[row : row + 1], last, last)[0]


_KEY: Final = 1 << 40  # larger than the number of frames in memory
