"""The command `vision watch`, which shows the messages of a publisher as a table on a terminal, or as plain lines.

The command is an ordinary subscriber, so it shows the latency from capture to a subscriber.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, TextIO

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from vision.cli.console import LiveDisplay
from vision.cli.options import ForTime
from vision.cli.session import command
from vision.cli.status_view import (
    camera_table,
    describe_outage,
    format_counts,
    narrow_counts,
    outage_text,
    total_memory,
)
from vision.client import (
    CameraStatusMessage,
    CountsMessage,
    DetectionsMessage,
    EventMessage,
    Gap,
    Item,
    NewJournal,
    NodeStatusMessage,
    Problem,
    Restart,
    Silence,
    Subscription,
    latency,
)
from vision.errors import EXIT_OK, EXIT_RUNTIME
from vision.messaging.schema import KINDS, REMOVED
from vision.messaging.times import utc_ns

_WINDOW_S: Final = 5.0  # period over which rates and percentiles are computed
_MAX_SAMPLES: Final = 5000  # maximum number of latencies per camera
_MAX_EVENTS: Final = 8  # maximum number of events on the screen
_REDRAW_S: Final = 0.25  # time between two drawings
_CLOCKS: Final = {
    "monotonic": "latency: from capture to this program, measured on the monotonic clock of this machine",
    "utc": "latency: from capture to this program, measured in UTC; its accuracy depends on both machines' clocks",
}


@command()
def watch(
    context: typer.Context,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Publisher's address.")] = "tcp://127.0.0.1:5555",
    for_s: ForTime = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key file, if the publisher has `publish.curve`.")
    ] = None,
) -> int:
    """Show the results of a running `vision run`.

    Examples:
      vision watch
      vision watch tcp://192.0.2.7:5555 --for 1m
    """
    return watch_address(address, for_s=for_s, key=key)


@dataclass(slots=True)
class _Camera:
    state: str = "?"
    outage: str = ""  # state, next attempt, and error of a camera that delivers no frames; otherwise empty
    counts: str = ""
    objects: int = 0
    lost: int = 0
    dropped_seen: int = 0
    dropped_reported: int | None = None  # total since the start of the publisher, from the camera's status
    samples: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_MAX_SAMPLES))  # time ns, latency ms


class Board:
    """A summary of the received messages, independent of sockets and terminals."""

    def __init__(self, address: str, now_ns: int) -> None:
        self.messages = 0  # number of received messages
        self.title = address
        self.note = f"waiting for messages from {address}"
        self.clock = ""  # description of the clock of the latencies; empty before the first detections message
        self.events: deque[str] = deque(maxlen=_MAX_EVENTS)  # the newest events, oldest first
        self.event_count = 0  # number of received events, without amendments
        self._address = address
        self._started_ns = now_ns
        self._cameras: dict[str, _Camera] = {}

    def add(self, item: Item, now_ns: int, now_utc_ns: int) -> None:
        """Add a message or a report of the subscription. `now_ns` (monotonic) and `now_utc_ns` are the current time."""
        if isinstance(item, Gap):
            self._camera(item.topic.partition("/")[2]).lost += item.lost if item.topic.startswith("detections/") else 0
            return
        if isinstance(item, Problem | Restart | Silence | NewJournal):
            self.note = _printable(str(item))
            return
        self.messages += 1
        self.note = ""
        if isinstance(item, DetectionsMessage):
            self._add_detections(item, now_ns, now_utc_ns)
        elif isinstance(item, CameraStatusMessage) and item.state == REMOVED:
            self._cameras.pop(item.camera, None)
        elif isinstance(item, CameraStatusMessage):
            camera = self._camera(item.camera)
            camera.state, camera.dropped_reported = _printable(item.state), sum(item.dropped.values())
            camera.outage = _printable(describe_outage(item))
        elif isinstance(item, CountsMessage):
            self._camera(item.camera).counts = _printable(format_counts(item))
        elif isinstance(item, EventMessage):
            self.events.append(_printable(_describe_event(item)))
            self.event_count += item.amends is None
        elif isinstance(item, NodeStatusMessage):
            self.title = f"{_printable(_describe_node(item))}, {self._address}"

    def rows(self, now_ns: int) -> list[dict[str, str]]:
        """Return one row per camera: texts by column name. If no camera has counts, leave out the column of counts."""
        span_s = min(_WINDOW_S, max(0.001, (now_ns - self._started_ns) / 1e9))
        counts = any(camera.counts for camera in self._cameras.values())
        rows = [_row(name, camera, now_ns, span_s) for name, camera in sorted(self._cameras.items())]
        return rows if counts else [{name: row[name] for name in row if name != "lines and zones"} for row in rows]

    def outages(self) -> dict[str, str]:
        """Return the state, the next attempt, and the error of each camera without frames, by the camera's name."""
        return {_printable(name): camera.outage for name, camera in sorted(self._cameras.items()) if camera.outage}

    def _camera(self, name: str) -> _Camera:
        return self._cameras.setdefault(name, _Camera())

    def _add_detections(self, message: DetectionsMessage, now_ns: int, now_utc_ns: int) -> None:
        age = latency(message, now_ns, now_utc_ns)
        self.clock = _CLOCKS[age.clock]
        camera = self._camera(message.camera)
        camera.objects = len(message.objects)
        camera.dropped_seen += sum(message.dropped_before.values())
        camera.samples.append((now_ns, age.ms))


