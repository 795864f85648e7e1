"""File format of a benchmark: measurements, hardware, and conditions.

`vision bench --json` writes such files. The options `--compare` and `--read` read such files, for example the results
in the repository.
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
from vision.config.user_files import read_input
from vision.errors import ConfigError

BUSY_PART: Final = 0.1
"""Part of the machine's cores that other programs may use. If they used more, the row is marked."""

Part: TypeAlias = Literal["engine", "stage", "pipeline"]
"""`engine`: the network alone; `stage`: from frames to boxes; `pipeline`: from cameras to published results."""

Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]

_PRECISIONS: Final = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8")


@dataclass(frozen=True, slots=True)
class Case:
    """Setup that one row of a benchmark measures, such as the part of the program, the precision, and the batch size.

    A comparison pairs the rows of two files that have equal cases.
    """

    part: Part
    mode: str  # engine: "eager" or "graph"; stage: "slots" or "alone"; pipeline: "full" or "half" load
    lanes: Positive  # engine: streams; stage: batches in flight; pipeline: cameras
    precision: str
    batch: Positive  # frames per batch; for the pipeline, the maximum

    def __str__(self) -> str:
        return f"{self.part} {self.short()}, batch {self.batch}"

    def short(self) -> str:
        """Return the name of the case without its part and batch size."""
        return f"{self.setup()}, {self.precision}"

    def setup(self) -> str:
        """Return the name of the case without its part, precision, and batch size."""
        if self.part == "engine":
            return f"{self.lanes} stream{'s' * (self.lanes > 1)}{', graph' * (self.mode == 'graph')}"
        if self.part == "stage":
            return f"1 of {self.lanes}, paused" if self.mode == "alone" else f"{self.lanes} in flight"
        return f"{self.mode}, {self.lanes} camera{'s' * (self.lanes > 1)}"


@dataclass(frozen=True, slots=True)
class Row:
    """Measurements of one setup (`case`): durations, throughput, memory, and the state of the machine."""

    case: Case
    durations: Durations  # engine and stage: start of a batch to its result; pipeline: capture to publication
    frames_per_s: float
    cores_busy: float  # mean number of CPU cores that this process used
    cores_others: float  # mean number of CPU cores that other programs used
    rss_mib: float  # resident memory of this process
    device_mib: float | None  # GPU memory of this process; None without a GPU
    clocks: Clocks
    offered_per_s: float = 0.0  # pipeline: frames that the cameras delivered
    dropped_per_s: float = 0.0
    objects_per_frame: float = 0.0
    rate_error: float | None = None  # relative standard error of `frames_per_s`; None if unknown


@dataclass(frozen=True, slots=True)
class Bench:
    """Contents of a benchmark file."""

    schema: Literal["vision.bench/1"] = field(default="vision.bench/1", kw_only=True)
    model: str
    model_sha256: str  # of the model file; empty without a file
    input: str  # size of the network's input, such as "416x416"
    backend: str  # name of the detector that was opened last, including its precision
    slots: int  # maximum number of batches in flight in that detector
    parallel: int  # batches that the detector computes at the same time
    frame: Annotated[str, msgspec.Meta(pattern=r"^[1-9]\d*x[1-9]\d* (bgr|bgrx|nv12|i420)$")]
    seconds: float  # duration of each measurement
    measured_at: str  # UTC, such as "2026-01-31T12:00:00Z"
    machine: Machine
    versions: Mapping[str, str]
    cores_available: float  # cores that the program could use; fewer than `machine.cores` if other programs ran
    source: str  # video or synthetic camera that supplied the frames
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def library(self) -> str:
        """Name of the back-end without the precision, because each row has its own precision."""
        return ", ".join(part for part in self.backend.split(", ") if part not in _PRECISIONS)

    @property
    def precisions(self) -> tuple[str, ...]:
        """All precisions that occur in the rows, in the order of the rows."""
        return tuple(dict.fromkeys(row.case.precision for row in self.rows))

    def busy(self, row: Row) -> bool:
        """Return True if other programs used more than `BUSY_PART` of the CPU cores during the measurement of a row."""
        return row.cores_others > BUSY_PART * self.machine.cores

    def rows_of(self, part: Part) -> tuple[Row, ...]:
        """Return the rows of one part: the network (engine), the detection stage (stage), or the program (pipeline)."""
        return tuple(row for row in self.rows if row.case.part == part)

    def text(self) -> str:
        """Return the benchmark as JSON."""
        return json.dumps(asdict(self), indent=1)


def load_bench(path: Path) -> Bench:
    """Read a benchmark file, and return its contents.

    Raises:
        ConfigError: the file cannot be read, or has a different format.
    """
    try:
        return msgspec.json.decode(read_input(path), type=Bench)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        fault = f"{path} is not a benchmark file of this version: {error}"
        raise ConfigError(fault, hint="`vision bench MODEL --json FILE` writes one", code="no-benchmark") from error


def check_writable(path: Path) -> None:
    """Check that the file `path` can be written. Call this before a long measurement.

    Accept the path ``-``, which means standard output.

    Raises:
        ConfigError: the file cannot be written.
    """
    if str(path) == "-":
        return
    target = Path(os.path.realpath(path))  # a symbolic link can point to a file that does not exist yet
    try:
        new = not target.exists()
        if new or target.is_file() or target.is_dir():  # pipes and devices must be opened only once
            target.open("ab").close()
        if new:
            target.unlink()
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", code="not-writable") from error
