"""Progress of the commands that measure: a status line on a terminal, a line per step elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Final, TypeVar

from vision.cli.console import terminal

_CHATTY: Final = (
    "vision.runtime.builder",
    "vision.capture",
    "vision.detect.open",
    "vision.detect.tensorrt.detector",
    "matplotlib",
)

_Value = TypeVar("_Value")


def with_progress(work: Callable[[Callable[[str], None]], _Value]) -> _Value:
    """Call `work` with a function that shows the current step."""
    for name in _CHATTY:
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() == logging.INFO:  # a start of the detector is not what was asked for
            logger.setLevel(logging.WARNING)
    console = terminal()
    if console is None:
        return work(lambda text: print(f"measuring {text}", file=sys.stderr, flush=True))
    with console.status("...") as status:
        return work(lambda text: status.update(f"measuring {text}"))
