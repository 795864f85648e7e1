"""The record of a run: its messages, faults, processes, and resources. The checks in `invariants.py` read only this."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from vision.benchmark.chaos.schedule import Fault


class FrameSeen(NamedTuple):
    """One detections message. Times are on the monotonic clock of this machine."""

    received_ns: int
    captured_ns: int
    camera: str
    instance: str
    seq: int
    epoch: int
    frame: int
    dropped: int  # frames dropped since the previous message
    wait_ms: float
    infer_ms: float
    publish_ms: float
    total_ms: float


class StatusSeen(NamedTuple):
    """One status message of a camera. Times are on the monotonic clock of this machine."""

    at_ns: int
    camera: str
    instance: str
    state: str
    since_ns: int  # time at which the camera entered this state
    retry_ns: int | None  # time of the next attempt to connect
    grabbed: int
    published: int
    dropped: int


class EventSeen(NamedTuple):
    """One event."""

    camera: str
    kind: str
    name: str
    journal: str | None
    number: int | None  # None if it was not stored


class ProgramEnd(NamedTuple):
    """An end of the program."""

    at_ns: int
    code: int  # exit code; negative for a signal
    cause: str  # the fault that explains it, or "stop"; empty if nothing does


class ProcessEnd(NamedTuple):
    """An end of a process that the program had started."""

    at_ns: int
    name: str


class Sample(NamedTuple):
    """Resources of one process at one time."""

    at_ns: int
    pid: int
    name: str
    memory_bytes: int
    threads: int
    descriptors: int


@dataclass(slots=True)
class Injected:
    """A fault of the schedule that was started or left out."""

    fault: Fault
    target: str  # the camera or process that it affected; empty if there is none
    left_out: str = ""  # why it was not started
    started_ns: int = 0
    ended_ns: int = 0
    restarts: bool = False  # the program, or the process of `target`, has to start again

    @property
    def camera(self) -> str | None:
        """The id of the affected camera; None if the fault affects no single camera."""
        return None if self.fault.camera is None else self.target


Crossing: TypeAlias = tuple[str, str, str]
"""The camera, the line, and the direction of a crossing."""


@dataclass(slots=True)
class Stored:
    """The content of the state database after the run."""

    journal: str
    numbers: list[int] = field(default_factory=list)
    crossings: Counter[Crossing] = field(default_factory=Counter)  # number of stored events
    counters: dict[Crossing, int] = field(default_factory=dict)


@dataclass(slots=True)
class Record:
    """The observations of a run."""

    cameras: tuple[str, ...]
    max_age_s: dict[str, float]  # `max_frame_age_s` by camera
    start_s: float = 0.0  # from the first start of the program until all cameras delivered frames
    began_ns: int = 0  # start of the schedule
    ended_ns: int = 0  # end of the schedule, before the program was stopped
    frames: list[FrameSeen] = field(default_factory=list)
    statuses: list[StatusSeen] = field(default_factory=list)
    events: list[EventSeen] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)  # gaps and problems of the subscription
    faults: list[Injected] = field(default_factory=list)
    program_ends: list[ProgramEnd] = field(default_factory=list)
    process_ends: list[ProcessEnd] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    tracebacks: int = 0  # in the program's log
    stored: Stored | None = None  # None if the database could not be read
