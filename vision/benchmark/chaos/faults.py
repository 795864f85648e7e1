"""`Injector` starts and ends the faults of a schedule. No fault outlasts the run, or affects other programs."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vision.benchmark.chaos.disk import Disk
from vision.benchmark.chaos.farm import Farm
from vision.benchmark.chaos.harness import hang_file
from vision.benchmark.chaos.program import Program, send
from vision.benchmark.chaos.record import Injected, Record
from vision.benchmark.chaos.schedule import KINDS, Fault
from vision.benchmark.chaos.subscribers import Flood, StoppedSubscriber

_LONGEST_HANG_NS: Final = 60_000_000_000  # limit of a detector's hang if the program does not end
_GUARD_S: Final = 1.0  # time after the scheduled end of a fault at which the guard ends the fault

End = Callable[[], None]
"""Function that ends a fault."""


class LeftOut(Exception):
    """Error which states that a fault cannot currently be started. The argument is the reason."""


class Injector:
    """Injector of faults, which also ends the faults that are due. It is not thread-safe."""

    def __init__(
        self, farm: Farm, program: Program, disk: Disk | None, *, address: str, control: Path, record: Record
    ) -> None:
        """Create the injector.

        Args:
            farm: the cameras.
            program: the program under test.
            disk: faults of the disk, or None if they are not possible.
            address: `publish.bind` of the program.
            control: folder of the files that make calls in the program hang (see `harness.py`).
            record: the record of the run, to which every fault is added.
        """
        self._farm = farm
        self._program = program
        self._disk = disk
        self._address = address
        self._control = control
        self._record = record
        self._active: list[tuple[Injected, End]] = []

    def start(self, fault: Fault) -> Injected:
        """Start a fault, and return its record. If the fault was skipped, `left_out` of the record is the reason."""
        injected = Injected(fault, "" if fault.camera is None else self._record.cameras[fault.camera])
        injected.started_ns = time.monotonic_ns()
        self._record.faults.append(injected)
        try:
            end = self._begin(injected)
        except LeftOut as reason:
            injected.left_out = str(reason)
            return injected
        self._active.append((injected, end))
        self.end_due()
        return injected

    def end_due(self) -> None:
        """End the faults that are due to end. Raise `OSError` if a camera cannot get its port back."""
        for entry in tuple(self._active):
            injected, _ = entry
            if self._is_over(injected):
                self._end(entry)

    def end_all(self) -> None:
        """End all faults. Ignore errors of the operating system. Idempotent."""
        for entry in tuple(self._active):
            with contextlib.suppress(OSError):
                self._end(entry)

    @property
    def active(self) -> int:
        """Number of started faults that have not ended."""
        return len(self._active)

    def _end(self, entry: tuple[Injected, End]) -> None:
        self._active.remove(entry)
        entry[1]()
        entry[0].ended_ns = time.monotonic_ns()

    def _is_over(self, injected: Injected) -> bool:
        since_ns = time.monotonic_ns() - injected.started_ns
        if injected.fault.kind == "detector-hang":  # lasts until the program has ended
            return str(self._program.pid) != injected.target or since_ns > _LONGEST_HANG_NS
        return since_ns >= injected.fault.duration_s * 1e9

    def _begin(self, injected: Injected) -> End:
        """Start a fault, and return the function that ends it. Raise `LeftOut` if the fault cannot be started."""
        fault, kind = injected.fault, injected.fault.kind
        if KINDS[kind].has_camera:
            camera = fault.camera
            assert camera is not None
            self._farm.start(kind, camera)
            return lambda: self._farm.stop(kind, camera)
        match kind:
            case "subscriber-stop" | "subscriber-flood":
                return (StoppedSubscriber if kind == "subscriber-stop" else Flood)(self._address).close
            case "disk-full" | "disk-slow":
                return self._begin_disk(full=kind == "disk-full")
            case "process-stop" | "detector-hang":
                return self._stop_process(injected) if kind == "process-stop" else self._hang_detector(injected)
            case "worker-kill":
                pid, injected.target = self._choose(self._program.children, fault.choice)
                injected.restarts = True
                send(pid, signal.SIGKILL)
            case "program-kill":
                injected.target, injected.restarts = str(self._running_pid()), True
                self._program.kill(str(fault))
        return lambda: None

    def _begin_disk(self, *, full: bool) -> End:
        disk = self._disk
        if disk is None:
            raise LeftOut("there is no C compiler for the library that simulates the disk")
        switch = disk.set_full if full else disk.set_slow
        switch(True)
        return lambda: switch(False)

    def _stop_process(self, injected: Injected) -> End:
        pid, injected.target = self._choose(
            {self._running_pid(): "main", **self._program.children}, injected.fault.choice
        )
        # If `vision chaos` itself is killed, only this guard ends the fault.
        guard = subprocess.Popen(
            ["sh", "-c", f"sleep {injected.fault.duration_s + _GUARD_S}; kill -CONT {pid}"],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        send(pid, signal.SIGSTOP)

        def resume() -> None:
            send(pid, signal.SIGCONT)
            guard.kill()
            guard.wait()

        return resume

    def _hang_detector(self, injected: Injected) -> End:
        injected.target, injected.restarts = str(self._running_pid()), True
        self._program.expected = str(injected.fault)
        hang = hang_file(self._control)
        hang.touch()
        return lambda: hang.unlink(missing_ok=True)

    def _running_pid(self) -> int:
        pid = self._program.pid
        if pid is None:
            raise LeftOut("the program was starting again")
        return pid

    @staticmethod
    def _choose(processes: dict[int, str], choice: float) -> tuple[int, str]:
        """Return the id and the name of the process that `choice` (from 0 to 1) selects.

        `processes` contains names by process id. Raise `LeftOut` if it is empty.
        """
        if not processes:
            raise LeftOut("the program has no other process")
        pid = sorted(processes)[int(choice * len(processes)) % len(processes)]
        return pid, processes[pid]
