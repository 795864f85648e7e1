"""Reading from libraries that block, on a thread that can be abandoned.

FFmpeg and V4L2 block until their own timeouts, longer during a host name lookup, and nothing can wake them. A camera's
thread makes these calls here, so that it can notice a stop or a timeout of its own. The cost is one exchange between
two threads per frame.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, TypeAlias, TypeVar

from vision.errors import SourceError

ResourceT = TypeVar("ResourceT")
ValueT = TypeVar("ValueT")

_Call: TypeAlias = Callable[[Any], object]

THREAD_PREFIX: Final = "blocking-"
_JOIN_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Outcome:
    value: Any = None
    error: BaseException | None = None


class BlockingReader(Generic[ResourceT, ValueT]):
    """Opens, reads and closes a resource of a library. All methods except `interrupt` belong to one thread."""

    def __init__(
        self,
        name: str,
        open_resource: Callable[[], ResourceT],
        read: Callable[[ResourceT], ValueT],
        close: Callable[[ResourceT], object],
    ) -> None:
        """Create the reader. `name` is for error texts; the functions run on a thread of its own."""
        self._name = name
        self._open_resource = open_resource
        self._read = read
        self._close = close
        self._interrupted = threading.Event()
        self._worker: _Worker | None = None

    @property
    def is_open(self) -> bool:
        return self._worker is not None

    @property
    def interrupted(self) -> bool:
        return self._interrupted.is_set()

    def open(self, timeout_s: float, *, hint: str) -> ResourceT:
        """Open the resource.

        Args:
            timeout_s: the longest wait.
            hint: advice to the operator if that time is over.

        Raises:
            SourceError: the time is over, or `interrupt` was called.
            Exception: any exception of the library.
        """
        self.close()
        worker = self._worker = _Worker(self._open_resource, self._read, self._close)
        try:
            outcome = None if self._interrupted.is_set() else worker.outcome(timeout_s)
        except Empty:
            raise SourceError(
                f"{self._name}: no answer within {timeout_s:g} s", hint=hint, code="open-timeout"
            ) from None
        if outcome is None:
            raise SourceError(f"{self._name}: interrupted while opening", code="interrupted")
        resource: ResourceT = outcome.value
        return resource

    def read(self, timeout_s: float) -> ValueT | None:
        """Return what the next call of the library returns, or None after the timeout or `interrupt`.

        A call that outlasts the timeout continues, and a later `read` returns its result.

        Raises:
            Exception: any exception of the library.
        """
        worker = self._worker
        if worker is None or self._interrupted.is_set():
            return None
        worker.request()
        try:
            outcome = worker.outcome(timeout_s)
        except Empty:
            return None
        return None if outcome is None else outcome.value

    def interrupt(self) -> None:
        """Make `open` fail and `read` return None from now on. Any thread may call it."""
        self._interrupted.set()
        worker = self._worker
        if worker is not None:
            worker.wake()

    def close(self) -> None:
        """Close the resource after the call in progress, and wait for that, at most 0.5 s. Idempotent.

        The call of a working camera ends with its next frame. A thread that hangs is abandoned.
        """
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()


class _Worker:
    """One resource and its thread, which outlives the reader if the library hangs."""

    def __init__(self, open_resource: Callable[[], Any], read: _Call, close: _Call) -> None:
        self._requests: SimpleQueue[bool] = SimpleQueue()  # True: read; False: end
        self._outcomes: SimpleQueue[_Outcome | None] = SimpleQueue()  # None: wake up
        self._busy = True
        calls = (open_resource, read, close)
        self._thread = threading.Thread(target=self._run, args=calls, name=f"{THREAD_PREFIX}library", daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Begin a call, unless one is in progress."""
        if not self._busy:
            self._busy = True
            self._requests.put(True)

    def outcome(self, timeout_s: float) -> _Outcome | None:
        """Return the outcome of the call in progress, or raise its exception. None: `wake` was called.

        Raises:
            Empty: the call is still running.
        """
        outcome = self._outcomes.get(timeout=max(0.0, timeout_s))
        if outcome is not None:
            self._busy = False
            if outcome.error is not None:
                raise outcome.error
        return outcome

    def wake(self) -> None:
        self._outcomes.put(None)

    def end(self) -> None:
        self._requests.put(False)
        self._thread.join(_JOIN_S)

    def _run(self, open_resource: Callable[[], Any], read: _Call, close: _Call) -> None:
        try:
            resource = open_resource()
        except BaseException as error:  # noqa: BLE001 - raised again by `outcome`
            self._outcomes.put(_Outcome(error=error))
            return
        self._outcomes.put(_Outcome(resource))
        while self._requests.get():
            try:
                outcome = _Outcome(read(resource))
            except BaseException as error:  # noqa: BLE001 - raised again by `outcome`
                outcome = _Outcome(error=error)
            self._outcomes.put(outcome)
            del outcome
        with suppress(Exception):
            close(resource)
