"""Functions that convert the rows of an archive, in blocks of frames, to the arrays that `RecordedAnalytics` reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vision.analytics.recorded_objects import RecordedTracks
from vision.analytics.recorded_samples import sorted_order
from vision.types import STEPS_PER_PX

_BLOCK_ROWS: Final = 50_000  # the arrays of a block should fit into the caches of the CPU


@dataclass(frozen=True, slots=True)
class ArchivedBlock:
    """F successive frames, and their tracks.

    All frames have the same size, and come from the same start of the program (`instance`) and the same epoch of the
    camera, which ends with a reconnection or a change of the frame size.
    """

    instance: str
    epoch: int
    frame_size_px: tuple[int, int]
    frames: Sequence[int]  # (F,) number of each frame, as in messages
    at_us: NDArray[np.int64]  # (F,) capture time, microseconds since 1970 (UTC)
    tracks: RecordedTracks
    settled_us: int = 0
    """The frames of this block and of all following blocks were captured after this time, in µs since 1970 (UTC).

    Capture times can be out of order only within about one hour.
    """


def numbers(table: pa.Table, *names: str) -> dict[str, NDArray[np.int64]]:
    """Return columns of `table` as integers, by name. The columns must not contain null values."""
    return {name: table[name].cast(pa.int64()).to_numpy() for name in names}


def captured_ns(frames: pa.Table) -> NDArray[np.int64]:
    """Return the capture times (F,) of frames in nanoseconds, on the monotonic clock."""
    columns = numbers(frames, "captured_at", "clock_shift_us", "captured_rest_ns")
    rounded_ns: NDArray[np.int64] = (columns["captured_at"] + columns["clock_shift_us"]) * 1000
    return rounded_ns + columns["captured_rest_ns"]


def blocks_of(
    frames: pa.Table, tracks: pa.Table, since_us: int, until_us: int, settled_us: int
) -> Iterator[ArchivedBlock]:
    """Yield the frames at or after `since_us` and before `until_us` (µs since 1970, UTC), in blocks.

    `settled_us` is a time (UTC) before the capture of all these frames, and of the frames in subsequent calls. Each
    block contains this time. The rows of `frames` must be in the order of publication. The rows of `tracks` must be
    sorted by track, then by frame.
    """
    columns = numbers(frames, "frame_id", "captured_at", "epoch", "frame", "frame_width", "frame_height")
    at_us, monotonic_ns = columns["captured_at"], captured_ns(frames)
    instances = frames["instance"].cast(pa.string()).combine_chunks().dictionary_encode()
    number, names = instances.indices.to_numpy(), instances.dictionary.to_pylist()
    rows = _judged_rows(tracks, columns["frame_id"])
    wanted = (at_us >= since_us) & (at_us < until_us)
    kinds = np.stack([number, columns["epoch"], wanted, columns["frame_width"], columns["frame_height"]])
    # A block ends where one of these values changes, and after each multiple of `_BLOCK_ROWS`.
    part = np.searchsorted(rows.frames, np.arange(frames.num_rows)) // _BLOCK_ROWS
    is_first = np.ones(frames.num_rows, np.bool_)
    is_first[1:] = (kinds[:, 1:] != kinds[:, :-1]).any(axis=0) | (part[1:] != part[:-1])
    (starts,) = is_first.nonzero()
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), frames.num_rows], strict=True):
        if wanted[start]:
            first, last = rows.frames.searchsorted([start, end]).tolist()
            yield ArchivedBlock(
                names[number[start]],
                int(columns["epoch"][start]),
                (int(columns["frame_width"][start]), int(columns["frame_height"][start])),
                columns["frame"][start:end].tolist(),
                at_us[start:end],
                RecordedTracks(
                    monotonic_ns[start:end].tolist(),
                    rows.frames[first:last] - start,
                    rows.boxes_xyxy[first:last],
                    rows.class_ids[first:last],
                    rows.track_ids[first:last],
                    rows.hidden_px[first:last],
                    rows.previous_xyxy[first:last],
                ),
                settled_us,
            )


def _judged_rows(table: pa.Table, frame_ids: NDArray[np.int64]) -> RecordedTracks:
    """Return the tracks as `RecordedAnalytics` reads them, in the order of publication, but without capture times.

    `table` contains the tracks of the frames `frame_ids` (F,), sorted by track, then by frame.
    """
    values = numbers(table, "frame_id", "track_id", "order_shift")
    frames = frame_ids.searchsorted(values["frame_id"])
    order = published_order(frames, values["order_shift"])
    return RecordedTracks(
        (),
        frames[order],
        boxes(*(table[name].to_numpy() for name in "xywh"))[order],
        table["class_id"].to_numpy()[order].astype(np.int32),
        values["track_id"][order],
        pixels_or_zero(table["hidden"])[order],
        previous_boxes(table, order),
    )


def published_order(frames: NDArray[np.intp], shifts: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the indices of rows in the order of publication.

    Args:
        frames: index (N,) of the frame of each row. The rows are sorted by track, and then by frame.
        shifts: the column `order_shift` (N,).
    """
    by_frame = sorted_order(frames)
    if not shifts.any():
        return by_frame
    order = np.empty_like(by_frame)
    order[np.arange(len(frames)) + shifts[by_frame]] = by_frame
    return order


def previous_boxes(table: pa.Table, order: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the box (N, 4) in px that each object had in the previous frame of its track. NaN means no such box.

    `order` (N,) contains the indices of the rows of `table`, in the order of the result.
    """
    found = np.full((len(order), 4), np.nan, np.float32)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    (known,) = table["previous_x"].is_valid().to_numpy().nonzero()
    stored = table.select([f"previous_{name}" for name in "xywh"]).take(known)
    found[place[known]] = boxes(*(column.cast(pa.int64()).to_numpy() for column in stored.columns))
    return found


def numbers_or_zero(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return a column as integers, with 0 instead of null."""
    found: NDArray[np.int64] = column.fill_null(0).cast(pa.int64()).to_numpy()
    return found


def pixels_or_zero(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return a column of lengths in px, with 0 instead of null."""
    if column.null_count == len(column):
        return np.zeros(len(column), np.float32)
    return pixels(column.fill_null(0).to_numpy())


Lengths: TypeAlias = NDArray[np.int32] | NDArray[np.int64]
"""Lengths (N,) in steps of 1 / `STEPS_PER_PX` px, less than 2**24 steps. Such lengths are exact as float32."""


def boxes(x: Lengths, y: Lengths, width: Lengths, height: Lengths) -> NDArray[np.float32]:
    """Convert boxes, in steps of 1 / `STEPS_PER_PX` px, to corners (N, 4) in px, equal to the tracker's corners."""
    found = np.empty((len(x), 4), np.float32)
    for column, values in enumerate((x, y, x + width, y + height)):
        pixels(values, found[:, column])
    return found


def pixels(values: Lengths, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Convert lengths in steps of 1 / `STEPS_PER_PX` px to px, with correct rounding.

    If `out` is given, also write the result to `out`.
    """
    found: NDArray[np.float32] = np.divide(values, np.float32(STEPS_PER_PX), out, dtype=np.float32, casting="unsafe")
    return found
