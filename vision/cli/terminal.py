"""What `vision run` shows while it runs: a live table on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import logging
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vision.runtime.status import CameraReport, Report
from vision.types import Counts

log = logging.getLogger(__name__)

_FIRST_LINE_S = 2.0  # by then most cameras are connected and there is something to say

_STATE_STYLES = {"streaming": "green", "ended": "dim", "connecting": "yellow", "backing-off": "red", "frozen": "red"}


class StatusView:
    """Shows each `Report`: rates, latency and drops per camera."""

    def __init__(self, console: Console | None, *, line_interval_s: float = 10.0) -> None:
        """
        Args:
            console: a terminal; None: a log line per camera every `line_interval_s` seconds.
        """
        self._live = Live(console=console, refresh_per_second=4, transient=False) if console is not None else None
        self._line_interval_s = line_interval_s
        self._next_line_s = _FIRST_LINE_S
        self._unsaid: Report | None = None

    def __enter__(self) -> StatusView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._unsaid is not None:
            self._say(self._unsaid)

    def show(self, report: Report) -> None:
        """Show this report now, or skip it where lines would come too fast."""
        if self._live is not None:
            self._live.update(status_table(report))
            return
        self._unsaid = report
        if report.uptime_s >= self._next_line_s:
            self._next_line_s = report.uptime_s + self._line_interval_s
            self._say(report)

    def _say(self, report: Report) -> None:
        self._unsaid = None
        for camera in report.cameras:
            log.info("%s", status_line(camera))


def status_table(report: Report) -> Table:
    """One row a camera."""
    off = report.detector.graphs_off if report.detector is not None else ""
    table = Table(
        title=f"vision, up {report.uptime_s:.0f} s",
        caption=Text(f"{report.model} runs without CUDA graphs: {off}") if off else None,
        title_justify="left",
        caption_justify="left",
        header_style="bold",
        caption_style="yellow",
    )
    table.add_column("camera")
    table.add_column("state")
    for name in ("frame", "frames/s", "p50 ms", "p99 ms", "objects", "published", "dropped"):
        table.add_column(name, justify="right")
    counts = any(camera.counted is not None for camera in report.cameras)
    if counts:
        table.add_column("lines and zones")
    for camera in report.cameras:
        state = camera.status.state
        table.add_row(
            camera.camera_id,
            f"[{_STATE_STYLES.get(state, '')}]{state}[/]",
            f"{camera.status.width_px}x{camera.status.height_px}",
            f"{camera.published_fps:.1f}",
            _ms(camera, camera.latency.p50_ms),
            _ms(camera, camera.latency.p99_ms),
            str(camera.objects),
            str(camera.published),
            _drops(camera),
            *([counted_words(camera.counted)] if counts else []),
        )
    return table


def status_line(camera: CameraReport) -> str:
    """The same as one line of a log."""
    return (
        f"{camera.camera_id}: {camera.status.state}, {camera.published_fps:.1f} frames/s, "
        f"p50 {_ms(camera, camera.latency.p50_ms)} ms, p99 {_ms(camera, camera.latency.p99_ms)} ms, "
        f"{camera.objects} objects, "
        f"published {camera.published}, dropped {_drops(camera)}"
        + (f"; {counted_words(camera.counted)}" if camera.counted is not None else "")
    )


def counted_words(counted: Counts | None) -> str:
    """Such as ``door 7 in 2 out, queue 3``."""
    if counted is None:
        return ""
    lines = [f"{name} {totals.get('in', 0)} in {totals.get('out', 0)} out" for name, totals in counted.lines.items()]
    return ", ".join([*lines, *(f"{name} {inside}" for name, inside in counted.occupancy.items())])


def _ms(camera: CameraReport, value: float) -> str:
    return f"{value:.1f}" if camera.latency.count else "-"


def _drops(camera: CameraReport) -> str:
    drops = {reason.value: count for reason, count in camera.counts.dropped.items() if count}
    return ", ".join(f"{count} {reason}" for reason, count in drops.items()) or "0"
