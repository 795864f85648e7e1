"""One run of `vision chaos`: the program with the simulated cameras, the faults of a schedule, and the record."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vision.benchmark.chaos.disk import Disk
from vision.benchmark.chaos.farm import running_farm
from vision.benchmark.chaos.faults import Injector
from vision.benchmark.chaos.observer import Observer
from vision.benchmark.chaos.program import Program
from vision.benchmark.chaos.record import Injected, Record
from vision.benchmark.chaos.schedule import Fault
from vision.benchmark.chaos.settings import Subject, write_config
from vision.benchmark.chaos.stored import read_stored
from vision.errors import Closed, MessageError, VisionError

_TICK_S: Final = 0.05  # time between two looks at the program and the faults
_SAMPLE_S: Final = 2.0  # time between two samples of the resources
_START_S: Final = 180.0  # longest first start, in which an engine may be built
_RECOVER_S: Final = 60.0  # longest wait for the cameras after the last fault
_SETTLED_S: Final = 3.0  # time at the end in which the cameras deliver frames without faults
_DELIVERED_S: Final = 10.0  # longest wait for the last events
_LINES: Final = 15  # number of lines of the log in an error

OnFault = Callable[[Injected], None]
"""Function that receives each fault after its start."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Configuration to run, and the schedule of faults."""

    subject: Subject
    schedule: Sequence[Fault]
    seconds: float  # duration of the schedule


class Run:
    """Running program with its faults. It is not thread-safe."""

    def __init__(self, plan: Plan, program: Program, injector: Injector, observer: Observer, record: Record) -> None:
        self._plan = plan
        self._program = program
        self._injector = injector
        self._observer = observer
        self._record = record
        self._sample_at_s = 0.0

    def wait_for_cameras(self, stop: threading.Event) -> None:
        """Start the program, wait until every camera has delivered a frame, and record the duration of the start.

        Raises:
            VisionError: the start takes too long, or the program ends.
            Closed: `stop` was set.
        """
        began_s = time.monotonic()
        while len(self._observer.last_ns) < len(self._record.cameras):
            self._tick(stop)
            if self._record.program_ends or time.monotonic() - began_s > _START_S:
                missing = sorted(set(self._record.cameras) - set(self._observer.last_ns))
                raise VisionError(f"the program does not start: no frame of {', '.join(missing)}", code="no-start")
        self._record.start_s = time.monotonic() - began_s

    def play(self, stop: threading.Event, on_fault: OnFault) -> None:
        """Start the faults of the schedule at their times. Then wait up to 60 s until all cameras deliver frames again.

        `on_fault` receives each fault after its start.

        Raises:
            OSError: a camera cannot get its port back.
            Closed: `stop` was set.
        """
        record = self._record
        record.began_ns = time.monotonic_ns()
        for fault in self._plan.schedule:
            self._wait_until(fault.at_s, stop)
            on_fault(self._injector.start(fault))
        self._wait_until(self._plan.seconds, stop)
        deadline_s = time.monotonic() + _RECOVER_S
        while time.monotonic() < deadline_s and (self._injector.active or not self._all_deliver()):
            self._tick(stop)
        settled_s = time.monotonic() + _SETTLED_S
        while time.monotonic() < settled_s:
            self._tick(stop)

    def finish(self) -> None:
        """Stop the program, and wait up to 10 s for its last events."""
        self._program.poll()
        self._program.stop()
        deadline_s, newest = time.monotonic() + _DELIVERED_S, -1
        while time.monotonic() < deadline_s and newest < self._observer.newest:
            newest = self._observer.newest
            time.sleep(_SETTLED_S / 2)

    def _wait_until(self, at_s: float, stop: threading.Event) -> None:
        while time.monotonic_ns() - self._record.began_ns < at_s * 1e9:
            self._tick(stop)

    def _all_deliver(self) -> bool:
        late_ns = time.monotonic_ns() - int(_SETTLED_S / 3 * 1e9)
        return all(self._observer.last_ns.get(camera, 0) > late_ns for camera in self._record.cameras)

    def _tick(self, stop: threading.Event) -> None:
        if stop.wait(_TICK_S):
            raise Closed("the run was stopped")
        self._program.poll()
        self._injector.end_due()
        if time.monotonic() >= self._sample_at_s:
            self._sample_at_s = time.monotonic() + _SAMPLE_S
            self._program.sample()


@dataclass(frozen=True, slots=True)
class Folders:
    """Folders of a run: one for the run's own files, and one for the files of the program."""

    work: Path  # folder for the private files of the run
    data: Path  # folder for the files of the program, whose disk can fail

    @property
    def log(self) -> Path:
        """Path of the program's log."""
        return self.work / "program.log"


@contextlib.contextmanager
def new_folders() -> Iterator[Folders]:
    """Yield new private folders, and remove them at the end of the `with` block."""
    work = Path(tempfile.mkdtemp(prefix="vision-chaos-"))
    data = work / "data"
    data.mkdir(mode=0o700)
    try:
        yield Folders(work, data)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def run(plan: Plan, folders: Folders, stop: threading.Event, on_fault: OnFault) -> Record:
    """Run the program with all faults of the schedule. Return the record.

    If `stop` is set, the schedule ends early. Every fault has ended when this function returns. `on_fault` receives
    each fault after its start.

    Raises:
        VisionError: the program did not start.
        OSError: a camera or the program cannot be started, or a camera cannot get its port back.
        Closed: `stop` was set before all cameras delivered frames.
    """
    record = Record(
        tuple(camera.id for camera in plan.subject.config.cameras),
        {camera.id: camera.max_frame_age_s for camera in plan.subject.config.cameras},
    )
    with contextlib.ExitStack() as opened:
        farm = opened.enter_context(running_farm(plan.subject.cameras, folders.work))
        bind, replay = _free_addresses()
        config = write_config(plan.subject, farm.addresses, folders.work, folders.data, bind=bind, replay=replay)
        disk = _disk(folders)
        if disk is not None:
            opened.callback(disk.close)
        program = Program(config, folders.log, {} if disk is None else disk.environment, record)
        opened.callback(program.stop)
        observer = Observer(bind, replay, record)
        observer.start()
        opened.callback(observer.close)
        injector = Injector(farm, program, disk, address=bind, control=folders.work, record=record)
        opened.callback(injector.end_all)
        playing = Run(plan, program, injector, observer, record)
        try:
            playing.wait_for_cameras(stop)
        except VisionError as error:
            raise VisionError(error.args[0], hint=_last_lines(folders.log), code=error.code) from None
        with contextlib.suppress(Closed):
            playing.play(stop, on_fault)
        record.ended_ns = time.monotonic_ns()
        injector.end_all()
        playing.finish()
    record.tracebacks = program.tracebacks()
    with contextlib.suppress(sqlite3.Error, MessageError):
        record.stored = read_stored(folders.data / "state")
    return record


def _disk(folders: Folders) -> Disk | None:
    try:
        return Disk(folders.data, folders.work)
    except (OSError, subprocess.SubprocessError):
        return None


def _free_addresses() -> tuple[str, str]:
    """Return two addresses of the loopback interface whose ports are free."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [each.getsockname()[1] for each in (first, second)]
    return f"tcp://127.0.0.1:{ports[0]}", f"tcp://127.0.0.1:{ports[1]}"


def _last_lines(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "the last lines of its log:\n" + "\n".join(lines[-_LINES:])
    return ""
