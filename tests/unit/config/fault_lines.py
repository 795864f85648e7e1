"""What tests compare of a configuration error: its lines without columns, and without the excerpt of the file."""

from __future__ import annotations

import re

_COLUMN = re.compile(r"^([^:]*:[0-9]+):[0-9]+:")


def fault_lines(text: str) -> list[str]:
    """Return one line for each fault: ``camera.yaml:3: detect.threads: expected ...``."""
    return [_COLUMN.sub(r"\1:", line) for line in text.splitlines() if not line.startswith("    ")]
