"""Worker processes: their start, messages, and stop, and their replacement after a crash, a hang, or a leak.

A worker process runs one function (`Entry`), which the main process names as text. The main process starts a worker as
a new program, not as a fork, because a fork would copy the locks and the CUDA context of the other threads. The worker
is killed if the main process ends, even if the main process crashes.

All workers share one loop, `Workers.poll`, so that no worker needs a thread in the main process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from vision.capture.liveness import Backoff
from vision.errors import VisionError
from vision.messaging.own_processes import OWN_PROCESSES, environment
from vision.runtime.hang_watchdog import ProgressMonitor
from vision.runtime.worker_channel import (
    APPLICATION,
    FAILURE,
    HEARTBEAT,
    LOG,
    READY,
    SETUP,
    SPARE,
    STACKS_SIGNAL,
    STOP,
    Connection,
    Message,
    Setup,
    failure,
    log_record,
)
from vision.version import version

log = logging.getLogger(__name__)

_CHECK_NS: Final = 1_000_000_000  # interval between two checks for hangs and leaks
_HEALTHY_NS: Final = 3_000_000_000  # a process that ran for this long is replaced at once
_FIRST_RETRY_S: Final = 0.2
_LONGEST_RETRY_S: Final = 30.0
_START_S: Final = 60.0  # time without a heartbeat until a worker is ready, because imports from a slow disk take long
_KILL_S: Final = 2.0  # time in which a killed process ends
_STACKS_S: Final = 0.3  # time in which a process prints the stacks of its threads
_EXIT_NS: Final = 100_000_000  # time in which a process ends after it has closed its connection
_EXIT_POLL_S: Final = 0.002  # interval in which the loop checks whether such a process has ended
_SPARE_DELAY_NS: Final = 2_000_000_000  # time for which all workers must be ready before a spare process starts
_SPARE_LONGEST_NS: Final = 32_000_000_000  # longest time until a spare process that ended unexpectedly is replaced
_MESSAGES_AT_ONCE: Final = 64  # maximum number from one worker before the turn of the next worker
_PATH: Final = "VISION_WORKER_PATH"
_PROGRAM: Final = (
    "import os, sys; "  # both are loaded already, so nothing in the current folder can replace them
    f"sys.path[:] = os.environ.pop('{_PATH}').split(os.pathsep); "
    "from vision.runtime.worker_channel import run_worker; "
    "run_worker(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))"
)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The entry point of a worker process, its setup, and its limits."""

    name: str  # for the log
    entry: str  # the function to run, as ``package.module:function``
    setup: bytes = b""  # passed to the function
    hang_s: float = 30.0  # time without a heartbeat after which a process that is ready is replaced
    memory_limit_bytes: int | None = None  # limit of its memory without shared buffers; None means no limit


class WorkerHandler(Protocol):
    """Receiver of the messages of a worker, and of the starts and ends of its processes.

    `Workers.poll` and `Workers.stop` call all methods.
    """

    def started(self, worker: Worker) -> None:
        """Prepare for a new process. Messages that this method sends arrive before all other messages."""

    def received(self, worker: Worker, message: Message) -> None:
        """Process a message of the worker. Close the file descriptors of the message."""

    def lost(self, worker: Worker, reason: str) -> None:
        """Clean up after a process that has ended. `reason` is empty after an orderly stop."""


@dataclass(slots=True)
class _Process:
    """One process of a worker, with its connection to this process and its state."""

    process: subprocess.Popen[bytes]
    connection: Connection
    started_ns: int
    monitor: ProgressMonitor
    heartbeats: int = 0
    is_ready: bool = False
    failure: VisionError | None = None
    end: str = ""  # why it was killed; empty if it was not
    killed_ns: int = 0
    closed_ns: int = 0  # time at which its connection was closed; 0 while it is open


class Worker:
    """One worker, which runs in one process at a time. A new process replaces a process that ends.

    Any thread can call `send`.
    """

    def __init__(self, spec: WorkerSpec, handler: WorkerHandler) -> None:
        self.spec = spec
        self.handler = handler
        self.restarts = 0
        self._process: _Process | None = None
        self._was_ready = False
        self._due_ns = 0  # time of the next start
        self._backoff = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S, shortest_s=0.0)

    @property
    def pid(self) -> int | None:
        """Process id, or None if no process runs."""
        process = self._process
        return None if process is None else process.process.pid

    @property
    def ready(self) -> bool:
        """True once the current process has called `WorkerChannel.ready`."""
        process = self._process
        return process is not None and process.is_ready

    @property
    def due_ns(self) -> int:
        """Monotonic time in ns at which the next process starts, if none runs."""
        return self._due_ns

    def send(self, data: bytes, fds: Sequence[int] = ()) -> bool:
        """Send a message to the worker, without blocking. Return False if no process runs, or its queue is full."""
        process = self._process
        return process is not None and process.connection.send(APPLICATION, data, fds)


