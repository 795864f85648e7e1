"""The display of `vision run`: a live table on a terminal, and one log line per camera otherwise."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Final

from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vision.cli.console import LiveDisplay
from vision.messaging.schema import CameraReport, CountsReport, LatencyPercentiles, NodeReport
from vision.stages.stage import Report

log = logging.getLogger(__name__)

_FIRST_LINE_S: Final = 2.0  # uptime at the first log line, when most cameras are connected
_LONGEST_INTERVAL_S: Final = 3600.0  # longest time between two log lines
_COLUMN_WIDTH: Final = 16  # if the terminal is narrow, longer texts are wrapped
_STATE_STYLES: Final = {
    "streaming": "green",
    "ended": "dim",
    "connecting": "yellow",
    "backing-off": "red",
    "frozen": "red",
}
_COUNTS: Final = "lines and zones"
_BY_IMPORTANCE: Final = (
    "camera",
    "state",
    "frames/s",
    "objects",
    _COUNTS,
    "p50 ms",
    "dropped",
    "lost",
    "published",
    "p99 ms",
    "frame",
)


class StatusView:
    """Display of each `Report`: the rates, the latency, and the dropped frames of each camera."""

    def __init__(self, console: Console | None, *, line_interval_s: float = 10.0) -> None:
        """Create the view for a terminal, or for log lines if `console` is None.

        The first two log lines are `line_interval_s` seconds apart. Each further interval is twice as long, up to an
        hour, because the log of a service must not grow by megabytes per day.
        """
        self._display = LiveDisplay(console) if console is not None else None
        self._line_interval_s = line_interval_s
        self._next_line_s = _FIRST_LINE_S
        self._unlogged: Report | None = None
        self._states: dict[str, str] = {}  # by camera
        self._frozen: Counter[str] = Counter()  # how often each camera was frozen

    def __enter__(self) -> StatusView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()
        elif self._unlogged is not None:
            self._log(self._unlogged)

    def show(self, report: Report) -> None:
        """Show a report. Without a terminal, log some of the reports, and warn about cameras that become frozen."""
        if self._display is not None:
            self._display.update(render_status(report, self._display.console.width))
            return
        self._unlogged = report
        self._warn_of_frozen(report.cameras)
        if report.node.uptime_s >= self._next_line_s:
            self._next_line_s = report.node.uptime_s + self._line_interval_s
            self._line_interval_s = min(2 * self._line_interval_s, _LONGEST_INTERVAL_S)
            self._log(report)

    def _warn_of_frozen(self, cameras: Sequence[CameraReport]) -> None:
        """Log a warning when a camera becomes frozen for the 1st, 2nd, 4th, 8th, ... time."""
        for camera in cameras:
            if camera.state == "frozen" != self._states.get(camera.camera):
                self._frozen[camera.camera] += 1
                if not self._frozen[camera.camera] & (self._frozen[camera.camera] - 1):
                    text = "camera %s: frozen: no new frame for %.1f s"
                    log.warning(text, camera.camera, camera.last_frame_age_s or 0.0)
            self._states[camera.camera] = camera.state

    def _log(self, report: Report) -> None:
        self._unlogged = None
        for camera in report.cameras:
            log.info("%s", status_line(camera, report.counts.get(camera.camera)))


def camera_table(rows: Sequence[Mapping[str, str]], width: int) -> Table:
    """Return a table with one row per camera. If the terminal is too narrow, omit the least important columns.

    Args:
        rows: the texts of each row by column name. All rows have the same columns in the same order.
        width: width of the terminal in characters.
    """
    names = list(rows[0]) if rows else []
    widths = {name: 3 + min(_COLUMN_WIDTH, max(cell_len(text) for text in _column(name, rows))) for name in names}
    for name in reversed(_BY_IMPORTANCE[2:]):
        if sum(widths.values()) + 1 > width:
            widths.pop(name, None)
    table = Table(title_justify="left", caption_justify="left", header_style="bold", caption_style="yellow")
    for name in widths:
        text = name in ("camera", "state", _COUNTS)
        table.add_column(name, justify="left" if text else "right", overflow="fold")
    for row in rows:
        styles = (_STATE_STYLES.get(row["state"], "") if name == "state" else "" for name in widths)
        table.add_row(*(Text(row[name], style) for name, style in zip(widths, styles, strict=True)))
    return table


def narrow_counts(rows: Sequence[Mapping[str, str]], table: Table) -> Iterator[Text]:
    """Yield the counts of each camera as a line to print below `table`, unless the table has a column for them."""
    if _COUNTS not in (column.header for column in table.columns):
        yield from (Text(f"{row['camera']}: {row[_COUNTS]}") for row in rows if row.get(_COUNTS))


def _column(name: str, rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    yield name
    yield from (row[name] for row in rows)


def render_status(report: Report, width: int) -> Group:
    """Return the table of a report, and a line about each camera without frames, for a terminal of `width` columns."""
    rows = [_row(camera, report) for camera in report.cameras]
    table = camera_table(rows, width)
    table.title = f"vision, up {report.node.uptime_s:.0f} s"
    detector = report.node.detector
    if detector is not None and detector.gpu_unused:
        table.caption = Text(f"{report.node.model} runs on the CPU, not on the GPU: {detector.gpu_unused}")
    elif detector is not None and detector.graphs_off:
        table.caption = Text(f"{report.node.model} runs without CUDA graphs: {detector.graphs_off}")
    outages = ((camera.camera, describe_outage(camera)) for camera in report.cameras)
    texts = (outage_text(name, outage) for name, outage in outages if outage)
    return Group(table, *narrow_counts(rows, table), *texts)


def _row(camera: CameraReport, report: Report) -> dict[str, str]:
    latency = _latency(camera)
    row = {
        "camera": camera.camera,
        "state": camera.state,
        "frame": f"{camera.width}x{camera.height}" if camera.width else "-",
        "frames/s": f"{camera.published_fps:.1f}",
        "p50 ms": f"{latency.p50:.1f}" if latency is not None else "-",
        "p99 ms": f"{latency.p99:.1f}" if latency is not None else "-",
        "objects": str(camera.objects),
        "published": str(camera.published),
        "dropped": _format_drops(camera),
    }
    return row | ({_COUNTS: format_counts(report.counts.get(camera.camera))} if report.counts else {})


def _latency(camera: CameraReport) -> LatencyPercentiles | None:
    """Return the latency since the previous report, or None if it is unknown or the camera has ended."""
    return camera.latency_ms if camera.state != "ended" else None


def describe_outage(camera: CameraReport) -> str:
    """Return the state, the next attempt, and the error of a camera, or "" if it streams or has no known error."""
    if camera.state == "streaming" or not camera.last_error:
        return ""
    retry = "" if camera.next_retry_in_s is None else f", retry in {camera.next_retry_in_s:.0f} s"
    return f"{camera.state}{retry}: {camera.last_error.partition(chr(10))[0]}"


def outage_text(camera: str, outage: str) -> Text:
    """Return the line below the table about a camera that delivers no frames. `outage` describes the reason."""
    return Text(f"{camera}: {outage}", "red", overflow="fold")


def status_line(camera: CameraReport, counts: CountsReport | None = None) -> str:
    """Return the status of a camera as one log line."""
    state = describe_outage(camera) if camera.state == "ended" else ""
    parts = [state or camera.state, f"{camera.published_fps:.1f} frames/s"]
    if (latency := _latency(camera)) is not None:
        parts.append(f"p50 {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms")
    parts += [f"{camera.objects} objects", f"published {camera.published}", f"dropped {_format_drops(camera)}"]
    counted = f"; {format_counts(counts)}" if counts is not None else ""
    return f"{camera.camera}: {', '.join(parts)}{counted}"


def format_counts(counts: CountsReport | None) -> str:
    """Return the counts of a camera as text, such as ``door 7 in 2 out, queue 3``, or "" if `counts` is None."""
    if counts is None:
        return ""
    lines = [f"{name} {line.in_} in {line.out} out" for name, line in counts.lines.items()]
    return ", ".join([*lines, *(f"{name} {zone.occupancy}" for name, zone in counts.zones.items())])


def total_memory(node: NodeReport) -> str:
    """Return the total memory of all processes of the program as text, such as ``312 MiB``."""
    return f"{sum(node.memory_bytes.values()) / 2**20:.0f} MiB"


def describe_memory(node: NodeReport) -> str:
    """Return the memory in total and of each process, such as ``312 MiB (main 231 MiB, http 81 MiB)``."""
    parts = (f"{name} {used / 2**20:.0f} MiB" for name, used in node.memory_bytes.items())
    return f"{total_memory(node)} ({', '.join(parts)})"


def _format_drops(camera: CameraReport) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in camera.dropped.items()) or "0"
