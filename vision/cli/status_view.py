"""The display of `vision run`: a live table on a terminal, a log line per camera elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vision.cli.live import LiveDisplay
from vision.runtime.status import CameraReport, Report
from vision.types import Counts

log = logging.getLogger(__name__)

_FIRST_LINE_S = 2.0  # most cameras are connected by then

STATE_STYLES = {"streaming": "green", "ended": "dim", "connecting": "yellow", "backing-off": "red", "frozen": "red"}
"""Colors of the camera states."""


class StatusView:
    """Shows each `Report`: rates, latency and drops per camera."""

    def __init__(self, console: Console | None, *, line_interval_s: float = 10.0) -> None:
        """Create the view.

        Args:
            console: a terminal; None: a log line per camera every `line_interval_s` seconds.
            line_interval_s: seconds between log lines.
        """
        self._display = LiveDisplay(console) if console is not None else None
        self._line_interval_s = line_interval_s
        self._next_line_s = _FIRST_LINE_S
        self._unlogged: Report | None = None

    def __enter__(self) -> StatusView:
        if self._display is not None:
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()
        elif self._unlogged is not None:
            self._log(self._unlogged)

    def show(self, report: Report) -> None:
        """Show this report now, or skip it if log lines would follow each other too fast."""
        if self._display is not None:
            self._display.update(Group(status_table(report), *down_lines(report)))
            return
        self._unlogged = report
        if report.uptime_s >= self._next_line_s:
            self._next_line_s = report.uptime_s + self._line_interval_s
            self._log(report)

    def _log(self, report: Report) -> None:
        self._unlogged = None
        for camera in report.cameras:
            log.info("%s", status_line(camera))


def status_table(report: Report) -> Table:
    """Return a table with one row per camera."""
    graphs_off = report.detector.graphs_off if report.detector is not None else ""
    table = Table(
        title=f"vision, up {report.uptime_s:.0f} s",
        caption=Text(f"{report.model} runs without CUDA graphs: {graphs_off}") if graphs_off else None,
        title_justify="left",
        caption_justify="left",
        header_style="bold",
        caption_style="yellow",
    )
    table.add_column("camera", overflow="fold")
    table.add_column("state", overflow="fold")
    for name in ("frame", "frames/s", "p50 ms", "p99 ms", "objects", "published", "dropped"):
        table.add_column(name, justify="right", overflow="fold")
    has_counts = any(camera.counted is not None for camera in report.cameras)
    if has_counts:
        table.add_column("lines and zones", overflow="fold")
    for camera in report.cameras:
        state = camera.status.state
        cells: list[str | Text] = [
            Text(camera.camera_id),
            Text(state, STATE_STYLES.get(state, "")),
            f"{camera.status.width_px}x{camera.status.height_px}" if camera.status.width_px else "-",
            f"{camera.published_fps:.1f}",
            _format_ms(camera, camera.latency.p50_ms),
            _format_ms(camera, camera.latency.p99_ms),
            str(camera.objects),
            str(camera.published),
            _format_drops(camera),
        ]
        table.add_row(*cells, *([Text(format_counts(camera.counted))] if has_counts else []))
    return table


def down_lines(report: Report) -> Iterator[Text]:
    """Yield a line per camera that gives no frames: its state, the next attempt and the reason."""
    for camera in report.cameras:
        status = camera.status
        reason = status.last_error.partition("\n")[0]
        if status.state in ("streaming", "ended") or not reason:
            continue
        retry = "" if status.next_retry_in_s is None else f", retry in {max(0.0, status.next_retry_in_s):.0f} s"
        style = STATE_STYLES.get(status.state, "")
        yield Text(f"{camera.camera_id}: {status.state}{retry}: {reason}", style, overflow="fold")


def status_line(camera: CameraReport) -> str:
    """Return the row of a camera as a log line."""
    parts = [camera.status.state, f"{camera.published_fps:.1f} frames/s"]
    if camera.latency.count:
        parts.append(f"p50 {camera.latency.p50_ms:.1f} ms, p99 {camera.latency.p99_ms:.1f} ms")
    parts += [f"{camera.objects} objects", f"published {camera.published}", f"dropped {_format_drops(camera)}"]
    counts = f"; {format_counts(camera.counted)}" if camera.counted is not None else ""
    return f"{camera.camera_id}: {', '.join(parts)}{counts}"


def format_counts(counted: Counts | None) -> str:
    """Return text such as ``door 7 in 2 out, queue 3``."""
    if counted is None:
        return ""
    lines = [f"{name} {totals.get('in', 0)} in {totals.get('out', 0)} out" for name, totals in counted.lines.items()]
    return ", ".join([*lines, *(f"{name} {inside}" for name, inside in counted.occupancy.items())])


def _format_ms(camera: CameraReport, value: float) -> str:
    return f"{value:.1f}" if camera.latency.count else "-"


def _format_drops(camera: CameraReport) -> str:
    drops = {reason.value: count for reason, count in camera.counts.dropped.items() if count}
    return ", ".join(f"{count} {reason}" for reason, count in drops.items()) or "0"