def _describe_node(status: NodeStatusMessage) -> str:
    graphs_off = status.detector.graphs_off if status.detector is not None else None
    gpu_unused = status.detector.gpu_unused if status.detector is not None else None
    notes = f", no CUDA graphs: {graphs_off}" if graphs_off else ""
    notes += f", the GPU is not used: {gpu_unused}" if gpu_unused else ""
    memory = f", {total_memory(status)}" if status.memory_bytes else ""
    return f"{status.node}: {status.model} on {status.backend}, up {status.uptime_s:.0f} s{memory}{notes}"


def _describe_event(event: EventMessage) -> str:
    """Return an event as text with its local time.

    An example is ``12:03:11 gate: line_crossed door, track 17, direction in``.
    """
    at = datetime.fromtimestamp(utc_ns(event.at) / 1e9).strftime("%H:%M:%S")
    track = [] if event.track_id is None else [f"track {event.track_id}"]
    details = [f"{name} {value}" for name, value in event.data.items() if value is not None]
    details += [] if event.verdict is None else [f"verdict {event.verdict.answer}"]
    details += [] if event.description is None else [event.description.text]
    return f"{at} {event.camera}: {', '.join([f'{event.kind} {event.name}', *track, *details])}"


def _row(name: str, camera: _Camera, now_ns: int, span_s: float) -> dict[str, str]:
    while camera.samples and now_ns - camera.samples[0][0] > _WINDOW_S * 1e9:
        camera.samples.popleft()
    latencies = sorted(ms for _, ms in camera.samples)
    dropped = camera.dropped_seen if camera.dropped_reported is None else camera.dropped_reported
    return {
        "camera": _printable(name),
        "state": camera.state,
        "frames/s": f"{len(latencies) / span_s:.1f}",
        "p50 ms": _quantile(latencies, 0.5),
        "p99 ms": _quantile(latencies, 0.99),
        "objects": str(camera.objects),
        "lost": str(camera.lost),
        "dropped": str(dropped),
        "lines and zones": camera.counts,
    }


