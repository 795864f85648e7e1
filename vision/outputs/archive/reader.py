"""`Archive` reads the frames, events, and counts of an archive, from its files and from its live database."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vision.errors import ConfigError
from vision.outputs.archive.live import LIVE_NAME, connect
from vision.outputs.archive.live_rows import (
    LivePart,
    attempts,
    class_names,
    has_table,
    is_moving,
    live_database,
    read_live,
)
from vision.outputs.archive.parts import Group, Part, overlapping
from vision.outputs.archive.rows import (
    ArchivedBlock,
    blocks_of,
    boxes,
    captured_ns,
    numbers,
    numbers_or_zero,
    pixels_or_zero,
    previous_boxes,
    published_order,
)
from vision.outputs.archive.tables import (
    DAY_US,
    HOUR_US,
    SCHEMAS,
    ArchiveFile,
    Table,
    archive_files,
    camera_folder,
    day_of,
)
from vision.types import Counts, Event, FrameMeta, Result, Timing, Tracks

_NO_TIMING: Final = Timing(0, 0, 0)
_JUDGED: Final = (
    *("track_id", "class_id", "x", "y", "w", "h", "hidden", "order_shift"),
    *("previous_x", "previous_y", "previous_w", "previous_h"),
)
"""Columns of `tracks` that the analytics stage reads, in addition to `frame_id`."""


@dataclass(frozen=True, slots=True)
class ArchivedFrame:
    """A frame of the archive. `result` contains the tracks of the frame, as the analytics stage received them."""

    instance: str  # identifies the start of the program that published the frame
    result: Result


class ArchivedEvent(NamedTuple):
    """An event of the archive, and the frame in which it happened."""

    event: Event
    instance: str
    epoch: int
    frame: int
    at_us: int  # capture time of the frame, microseconds since 1970 (UTC)


@dataclass(frozen=True, slots=True)
class ArchivedCounts:
    """The most recent counts of each line and zone of a camera that were known at one time."""

    instance: str
    at_us: int
    at_ns: int  # on the monotonic clock
    counts: Counts


@dataclass(frozen=True, slots=True)
class ArchivedGap:
    """Messages of one kind that the archive lacks, because they were lost or were not stored at the time `at_us`."""

    kind: str  # "detections", "events", "counts", or "disk"
    at_us: int
    messages: int


class Archive:
    """Reader of an archive. Each call reads the current files and the current live database.

    Time ranges are in microseconds since 1970 (UTC). They include `since_us`, and exclude `until_us`. Methods that read
    rows raise `ConfigError` if a file cannot be read, or if tracks of some frames are missing.
    """

    def __init__(self, folder: Path) -> None:
        """Open the archive. Raise `ConfigError` if the folder contains no archive."""
        if not (folder / LIVE_NAME).exists() and not archive_files(folder):
            hint = "`archive.folder` in camera.yaml is the folder of the archive that `vision run` writes"
            raise ConfigError(f"{folder} contains no archive", hint=hint, code="no-archive")
        self._folder = folder

    def cameras(self, table: Table = "frames") -> list[str]:
        """Return the ids of all cameras that have rows in a table, in alphabetical order."""
        names = {file.camera for file in archive_files(self._folder, table)}
        if (self._folder / LIVE_NAME).exists():
            with closing(connect(self._folder)) as connection:
                names |= {name for (name,) in connection.execute(f"SELECT DISTINCT camera FROM {table}")}
        return sorted(names)

    def oldest_event_us(self) -> int | None:
        """Return a time that is 0 to 24 hours before the oldest event. Return None if there are no events."""
        times = [file.start_us for file in archive_files(self._folder, "events")]
        if (self._folder / LIVE_NAME).exists():
            with closing(connect(self._folder)) as connection:
                times += [at for (at,) in connection.execute("SELECT min(at_utc) FROM events") if at is not None]
        return min(times, default=None)

    def frames(self, camera: str, since_us: int, until_us: int) -> Iterator[ArchivedFrame]:
        """Yield the frames of a camera in a time range, in the order of their publication."""
        for frames, tracks in self._chunks(camera, since_us, until_us):
            yield from _frames_of(camera, frames, tracks, since_us, until_us)

    def blocks(self, camera: str, since_us: int, until_us: int) -> Iterator[ArchivedBlock]:
        """Yield the same frames as `frames`, in blocks of at most about 50,000 tracks."""
        settled_us = -1
        for frames, tracks in self._chunks(camera, since_us, until_us, _JUDGED):
            yield from blocks_of(frames, tracks, since_us, until_us, settled_us)
            settled_us = max(settled_us, pc.max(frames["captured_at"]).cast(pa.int64()).as_py())

    def class_names(self, camera: str, since_us: int, until_us: int) -> dict[int, str]:
        """Return the name of each class of the tracks in a time range, by class id.

        Classes that occur only at other times of the same days can be included.
        """
        frames, tracks, live = self._sources(camera, since_us, until_us)
        names = live.class_names()
        for part in frames:
            numbers = [number for number in part.groups() if part.overlaps(number, since_us, until_us)]
            limits = [each for number in numbers if (each := part.limits(number)) is not None]
            if limits and part.name in tracks:
                ids = min(first for first, _ in limits), max(last for _, last in limits)
                names |= class_names(tracks[part.name].between(*ids, ["frame_id", "class", "class_id"]))
        return names

    def events(self, camera: str, since_us: int, until_us: int) -> list[ArchivedEvent]:
        """Return the events of a camera in a time range, in the order of their publication."""
        return _published_order(_events_of(self._table("events", camera, since_us, until_us), camera))

    def hours_of_events(self, camera: str, since_us: int, until_us: int) -> Iterator[list[ArchivedEvent]]:
        """Yield the same events as `events`, in one list per hour, oldest first. Hours without events are left out.

        The events of an hour are in the order of their publication.
        """
        for day_us in self._days_of_events(camera, since_us, until_us):
            rows = self._table("events", camera, max(since_us, day_us), min(until_us, day_us + DAY_US))
            hours = rows["at_utc"].to_numpy() // HOUR_US
            starts = [0, *((hours[1:] != hours[:-1]).nonzero()[0] + 1).tolist()] if len(hours) else []
            for start, end in zip(starts, [*starts[1:], len(hours)], strict=True):
                yield _published_order(_events_of(rows.slice(start, end - start), camera))

    def opening_events(
        self, camera: str, since_us: int, until_us: int, until_ns: Mapping[str, int]
    ) -> Iterator[ArchivedEvent]:
        """Yield the events that are needed to compute the counts at the start of a time range, oldest first.

        The events are those of each start of the program (`instance`) in the range: the first crossing of each line,
        and all events up to the time in `until_ns`.

        Args:
            until_ns: a time for each `instance`, in nanoseconds on the monotonic clock.
        """
        crossed: set[tuple[str, str]] = set()
        for day_us in self._days_of_events(camera, since_us, until_us):
            rows = self._table("events", camera, max(since_us, day_us), min(until_us, day_us + DAY_US))
            texts = (rows[name].cast(pa.string()).to_pylist() for name in ("instance", "kind", "name"))
            wanted = []
            for at, (instance, kind, name, at_ns) in enumerate(
                zip(*texts, rows["at_monotonic_ns"].to_pylist(), strict=True)
            ):
                is_first = kind == "line_crossed" and (instance, name) not in crossed
                if is_first:
                    crossed.add((instance, name))
                if is_first or at_ns <= until_ns.get(instance, -1):
                    wanted.append(at)
            yield from _published_order(_events_of(rows.take(pa.array(wanted, pa.int64())), camera))

    def _days_of_events(self, camera: str, since_us: int, until_us: int) -> list[int]:
        """Return the start of each day that can have events in a time range, in microseconds since 1970."""
        days = {file.start_us for file in archive_files(self._folder, "events", camera)}
        if (self._folder / LIVE_NAME).exists():
            with live_database(self._folder) as connection:
                if has_table(connection, "events"):
                    query = f"SELECT DISTINCT at_utc / {DAY_US} FROM events WHERE camera = ?"
                    days |= {day * DAY_US for (day,) in connection.execute(query, [camera])}
        return sorted(day for day in days if day < until_us and day + DAY_US > since_us)

    def counts(self, camera: str, since_us: int, until_us: int) -> list[ArchivedCounts]:
        """Return the counts of a camera in a time range, oldest first."""
        return _counts_of(self.rows("counts", camera, since_us, until_us))

    def first_counts(self, camera: str, since_us: int, until_us: int) -> dict[str, ArchivedCounts]:
        """Return the first counts of each start of the program in a time range, by `instance`."""
        table = self._table("counts", camera, since_us, until_us)
        instances = table["instance"].cast(pa.string()).combine_chunks().dictionary_encode()
        _, first = np.unique(instances.indices.to_numpy(), return_index=True)
        at_us, at_ns = (table[name].to_numpy() for name in ("at_utc", "at_monotonic_ns"))
        found = {}
        for number in first.tolist():
            instance = instances[number].as_py()
            (same,) = ((at_us == at_us[number]) & (at_ns == at_ns[number])).nonzero()
            rows = [row for row in table.take(same).to_pylist() if row["instance"] == instance]
            (found[instance],) = _counts_of(rows)
        return found

    def gaps(self, camera: str, since_us: int, until_us: int) -> list[ArchivedGap]:
        """Return the gaps of a camera in a time range, oldest first."""
        rows = self.rows("gaps", camera, since_us, until_us)
        return [ArchivedGap(row["kind"], row["at_utc"], row["last"] - row["first"] + 1) for row in rows]

    def number_of_tracks(self, camera: str, since_us: int, until_us: int) -> int:
        """Return the approximate number of rows of `tracks` in a time range.

        If a file contains rows inside and outside the range, all its rows are counted.
        """
        _, tracks, live = self._sources(camera, since_us, until_us)
        return sum(part.number for part in tracks.values()) + sum(hour.objects for hour in live.hours)

    # --- rows of files and of the live database -----------------------------------------------------------------------

    def rows(self, table: Table, camera: str, since_us: int, until_us: int) -> list[dict[str, Any]]:
        """Return the rows of events, counts, or gaps of a camera in a time range, oldest first."""
        rows: list[dict[str, Any]] = self._table(table, camera, since_us, until_us).to_pylist()
        return rows

    def _table(self, table: Table, camera: str, since_us: int, until_us: int) -> pa.Table:
        """Return the same rows as `rows`, as a table. The times `at_utc` are integers."""
        at = pc.field("at_utc")
        found = pa.concat_tables([each.read() for each in self._parts(table, camera, since_us, until_us)])
        found = found.set_column(found.schema.get_field_index("at_utc"), "at_utc", found["at_utc"].cast(pa.int64()))
        return found.filter((at >= since_us) & (at < until_us)).sort_by("at_utc")

    def _chunks(
        self, camera: str, since_us: int, until_us: int, columns: Sequence[str] = ()
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yield the frames and the tracks of about one hour each, including rows outside the range in the same files.

        The frames are in the order of their publication. The rows of tracks are sorted by track, and then by frame.
        `columns` selects columns of the tracks, in addition to `frame_id`. If `columns` is empty, all columns are read.
        """
        wanted = None if not columns else [*columns, "frame_id"]
        parts_of_frames, parts_of_tracks, live = self._sources(camera, since_us, until_us)
        groups = [
            Group(*limits, frames, parts_of_tracks.get(frames.name, Part(frames.name, "tracks", None, None)), number)
            for frames in parts_of_frames
            for number in frames.groups()
            if (limits := frames.limits(number)) is not None and frames.overlaps(number, since_us, until_us)
        ]
        groups += [Group(hour.first, hour.last, live, live, number) for number, hour in enumerate(live.hours)]
        for together in overlapping(groups):
            frames = pa.concat_tables([each.frames.read(each.number) for each in together])
            limits = together[0].first, max(each.last for each in together)
            parts = {id(each.tracks): each.tracks for each in together}
            tracks = pa.concat_tables([part.between(*limits, wanted) for part in parts.values()])
            self._check_complete(camera, frames, tracks)
            if len(together) > 1:
                frames = frames.sort_by("frame_id")
                if "track_id" in tracks.column_names:
                    tracks = tracks.sort_by([("track_id", "ascending"), ("frame_id", "ascending")])
            yield frames, tracks

    def _check_complete(self, camera: str, frames: pa.Table, tracks: pa.Table) -> None:
        """Raise `ConfigError` if tracks of some frames are missing, for example because their file was deleted."""
        expected, number = pc.sum(frames["objects"]).as_py() or 0, tracks.num_rows
        if expected != number:
            at_us = pc.min(frames["captured_at"]).cast(pa.int64()).as_py()
            day, folder = day_of(at_us), camera_folder(self._folder, "tracks", camera)
            text = f"{folder}: expected {expected} rows for the frames of {day}, got {number}"
            hint = "restore the files of this day, or choose a time without it"
            raise ConfigError(text, hint=hint, code="archive-incomplete")

    def _sources(self, camera: str, since_us: int, until_us: int) -> tuple[list[Part], dict[str, Part], LivePart]:
        """Return the files of frames that can overlap a time range, the files of tracks by name, and the live rows."""
        limits, live = (camera, since_us, until_us), LivePart(self._folder, camera, since_us, until_us)

        def files() -> list[list[ArchiveFile]]:
            return [self._files("frames", *limits), self._files("tracks", *limits)]

        for _ in attempts():
            found = files()
            if live.find() and found == files():
                break  # no rows were moved in between
        frames, tracks = ([Part(file.path.name, file.table, file.path, None) for file in each] for each in found)
        return frames, {part.name: part for part in tracks}, live

    def _parts(self, table: Table, camera: str, since_us: int, until_us: int) -> list[Part]:
        """Return the files of a table that can contain rows of a time range, oldest first, and then the live rows."""
        for _ in attempts():
            files = self._files(table, camera, since_us, until_us)
            live = self._live(table, camera, since_us, until_us)
            if not is_moving(self._folder) and files == self._files(table, camera, since_us, until_us):
                break  # no file was added, moved, or joined in between
        parts = [Part(file.path.name, table, file.path, None) for file in files]
        return [*parts, Part(LIVE_NAME, table, None, live)]

    def _files(self, table: Table, camera: str, since_us: int, until_us: int) -> list[ArchiveFile]:
        files = archive_files(self._folder, table, camera)
        return [file for file in files if file.start_us < until_us and file.start_us + DAY_US > since_us]

    def _live(self, table: Table, camera: str, since_us: int, until_us: int) -> pa.Table:
        if not (self._folder / LIVE_NAME).exists():
            return SCHEMAS[table].empty_table()
        with live_database(self._folder) as connection:
            if not has_table(connection, table):
                return SCHEMAS[table].empty_table()
            return read_live(connection, table, camera, since_us, until_us)


