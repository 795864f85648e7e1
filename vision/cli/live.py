"""A live display that leaves no torn copies behind when the terminal becomes narrower."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType


class LiveDisplay:
    """Redraws one renderable in place, below the log lines that the same console prints."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._width = console.width

    def start(self) -> None:
        """Begin to draw, and hide the cursor."""
        self._live.start()

    def stop(self) -> None:
        """Leave the last drawing on the screen, and show the cursor."""
        self._live.stop()

    def update(self, renderable: RenderableType) -> None:
        """Draw `renderable` in place of the one before."""
        width = self._console.width
        if width < self._width:
            self._scroll_away()
        self._width = width
        self._live.update(renderable, refresh=True)

    def _scroll_away(self) -> None:
        """Move the screen's lines into the scroll-back.

        A terminal that becomes narrower wraps the lines of the old drawing, so their number is no longer known and
        they cannot be erased without the risk to erase log lines above them.
        """
        height = self._console.height
        self._live.update("", refresh=False)
        self._live.stop()
        self._console.control(Control((ControlType.CURSOR_MOVE_TO, 0, height - 1)))
        self._console.print("\n" * (height - 1))
        self._console.control(Control.home())
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._live.start()
