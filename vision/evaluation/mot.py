"""Text files in the format of MOTChallenge: the ground truth of a video, and results.

An error in the ground truth silently distorts every metric. Therefore, `vision eval` checks the whole file before the
pipeline runs, and reports every fault with its line.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.config.user_files import read_input, write_output
from vision.errors import ConfigError, VisionError, from_os_error

COLUMNS: Final = "frame,id,left,top,width,height,valid,x,y,z"
_MIN_COLUMNS, _MAX_COLUMNS = 7, 10  # numbers of columns of a line of ground truth
_SHOWN_FAULTS: Final = 8  # maximum number of faults in an error message


@dataclass(frozen=True, slots=True)
class Boxes:
    """N boxes of a video, sorted by frame."""

    frames: NDArray[np.int64]  # (N,) frame numbers from 1
    ids: NDArray[np.int64]  # (N,) object ids; -1 means unknown
    boxes_xyxy: NDArray[np.float64]  # (N, 4) corners in pixels
    scores: NDArray[np.float64]  # (N,) 1 for ground truth

    def __len__(self) -> int:
        return len(self.frames)

    def rows(self, keep: NDArray[np.bool_]) -> Boxes:
        """Return the boxes for which the mask `keep` (N,) is True."""
        return Boxes(self.frames[keep], self.ids[keep], self.boxes_xyxy[keep], self.scores[keep])

    def slices(self, frames: int) -> list[slice]:
        """Return a slice of the rows for each frame from 1 to `frames`."""
        edges = np.searchsorted(self.frames, np.arange(1, frames + 2))
        return [slice(int(low), int(high)) for low, high in itertools.pairwise(edges)]

    @staticmethod
    def of(rows: Sequence[tuple[float, ...]]) -> Boxes:
        """Create boxes from rows (frame, id, x1, y1, x2, y2, score) in any order."""
        table = np.array(rows, np.float64).reshape(-1, 7)
        table = table[np.argsort(table[:, 0], kind="stable")]
        return Boxes(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2:6], table[:, 6])


@dataclass(frozen=True, slots=True)
class Truth:
    """Valid rows of a ground-truth file."""

    path: Path
    boxes: Boxes
    lines: NDArray[np.int64]  # (N,) line number of each box in the file, from 1
    invalid: int  # number of rows with 0 in column 7, which are ignored

    def check_length(self, frames: int, source: str) -> None:
        """Check that the ground truth is not longer than the video, which has `frames` frames.

        `source` is the name of the video for the error message.

        Raises:
            ConfigError: the ground truth has rows for frames that the video does not have.
        """
        beyond = self.boxes.frames > frames
        if beyond.any():
            numbers = self.boxes.frames[beyond]
            raise ConfigError(
                f"{self.path}:{int(self.lines[beyond].min())}: {int(beyond.sum())} rows are for frames {numbers.min()} "
                f"to {numbers.max()}, but {source} has {frames} frames",
                hint="check that the file belongs to this video. Frames are numbered from 1",
                code="truth-too-long",
            )


def read_truth(path: Path) -> Truth:
    """Read and check a ground-truth file.

    The columns of the file are `COLUMNS`. The function ignores the last three columns, which can be missing.

    Raises:
        ConfigError: the file cannot be read, has no valid rows, or has faulty rows. The message lists the first 8
            faults.
        Unavailable: the file cannot currently be read, for example because the disk fails.
    """
    try:
        text = read_input(path).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise from_os_error(f"--truth: cannot read {path}", error, hint="check the path", code="unreadable") from error
    reader, faults = _Reader(), []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                reader.read(number, line)
            except ValueError as fault:
                faults.append(f"{path}:{number}: {fault}")
    if faults:
        more = len(faults) - _SHOWN_FAULTS
        shown = [*faults[:_SHOWN_FAULTS], *([f"and {more} more faults"] if more > 0 else [])]
        hint = "docs/evaluation.md describes the format of a ground-truth file"
        raise ConfigError("\n".join(shown), hint=hint, code="faulty-truth")
    if not reader.rows:
        reason = f"all of its {reader.invalid} rows have 0 in column 7" if reader.invalid else "it has no rows"
        raise ConfigError(f"{path}: expected the objects of the video, but {reason}", code="empty-truth")
    order = np.argsort([row[0] for row in reader.rows], kind="stable")
    return Truth(path, Boxes.of(reader.rows), np.array(list(reader.seen.values()), np.int64)[order], reader.invalid)


class _Reader:
    """Reader that checks the lines of a ground-truth file, and collects the valid rows."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []
        self.seen: dict[tuple[int, int], int] = {}  # line number by frame and id
        self.invalid = 0  # number of rows with 0 in column 7
        self._columns: tuple[int, int] | None = None  # number of columns, and the first line with that number

    def read(self, number: int, line: str) -> None:
        """Read one line. Raise ValueError if the line is faulty."""
        values = self._numbers(number, line)
        frame, object_id = _whole("frame", values[0], 1), _whole("id", values[1], 0)
        left, top, width, height, valid = values[2:]
        if width <= 0 or height <= 0:
            raise ValueError(f"expected a width and a height above 0, got {width:g} and {height:g}")
        if valid <= 0:
            self.invalid += 1
            return
        earlier = self.seen.setdefault((frame, object_id), number)
        if earlier != number:
            raise ValueError(f"line {earlier} already has object {object_id} in frame {frame}")
        self.rows.append((frame, object_id, left, top, left + width, top + height, 1.0))

    def _numbers(self, number: int, line: str) -> list[float]:
        fields = [field.strip() for field in line.split(",")]
        if not _MIN_COLUMNS <= len(fields) <= _MAX_COLUMNS:
            separator = " separated by commas" if len(fields) == 1 else ""
            raise ValueError(f"expected the columns {COLUMNS}{separator}, got {len(fields)} columns")
        columns, first = self._columns = self._columns or (len(fields), number)
        if len(fields) != columns:
            raise ValueError(f"expected {columns} columns as in line {first}, got {len(fields)}")
        names = COLUMNS.split(",")
        return [_number(name, text) for name, text in zip(names[:_MIN_COLUMNS], fields, strict=False)]


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a number, got {text[:40]!r}")
    return value