# --- events and counts ------------------------------------------------------------------------------------------------


def _published_order(events: Sequence[ArchivedEvent]) -> list[ArchivedEvent]:
    """Return `events`, which must be in the order of time, sorted in the order of their publication."""
    # Times can go back within one start of the program, but epochs and numbers of frames cannot.
    starts = {each.instance: number for number, each in reversed([*enumerate(events)])}
    return sorted(events, key=lambda each: (starts[each.instance], each.epoch, each.frame))


def _events_of(table: pa.Table, camera: str) -> list[ArchivedEvent]:
    """Return the events in the rows of `table`, in the same order."""

    def texts(name: str) -> list[str | None]:
        found: list[str | None] = table[name].cast(pa.string()).to_pylist()
        return found

    columns = numbers(table, "at_utc", "at_monotonic_ns", "epoch", "frame")
    about = [texts(name) for name in ("kind", "name")]
    data = json.loads(f"[{','.join(table['data'].to_pylist())}]")
    place = (columns["epoch"].tolist(), columns["frame"].tolist(), columns["at_utc"].tolist())
    values = (*about, table["track_id"].to_pylist(), columns["at_monotonic_ns"].tolist(), data, texts("snapshot"))
    return [
        ArchivedEvent(Event(kind, name, camera, track_id, at_ns, each, snapshot or ""), instance, epoch, frame, at_us)
        for kind, name, track_id, at_ns, each, snapshot, instance, epoch, frame, at_us in zip(
            *values, texts("instance"), *place, strict=True
        )
    ]


