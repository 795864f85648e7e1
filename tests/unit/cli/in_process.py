"""Functions that run commands in the process of the tests, because imports in a new process take 1 s of CPU time."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from vision.cli.main import main


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in this process. Return its exit code and its output."""
    texts = [str(argument) for argument in arguments]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as error, _own_logging():
        code = main(texts)
    return subprocess.CompletedProcess(texts, code, out.getvalue(), error.getvalue())


@contextmanager
def _own_logging() -> Iterator[None]:
    """Undo the changes that a command makes to the whole process: log handlers, log levels, and warnings."""
    root, hook = logging.getLogger(), sys.excepthook
    handlers, level = [*root.handlers], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)
        sys.excepthook = hook
