"""File format of a benchmark: measurements, hardware and conditions. `vision bench --json` writes it.

One format for the options that read it (`--compare`, `--read`) and for committed results.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from vision.benchmark.conditions import Clocks, Machine
from vision.benchmark.loops import Durations
from vision.errors import ConfigError

BUSY_PART: Final = 0.1
"""Part of the machine's cores. If other programs use more, its measurements are marked."""

Part: TypeAlias = Literal["engine", "stage", "pipeline"]
"""The network alone; frames in to boxes out; cameras in to results out."""

Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]

_PRECISIONS: Final = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8")


@dataclass(frozen=True, slots=True)
class Case:
    """Subject of one row. Rows of two files with equal cases are compared."""

    part: Part
    mode: str  # engine: "eager", "graph"; stage: "slots", "alone"; pipeline: "full" or "half" load
    lanes: Positive  # engine: streams; stage: batches in flight; pipeline: cameras
    precision: str
    batch: Positive  # frames in one batch; of the pipeline: at most

    def __str__(self) -> str:
        return f"{self.part} {self.short()}, batch {self.batch}"

    def short(self) -> str:
        """Return the name without part and batch."""
        return f"{self.setup()}, {self.precision}"

    def setup(self) -> str:
        """Return the name without part, precision and batch, which headings show."""
        if self.part == "engine":
            return f"{self.lanes} stream{'s' * (self.lanes > 1)}{', graph' * (self.mode == 'graph')}"
        if self.part == "stage":
            return f"1 of {self.lanes}, paused" if self.mode == "alone" else f"{self.lanes} in flight"
        return f"{self.mode}, {self.lanes} camera{'s' * (self.lanes > 1)}"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    case: Case
    durations: Durations  # engine and stage: of a batch, from its start to its result; pipeline: capture to publish
    frames_per_s: float
    cores_busy: float  # of the CPU, by this process
    cores_others: float  # by everything else
    rss_mib: float
    device_mib: float | None  # GPU memory of this process
    clocks: Clocks
    offered_per_s: float = 0.0  # pipeline: frames that the cameras delivered
    dropped_per_s: float = 0.0
    objects_per_frame: float = 0.0
    rate_error: float | None = None  # relative standard error of `frames_per_s`; None: not known


@dataclass(frozen=True, slots=True)
class Bench:
    """Content of a file."""

    schema: Literal["vision.bench/1"] = field(default="vision.bench/1", kw_only=True)
    model: str
    model_sha256: str
    input: str  # such as "416x416"
    backend: str  # the name of the detector that was opened last: with several precisions, of the last one
    slots: int  # of that detector
    parallel: int
    frame: Annotated[str, msgspec.Meta(pattern=r"^[1-9]\d*x[1-9]\d* (bgr|bgrx|nv12|i420)$")]
    seconds: float  # of each measurement
    measured_at: str
    machine: Machine
    versions: Mapping[str, str]
    cores_available: float  # to the program; fewer than the machine's if other programs ran
    source: str  # of the frames
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def library(self) -> str:
        """Return `backend` without the precision of the detector that was opened last: rows have their own."""
        return ", ".join(part for part in self.backend.split(", ") if part not in _PRECISIONS)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Return the precisions of all rows, in their order."""
        return tuple(dict.fromkeys(row.case.precision for row in self.rows))

    def busy(self, row: Row) -> bool:
        """Return True if other programs used enough of the CPU during a row to affect its measurements."""
        return row.cores_others > BUSY_PART * self.machine.cores

    def rows_of(self, part: Part) -> tuple[Row, ...]:
        """Return the rows of one part."""
        return tuple(row for row in self.rows if row.case.part == part)

    def text(self) -> str:
        """Return the content of the file."""
        return json.dumps(asdict(self), indent=1)


def load_bench(path: Path) -> Bench:
    """Read a file.

    Raises:
        ConfigError: it cannot be read, or has another format.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Bench)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        hint = "`vision bench MODEL --json FILE` writes one"
        raise ConfigError(f"{path} is no benchmark of this version: {error}", hint=hint, code="no-benchmark") from error


def check_writable(path: Path) -> None:
    """Check that a result can be written, before minutes are spent on it. ``-`` is standard output.

    Raises:
        ConfigError: it cannot be written.
    """
    if str(path) == "-":
        return
    target = Path(os.path.realpath(path))  # a link may lead to a file that is not there yet
    try:
        new = not target.exists()
        if new or target.is_file() or target.is_dir():  # pipes and devices are only opened once
            target.open("ab").close()
        if new:
            target.unlink()
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", code="not-writable") from error
