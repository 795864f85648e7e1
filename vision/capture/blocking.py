"""Calls that block inside a library, on a thread that can be left behind.

FFmpeg and V4L2 wait inside OpenCV for as long as their time-outs say, longer while a host name is looked up, and
nothing can wake them. So that a camera's thread can notice the end of the program, or of its patience, it makes these
calls here. The price is one exchange between two threads a frame.
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


def left_behind() -> list[str]:
    """Threads that are, or may be, inside a library.

    Where there are any when the program ends, it must end by `os._exit`: a thread that comes back from C++ while the
    interpreter is being taken down is unwound through it, which C++ answers with abort (Python before 3.14).
    """
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(_PREFIX)]


class Interrupted(Exception):
    """`wake` was called."""


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[T]):
    value: T | None = None
    error: BaseException | None = None


class BlockingCalls(Generic[T]):
    """One call at a time. All methods but `wake` belong to one thread."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], T] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[_Outcome[T] | None] = SimpleQueue()
        self._busy = False
        self._thread = threading.Thread(target=self._run, name=f"{_PREFIX}{name}", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """True from `begin` until `result` has returned what came of it."""
        return self._busy

    def begin(self, call: Callable[[], T]) -> None:
        """Start a call. The last one's result was fetched before."""
        self._busy = True
        self._calls.put(call)

    def result(self, timeout_s: float) -> T:
        """What came of the call that was begun last, or what it raised.

        Raises:
            TimeoutError: it still runs.
            Interrupted: `wake` was called; it may still run.
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
        return outcome.value  # type: ignore[return-value]  # a value of T is there where no error is

    def wake(self) -> None:
        """From any thread: end a `result` that waits, or the next one."""
        self._outcomes.put(None)

    def end(self, release: Callable[[], T]) -> None:
        """Call `release` behind whatever still runs, end the thread, and wait for that: 0.5 s at most.

        A camera that works ends its call at its next frame. One that hangs is left behind.
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
            del call  # it holds the capture, which is to go with its owner
            self._outcomes.put(outcome)
            del outcome
