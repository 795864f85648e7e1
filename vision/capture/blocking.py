"""Reader that makes the blocking calls to a library on a separate thread, which can be abandoned.

Calls to FFmpeg and V4L2 block until their own timeouts, or longer during a host name lookup, and nothing can wake them.
With this reader, a camera's thread can still react to a stop or to its own timeout. The cost is one exchange between
two threads per frame.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, TypeAlias, TypeVar

from vision.errors import SourceError

ResourceT = TypeVar("ResourceT")
ValueT = TypeVar("ValueT")

THREAD_PREFIX: Final = "blocking-"
_JOIN_S: Final = 0.5

_left_running: list[tuple[threading.Thread, float]] = []  # threads that `close` left running, and when

_Outcomes: TypeAlias = "SimpleQueue[tuple[Any, BaseException | None] | None]"
"""The value or the exception of each completed call. `interrupt` adds None, to wake the waiting thread."""


def threads_left_running(for_s: float) -> int:
    """Return the number of library threads that have not ended `for_s` seconds after their camera was closed."""
    _left_running[:] = [(thread, since_s) for thread, since_s in _left_running if thread.is_alive()]
    return sum(time.monotonic() - since_s > for_s for _, since_s in _left_running)


class BlockingReader(Generic[ResourceT, ValueT]):
    """Opens, reads, and closes a resource on a separate thread. Only `interrupt` can be called from any thread."""

    def __init__(
        self,
        name: str,
        open_resource: Callable[[], ResourceT],
        read: Callable[[ResourceT], ValueT],
        close: Callable[[ResourceT], object],
    ) -> None:
        """Create the reader. `name` appears in errors. The three functions are called on the separate thread."""
        self._name = name
        self._calls = open_resource, read, close
        self.interrupted = threading.Event()
        self._requests: SimpleQueue[bool] = SimpleQueue()  # True requests a read, False the end of the thread
        self._outcomes: _Outcomes = SimpleQueue()
        self._thread: threading.Thread | None = None  # outlives the reader if the library does not return
        self._busy = False

    @property
    def is_open(self) -> bool:
        return self._thread is not None

    def open(self, timeout_s: float, *, hint: str) -> ResourceT:
        """Open the resource, and return it.

        Raises:
            SourceError: opening took longer than `timeout_s` (the error contains `hint`), or `interrupt` was called.
            Exception: `open_resource` raised it.
        """
        self.close()
        self._requests, self._outcomes, self._busy = SimpleQueue(), SimpleQueue(), True
        arguments = self._requests, self._outcomes, *self._calls
        self._thread = threading.Thread(target=_run, args=arguments, name=f"{THREAD_PREFIX}library", daemon=True)
        self._thread.start()
        try:
            resource: ResourceT | None = None if self.interrupted.is_set() else self._outcome(timeout_s)
        except Empty:
            raise SourceError(
                f"{self._name}: no answer within {timeout_s:g} s", hint=hint, code="open-timeout"
            ) from None
        if resource is None:
            raise SourceError(f"{self._name}: interrupted while opening", code="interrupted")
        return resource

    def read(self, timeout_s: float) -> ValueT | None:
        """Read once, and return the value; None after `timeout_s` or `interrupt`, or if the resource is not open.

        An exception of the read is raised again. After a timeout, the read continues; a later call returns its value.
        """
        if self._thread is None or self.interrupted.is_set():
            return None
        if not self._busy:
            self._busy = True
            self._requests.put(True)
        try:
            value: ValueT | None = self._outcome(timeout_s)
        except Empty:
            return None
        return value

    def _outcome(self, timeout_s: float) -> Any:
        """Wait for the call in progress, and return its value; None if interrupted. Raise `Empty` after a timeout."""
        outcome = self._outcomes.get(timeout=max(0.0, timeout_s))
        if outcome is None:
            return None
        self._busy = False
        value, error = outcome
        if error is not None:
            raise error
        return value

    def interrupt(self) -> None:
        """Make present and later calls of `open` raise an error, and those of `read` return None. Thread-safe."""
        self.interrupted.set()
        self._outcomes.put(None)

    def close(self) -> None:
        """Close the resource when the call in progress returns. Wait at most 0.5 s for the return. Idempotent.

        If the camera works, the call returns with its next frame. Otherwise, the thread is left running, and closes the
        resource when the call returns.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            self._requests.put(False)
            thread.join(_JOIN_S)
            if thread.is_alive():
                _left_running.append((thread, time.monotonic()))


def _run(
    requests: SimpleQueue[bool],
    outcomes: _Outcomes,
    open_resource: Callable[[], ResourceT],
    read: Callable[[ResourceT], object],
    close: Callable[[ResourceT], object],
) -> None:
    try:
        resource = open_resource()
    except BaseException as error:  # noqa: BLE001 - raised again by `_outcome`
        outcomes.put((None, error))
        return
    outcomes.put((resource, None))
    while requests.get():
        try:
            outcome: tuple[Any, BaseException | None] = read(resource), None
        except BaseException as error:  # noqa: BLE001 - raised again by `_outcome`
            outcome = None, error
        outcomes.put(outcome)
        del outcome
    with suppress(Exception):
        close(resource)
