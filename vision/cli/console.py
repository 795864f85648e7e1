"""The console on standard error. Log lines, live tables and progress bars share it, so none overwrites another."""

from __future__ import annotations

from functools import cache

import rich
from rich.console import Console


@cache
def error_console() -> Console:
    """Return the console of this process on standard error. It becomes rich's own console, which libraries use."""
    rich.reconfigure(stderr=True)
    return rich.get_console()


def terminal() -> Console | None:
    """Return the console on standard error if that is a terminal."""
    console = error_console()
    return console if console.is_terminal else None
