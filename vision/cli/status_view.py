"""The display of `vision run`: a live table on a terminal, a log line per camera elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vision.cli.live import LiveDisplay
from vision.messaging.schema import CameraReport, CountsReport
from vision.runtime.status import Report

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
        if report.node.uptime_s >= self._next_line_s:
            self._next_line_s = report.node.uptime_s + self._line_interval_s
            self._log(report)

    def _log(self, report: Report) -> None:
        self._unlogged = None
        for camera in report.cameras:
            log.info("%s", status_line(camera, report.counts.get(camera.camera)))


def status_table(report: Report) -> Table:
    """Return a table with one row per camera."""
    graphs_off = report.node.detector.graphs_off if report.node.detector is not None else None
    table = Table(
        title=f"vision, up {report.node.uptime_s:.0f} s",
        caption=Text(f"{report.node.model} runs without CUDA graphs: {graphs_off}") if graphs_off else None,
        title_justify="left",
        caption_justify="left",
        header_style="bold",
        caption_style="yellow",
    )
    table.add_column("camera", overflow="fold")
    table.add_column("state", overflow="fold")
    for name in ("frame", "frames/s", "p50 ms", "p99 ms", "objects", "published", "dropped"):
        table.add_column(name, justify="right", overflow="fold")
    if report.counts:
        table.add_column("lines and zones", overflow="fold")
    for camera in report.cameras:
        cells: list[str | Text] = [
            Text(camera.camera),
            Text(camera.state, STATE_STYLES.get(camera.state, "")),
            f"{camera.width}x{camera.height}" if camera.width else "-",
            f"{camera.published_fps:.1f}",
            f"{camera.latency_ms.p50:.1f}" if camera.latency_ms is not None else "-",
            f"{camera.latency_ms.p99:.1f}" if camera.latency_ms is not None else "-",
            str(camera.objects),
            str(camera.published),
            _format_drops(camera),
        ]
        table.add_row(*cells, *([Text(format_counts(report.counts.get(camera.camera)))] if report.counts else []))
    return table


def down_lines(report: Report) -> Iterator[Text]:
    """Yield a line per camera that gives no frames: its state, the next attempt and the reason."""
    for camera in report.cameras:
        if camera.state in ("streaming", "ended") or not camera.last_error:
            continue
        retry = "" if camera.next_retry_in_s is None else f", retry in {camera.next_retry_in_s:.0f} s"
        reason = camera.last_error.partition("\n")[0]
        style = STATE_STYLES.get(camera.state, "")
        yield Text(f"{camera.camera}: {camera.state}{retry}: {reason}", style, overflow="fold")


def status_line(camera: CameraReport, counts: CountsReport | None = None) -> str:
    """Return the row of a camera as a log line."""
    parts = [camera.state, f"{camera.published_fps:.1f} frames/s"]
    if camera.latency_ms is not None:
        parts.append(f"p50 {camera.latency_ms.p50:.1f} ms, p99 {camera.latency_ms.p99:.1f} ms")
    parts += [f"{camera.objects} objects", f"published {camera.published}", f"dropped {_format_drops(camera)}"]
    counted = f"; {format_counts(counts)}" if counts is not None else ""
    return f"{camera.camera}: {', '.join(parts)}{counted}"


def format_counts(counts: CountsReport | None) -> str:
    """Return text such as ``door 7 in 2 out, queue 3``."""
    if counts is None:
        return ""
    lines = [f"{name} {line.in_} in {line.out} out" for name, line in counts.lines.items()]
    return ", ".join([*lines, *(f"{name} {zone.occupancy}" for name, zone in counts.zones.items())])


def _format_drops(camera: CameraReport) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in camera.dropped.items()) or "0"
