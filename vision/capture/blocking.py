"""Reader that makes the blocking calls to a library, such as V4L2, on a separate thread.

These calls block until their own timeouts, and no other thread can interrupt them. With this reader, a camera's thread
can still react to a stop or to its own timeout, and can abandon a thread whose call does not return. The cost is one
exchange between two threads per frame.
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

_left_running: list[tuple[threading.Thread, float]] = []  # threads that `close` left running, and since when (s)

_Outcomes: TypeAlias = "SimpleQueue[tuple[Any, BaseException | None] | None]"
"""Queue with the value or the exception of each completed call. `interrupt` adds None, to wake the waiting thread."""


def threads_left_running(for_s: float) -> int:
    """Return the number of threads that still run more than `for_s` seconds after `BlockingReader.close`."""
    _left_running[:] = [(thread, since_s) for thread, since_s in _left_running if thread.is_alive()]
    return sum(time.monotonic() - since_s > for_s for _, since_s in _left_running)


class BlockingReader(Generic[ResourceT, ValueT]):
    """Reader that opens, reads, and closes a resource on a separate thread.

    Call all methods from one thread, except `interrupt`, which any thread can call.
    """

    def __init__(
        self,
        name: str,
        open_resource: Callable[[], ResourceT],
        read: Callable[[ResourceT], ValueT],
        close: Callable[[ResourceT], object],
    ) -> None:
        """Create the reader. `name` appears in errors.

        The separate thread calls the three functions, which open, read, and close the resource.
        """
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
        """Read and return one value. Return None after `timeout_s` or `interrupt`, or if the resource is not open.

        After a timeout, the read continues on its thread, and a later call returns the value. If the read raises an
        exception, this method raises the same exception.
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
        """Wait for the call in progress. Return its value, or raise its exception. Return None after `interrupt`.

        Raise `queue.Empty` if the call takes longer than `timeout_s`.
        """
        outcome = self._outcomes.get(timeout=max(0.0, timeout_s))
        if outcome is None:
            return None
        self._busy = False
        value, error = outcome
        if error is not None:
            raise error
        return value

    def interrupt(self) -> None:
        """Make current and future calls to `open` raise `SourceError`, and make calls to `read` return None."""
        self.interrupted.set()
        self._outcomes.put(None)

    def close(self) -> None:
        """Close the resource after the call in progress. Wait at most 0.5 s. Idempotent.

        If the camera works, the call returns with the next frame. If the call does not return within 0.5 s, leave the
        thread running: it closes the resource as soon as the call returns.
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
