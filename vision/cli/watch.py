"""`vision watch ADDRESS`: what a publisher sends, as a table on a terminal and as plain lines anywhere else.

It is a subscriber like any other and sees only what arrives, so its latency is the one that counts: from the instant
of the frame to a program that can act on it.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vision.client import (
    CameraStatusMessage,
    DetectionsMessage,
    Gap,
    Item,
    NodeStatusMessage,
    Restart,
    Silence,
    Subscription,
    latency,
)
from vision.errors import EXIT_OK, EXIT_RUNTIME

_WINDOW_S = 5.0  # of rates and percentiles
_MOST_SAMPLES = 5000
_REDRAW_S = 0.25
_STATE_STYLES = {"streaming": "green", "ended": "dim", "connecting": "yellow", "backing-off": "red", "frozen": "red"}
_CLOCKS = {
    "monotonic": "latency: capture to here, by the monotonic clock that both share",
    "utc": "latency: capture to here by UTC, as good as both machines' time synchronisation",
}


@dataclass(frozen=True, slots=True)
class Row:
    """What is shown of one camera."""

    camera: str
    state: str
    fps: float
    p50_ms: float | None
    p99_ms: float | None
    objects: int
    lost: int
    dropped: int


@dataclass(slots=True)
class _Camera:
    state: str = "?"
    trouble: str = ""  # why it gives no frames, and when it is retried
    objects: int = 0
    lost: int = 0
    dropped_seen: int = 0
    dropped_told: int | None = None  # by the camera's status: complete, and from the publisher's start
    samples: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_MOST_SAMPLES))  # received ns, ms


class Board:
    """What has arrived so far, summed up. Knows neither sockets nor terminals."""

    def __init__(self, address: str, now_ns: int) -> None:
        self.messages = 0
        self.title = address
        self.note = f"waiting for messages from {address}"
        self.clock = ""
        self._address = address
        self._started_ns = now_ns
        self._cameras: dict[str, _Camera] = {}

    def add(self, item: Item, now_ns: int, now_utc_ns: int) -> None:
        """Take in what a subscription gave."""
        if isinstance(item, Gap):
            self._camera(item.topic.partition("/")[2]).lost += item.lost if item.topic.startswith("detections/") else 0
            return
        if isinstance(item, Restart | Silence):
            self.note = _printable(str(item))
            return
        self.messages += 1
        self.note = ""
        if isinstance(item, DetectionsMessage):
            self._add_detections(item, now_ns, now_utc_ns)
        elif isinstance(item, CameraStatusMessage):
            camera = self._camera(item.camera)
            camera.state, camera.dropped_told = item.state, sum(item.dropped.values())
            camera.trouble = _describe_trouble(item)
        elif isinstance(item, NodeStatusMessage):
            told = f"{item.node}: {item.model} on {item.backend}, up {item.uptime_s:.0f} s"
            if item.detector is not None and item.detector.graphs_off:
                told += f", no CUDA graphs: {item.detector.graphs_off}"
            self.title = f"{_printable(told)}, {self._address}"

    def rows(self, now_ns: int) -> list[Row]:
        """One row a camera, by name."""
        span_s = min(_WINDOW_S, max(0.001, (now_ns - self._started_ns) / 1e9))
        return [_row(name, camera, now_ns, span_s) for name, camera in sorted(self._cameras.items())]

    def troubles(self) -> list[str]:
        """Return a line per camera that gives no frames: its state, the next attempt and the reason."""
        cameras = sorted(self._cameras.items())
        return [f"{_printable(name)}: {camera.trouble}" for name, camera in cameras if camera.trouble]

    def _camera(self, name: str) -> _Camera:
        return self._cameras.setdefault(name, _Camera())

    def _add_detections(self, message: DetectionsMessage, now_ns: int, now_utc_ns: int) -> None:
        age = latency(message, now_ns, now_utc_ns)
        self.clock = _CLOCKS[age.clock]
        camera = self._camera(message.camera)
        camera.objects = len(message.objects)
        camera.dropped_seen += sum(message.dropped_before.values())
        camera.samples.append((now_ns, age.ms))


def _describe_trouble(status: CameraStatusMessage) -> str:
    if status.state in ("streaming", "ended") or not status.last_error:
        return ""
    retry = f", retry in {status.next_retry_in_s:.0f} s" if status.next_retry_in_s is not None else ""
    return _printable(f"{status.state}{retry}: {status.last_error.partition(chr(10))[0]}")


def _row(name: str, camera: _Camera, now_ns: int, span_s: float) -> Row:
    while camera.samples and now_ns - camera.samples[0][0] > _WINDOW_S * 1e9:
        camera.samples.popleft()
    latencies = sorted(ms for _, ms in camera.samples)
    dropped = camera.dropped_seen if camera.dropped_told is None else camera.dropped_told
    return Row(
        _printable(name),
        _printable(camera.state),
        len(latencies) / span_s,
        _quantile(latencies, 0.5),
        _quantile(latencies, 0.99),
        camera.objects,
        camera.lost,
        dropped,
    )


def _printable(text: str) -> str:
    """Replace control characters: text from the network must not control the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _quantile(ordered: list[float], q: float) -> float | None:
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else None


