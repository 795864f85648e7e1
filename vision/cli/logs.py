"""Destination of log records. Secrets are removed on the way."""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.logging import RichHandler

from vision.errors import redact


class RedactingFormatter(logging.Formatter):
    """Removes user names, passwords and tokens from every line, tracebacks and other libraries' texts included."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def start_logging(level: str, console: Console | None = None) -> None:
    """Send all log records to standard error.

    Args:
        level: lowest level that is shown, such as ``info``.
        console: the terminal that also shows a live table; None writes plain lines with date and logger name.
    """
    handler: logging.Handler
    if console is not None:
        handler = RichHandler(console=console, show_path=False, rich_tracebacks=False, markup=False)
        handler.setFormatter(RedactingFormatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
