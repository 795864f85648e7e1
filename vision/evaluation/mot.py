"""MOTChallenge's text files: what is truly in each frame of a video, and what was found there.

A wrong truth makes every figure wrong without looking wrong, so a file is read whole and every fault is named with its
line before any work is done.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.errors import ConfigError, VisionError

COLUMNS: Final = "frame,id,left,top,width,height,valid,x,y,z"
_LEAST_COLUMNS, _MOST_COLUMNS = 7, 10
_SHOWN_FAULTS: Final = 8


@dataclass(frozen=True, slots=True)
class Boxes:
    """N boxes of a video, by frame."""

    frames: NDArray[np.int64]  # (N,) from 1, ascending
    ids: NDArray[np.int64]  # (N,) of objects; -1: unknown
    boxes_xyxy: NDArray[np.float64]  # (N, 4) pixels
    scores: NDArray[np.float64]  # (N,) 1 in a truth

    def __len__(self) -> int:
        return len(self.frames)

    def rows(self, keep: NDArray[np.bool_]) -> Boxes:
        """Those for which `keep`, (N,) bool, is true."""
        return Boxes(self.frames[keep], self.ids[keep], self.boxes_xyxy[keep], self.scores[keep])

    def slices(self, frames: int) -> list[slice]:
        """Which rows are of frame 1, 2, … `frames`."""
        edges = np.searchsorted(self.frames, np.arange(1, frames + 2))
        return [slice(int(low), int(high)) for low, high in itertools.pairwise(edges)]

    @staticmethod
    def of(rows: list[tuple[int, int, NDArray[np.float64], float]]) -> Boxes:
        """From (frame, id, box (4,) xyxy, score), in any order of frames."""
        rows = sorted(rows, key=lambda row: row[0])
        return Boxes(
            np.array([row[0] for row in rows], np.int64),
            np.array([row[1] for row in rows], np.int64),
            np.array([row[2] for row in rows], np.float64).reshape(-1, 4),
            np.array([row[3] for row in rows], np.float64),
        )


@dataclass(frozen=True, slots=True)
class Truth:
    """The valid rows of a truth file."""

    path: Path
    boxes: Boxes
    lines: NDArray[np.int64]  # (N,) of the file, from 1
    invalid: int  # rows whose column 7 is 0, which do not count

    def check_length(self, frames: int, source: str) -> None:
        """Check that the truth fits the video.

        Raises:
            ConfigError: there are rows of frames that the video does not have.
        """
        beyond = self.boxes.frames > frames
        if beyond.any():
            numbers = self.boxes.frames[beyond]
            raise ConfigError(
                f"{self.path}:{int(self.lines[beyond].min())}: {int(beyond.sum())} rows are of frames {numbers.min()} "
                f"to {numbers.max()}, but {source} has {frames} frames",
                hint="is it the truth of this video? Frames count from 1",
            )

    def empty_frames(self, frames: int) -> int:
        """Frames of a video of this length without a row: nothing is to be found in them."""
        return frames - len(np.unique(self.boxes.frames))


def read_truth(path: Path) -> Truth:
    """Read and check a truth file: rows of `COLUMNS`, of which the last three may be others or missing.

    Raises:
        ConfigError: it cannot be read, is empty, or has faulty rows, which are listed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ConfigError(f"--truth: cannot read {path}: {error.strerror}", hint="check the path") from error
    reader = _Reader(path)
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            reader.read(number, line)
    return reader.finish()


