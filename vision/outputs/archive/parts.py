"""`Part` reads the rows of one table in one file of an archive, or in its live database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vision.errors import ConfigError
from vision.outputs.archive.tables import FORMAT, SCHEMAS, Table


class Part:
    """The rows of one table in one file, or in the live database."""

    def __init__(self, name: str, table: Table, path: Path | None, rows: pa.Table | None) -> None:
        """Open the file at `path`. If `path` is None, use `rows` of the live database, or no rows if `rows` is None.

        `name` is the name of the file, by which the part of `tracks` for the same time is found.

        Raises:
            ConfigError: the file cannot be read, or has a different version of the format.
        """
        self.name = name
        self._table = table
        self._rows = rows
        self.path = path
        self._file: pq.ParquetFile | None = None
        if path is not None:
            try:
                self._file = pq.ParquetFile(path)
                version = (self._file.metadata.metadata or {}).get(b"vision.archive", b"").decode()
            except (OSError, pa.ArrowException) as error:
                raise unreadable(path, error) from error
            if version != FORMAT:
                text = f"{path}: expected version {FORMAT} of the archive, got {version or 'none'}"
                raise ConfigError(text, hint="use the version of vision that wrote it", code="archive-version")

    @property
    def number(self) -> int:
        """Number of rows in the file, or 0 if there is no file."""
        return 0 if self._file is None else int(self._file.metadata.num_rows)

    def groups(self) -> range:
        """Return the indices of the row groups."""
        return range(1 if self._file is None else self._file.num_row_groups)

    def limits(self, group: int) -> tuple[int, int] | None:
        """Return the lowest and the highest `frame_id` of a row group. Return None if the group is empty."""
        if self._file is not None:
            found = self._file.metadata.row_group(group).column(0).statistics
            if found is not None and found.has_min_max:
                return found.min, found.max
        ids = pc.min_max(self.read(group, ["frame_id"])["frame_id"]).as_py()
        return None if ids["min"] is None else (ids["min"], ids["max"])

    def read(self, group: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of one row group, or all rows if `group` is None. If `columns` is None, return all columns.

        Raises:
            ConfigError: the file cannot be read.
        """
        if self._file is None:
            rows = SCHEMAS[self._table].empty_table() if self._rows is None else self._rows
            return rows if columns is None else rows.select(columns)
        try:
            found = self._file.read(columns) if group is None else self._file.read_row_group(group, columns)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(self.path, error) from error
        return found.replace_schema_metadata(None)

    def overlaps(self, group: int, since_us: int, until_us: int) -> bool:
        """Return True if a row group of `frames` can overlap the time range from `since_us` to `until_us` (µs UTC)."""
        if self._file is None:
            return True
        found = self._file.metadata.row_group(group).column(1).statistics
        if found is None or not found.has_min_max:
            return True
        first_us, last_us = (
            pa.scalar(at, SCHEMAS["frames"].field(1).type).cast(pa.int64()).as_py() for at in (found.min, found.max)
        )
        return bool(first_us < until_us and last_us >= since_us)

    def between(self, first: int, last: int, columns: Sequence[str] | None) -> pa.Table:
        """Return the rows whose `frame_id` is from `first` to `last`, inclusive."""
        found, frame_id = [], pc.field("frame_id")
        for group in self.groups():
            limits = self.limits(group)
            if limits is not None and limits[0] <= last and limits[1] >= first:
                rows = self.read(group, columns)
                is_inside = first <= limits[0] and limits[1] <= last
                found.append(rows if is_inside else rows.filter((frame_id >= first) & (frame_id <= last)))
        return pa.concat_tables(found) if found else self.read(None, columns).slice(0, 0)


def unreadable(path: Path | None, error: Exception) -> ConfigError:
    """Return the error for a file of the archive that cannot be read."""
    hint = "restore the file, or choose a time without its day"
    return ConfigError(f"{path} cannot be read: {error}", hint=hint, code="archive-unreadable")


class Source(Protocol):
    """A file or the live database, as a source of frames and of their tracks."""

    def read(self, number: int, /) -> pa.Table:
        """Return the frames of the row group with the index `number`. Raise `ConfigError` if it cannot be read."""

    def between(self, first: int, last: int, columns: Sequence[str] | None) -> pa.Table:
        """Return the rows whose `frame_id` is from `first` to `last`, inclusive. Raise the same errors as `read`."""


class Group(NamedTuple):
    """A row group of the table `frames`, the range of its frame ids, and the source of the tracks in these frames."""

    first: int  # lowest `frame_id`
    last: int  # highest `frame_id`
    frames: Source
    tracks: Source
    number: int


def overlapping(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Yield the groups in the order of their frames. Groups whose ranges overlap are in the same list.

    Ranges overlap if the clock of the machine was set back, because a file contains one hour of this clock.
    """
    together: list[Group] = []
    for group in sorted(groups, key=lambda each: each[:2]):
        if together and group.first > max(each.last for each in together):
            yield together
            together = []
        together.append(group)
    if together:
        yield together
