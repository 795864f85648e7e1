"""The file of a benchmark: what was measured, on what, under which conditions; written by `vision bench --json`.

One format for the verbs that read it (`vision bench --compare`, `vision bench --read`) and for results that are
committed. Within a version of the schema fields are only added.
"""

from __future__ import annotations

import json
import os
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args, get_origin, get_type_hints

from vision.benchmark.conditions import Clocks, Machine
from vision.benchmark.samples import Durations
from vision.errors import ConfigError

SCHEMA: Final = "vision.bench/1"
_WRITTEN_BY: Final = "`vision bench MODEL --json FILE` writes one"

BUSY_PART: Final = 0.1
"""Of the machine's cores: figures that were taken while others kept more of them busy are marked."""

Part: TypeAlias = Literal["engine", "stage", "pipeline"]
"""The network alone; frames in to boxes out; cameras in to results out."""

_FRAME: Final = re.compile(r"[1-9]\d*x[1-9]\d* (bgr|bgrx|nv12|i420)")
_PRECISIONS: Final = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8")


@dataclass(frozen=True, slots=True)
class Case:
    """What one row is about: two rows of two files belong together where this is equal."""

    part: Part
    mode: str  # engine: "eager", "graph"; stage: "slots"; pipeline: "full" or "half" load
    lanes: int  # engine: streams; stage: batches in flight; pipeline: cameras
    precision: str
    batch: int  # frames in one batch; of the pipeline: at most

    def __str__(self) -> str:
        return f"{self.part} {self.short()}, batch {self.batch}"

    def short(self) -> str:
        """Without part and batch."""
        return f"{self.setup()}, {self.precision}"

    def setup(self) -> str:
        """Without part, precision and batch: what is left where those are said in a heading."""
        lane = {"engine": "stream", "stage": "slot", "pipeline": "camera"}[self.part]
        many = f"{self.lanes} {lane}{'s' * (self.lanes != 1)}"
        return {"slots": many, "alone": f"one of {many}"}.get(self.mode, f"{self.mode}, {many}")


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    case: Case
    durations: Durations  # engine and stage: of a batch, from its start to its result; pipeline: capture to publish
    frames_per_s: float
    cores_busy: float  # of the CPU, by this process
    cores_others: float  # by everything else
    rss_mib: float
    device_mib: float | None  # what this process holds of the GPU's memory
    clocks: Clocks
    offered_per_s: float = 0.0  # pipeline: frames that the cameras gave
    dropped_per_s: float = 0.0
    objects_per_frame: float = 0.0
    rate_error: float | None = None  # relative standard error of `frames_per_s`; None: not known


@dataclass(frozen=True, slots=True)
class HostCosts:
    """State of the host during the benchmark."""

    cores: float  # that the program could have used; fewer than the machine's if other programs ran


@dataclass(frozen=True, slots=True)
class Bench:
    """A whole file."""

    model: str
    model_sha256: str
    input: str  # such as "416x416"
    backend: str  # the name of the detector that was opened last: with several precisions, of the last one
    slots: int  # of that detector
    parallel: int
    frame: str  # such as "768x576 bgr"
    seconds: float  # of each measurement
    measured_at: str
    machine: Machine
    versions: Mapping[str, str]
    host: HostCosts
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""  # of the frames; empty: not known

    @property
    def library(self) -> str:
        """`backend` without the precision of the detector that was opened last: rows say theirs."""
        parts = self.backend.split(", ")
        return ", ".join(part for part in parts if part not in _PRECISIONS)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Of all rows, in their order."""
        return tuple(dict.fromkeys(row.case.precision for row in self.rows))

    def busy(self, row: Row) -> bool:
        """Whether others used so much of the CPU during a row that its figures may be theirs."""
        return row.cores_others > BUSY_PART * self.machine.cores

    def rows_of(self, part: Part, precision: str | None = None) -> tuple[Row, ...]:
        """Rows of one part, of one precision or all."""
        return tuple(row for row in self.rows if row.case.part == part and precision in (None, row.case.precision))

    def save(self, path: Path) -> None:
        """Write it.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            path.write_text(self.text() + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error

    def text(self) -> str:
        """Return the content of the file."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)


def load_bench(path: Path) -> Bench:
    """Read a file that `Bench.save` wrote.

    Raises:
        ConfigError: it is not there or is something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no benchmark: {error}", hint=_WRITTEN_BY) from error
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA:
        raise ConfigError(
            f"{path}: expected a file of the schema {SCHEMA}, found {found!r}",
            hint=_WRITTEN_BY,
        )
    try:
        bench: Bench = _read(Bench, document, "")
        _check_sense(bench)
    except ConfigError as fault:
        raise ConfigError(f"{path}: damaged, or written by another version: {fault}") from fault
    return bench


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value` of a JSON document as what a field's annotation says."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _read_fields(kind, value, where)
    if origin is types.UnionType:  # with None
        return None if value is None else _read(inner[0], value, where)
    if origin is tuple:
        _checked(isinstance(value, list), value, where, "a list")
        return tuple(_read(inner[0], each, f"{where}[{index}]") for index, each in enumerate(value))
    if origin is Mapping:
        _checked(isinstance(value, dict), value, where, "a mapping")
        return {name: _read(inner[1], each, f"{where}.{name}") for name, each in value.items()}
    return _read_plain(kind, value, where)


def _read_fields(kind: Any, value: Any, where: str) -> Any:
    """Read a dataclass. Unknown fields of a newer version are left out."""
    _checked(isinstance(value, dict), value, where, "a mapping")
    hints = get_type_hints(kind)
    given = {}
    for each in fields(kind):
        name = f"{where}.{each.name}".lstrip(".")
        if each.name in value:
            given[each.name] = _read(hints[each.name], value[each.name], name)
        elif _required(each):
            raise ConfigError(f"{name} is missing")
    return kind(**given)


def _required(of: Field[Any]) -> bool:
    return of.default is MISSING and of.default_factory is MISSING


def _read_plain(kind: Any, value: Any, where: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if kind is float:
        return float(_checked(number, value, where, "a number"))
    if kind is int:
        return _checked(number and isinstance(value, int), value, where, "a whole number")
    if kind is str:
        return _checked(isinstance(value, str), value, where, "text")
    if get_origin(kind) is Literal:
        return _checked(value in get_args(kind), value, where, f"one of {', '.join(get_args(kind))}")
    return value


def _check_sense(bench: Bench) -> None:
    """Check the constraints that the types do not express."""
    _checked(bool(_FRAME.fullmatch(bench.frame)), bench.frame, "frame", "one such as '768x576 bgr'")
    for index, row in enumerate(bench.rows):
        for name in ("lanes", "batch"):
            number = getattr(row.case, name)
            _checked(number > 0, number, f"rows[{index}].case.{name}", "a whole number above 0")


def _checked(holds: bool, value: Any, where: str, expected: str) -> Any:
    """Return the value if it is valid.

    Raises:
        ConfigError: it does not hold.
    """
    if not holds:
        raise ConfigError(f"{where}: expected {expected}, found {value!r:.60}")
    return value


def check_writable(path: Path) -> None:
    """Before minutes are spent on what is to be written there; ``-`` is standard output.

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
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
