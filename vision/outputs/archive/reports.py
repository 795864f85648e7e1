"""Lines on standard output with which the process that writes the archive reports its state to the program."""

from __future__ import annotations

from typing import Final

READY: Final = "ready"
LOSES: Final = "the archive loses messages"
STORES_AGAIN: Final = "the archive stores messages again"
