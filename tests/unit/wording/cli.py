"""Expected texts of the command line."""

from __future__ import annotations

from collections.abc import Callable

import typer

from tests.messages.samples import camera_status
from vision.cli.doctor import judge_gstreamer
from vision.cli.options import parse_duration, values_parser
from vision.cli.status_view import describe_outage, format_counts, status_line
from vision.messaging import codec
from vision.messaging.schema import LatencyPercentiles
from vision.types import Counts

COUNTS = codec.counts("gate", Counts({"door": {"in": 7, "out": 2}}, {"queue": {"entered": 3}}, {"queue": 3}), 0, 0)
LATENCY = LatencyPercentiles(p50=1.0, p99=2.0, max=3.0)
DOWN = camera_status(state="backing-off", last_error="connection refused\nmore", next_retry_in_s=4.2)


def _refusal(parse: Callable[[str], object], text: str) -> str:
    try:
        parse(text)
    except typer.BadParameter as error:
        return str(error)
    return "no error"


ROWS = [
    (
        "a duration without a number",
        lambda: _refusal(parse_duration, "soon"),
        "expected a duration such as 90s, 5m or 2h, got 'soon'",
    ),
    (
        "a value outside of a range",
        lambda: _refusal(values_parser(range(1, 9), "whole numbers, 1 to 8"), "1,9"),
        "expected whole numbers, 1 to 8, got '1,9'",
    ),
    (
        "a camera as a log line",
        lambda: status_line(camera_status(), COUNTS),
        "gate: streaming, 20.0 frames/s, 2 objects, published 8, dropped 2 stale; door 7 in 2 out, queue 3",
    ),
    ("counts of lines and zones", lambda: format_counts(COUNTS), "door 7 in 2 out, queue 3"),
    (
        "a camera of a finished run",
        lambda: status_line(camera_status(state="ended", last_error="refused", latency_ms=LATENCY)),
        "gate: ended: refused, 20.0 frames/s, 2 objects, published 8, dropped 2 stale",
    ),
    ("a camera without frames", lambda: describe_outage(DOWN), "backing-off, retry in 4 s: connection refused"),
    (
        "GStreamer without a parser",
        lambda: judge_gstreamer("GStreamer 1.22.0", lambda name: name != "h265parse").hint,
        "required for RTSP cameras: sudo apt-get install gstreamer1.0-plugins-bad",
    ),
]