def table(board: Board, now_ns: int) -> Table:
    """Return the board as a table for a terminal."""
    shown = Table(
        title=Text(board.title),
        caption=Text(board.note or board.clock),
        title_justify="left",
        caption_justify="left",
        header_style="bold",
        caption_style="yellow" if board.note else "dim",
    )
    shown.add_column("camera")
    shown.add_column("state")
    for name in ("frames/s", "p50 ms", "p99 ms", "objects", "lost", "dropped"):
        shown.add_column(name, justify="right")
    for row in board.rows(now_ns):
        style = _STATE_STYLES.get(row.state, "")
        numbers = (f"{row.fps:.1f}", _ms(row.p50_ms), _ms(row.p99_ms), row.objects, row.lost, row.dropped)
        shown.add_row(Text(row.camera), Text(row.state, style), *map(str, numbers))
    return shown


def lines(board: Board, now_ns: int) -> Iterable[str]:
    """Yield the board as lines for a log."""
    for row in board.rows(now_ns):
        yield (
            f"{row.camera}: {row.state}, {row.fps:.1f} frames/s, p50 {_ms(row.p50_ms)} ms, p99 {_ms(row.p99_ms)} ms, "
            f"{row.objects} objects, {row.lost} lost, {row.dropped} dropped"
        )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


class _View(Protocol):
    def show(self, board: Board, now_ns: int) -> None:
        """Draw if it is time to. The caller calls this after each message."""

    def finish(self, board: Board, now_ns: int) -> None:
        """Draw the last state."""


class _LiveView:
    def __init__(self, live: Live) -> None:
        self._live = live
        self._next_ns = 0

    def show(self, board: Board, now_ns: int) -> None:
        if now_ns >= self._next_ns:
            self._next_ns = now_ns + int(_REDRAW_S * 1e9)
            self.finish(board, now_ns)

    def finish(self, board: Board, now_ns: int) -> None:
        troubles = (Text(line, "red", overflow="fold") for line in board.troubles())
        self._live.update(Group(table(board, now_ns), *troubles), refresh=True)


class _LineView:
    def __init__(self, out: TextIO, interval_s: float, now_ns: int) -> None:
        self._out = out
        self._interval_ns = int(interval_s * 1e9)
        self._next_ns = now_ns + self._interval_ns
        self._note = self._clock = ""

    def show(self, board: Board, now_ns: int) -> None:
        if board.note and board.note != self._note:
            self._print(board.note)
        self._note = board.note
        if now_ns >= self._next_ns:
            self._next_ns = now_ns + self._interval_ns
            self.finish(board, now_ns)

    def finish(self, board: Board, now_ns: int) -> None:
        if board.clock != self._clock:
            self._print(board.clock)
            self._clock = board.clock
        for line in lines(board, now_ns):
            self._print(line)

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)


def watch(
    address: str,
    *,
    for_s: float | None = None,
    out: TextIO | None = None,
    line_interval_s: float = 5.0,
    silence_s: float = 5.0,
) -> int:
    """Show what `address` publishes until Ctrl-C, or for `for_s` seconds.

    Returns:
        Exit code: 0; 1 if `for_s` passed without a single message.

    Raises:
        ConfigError: the address is wrong.
        MessageError: the publisher is of another version, or none of ours.
    """
    out = out if out is not None else sys.stdout
    console = Console(file=out)
    board = Board(address, time.monotonic_ns())
    try:
        with Subscription(address, kinds=("detections", "status"), silence_s=silence_s) as subscription:
            if console.is_terminal:
                with Live(console=console, auto_refresh=False) as live:
                    _follow(subscription, board, _LiveView(live), for_s)
            else:
                _follow(subscription, board, _LineView(out, line_interval_s, time.monotonic_ns()), for_s)
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
    view.finish(board, now_ns)
