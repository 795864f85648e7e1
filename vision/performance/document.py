"""The file of a benchmark: what was measured, on what, under which conditions; written by `vision bench --json`.

One format for the verbs that read it (`vision bench --compare`, `vision plan --bench`) and for results that are
committed. Within a version of the schema fields are only added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

from vision.errors import ConfigError
from vision.performance.conditions import Clocks, Machine
from vision.performance.samples import Durations

SCHEMA: Final = "vision.bench/1"
_WRITTEN_BY: Final = "`vision bench MODEL --json FILE` writes one"

Part: TypeAlias = Literal["engine", "stage", "pipeline"]
"""The network alone; frames in to boxes out; cameras in to results out."""

_Plain = TypeVar("_Plain", Machine, Clocks, Durations)


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
        lane = {"engine": "stream", "stage": "slot", "pipeline": "camera"}[self.part]
        many = f"{self.lanes} {lane}{'s' * (self.lanes != 1)}"
        mode = {
            "slots": many,
            "alone": f"one of {many}",
            "full": f"full load of {many}",
            "half": f"half load of {many}",
        }
        return f"{mode.get(self.mode, f'{self.mode}, {many}')}, {self.precision}"


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


@dataclass(frozen=True, slots=True)
class DecodeCost:
    """What one picture of one kind of camera costs."""

    kind: str  # "synthetic", "path", "network", ...
    width_px: int
    height_px: int
    grab_ms: float  # of its thread
    retrieve_ms: float  # of its thread
    cpu_ms: float  # of all threads of its library


@dataclass(frozen=True, slots=True)
class HostCosts:
    """What everything besides the detector costs on this machine."""

    cores: float  # that the program could have had when this was measured
    results_ms: float  # of the results thread, a picture
    loop_ms: float  # of the inference thread, a picture, without the detector
    camera_ms: float  # of a camera's thread, a picture, without its library
    objects_per_frame: float  # that the results thread had to handle
    copy_gb_per_s: float | None = None  # pictures to the GPU; None: there is nothing to copy
    decode: tuple[DecodeCost, ...] = ()


@dataclass(frozen=True, slots=True)
class Bench:
    """A whole file."""

    model: str
    model_sha256: str
    input: str  # such as "416x416"
    backend: str  # the detector's name
    slots: int  # of the detector
    parallel: int
    picture: str  # such as "768x576 bgr"
    seconds: float  # of each measurement
    measured_at: str
    machine: Machine
    versions: Mapping[str, str]
    host: HostCosts
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

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
        """The file's content."""
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
        return _bench(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: damaged, or written by another version: {error}") from error


def _bench(document: Mapping[str, Any]) -> Bench:
    host = document["host"]
    decode = tuple(DecodeCost(**_known(DecodeCost, each)) for each in host.get("decode", ()))
    given = _known(Bench, document) | {
        "machine": _plain(Machine, document["machine"]),
        "host": HostCosts(**(_known(HostCosts, host) | {"decode": decode})),
        "rows": tuple(_row(each) for each in document["rows"]),
        "notes": tuple(document.get("notes", ())),
    }
    return Bench(**given)


def _row(row: Mapping[str, Any]) -> Row:
    given = _known(Row, row) | {
        "case": Case(**_known(Case, row["case"])),
        "durations": _plain(Durations, row["durations"]),
        "clocks": _plain(Clocks, row["clocks"]),
    }
    return Row(**given)


def _plain(kind: type[_Plain], given: Mapping[str, Any]) -> _Plain:
    return kind(**_known(kind, given))


def _known(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that this version knows: newer ones are left out."""
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in given.items() if name in names}
