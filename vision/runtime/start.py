"""`open_patiently`, which repeats the start of a service until disks, addresses, and locks can be used."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, TypeVar

from vision.capture.liveness import Backoff
from vision.errors import Closed, Unavailable, from_os_error
from vision.state.service_manager import extend_start, is_service, notify

log = logging.getLogger(__name__)

_FIRST_RETRY_S: Final = 4.0
_LONGEST_RETRY_S: Final = 60.0

_Value = TypeVar("_Value")


def open_patiently(
    open_parts: Callable[[ExitStack], _Value],
    resources: ExitStack,
    stop: threading.Event,
    *,
    patient: bool | None = None,
    backoff: Backoff | None = None,
) -> _Value:
    """Return the result of `open_parts`, whose resources are registered with `resources`.

    After an error that can pass (`Unavailable`, or an `OSError` that `from_os_error` converts to it), close what was
    opened, wait, and try again. Log the failed attempts 1, 2, 4, 8, ...

    Args:
        open_parts: function that opens all parts. It registers them with its argument.
        resources: closes the parts of the successful attempt.
        stop: event that ends the wait.
        patient: if False, raise the first error. None means True for a service, otherwise False.
        backoff: the times between attempts. None means random times of 1 s to 60 s.

    Raises:
        Unavailable: `patient` is False, and a part cannot be opened at present.
        Closed: `stop` was set during a wait.
        ConfigError: `open_parts` raised an `OSError` that only an operator can solve.
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
        except (Unavailable, OSError) as error:
            failure = from_os_error("the program cannot start", error) if isinstance(error, OSError) else error
            if not patient or not isinstance(failure, Unavailable):
                raise failure from error.__cause__ or error
        _wait(failure, backoff, stop)


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
