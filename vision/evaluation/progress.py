"""Progress display of an evaluation, and a check for a request to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vision.errors import Closed

_PROGRESS_S: Final = 5.0  # minimum time between two lines of progress, if the output is not a terminal


@contextmanager
def show_progress(
    words: str, total: int | None, stop: threading.Event | None = None, *, unit: str = "frames"
) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows the progress of some work, as a bar in a terminal, and otherwise as lines.

    The function receives the number of finished units. It raises `Closed` if `stop` is set.

    Args:
        words: description of the work.
        total: number of units, or None if the number is unknown.
        stop: event that ends the work when it is set, or None if the work cannot be stopped.
        unit: name of the units.
    """
    console = rich.get_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(words, total=total)
        of_total = "" if total is None else f" of {total}"
        next_s = time.monotonic() + _PROGRESS_S

        def step(done: int) -> None:
            nonlocal next_s
            bar.update(task, completed=done)
            if not console.is_terminal and time.monotonic() >= next_s:
                next_s = time.monotonic() + _PROGRESS_S
                console.print(f"{words}: {done}{of_total} {unit}", highlight=False)
            if stop is not None:
                check_stop(stop)

        yield step


def check_stop(stop: threading.Event) -> None:
    """Raise `Closed` if `stop` is set."""
    if stop.is_set():
        raise Closed("stopped before the work was complete")