class _Reader:
    """Takes a file line by line and remembers what is wrong with it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._faults: list[str] = []
        self._columns: tuple[int, int] | None = None  # how many, and the line that said so
        self._seen: dict[tuple[int, int], int] = {}  # frame and id -> line
        self._rows: list[tuple[int, int, NDArray[np.float64], float]] = []
        self._lines: list[int] = []
        self._invalid = 0

    def read(self, number: int, line: str) -> None:
        try:
            self._take(number, line)
        except ValueError as fault:
            self._faults.append(f"{self._path}:{number}: {fault}")

    def _take(self, number: int, line: str) -> None:
        values = self._numbers(number, line)
        frame = _whole("frame", values[0], 1)
        object_id = _whole("id", values[1], 0)
        left, top, width, height = values[2:6]
        if width <= 0 or height <= 0:
            raise ValueError(f"expected a width and a height above 0, got {width:g} and {height:g}")
        if values[6] <= 0:
            self._invalid += 1
            return
        earlier = self._seen.setdefault((frame, object_id), number)
        if earlier != number:
            raise ValueError(f"object {object_id} is in frame {frame} already, by line {earlier}")
        self._rows.append((frame, object_id, np.array([left, top, left + width, top + height]), 1.0))
        self._lines.append(number)

    def _numbers(self, number: int, line: str) -> list[float]:
        fields = [field.strip() for field in line.split(",")]
        if not _LEAST_COLUMNS <= len(fields) <= _MOST_COLUMNS:
            separator = " separated by commas" if len(fields) == 1 else ""
            raise ValueError(f"expected the columns {COLUMNS}{separator}, got {len(fields)}")
        if self._columns is None:
            self._columns = len(fields), number
        if self._columns[0] != len(fields):
            raise ValueError(f"expected {self._columns[0]} columns as in line {self._columns[1]}, got {len(fields)}")
        names = COLUMNS.split(",")
        return [_number(name, text) for name, text in zip(names[:_LEAST_COLUMNS], fields, strict=False)]

    def finish(self) -> Truth:
        if self._faults:
            more = len(self._faults) - _SHOWN_FAULTS
            shown = self._faults[:_SHOWN_FAULTS] + ([f"and {more} more faults"] if more > 0 else [])
            raise ConfigError("\n".join(shown), hint="docs/evaluation.md says what a truth file looks like")
        if not self._rows:
            found = f"its {self._invalid} rows have all a 0 in column 7" if self._invalid else "it has no rows"
            raise ConfigError(f"{self._path}: expected what is to be found, but {found}")
        order = np.argsort([row[0] for row in self._rows], kind="stable")
        return Truth(self._path, Boxes.of(self._rows), np.array(self._lines, np.int64)[order], self._invalid)


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
        raise ValueError(f"{name}: expected a whole number from {least}, got {value:g}")
    return int(value)


def write_boxes(path: Path, boxes: Boxes) -> None:
    """Write what was found, as other scorers read it: ``frame,id,left,top,width,height,score,-1,-1,-1``.

    Raises:
        VisionError: the file cannot be written.
    """
    try:
        path.write_text("".join(f"{line}\n" for line in _lines(boxes)), encoding="ascii")
    except OSError as error:
        raise VisionError(f"cannot write {path}: {error.strerror}") from error


def _lines(boxes: Boxes) -> Iterator[str]:
    rows = zip(boxes.frames.tolist(), boxes.ids.tolist(), boxes.boxes_xyxy.tolist(), boxes.scores.tolist(), strict=True)
    for frame, object_id, (x1, y1, x2, y2), score in rows:
        yield f"{frame},{object_id},{x1:.6f},{y1:.6f},{x2 - x1:.6f},{y2 - y1:.6f},{score:.6f},-1,-1,-1"


def overlaps(a_xyxy: NDArray[np.float64], b_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union, (N, M), of boxes (N, 4) and (M, 4)."""
    low = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    high = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    common = np.clip(high - low, 0.0, None).prod(axis=2)
    area_a = (a_xyxy[:, 2:] - a_xyxy[:, :2]).prod(axis=1)
    area_b = (b_xyxy[:, 2:] - b_xyxy[:, :2]).prod(axis=1)
    union = area_a[:, None] + area_b[None] - common
    return np.asarray(np.divide(common, union, out=np.zeros_like(common), where=union > 0))