class SpareProcess:
    """A process that has imported the programs of all workers, and replaces the next worker process that ends.

    The spare process saves time, because the imports take most of the time that a worker needs to start. Several
    `Workers` can share the process. Any thread can call the methods except `keep`.
    """

    def __init__(self, modules: Sequence[str], clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Create the object without a process, which `keep` starts. `modules` are the names of modules to import."""
        self._modules = modules
        self._clock = clock
        self._lock = threading.Lock()
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._due_ns = clock() + _SPARE_DELAY_NS
        self._retry_ns = _SPARE_DELAY_NS  # doubles with each process that ends unexpectedly
        self._closed = False

    def keep(self) -> None:
        """Start a process if it is due and none runs. Call this regularly from one thread.

        Linux kills the process when this thread ends, even if the process has become a worker.
        """
        with self._lock:
            now_ns = self._clock()
            if self._running is not None and self._running[0].poll() is not None:
                self._end()
                self._retry_later(now_ns)
            if self._running is None and now_ns >= self._due_ns and not self._closed:
                try:
                    self._running = _spawn(SPARE, self._modules)
                    OWN_PROCESSES.add(SPARE.strip(), self._running[0].pid)
                except OSError:  # too many processes or descriptors
                    self._retry_later(now_ns)

    def _retry_later(self, now_ns: int) -> None:
        self._due_ns = now_ns + self._retry_ns
        self._retry_ns = min(2 * self._retry_ns, _SPARE_LONGEST_NS)

    def delay(self) -> None:
        """Postpone the start of the next spare process, because a worker that is starting needs the CPU first."""
        with self._lock:
            self._due_ns = max(self._due_ns, self._clock() + _SPARE_DELAY_NS)

    def take(self) -> tuple[subprocess.Popen[bytes], Connection] | None:
        """Return the process, and pass its ownership to the caller. Return None if no process runs."""
        with self._lock:
            self._due_ns = self._clock() + _SPARE_DELAY_NS
            if self._running is not None and self._running[0].poll() is not None:
                self._end()
            taken, self._running = self._running, None
            if taken is not None:
                self._retry_ns = _SPARE_DELAY_NS
            return taken

    def close(self) -> None:
        """Kill the process, if it runs, and start no further process. Idempotent."""
        with self._lock:
            self._closed = True
            self._end()

    def _end(self) -> None:
        if self._running is None:
            return
        process, connection = self._running
        self._running = None
        process.kill()
        connection.close()
        OWN_PROCESSES.remove(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_S)


@dataclass(slots=True)
class Workers:
    """The workers of a program. `poll` replaces processes that crash, hang, or use too much memory.

    Call the methods from one thread at a time. A thread that calls `poll` must not end before the workers that it
    started, because Linux kills a worker when the thread that started the worker ends.

    Attributes:
        spare: process that replaces the next process that ends, or None if each process is replaced by a new one.
        keeps_spare: if True, `poll` starts `spare`, and `stop` ends it. Only one of the `Workers` that share a spare
            process does this.
    """

    clock: Callable[[], int] = time.monotonic_ns
    spare: SpareProcess | None = None
    keeps_spare: bool = False
    _workers: list[Worker] = field(default_factory=list)
    _killed: list[subprocess.Popen[bytes]] = field(default_factory=list)  # processes to reap
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _check_ns: int = 0
    _is_stopping: bool = False

    def add(self, spec: WorkerSpec, handler: WorkerHandler) -> Worker:
        """Add a worker. The next call to `poll` starts its process."""
        worker = Worker(spec, handler)
        self._workers.append(worker)
        return worker

    @property
    def ready(self) -> bool:
        """True if every worker is ready."""
        return all(worker.ready for worker in self._workers)

    def poll(self, timeout_s: float) -> None:
        """Start the processes that are due, and wait up to `timeout_s` seconds for messages and ends of processes.

        Raises:
            VisionError: a worker that was never ready failed with this error.
            Exception: a method of a `WorkerHandler` raised this error.
        """
        now_ns = self.clock()
        idle = [] if self._is_stopping else [worker for worker in self._workers if worker._process is None]
        for worker in idle:
            if now_ns >= worker._due_ns:
                self._start(worker)
        due = [worker._due_ns for worker in idle if worker._process is None]
        wait_s = min([timeout_s, *(max(0, due_ns - now_ns) / 1e9 for due_ns in due)])
        closing = [worker for worker in self._running() if self._process(worker).closed_ns]
        for key, _ in self._selector.select(min(wait_s, _EXIT_POLL_S) if closing else wait_s):
            self._receive(key.data)
        for worker in closing:
            self._end_if_exited(worker)
        if self.clock() >= self._check_ns:
            self._check_ns = self.clock() + _CHECK_NS
            self._check()

    def kill(self, worker: Worker, reason: str) -> None:
        """Kill the process of a worker, if any, so that it is replaced. `WorkerHandler.lost` receives `reason`."""
        if worker._process is not None and not worker._process.end:
            self._kill(worker, reason)

    def stop(self, timeout_s: float) -> None:
        """Ask all workers to stop, and process their last messages.

        Kill the workers that still run after `timeout_s` seconds.
        """
        self._is_stopping = True
        if self.spare is not None and self.keeps_spare:
            self.spare.close()
        deadline = time.monotonic() + timeout_s
        for worker in self._running():
            self._process(worker).connection.send(STOP)
        self._poll_until(deadline)
        for worker in self._running():
            log.warning("%s did not stop within %.1f s, and is killed", worker.spec.name, timeout_s)
            self._kill(worker, f"did not stop within {timeout_s:.1f} s")
        self._poll_until(time.monotonic() + _KILL_S)
        for worker in self._running():
            self._ended(worker)
        for process in self._killed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_KILL_S)
        self._selector.close()

    def _poll_until(self, deadline: float) -> None:
        """Process messages until all processes have ended, or until `deadline`."""
        while self._running() and (left_s := deadline - time.monotonic()) > 0:
            with contextlib.suppress(VisionError):
                self.poll(min(left_s, 0.1))

    def _running(self) -> list[Worker]:
        return [worker for worker in self._workers if worker._process is not None]

    @staticmethod
    def _process(worker: Worker) -> _Process:
        assert worker._process is not None
        return worker._process

    def _start(self, worker: Worker) -> None:
        now_ns, spec = self.clock(), worker.spec
        spare = None if self.spare is None else self.spare.take()
        try:
            process, connection = spare or _spawn(spec.name)
        except OSError as error:  # too many processes or descriptors
            delay_s = worker._backoff.next_delay_s()
            worker._due_ns = now_ns + int(delay_s * 1e9)
            log.error("%s cannot be started: %s; it is tried again in %.1f s", spec.name, error, delay_s)
            return
        worker._process = _Process(process, connection, now_ns, ProgressMonitor(now_ns))
        OWN_PROCESSES.add(spec.name, process.pid)
        self._selector.register(connection, selectors.EVENT_READ, worker)
        setup = Setup(version(), logging.getLogger().getEffectiveLevel(), spec.name, spec.entry, spec.setup)
        connection.send(SETUP, setup.encode())
        worker.handler.started(worker)

    def _receive(self, worker: Worker) -> None:
        process = worker._process
        for _ in range(_MESSAGES_AT_ONCE):
            if process is None or process is not worker._process:  # a message can make the handler stop the worker
                return
            try:
                received = process.connection.receive()
            except EOFError:
                process.closed_ns = self.clock()
                self._selector.unregister(process.connection)
                self._end_if_exited(worker)
                return
            if received is None:
                return
            self._dispatch(worker, process, *received)

    @staticmethod
    def _dispatch(worker: Worker, process: _Process, kind: bytes, message: Message) -> None:
        if kind == APPLICATION:
            worker.handler.received(worker, message)
        elif kind == HEARTBEAT:
            process.heartbeats += 1
        elif kind == LOG:
            record = log_record(message.data, worker.spec.name)
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        elif kind == READY:
            process.is_ready = worker._was_ready = True
        elif kind == FAILURE:
            process.failure = failure(message.data)

    def _end_if_exited(self, worker: Worker) -> None:
        """Clean up after a process that has closed its connection, once it has ended or `_EXIT_NS` have passed.

        The loop does not wait for the end of the process, because the messages of the other workers would also wait.
        """
        process = self._process(worker)
        if process.process.poll() is not None or self.clock() - process.closed_ns >= _EXIT_NS:
            self._ended(worker)

    def _ended(self, worker: Worker) -> None:
        """Clean up after a process that has closed its connection, or does not end after a kill.

        Schedule the next start. If the process reported a failure, and no process of the worker was ever ready, raise
        the failure.
        """
        process = self._process(worker)
        code = process.process.poll()
        if code is None:  # it closed its connection, but continues to run
            process.process.kill()
            self._killed.append(process.process)
        OWN_PROCESSES.remove(process.process.pid)
        if not process.closed_ns:
            self._selector.unregister(process.connection)
        process.connection.close()
        worker._process = None
        reason = process.end or _describe_end(code, process.failure)
        now_ns = self.clock()
        delay_s = 0.0
        if now_ns - process.started_ns >= _HEALTHY_NS:
            worker._backoff.reset()
        else:
            delay_s = worker._backoff.next_delay_s()
        worker._due_ns = now_ns + int(delay_s * 1e9)
        worker.restarts += not self._is_stopping
        orderly = self._is_stopping and code == 0
        if not self._is_stopping:
            log.error("%s %s; it is replaced in %.1f s", worker.spec.name, reason, delay_s)
        worker.handler.lost(worker, "" if orderly else reason)
        if process.failure is not None and not worker._was_ready:
            raise process.failure

    def _kill_hung(self, worker: Worker, still_s: float) -> None:
        """Make a process print the stacks of its threads. `_check` kills the process after `_STACKS_S` seconds."""
        process = self._process(worker)
        process.end = f"was killed, because it made no progress for {still_s:.0f} s"
        process.killed_ns = self.clock() + int(_STACKS_S * 1e9)
        process.process.send_signal(STACKS_SIGNAL)

    def _kill(self, worker: Worker, reason: str) -> None:
        """Kill a process. `_receive` still receives its last messages, followed by the end of the connection."""
        process = self._process(worker)
        process.end, process.killed_ns = reason, self.clock()
        process.process.kill()

    def _check(self) -> None:
        """Kill processes that hang or use too much memory, reap killed processes, and keep a spare process."""
        if self.spare is not None and not self._is_stopping:
            self._check_spare(self.spare)
        self._killed = [process for process in self._killed if process.poll() is None]
        for worker in self._running():
            process, spec = self._process(worker), worker.spec
            still_s = process.monitor.look(process.heartbeats, self.clock()) / 1e9
            used_bytes = own_memory_bytes(process.process.pid)
            if process.end:
                if self.clock() >= process.killed_ns:
                    process.process.kill()
                if self.clock() - process.killed_ns > _KILL_S * 1e9:  # it is stuck in the kernel
                    self._ended(worker)
            elif still_s > (spec.hang_s if process.is_ready else max(spec.hang_s, _START_S)):
                self._kill_hung(worker, still_s)
            elif spec.memory_limit_bytes is not None and used_bytes > spec.memory_limit_bytes:
                text = f"{used_bytes / 2**20:.0f} MiB of memory, more than {spec.memory_limit_bytes / 2**20:.0f} MiB"
                self._kill(worker, f"was killed, because it used {text}")

    def _check_spare(self, spare: SpareProcess) -> None:
        if not self.ready:
            spare.delay()
        if self.keeps_spare:
            spare.keep()


def _spawn(name: str, modules: Sequence[str] = ()) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start a process that waits for its setup. A spare process first imports `modules`."""
    connection, other = Connection.pair()
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    with other:
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, name, ",".join(modules), str(other.fileno()), str(os.getpid())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment(**{_PATH: path}),
                start_new_session=True,  # Ctrl-C reaches only the main process
            )
        except OSError:
            connection.close()
            raise
    return process, connection


def worker_name(command: Sequence[str]) -> str:
    """Return the name of the worker that runs with the command line `command`.

    Return "" if the command line is not that of a worker.
    """
    return command[3].strip() if len(command) > 3 and command[2] == _PROGRAM else ""


def _describe_end(code: int | None, error: VisionError | None) -> str:
    """Describe how a worker process ended, for the log. `code` is None if the process only closed its connection."""
    if code is None:
        return "closed its connection"
    if code < 0:
        return f"was killed by signal {-code} ({signal.strsignal(-code)})"
    return f"failed: {error}" if error is not None else f"ended with exit code {code}"


def own_memory_bytes(pid: int) -> int:
    """Return the resident memory in bytes that a process does not share. Return 0 if the process has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0
