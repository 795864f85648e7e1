"""`RunRecord` stores how a run of the program ended, so that the next run can report this."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from vision.errors import Closed

if TYPE_CHECKING:
    from types import TracebackType

    from vision.state.database import StateDatabase

End: TypeAlias = Literal["stop", "error", "crash", "machine-restart", "unknown"]

RUNS: Final = """
CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY CHECK (id = 1), state TEXT NOT NULL, boot TEXT NOT NULL,
    at_utc_ns INTEGER NOT NULL);
"""  # earlier versions of the program ignore this table

_RUNNING: Final = "running"
_STORE: Final = "INSERT OR REPLACE INTO runs VALUES (1, ?, ?, ?)"
_INTERVAL_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class LastRun:
    """How and when the previous run ended.

    Attributes:
        end: reason for the end:

            * `stop`: the run stopped normally.
            * `error`: the run ended with an error.
            * `crash`: the process ended without a stop.
            * `machine-restart`: the machine restarted before the run could stop, for example after a power failure.
            * `unknown`: the run did not stop, and the boot of one of the two runs has no identifier.
        at_utc_ns: time of the end in ns since 1970. If the run did not stop, this is the latest recorded time, which is
            at most about a minute before the end.
    """

    end: End
    at_utc_ns: int


class RunRecord:
    """The record of the current run, and the end of the previous run. Exiting the context manager calls `end`.

    Attributes:
        last: end of the previous run, or None if no previous run is recorded.
        is_state_lost: True if the stored state was damaged, so that the events and counters of previous runs are lost.
    """

    def __init__(self, database: StateDatabase, boot: str) -> None:
        """Read the record of the previous run from a database.

        Args:
            boot: identifier of the machine's current boot. An empty string means that the boot is unknown.
        """
        self._database = database
        self._boot = boot
        self.is_state_lost = bool(database.notice)
        self._stored_s: float | None = None  # on the monotonic clock; None before `begin` and after `end`
        rows = database.query("SELECT state, boot, at_utc_ns FROM runs")
        self.last = self._last(*rows[0]) if rows else None

    def _last(self, state: str, boot: str, at_utc_ns: int) -> LastRun | None:
        if state != _RUNNING:
            return LastRun(state, at_utc_ns) if state in get_args(End) else None  # type: ignore[arg-type]
        if not boot or not self._boot:
            return LastRun("unknown", at_utc_ns)
        return LastRun("crash" if boot == self._boot else "machine-restart", at_utc_ns)

    def begin(self) -> LastRun | None:
        """Record that this run has started. Return the end of the previous run, or None if no run is recorded.

        Raises:
            Closed: the database was closed.
        """
        self._store(_RUNNING)
        return self.last

    def beat(self) -> None:
        """Record that this run continues, if the previous record is at least a minute old.

        Raises:
            Closed: the database was closed.
        """
        if self._stored_s is not None and time.monotonic() - self._stored_s >= _INTERVAL_S:
            self._store(_RUNNING)

    def end(self, state: Literal["stop", "error"]) -> None:
        """Record that this run ended with `state`.

        Do nothing if `begin` was not called, or if `end` was already called.

        Raises:
            Closed: the database was closed.
        """
        if self._stored_s is not None:
            self._store(state)
            self._stored_s = None

    def _store(self, state: str) -> None:
        self._stored_s = time.monotonic()
        self._database.write([(_STORE, [(state, self._boot, time.time_ns())])], counters=False)

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        requested = error is None or issubclass(error, Closed | KeyboardInterrupt | SystemExit)
        self.end("stop" if requested else "error")
