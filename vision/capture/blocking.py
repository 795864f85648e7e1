"""Calls that block inside a library, on a thread that can be abandoned.

FFmpeg and V4L2 block until their own timeouts, longer during a host name lookup, and nothing can wake them. A camera's
thread makes these calls here, so that it can notice a stop or a timeout of its own. The cost is one exchange between
two threads per frame.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_JOIN_S: Final = 0.5
_PREFIX: Final = "blocking-"


def blocked_threads() -> list[str]:
    """Return the names of threads that may be inside a library.

    If there are any when the program ends, it must end with `os._exit`. A thread that returns from C++ during the
    interpreter's shutdown is unwound through C++ frames, which aborts the process (Python before 3.14).
    """
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(_PREFIX)]


class Interrupted(Exception):
    """`wake` was called."""


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[T]):
    value: T | None = None
    error: BaseException | None = None


class BlockingCalls(Generic[T]):
    """Runs one call at a time on a thread of its own. All methods except `wake` belong to one thread."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], T] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[_Outcome[T] | None] = SimpleQueue()
        self._busy = False
        self._thread = threading.Thread(target=self._run, name=f"{_PREFIX}{name}", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Return True from `begin` until `result` has returned or raised."""
        return self._busy

    def begin(self, call: Callable[[], T]) -> None:
        """Start a call. The result of the previous call must have been fetched."""
        self._busy = True
        self._calls.put(call)

    def result(self, timeout_s: float) -> T:
        """Return the result of the last call, or raise its exception.

        Raises:
            TimeoutError: the call is still running.
            Interrupted: `wake` was called; the call may still be running.
        """
        try:
            outcome = self._outcomes.get(timeout=max(0.0, timeout_s))
        except Empty:
            raise TimeoutError from None
        if outcome is None:
            raise Interrupted
        self._busy = False
        if outcome.error is not None:
            raise outcome.error
        return outcome.value  # type: ignore[return-value]  # without an error there is a value

    def wake(self) -> None:
        """End the current or next wait in `result`. Any thread may call it."""
        self._outcomes.put(None)

    def end(self, release: Callable[[], T]) -> None:
        """Call `release` after the running call, end the thread, and wait for it, at most 0.5 s.

        The call of a working camera ends with its next frame. A thread that hangs is abandoned.
        """
        self._calls.put(release)
        self._calls.put(None)
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                outcome = _Outcome(value=call())
            except BaseException as error:  # noqa: BLE001 - raised again by `result`
                outcome = _Outcome(error=error)
            del call  # it refers to the capture, which must not outlive its owner
            self._outcomes.put(outcome)
            del outcome
