"""Record of a run of `vision chaos`: messages, faults, processes, and resources.

The checks in `invariants.py` read only a record.
"""

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
    dropped: int  # number of frames dropped since the previous message
    wait_ms: float  # from capture until the frame is added to a batch
    infer_ms: float  # from the submission of the batch until the detections are known
    publish_ms: float  # from the detections until the message is sent
    total_ms: float  # from capture until the message is sent


class StatusSeen(NamedTuple):
    """One status message of a camera. Times are on the monotonic clock of this machine."""

    at_ns: int
    camera: str
    instance: str
    state: str
    since_ns: int  # time at which the camera entered this state
    retry_ns: int | None  # time of the next attempt to connect; None if no attempt is planned
    grabbed: int
    published: int
    dropped: int


class EventSeen(NamedTuple):
    """One event message."""

    camera: str
    kind: str
    name: str
    journal: str | None  # id of the journal; None if the event was not stored
    number: int | None  # number of the event in the journal; None if the event was not stored


class ProgramEnd(NamedTuple):
    """One end of the program under test."""

    at_ns: int
    code: int  # exit code; negative for a signal
    cause: str  # the fault that explains the end, or "stop"; empty if nothing explains it


class ProcessEnd(NamedTuple):
    """One end of a process that the program under test started."""

    at_ns: int
    name: str


class Sample(NamedTuple):
    """Resources that one process used at one point in time."""

    at_ns: int
    pid: int
    name: str
    memory_bytes: int
    threads: int
    descriptors: int


@dataclass(slots=True)
class Injected:
    """Fault of the schedule that was either started or skipped."""

    fault: Fault
    target: str  # the camera or process that the fault affected; empty if there is none
    left_out: str = ""  # reason why the fault was not started; empty if it was started
    started_ns: int = 0  # monotonic time
    ended_ns: int = 0  # monotonic time; 0 if the fault has not ended
    restarts: bool = False  # True if the program, or the process `target`, has to start again

    @property
    def camera(self) -> str | None:
        """Id of the affected camera, or None if the fault does not affect a single camera."""
        return None if self.fault.camera is None else self.target


Crossing: TypeAlias = tuple[str, str, str]
"""The camera, the line, and the direction of a crossing."""


@dataclass(slots=True)
class Stored:
    """Content of the state database after the run."""

    journal: str  # id of the journal
    numbers: list[int] = field(default_factory=list)  # numbers of the stored events, ascending
    crossings: Counter[Crossing] = field(default_factory=Counter)  # number of stored events of each kind of crossing
    counters: dict[Crossing, int] = field(default_factory=dict)  # stored counters of crossings


@dataclass(slots=True)
class Record:
    """All observations of a run of `vision chaos`, which the checks read after the run."""

    cameras: tuple[str, ...]
    max_age_s: dict[str, float]  # `max_frame_age_s` by camera
    start_s: float = 0.0  # time from the first start of the program until all cameras had delivered frames
    began_ns: int = 0  # monotonic time of the start of the schedule
    ended_ns: int = 0  # monotonic time of the end of the schedule, before the program was stopped
    frames: list[FrameSeen] = field(default_factory=list)
    statuses: list[StatusSeen] = field(default_factory=list)
    events: list[EventSeen] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)  # gaps and problems of the subscription
    faults: list[Injected] = field(default_factory=list)
    program_ends: list[ProgramEnd] = field(default_factory=list)
    process_ends: list[ProcessEnd] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    tracebacks: int = 0  # number of tracebacks in the program's log
    stored: Stored | None = None  # None if the database could not be read
