"""The tables of the archive: their columns, and how each column is stored in Parquet. docs/archive.md explains them.

The rows of `tracks` are sorted by track, and then by frame, because the values of one track are similar.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

Table: TypeAlias = Literal["frames", "tracks", "events", "counts", "gaps"]

FORMAT: Final = "1"
"""Version of the columns, in the metadata `vision.archive` of each file."""

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
_TIME: Final = pa.timestamp("us", tz="UTC")
_NAME: Final = pa.dictionary(pa.int32(), pa.string())

COLUMNS: Final[Mapping[Table, Mapping[str, pa.DataType]]] = {
    "frames": {
        "frame_id": pa.int64(),
        "captured_at": _TIME,
        "clock_shift_us": pa.int64(),
        "captured_rest_ns": pa.int16(),
        "instance": _NAME,
        "epoch": pa.int32(),
        "frame": pa.int64(),
        "frame_width": pa.int32(),
        "frame_height": pa.int32(),
        "clock": _NAME,
        "objects": pa.int16(),
    },
    "tracks": {
        "frame_id": pa.int64(),
        "track_id": pa.int64(),
        "class": _NAME,
        "class_id": pa.int16(),
        "score_percent": pa.int16(),
        "x": pa.int32(),
        "y": pa.int32(),
        "w": pa.int32(),
        "h": pa.int32(),
        "age_ms": pa.int32(),
        "hidden": pa.int32(),
        "previous_x": pa.int32(),
        "previous_y": pa.int32(),
        "previous_w": pa.int32(),
        "previous_h": pa.int32(),
        "order_shift": pa.int16(),
    },
    "events": {
        "at_utc": _TIME,
        "at_monotonic_ns": pa.int64(),
        "instance": _NAME,
        "epoch": pa.int32(),
        "frame": pa.int64(),
        "kind": _NAME,
        "name": _NAME,
        "track_id": pa.int64(),
        "data": pa.string(),
        "snapshot": pa.string(),
        "journal": _NAME,
        "number": pa.int64(),
    },
    "counts": {
        "at_utc": _TIME,
        "at_monotonic_ns": pa.int64(),
        "instance": _NAME,
        "name": _NAME,
        "total_in": pa.int64(),
        "total_out": pa.int64(),
        "total_entered": pa.int64(),
        "total_left": pa.int64(),
        "occupancy": pa.int64(),
        "by_class": pa.string(),
    },
    "gaps": {
        "at_utc": _TIME,
        "instance": _NAME,
        "kind": _NAME,
        "first": pa.int64(),
        "last": pa.int64(),
    },
}
"""The columns of each table. The folder adds the column `camera`."""

SCHEMAS: Final[Mapping[Table, pa.Schema]] = {
    table: pa.schema(list(columns.items())) for table, columns in COLUMNS.items()
}

_DELTAS: Final[Mapping[Table, frozenset[str]]] = {
    "frames": frozenset({"frame_id", "captured_at", "frame"}),
    "tracks": frozenset(),
    "events": frozenset({"at_utc", "at_monotonic_ns", "frame", "number"}),
    "counts": frozenset(
        {"at_utc", "at_monotonic_ns", "total_in", "total_out", "total_entered", "total_left", "occupancy"}
    ),
    "gaps": frozenset({"at_utc"}),
}
"""Columns of increasing numbers. Their differences need less space than the numbers themselves."""

_ONE_PAGE: Final = 64 << 20
"""Maximum number of bytes and of rows of a page, so high that a column has one page per row group.

Parquet compresses each page separately.
"""
_HAS_ROW_LIMIT: Final = "max_rows_per_page" in inspect.signature(pq.ParquetWriter.__init__).parameters
"""True if pyarrow limits the rows of a page, to 20,000 by default. Early versions limit only the bytes."""


def parquet_options(table: Table, *, is_final: bool) -> dict[str, Any]:
    """Return the options with which `pyarrow.parquet.ParquetWriter` compresses the columns of a table.

    If `is_final` is True, the file contains a whole day, and the options make it small. Otherwise, they make a file
    fast to write, because it will be joined with others. Brotli predicts each byte from its neighbors, so it needs less
    space for boxes than zstd.
    """
    encodings = {
        name: "DELTA_BINARY_PACKED" if name in _DELTAS[table] else "BYTE_STREAM_SPLIT"
        for name, kind in COLUMNS[table].items()
        if not (pa.types.is_dictionary(kind) or pa.types.is_string(kind))
    }
    options: dict[str, Any] = {"max_rows_per_page": _ONE_PAGE} if _HAS_ROW_LIMIT else {}
    return options | {
        "compression": "brotli" if is_final else "zstd",
        "compression_level": 11 if is_final else 1,
        "use_dictionary": [name for name in COLUMNS[table] if name not in encodings],
        "column_encoding": encodings,
        "data_page_size": _ONE_PAGE,
    }


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A Parquet file of one camera: a whole day, or a part of a day."""

    path: Path
    table: Table
    camera: str
    day: str  # YYYY-MM-DD in UTC
    is_final: bool  # True if the file contains the whole day
    part: tuple[int, int] = (0, 0)  # hour of the day, and number of the part of this hour; (0, 0) for a whole day

    @property
    def start_us(self) -> int:
        """Start of the day, microseconds since 1970 (UTC)."""
        return int(datetime.fromisoformat(self.day).replace(tzinfo=timezone.utc).timestamp()) * 1_000_000


_NAME_OF_FILE: Final = re.compile(r"(?P<day>\d{4}-\d\d-\d\d)(T(?P<hour>\d\d)(-(?P<number>\d+))?)?\.parquet")


def day_of(at_us: int) -> str:
    """Return the UTC day of a time in microseconds since 1970."""
    return datetime.fromtimestamp(at_us // 1_000_000, timezone.utc).strftime("%Y-%m-%d")


def camera_folder(archive: Path, table: Table, camera: str) -> Path:
    """Return the folder of a camera's table. Parquet readers take the column `camera` from the name of the folder."""
    return archive / table / f"camera={camera}"


def archive_files(archive: Path, table: Table | None = None, camera: str | None = None) -> list[ArchiveFile]:
    """Return the files of an archive, sorted by day and part. If `table` or `camera` is None, include all of them."""
    files = []
    for path in archive.glob(f"{table or '*'}/camera={camera or '*'}/*.parquet"):
        found, name = _NAME_OF_FILE.fullmatch(path.name), path.parent.parent.name
        if found is not None and name in COLUMNS:
            of_camera, part = path.parent.name.partition("=")[2], (0, 0)
            if found["hour"] is not None:
                part = int(found["hour"]), int(found["number"] or 1)
            files.append(ArchiveFile(path, name, of_camera, found["day"], found["hour"] is None, part))  # type: ignore[arg-type]
    return sorted(files, key=lambda file: (file.day, file.part, file.path))
