"""Format of the files in `results/`: one JSON file for each run of a measurement (results/README.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

SCHEMA: Final = "vision.perf/1"
FOLDER: Final = Path(__file__).parent / "results"
PACKAGE_NAMES: Final = "versions"
"""Key of the only mapping whose keys do not have to be in snake case, because they are names of packages."""

_Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$")]
_Date = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\d$")]


class PerfResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"format": "schema"}):
    """Result of one run of a measurement."""

    format: Annotated[str, msgspec.Meta(pattern=f"^{SCHEMA}$")] = SCHEMA
    name: _Name
    title: str
    measured_on: str
    date: _Date
    machine: str
    versions: dict[str, str]
    commit: str | None
    note: str = ""
    figures: dict[_Name, Any]


def snake_case(label: str) -> str:
    """Convert a label to a key: ``p99 less detector's p99`` becomes ``p99_less_detector_p99``."""
    return re.sub(r"[^a-z0-9]+", "_", label.lower().replace("'s", "")).strip("_")


def snake_case_keys(value: Any, key: str = "") -> Any:
    """Return a copy of nested data with all keys in snake case, except for the names of packages."""
    if isinstance(value, Mapping):
        return {
            name if key == PACKAGE_NAMES else snake_case(name): snake_case_keys(v, name) for name, v in value.items()
        }
    return [snake_case_keys(item) for item in value] if isinstance(value, list | tuple) else value


def save(result: PerfResult) -> Path:
    """Write a result to ``results/MACHINE/NAME.json``. Return the path of the file."""
    path = FOLDER / result.machine / f"{result.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return path


def load(path: Path) -> PerfResult:
    """Read a file of results.

    Raises:
        msgspec.ValidationError: the file does not have the format of `PerfResult`.
    """
    return msgspec.json.decode(path.read_bytes(), type=PerfResult)


def keys(value: Any, key: str = "") -> Iterator[str]:
    """Yield every key in nested data that must be in snake case."""
    if isinstance(value, dict):
        for name, item in value.items():
            if key != PACKAGE_NAMES:
                yield name
            yield from keys(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item)
