"""The command that installs the packages of `vision eval`."""

from __future__ import annotations

from typing import Final

from vision.version import pip_hint

INSTALL: Final = f"{pip_hint('scipy', 'matplotlib')} && {pip_hint('--no-deps', 'trackeval')}"
"""TrackEval's own dependencies include a desktop build of OpenCV that its metrics do not need."""