def _printable(text: str) -> str:
    """Return `text` with ``?`` instead of control characters, so that it cannot control the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _quantile(ordered: list[float], q: float) -> str:
    return f"{ordered[max(0, math.ceil(q * len(ordered)) - 1)]:.1f}" if ordered else "-"


def render(board: Board, now_ns: int, width: int) -> Group:
    """Return the content of the board for a terminal of `width` columns."""
    parts: list[RenderableType] = [Text(board.title, "italic")]
    rows = board.rows(now_ns)
    if rows:
        table = camera_table(rows, width)
        parts += [table, *narrow_counts(rows, table)]
    parts += [outage_text(name, outage) for name, outage in board.outages().items()]
    parts += [Text(event, no_wrap=True, overflow="ellipsis") for event in board.events]
    parts += [Text(board.note or board.clock, "yellow" if board.note else "dim")]
    return Group(*parts)


def lines(board: Board, now_ns: int) -> Iterator[str]:
    """Yield the board as log lines: one line per camera, and another line for each camera without frames."""
    outages = board.outages()
    for row in board.rows(now_ns):
        counts = f"; {row['lines and zones']}" if row.get("lines and zones") else ""
        yield (
            f"{row['camera']}: {row['state']}, {row['frames/s']} frames/s, p50 {row['p50 ms']} ms, "
            f"p99 {row['p99 ms']} ms, {row['objects']} objects, {row['lost']} lost, {row['dropped']} dropped{counts}"
        )
        if row["camera"] in outages:
            yield f"{row['camera']}: {outages[row['camera']]}"


class _View:
    """Display of a `Board`: a table on a terminal, otherwise lines of text.

    Lines about notes and events appear immediately. Lines with the current values appear at a fixed interval.
    """

    def __init__(self, out: TextIO, line_interval_s: float) -> None:
        console = Console(file=out)
        self._out = out
        self._display = LiveDisplay(console) if console.is_terminal else None
        self._interval_ns = int((line_interval_s if self._display is None else _REDRAW_S) * 1e9)
        self._next_ns = time.monotonic_ns() + (self._interval_ns if self._display is None else 0)
        self._note = self._clock = ""
        self._event_count = 0

    def show(self, board: Board, now_ns: int) -> None:
        """Print new notes and events, and show the current values if the display is due.

        If this method is not called after each message, events can be left out.
        """
        if self._display is None:
            self._print_news(board)
        if now_ns >= self._next_ns:
            self._next_ns = now_ns + self._interval_ns
            self.show_all(board, now_ns)

    def show_all(self, board: Board, now_ns: int) -> None:
        """Redraw the table, or print the current values as lines if there is no terminal."""
        if self._display is not None:
            self._display.update(render(board, now_ns, self._display.console.width))
            return
        self._print_news(board)
        if board.clock != self._clock:
            self._clock = board.clock
            self._print(board.clock)
        for line in lines(board, now_ns):
            self._print(line)

    def close(self) -> None:
        """Stop redrawing. The last table stays on the terminal."""
        if self._display is not None:
            self._display.stop()

    def _print_news(self, board: Board) -> None:
        if board.note and board.note != self._note:
            self._print(board.note)
        if board.event_count > self._event_count:
            self._print(board.events[-1])
        self._note, self._event_count = board.note, board.event_count

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)


def watch_address(
    address: str,
    *,
    for_s: float | None = None,
    key: Path | None = None,
    out: TextIO | None = None,
    line_interval_s: float = 5.0,
    silence_s: float = 5.0,
) -> int:
    """Show the messages from `address` until Ctrl-C, or for `for_s` seconds.

    Args:
        address: address of the publisher.
        for_s: duration in seconds; None means until Ctrl-C.
        key: key file, if the publisher encrypts messages.
        out: output; None means standard output.
        line_interval_s: time between two outputs of all values, if the output is not a terminal.
        silence_s: time without messages after which a note appears.

    Returns:
        The exit code: 1 if no message arrived within `for_s`, otherwise 0.

    Raises:
        ConfigError: the address is invalid, or the key cannot be used.
    """
    board = Board(address, time.monotonic_ns())
    try:
        with (
            Subscription(address, kinds=KINDS, key=key, silence_s=silence_s) as subscription,
            closing(_View(out or sys.stdout, line_interval_s)) as view,
        ):
            _follow(subscription, board, view, for_s)
    except KeyboardInterrupt:
        return EXIT_OK
    return EXIT_OK if board.messages else EXIT_RUNTIME


def _follow(subscription: Subscription, board: Board, view: _View, for_s: float | None) -> None:
    end_ns = math.inf if for_s is None else time.monotonic_ns() + for_s * 1e9
    while (now_ns := time.monotonic_ns()) < end_ns:
        view.show(board, now_ns)
        item = subscription.receive(min(_REDRAW_S, (end_ns - now_ns) / 1e9))
        if item is not None:
            board.add(item, time.monotonic_ns(), time.time_ns())
    view.show_all(board, now_ns)
