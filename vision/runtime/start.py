"""`open_patiently`, which repeats the start of a service until disks, addresses, and locks can be used.

The function also waits for the driver of the GPU. When the driver responds, the function raises an error, because only
a new process can use the GPU.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, TypeVar

import zmq

from vision.capture.liveness import Backoff
from vision.detect.gpu_presence import driver_answers
from vision.errors import Closed, DeviceNotReady, Unavailable, VisionError, from_os_error
from vision.state.service_manager import extend_start, is_service, notify

log = logging.getLogger(__name__)

_FIRST_RETRY_S: Final = 4.0
_LONGEST_RETRY_S: Final = 60.0
_DRIVER_S: Final = 120.0  # longest wait for the driver, after which the service manager starts a new process

_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_Value = TypeVar("_Value")


def open_patiently(
    open_parts: Callable[[ExitStack], _Value],
    resources: ExitStack,
    stop: threading.Event,
    *,
    patient: bool | None = None,
    backoff: Backoff | None = None,
    driver_s: float = _DRIVER_S,
) -> _Value:
    """Return the result of `open_parts`, whose resources are registered with `resources`.

    After an error that can pass (`Unavailable`, or an error of the system that `from_os_error` converts to it), close
    what was opened, wait, and retry. Log the failed attempts 1, 2, 4, 8, ...

    Args:
        open_parts: function that opens all parts, and registers the parts with its argument.
        resources: stack that closes the parts of the successful attempt.
        stop: event that ends the wait.
        patient: if False, raise the first error. None means True for a service, and False otherwise.
        backoff: the times between attempts. None means random times of 1 s to 60 s.
        driver_s: longest wait in seconds for the driver of the GPU.

    Raises:
        Unavailable: `patient` is False, and a part cannot be opened at present.
        DeviceNotReady: the driver of the GPU did not respond. If `patient` is True, the driver either did not respond
            for `driver_s` seconds, or responds only to a new process.
        Closed: `stop` was set during a wait.
        ConfigError: `open_parts` raised an `OSError` whose cause only an operator can remove.
        Exception: `open_parts` raised another error, which is raised unchanged.
    """
    patient = is_service() if patient is None else patient
    backoff = backoff or Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S, shortest_s=_FIRST_RETRY_S / 4)
    while True:
        try:
            with ExitStack() as attempt:
                value = open_parts(attempt)
                resources.enter_context(attempt.pop_all())
                return value
        except DeviceNotReady as error:
            if patient:
                _wait_for_driver(error, backoff, stop, driver_s)
            raise
        except (Unavailable, OSError, zmq.ZMQError) as error:
            if isinstance(error, zmq.ZMQError) and error.errno not in _EXHAUSTED:
                raise
            failure = error if isinstance(error, Unavailable) else _cannot_start(error.errno or 0)
            if not patient or not isinstance(failure, Unavailable):
                raise failure from error.__cause__ or error
        _wait(failure, backoff, stop)


def _cannot_start(number: int) -> VisionError:
    return from_os_error("the program cannot start", OSError(number, os.strerror(number)))


def _wait(failure: Unavailable, backoff: Backoff, stop: threading.Event) -> None:
    delay_s = backoff.next_delay_s()
    attempt = backoff.failures
    if not attempt & (attempt - 1):
        text = "cannot start (attempt %d), retrying in %.1f s: %s [repeats are logged at attempts %d, %d, ...]"
        log.warning(text, attempt, delay_s, failure, 2 * attempt, 4 * attempt)
    extend_start(delay_s)
    notify(f"STATUS=waiting to start: {failure.args[0]}")
    if stop.wait(delay_s):
        raise Closed("stopped while starting")


def _wait_for_driver(failure: DeviceNotReady, backoff: Backoff, stop: threading.Event, longest_s: float) -> None:
    """Wait until the driver of the GPU responds to a new process, but at most for about `longest_s` seconds."""
    log.warning("waiting up to %.0f s for the driver of the GPU: %s", longest_s, failure.args[0])
    notify("STATUS=waiting for the driver of the GPU")
    deadline_s = time.monotonic() + longest_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        delay_s = min(backoff.next_delay_s(), left_s)
        extend_start(delay_s)
        if stop.wait(delay_s):
            raise Closed("stopped while starting")
        if driver_answers():
            log.info("the driver of the GPU answers; the program ends, because only a new process can use the GPU")
            return