def _counts_of(rows: Sequence[Mapping[str, Any]]) -> list[ArchivedCounts]:
    """Return the counts at each time of `rows`, which must be in the order of time."""
    found: list[ArchivedCounts] = []
    for row in rows:
        key = row["instance"], row["at_utc"], row["at_monotonic_ns"]
        if not found or key != (found[-1].instance, found[-1].at_us, found[-1].at_ns):
            known = found[-1].counts if found and found[-1].instance == row["instance"] else Counts({}, {}, {})
            found.append(ArchivedCounts(*key, Counts({**known.lines}, {**known.zones}, {**known.occupancy})))
        counts = found[-1].counts
        keys = [key for key in ("in", "out", "entered", "left") if row[f"total_{key}"] is not None]
        totals = {key: row[f"total_{key}"] for key in keys}
        values = {**totals, **json.loads(row["by_class"])}
        shapes, occupancy = counts.lines if "in" in totals else counts.zones, counts.occupancy
        assert isinstance(shapes, dict) and isinstance(occupancy, dict)
        shapes[row["name"]] = values
        if row["occupancy"] is not None:
            occupancy[row["name"]] = row["occupancy"]
    return found


# --- frames -----------------------------------------------------------------------------------------------------------


def _frames_of(
    camera: str, frames: pa.Table, tracks: pa.Table, since_us: int, until_us: int
) -> Iterator[ArchivedFrame]:
    columns = numbers(frames, "frame_id", "captured_at", "epoch", "frame", "frame_width", "frame_height")
    at_us, monotonic_ns = columns["captured_at"], captured_ns(frames)
    instances, clocks = frames["instance"].to_pylist(), frames["clock"].to_pylist()
    objects = _Objects(tracks, columns["frame_id"], monotonic_ns)
    bounds = zip(*objects.bounds(columns["frame_id"]), strict=True)
    values = (columns["frame"], columns["epoch"], monotonic_ns, at_us, columns["frame_width"], columns["frame_height"])
    lists = [value.tolist() for value in values]
    for frame, epoch, at_ns, us, width, height, instance, clock, (first, end) in zip(
        *lists, instances, clocks, bounds, strict=True
    ):
        if since_us <= us < until_us:
            meta = FrameMeta(camera, frame, epoch, at_ns, us * 1000, width, height, clock)
            yield ArchivedFrame(instance, Result(meta, objects.tracks(first, end), _NO_TIMING))