def _whole(name: str, value: float, least: int) -> int:
    if value != int(value) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value:g}")
    return int(value)


def write_boxes(path: Path, boxes: Boxes) -> None:
    """Write boxes for other scoring tools, as rows ``frame,id,left,top,width,height,score,-1,-1,-1``.

    Raises:
        VisionError: the file cannot be written.
    """
    corners, sizes = boxes.boxes_xyxy[:, :2], boxes.boxes_xyxy[:, 2:] - boxes.boxes_xyxy[:, :2]
    table = np.column_stack([boxes.frames, boxes.ids, corners, sizes, boxes.scores])
    try:
        text = io.StringIO()
        np.savetxt(text, table, "%d,%d" + ",%.6f" * 5 + ",-1,-1,-1")
        write_output(path, text.getvalue())
    except OSError as error:
        raise VisionError(f"cannot write {path}: {error.strerror}") from error


def overlaps(a_xyxy: NDArray[np.float64], b_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU (N, M) of each box of `a_xyxy` (N, 4) with each box of `b_xyxy` (M, 4).

    The IoU of an empty box is 0.
    """
    low = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    high = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    common = np.clip(high - low, 0.0, None).prod(axis=2)
    area_a = (a_xyxy[:, 2:] - a_xyxy[:, :2]).prod(axis=1)
    area_b = (b_xyxy[:, 2:] - b_xyxy[:, :2]).prod(axis=1)
    union = area_a[:, None] + area_b[None] - common
    return np.asarray(np.divide(common, union, out=np.zeros_like(common), where=union > 0))
