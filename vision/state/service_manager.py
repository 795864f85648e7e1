"""Messages to the service manager (systemd) that started the program, with the protocol of `sd_notify`."""

from __future__ import annotations

import logging
import os
import socket
from typing import Final

log = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 300.0
"""Time in seconds that the service manager waits for the next step of a start.

`TimeoutStartSec` in ``vision@.service`` has the same value.
"""


def is_service() -> bool:
    """Return True if a service manager started the program, and waits for messages from the program."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(*assignments: str) -> None:
    """Send assignments, such as ``READY=1``, to the service manager. Without a service manager, do nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    message = "\n".join(text.replace("\n", " ") for text in assignments).encode()
    path = address.encode().replace(b"@", b"\0", 1) if address.startswith("@") else address.encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(message, path)
    except OSError as error:
        log.debug("the service manager cannot be reached: %s", error)


def extend_start(wait_s: float = 0.0) -> None:
    """Report progress of the start, so that the service manager waits `START_TIMEOUT_S` plus `wait_s` more seconds."""
    notify(f"EXTEND_TIMEOUT_USEC={int((START_TIMEOUT_S + wait_s) * 1e6)}")


def watchdog_interval_s() -> float | None:
    """Return the maximum time in seconds between two signs of life for the service manager, or None for no limit."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        return int(os.environ["WATCHDOG_USEC"]) / 1e6 or None
    except (KeyError, ValueError):
        return None
