"""Where log records go, with secrets taken out of them on the way."""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.logging import RichHandler

from vision.errors import redact


class RedactingFormatter(logging.Formatter):
    """Takes user names, passwords and tokens out of every line, tracebacks and other libraries' texts included."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def terminal() -> Console | None:
    """The terminal that standard error goes to, if it is one."""
    console = Console(stderr=True)
    return console if console.is_terminal else None


def start_logging(level: str, console: Console | None = None) -> None:
    """Send all log records to standard error; above the live table where there is one."""
    handler: logging.Handler
    if console is not None:
        handler = RichHandler(console=console, show_path=False, rich_tracebacks=False, markup=False)
        handler.setFormatter(RedactingFormatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