class _Objects:
    """The tracks of many frames, in the order in which the analytics stage received them."""

    def __init__(self, table: pa.Table, frame_ids: NDArray[np.int64], captured_ns: NDArray[np.int64]) -> None:
        """Convert the rows of `table`.

        `frame_ids` (F,) are the ids of the frames, in ascending order, and `captured_ns` (F,) their capture times.
        """
        values = numbers(table, "frame_id", "track_id", "class_id", "x", "y", "w", "h", "order_shift")
        stored = _nearest_stored(table["score_percent"], values["track_id"])
        values["score_percent"] = numbers_or_zero(table["score_percent"])[stored]
        ages_ms = numbers_or_zero(table["age_ms"])[stored]
        captured_ms = captured_ns[frame_ids.searchsorted(values["frame_id"])] / 1e6
        values["age_ms"] = np.maximum(ages_ms + np.rint(captured_ms - captured_ms[stored]).astype(np.int64), 0)
        order = published_order(frame_ids.searchsorted(values["frame_id"]), values["order_shift"])
        values = {name: column[order] for name, column in values.items()}
        self._frame_id = values["frame_id"]
        self._boxes = boxes(values["x"], values["y"], values["w"], values["h"])
        self._scores = (values["score_percent"] / 100.0).astype(np.float32)
        self._class_ids = values["class_id"].astype(np.int32)
        self._track_ids = values["track_id"]
        self._hidden = pixels_or_zero(table["hidden"])[order]
        self._ages = values["age_ms"]
        self._previous = previous_boxes(table, order)
        self._has_hidden = np.append(0, (self._hidden > 0).cumsum()).tolist()
        self._has_previous = np.append(0, (~np.isnan(self._previous[:, 0])).cumsum()).tolist()

    def bounds(self, frame_ids: NDArray[np.int64]) -> tuple[list[int], list[int]]:
        """Return the index of the first row of each frame, and the index after its last row."""
        first, end = self._frame_id.searchsorted(frame_ids), self._frame_id.searchsorted(frame_ids, "right")
        return first.tolist(), end.tolist()

    def tracks(self, first: int, end: int) -> Tracks:
        """Return the tracks of one frame. `first` and `end` are the row indices that `bounds` returns for the frame."""
        hidden, previous = self._has_hidden, self._has_previous
        return Tracks(
            self._boxes[first:end],
            self._scores[first:end],
            self._class_ids[first:end],
            self._track_ids[first:end],
            self._ages[first:end],
            hidden_px=self._hidden[first:end] if hidden[end] > hidden[first] else None,
            previous_xyxy=self._previous[first:end] if previous[end] > previous[first] else None,
        )


def _nearest_stored(column: pa.ChunkedArray, track_ids: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return, for each row of `tracks`, the index of a row that contains a value of `column` for the same track.

    Only some rows contain a value, such as the score. Choose the last such row up to the row itself, or else the next
    such row. If the track has no value, choose row 0. The rows must be sorted by track, and then by frame.
    """
    number = len(track_ids)
    rows = np.arange(number)
    has_value = ~column.is_null().to_numpy()
    last = np.maximum.accumulate(np.where(has_value, rows, -1))
    following = np.minimum.accumulate(np.where(has_value, rows, number)[::-1])[::-1]
    is_last = (last >= 0) & (track_ids[last] == track_ids)
    is_next = (following < number) & (track_ids[np.minimum(following, number - 1)] == track_ids)
    return np.where(is_last, last, np.where(is_next, following, 0))
