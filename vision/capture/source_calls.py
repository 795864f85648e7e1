"""Calls into a source: which one is in progress, and every exception as an error of one camera."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vision.errors import DeviceError, OutOfMemory, SourceError, redact
from vision.metrics import span

log = logging.getLogger(__name__)


class SourceCalls:
    """The calls of one camera's thread into its source."""

    def __init__(self, camera_id: str, clock: Callable[[], int]) -> None:
        self._camera_id = camera_id
        self._clock = clock
        self._lock = threading.Lock()
        self._call = ""
        self._since_ns = 0

    def in_progress(self) -> str:
        """Return the call in progress and its duration; empty if there is none. Any thread may call it."""
        with self._lock:
            return f"in {self._call} for {(self._clock() - self._since_ns) / 1e9:.1f} s" if self._call else ""

    @contextmanager
    def calling(self, name: str) -> Iterator[None]:
        """Wrap a call into the source.

        Raises:
            SourceError: the source raised it, ran out of memory, or raised an unexpected exception.
            DeviceError: the device failed.
        """
        with self._lock:
            self._call, self._since_ns = name, self._clock()
        try:
            with span(name):
                yield
        except OutOfMemory as error:
            raise out_of_memory(f"no memory in {name} of the source", error) from error
        except (SourceError, DeviceError):
            raise
        except Exception as error:
            # The only place that catches everything. An exception of a library, or a bug in a source, must neither
            # end this thread silently while its camera looks alive, nor end the program for the other cameras. The
            # traceback is logged as text, because logging would print a URL that the exception may contain.
            text = redact("".join(traceback.format_exception(type(error), error, error.__traceback__)))
            log.error("camera %s: unexpected exception in %s of the source\n%s", self._camera_id, name, text)
            raise SourceError(
                f"unexpected exception in {name} of the source: {type(error).__name__}: {error}", code="source-bug"
            ) from error
        finally:
            with self._lock:
                self._call = ""


def out_of_memory(text: str, error: OutOfMemory | MemoryError) -> SourceError:
    """Return the error of one camera. Unlike CUDA's other errors it leaves the device usable for other cameras."""
    return SourceError(
        f"{text}: {error.args[0] if isinstance(error, OutOfMemory) else str(error)}",
        hint="choose a smaller stream of this camera, such as its second one, or make room for the larger frames",
        code="out-of-memory",
    )
