"""Report of `vision whatif`: a table, JSON, and a page in one HTML file."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from vision.config.analytics import CameraAnalytics, pixels_per_unit
from vision.config.user_files import write_output
from vision.errors import from_os_error
from vision.evaluation.whatif.changes import Change
from vision.evaluation.whatif.difference import Difference
from vision.evaluation.whatif.feet import Feet
from vision.evaluation.whatif.rejudge import Judgment
from vision.messaging.times import rfc3339
from vision.outputs.archive.reader import ArchivedEvent, ArchivedGap
from vision.version import version

SCHEMA: Final = "vision.whatif/1"
_WRITTEN: Final = 1000  # number of parts of a file that are written together
SHOWN_ROWS: Final = 40
"""Maximum number of differences in the table."""

_SHOWN_TIMES: Final = 5  # maximum number of times in each list of notes
_FILE_WIDTH: Final = 150  # columns of a table that is written to a file
_LONGEST_VIDEO_US: Final = 24 * 3_600_000_000
_COLORS: Final = {"gained": "#1a7f37", "lost": "#cf222e", "moved": "#0969da", "changed": "#9a6700"}
_STYLE: Final = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1f2328 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .2rem .7rem; text-align: left }
tr { border-bottom: 1px solid #d1d9e0 } svg { width: 100%; max-width: 48rem; background: #f6f8fa }
td:nth-child(n+6) { font-variant-numeric: tabular-nums }
"""


@dataclass(frozen=True, slots=True)
class CameraReport:
    """Differences of one camera, and notes on gaps in the archive."""

    camera: str
    section: CameraAnalytics  # the new lines and zones
    before: int  # number of published events
    judgment: Judgment  # the results of the new configuration
    difference: Difference
    feet: Feet = field(default_factory=Feet)
    """Places of the objects whose events differ; empty if there is no page."""
    gaps: tuple[ArchivedGap, ...] = ()
    """Messages that the archive could not store."""
    missing: tuple[tuple[int, int], ...] = ()
    """Start and end of each longer time for which the archive has no frames, in microseconds since 1970 (UTC)."""
    set_back: tuple[tuple[int, int], ...] = ()
    """Times of each pair of successive frames between which the clock of the machine was set back, in microseconds."""

    @property
    def now(self) -> int:
        """Number of events that the new configuration causes in the time range."""
        return self.judgment.tallies.total()


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Differences of all cameras."""

    config: str  # name of the new configuration, as the user has written it
    since_us: int  # start of the range, in microseconds since 1970 (UTC), or in the video
    until_us: int  # end of the range
    cameras: tuple[CameraReport, ...]
    not_judged: Mapping[str, str] = field(default_factory=dict)
    """Reasons why cameras were not judged, by the name of the camera."""

    def changes(self) -> Iterator[Change]:
        """Yield all differences, oldest first."""
        return heapq.merge(*(camera.difference.changes for camera in self.cameras), key=lambda each: each.shown.at_us)


def time_text(at_us: int) -> str:
    """Return a UTC time as text with milliseconds. For a position in a video, omit the date."""
    moment = datetime.fromtimestamp(at_us // 1_000_000, timezone.utc)
    form = "%H:%M:%S" if at_us < _LONGEST_VIDEO_US else "%Y-%m-%d %H:%M:%S"
    return f"{moment:{form}}.{at_us % 1_000_000 // 1000:03d}"


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of the JSON file and the HTML page to write with the report. None means that a file is not requested."""

    json: Path | None = None
    page: Path | None = None


def publish_report(report: WhatIf, console: Console, files: Files) -> None:
    """Print a report, and write the requested files.

    Raises:
        ConfigError: a file cannot be written.
        Unavailable: a file cannot currently be written, for example because the disk is full.
    """
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    print_report(report, console)
    if files.json is not None:
        _write(json_parts(report), files.json, "--json")
    if files.page is not None:
        _write(page_parts(report), files.page, "--page")


def _write(parts: Iterable[str], path: Path, option: str) -> None:
    try:
        write_output(path, _joined(parts))
    except OSError as error:
        raise from_os_error(f"{option}: cannot write {path}", error) from error


def _joined(parts: Iterable[str]) -> Iterator[str]:
    """Join every `_WRITTEN` consecutive parts of a file, so that the file is written with fewer, larger writes."""
    rest = iter(parts)
    while some := "".join(islice(rest, _WRITTEN)):
        yield some


# --- table ------------------------------------------------------------------------------------------------------------


def print_report(report: WhatIf, console: Console) -> None:
    """Print the numbers of each camera, the notes, and the first differences."""
    console.print(f"{time_text(report.since_us)} to {time_text(report.until_us)} (UTC), {escape_markup(report.config)}")
    table = Table(*_SUMMARY, box=None, pad_edge=False)
    for camera in report.cameras:
        table.add_row(*_summary(camera))
    console.print(table)
    for text in _all_notes(report):
        console.print(escape_markup(text), highlight=False)
    number = sum(len(camera.difference.changes) for camera in report.cameras)
    if number:
        details = Table(*_DETAILS, box=None, pad_edge=False)
        for change in islice(report.changes(), SHOWN_ROWS):
            details.add_row(*(escape_markup(cell) for cell in _details(change)))
        console.print(details)
    if number > SHOWN_ROWS:
        text = f"and {number - SHOWN_ROWS} more: `--json FILE` or `--page FILE` contains all differences"
        console.print(text, highlight=False)


_SUMMARY: Final = ("camera", "published", "now", "same", "gained", "lost", "moved", "changed")
_DETAILS: Final = ("camera", "change", "event", "name", "track", "published (UTC)", "frame", "now (UTC)", "frame")


def _summary(camera: CameraReport) -> list[str]:
    found = camera.difference
    numbers = (camera.before, camera.now, found.same, *found.numbers().values())
    return [camera.camera, *map(str, numbers)]


def _details(change: Change) -> list[str]:
    event = change.shown.event
    track = "" if event.track_id is None else str(event.track_id)
    places = [cell for each in (change.before, change.after) for cell in _place(each)]
    return [change.camera, change.kind, event.kind, event.name, track, *places]


def _place(event: ArchivedEvent | None) -> tuple[str, str]:
    return ("", "") if event is None else (time_text(event.at_us), f"{event.epoch}/{event.frame}")


def _all_notes(report: WhatIf) -> Iterator[str]:
    for camera, reason in report.not_judged.items():
        yield f"{camera}: not judged, because {reason}"
    for judged in report.cameras:
        yield from _notes(judged)


def _notes(camera: CameraReport) -> Iterator[str]:
    """Yield a note on each gap of the archive, because missing data can cause differences between events."""
    for kinds, what in ((("detections", "disk"), "frames"), (("events",), "published events")):
        missing = sum(gap.messages for gap in camera.gaps if gap.kind in kinds)
        if missing:
            yield f"{camera.camera}: the archive lacks {missing} {what}, so events near them can differ"
    if not camera.judgment.frames:
        yield f"{camera.camera}: the archive has no frames in this time"
        return
    for since_us, until_us in camera.missing[:_SHOWN_TIMES]:
        yield f"{camera.camera}: the archive has no frames from {time_text(since_us)} to {time_text(until_us)} (UTC)"
    for before_us, after_us in camera.set_back[:_SHOWN_TIMES]:
        yield f"{camera.camera}: the clock was set back from {time_text(before_us)} to {time_text(after_us)} (UTC)"
    more = sum(max(0, len(times) - _SHOWN_TIMES) for times in (camera.missing, camera.set_back))
    if more:
        yield f"{camera.camera}: and {more} more such times: `--json FILE` contains all of them"


# --- JSON -------------------------------------------------------------------------------------------------------------


def json_parts(report: WhatIf) -> Iterator[str]:
    """Yield the report as JSON, with one part for each difference."""
    yield json.dumps(_as_json(report), indent=2).removesuffix("[]\n}") + "["
    number = 0
    for number, change in enumerate(report.changes(), 1):
        # `json` itself indents slowly. In JSON, a text contains no line breaks.
        text = msgspec.json.format(json.dumps(_change(change)), indent=2)
        yield f"{',' if number > 1 else ''}\n{text}".replace("\n", "\n    ")
    yield "\n  ]\n}\n" if number else "]\n}\n"


def _as_json(report: WhatIf) -> dict[str, Any]:
    """Return the report as data that JSON can represent, with an empty list of differences as the last value."""
    return {
        "schema": SCHEMA,
        "version": version(),
        "config": report.config,
        "since": rfc3339(report.since_us * 1000),
        "until": rfc3339(report.until_us * 1000),
        "not_judged": dict(report.not_judged),
        "cameras": {
            camera.camera: {
                "published": camera.before,
                "now": camera.now,
                "same": camera.difference.same,
                **camera.difference.numbers(),
                "equal": camera.difference.equal,
                "frames": camera.judgment.frames,
                "gaps": [
                    {"at": rfc3339(gap.at_us * 1000), "kind": gap.kind, "messages": gap.messages} for gap in camera.gaps
                ],
                "missing": [_times("since", "until", times) for times in camera.missing],
                "clock_set_back": [_times("from", "to", times) for times in camera.set_back],
                "counts": _counts(camera.judgment),
                "tallies": _tallies(camera.judgment),
            }
            for camera in report.cameras
        },
        "changes": [],
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "camera": change.camera,
        "change": change.kind,
        "before": _event(change.before),
        "after": _event(change.after),
    }


def _times(first: str, second: str, times_us: tuple[int, int]) -> dict[str, str]:
    return {name: rfc3339(at_us * 1000) for name, at_us in zip((first, second), times_us, strict=True)}


def _counts(judgment: Judgment) -> dict[str, Any] | None:
    counts = judgment.counts
    if counts is None:
        return None
    return {"lines": counts.lines, "zones": counts.zones, "occupancy": counts.occupancy}


def _tallies(judgment: Judgment) -> list[dict[str, Any]]:
    """Return the number of new events by kind, name, and direction (None for events without a direction)."""
    return [
        {"kind": kind, "name": name, "direction": direction, "events": count}
        for (kind, name, direction), count in sorted(
            judgment.tallies.items(), key=lambda entry: tuple(map(str, entry[0]))
        )
    ]


def _event(archived: ArchivedEvent | None) -> dict[str, Any] | None:
    if archived is None:
        return None
    event = archived.event
    return {
        "at": rfc3339(archived.at_us * 1000),
        "instance": archived.instance,
        "epoch": archived.epoch,
        "frame": archived.frame,
        "kind": event.kind,
        "name": event.name,
        "track_id": event.track_id,
        "data": event.data,
    }


# --- page -------------------------------------------------------------------------------------------------------------


def page_parts(report: WhatIf) -> Iterator[str]:
    """Yield the parts of the report as one HTML file, without links to other files."""
    for line in _page_lines(report):
        yield f"{line}\n"


def _page_lines(report: WhatIf) -> Iterator[str]:
    time_range = f"{time_text(report.since_us)} to {time_text(report.until_us)} (UTC)"
    yield from (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>What if: {escape(report.config)}</title><style>{_STYLE}</style>",
        f"<h1>What if: {escape(report.config)}</h1><p>{time_range}</p>",
        *_html_table(_SUMMARY, [_summary(camera) for camera in report.cameras]),
        *(f"<p>{escape(text)}</p>" for text in _all_notes(report)),
    )
    for camera in report.cameras:
        yield f"<h2>{escape(camera.camera)}</h2>"
        yield from _drawing(camera)
        if camera.difference.changes:
            yield from _html_table(_DETAILS, map(_details, camera.difference.changes))


def _html_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"<table><tr>{''.join(f'<th>{escape(title)}' for title in titles)}"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{_colored(cell)}' for cell in row)}"
    yield "</table>"


def _colored(cell: str) -> str:
    color = _COLORS.get(cell)
    return escape(cell) if color is None else f"<b style='color: {color}'>{escape(cell)}</b>"


def _drawing(camera: CameraReport) -> Iterator[str]:
    """Yield the parts of an SVG drawing of the new lines and zones, and of the position of each difference."""
    size = camera.judgment.frame_size_px
    if size is None:
        return
    width, height = size
    scale_x, scale_y = pixels_per_unit(camera.section.units, *size)
    unit = max(size) / 100
    yield f"<svg viewBox='0 0 {width} {height}' role=img aria-label='lines, zones, and differences'>"
    for zone in camera.section.zones:
        corners = " ".join(f"{x * scale_x:.1f},{y * scale_y:.1f}" for x, y in zone.polygon)
        yield f"<polygon points='{corners}' fill='#8882' stroke='#57606a' stroke-width='{unit / 5:.1f}'/>"
    for line in camera.section.lines:
        (x1, y1), (x2, y2) = ((x * scale_x, y * scale_y) for x, y in line.points)
        ends = f"x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'"
        yield f"<line {ends} stroke='#57606a' stroke-width='{unit / 3:.1f}'/>"
    for change, places in zip(camera.difference.changes, camera.feet, strict=False):
        for event, place in zip((change.before, change.after), places, strict=True):
            if place is not None:
                title = f"<title>{escape(' '.join(_details(change)))}</title>"
                circle = f"cx='{place[0]:.1f}' cy='{place[1]:.1f}' r='{unit / 2:.1f}' fill='{_COLORS[change.kind]}'"
                yield f"<circle {circle} fill-opacity='{0.5 if event is change.before else 1.0}'>{title}</circle>"
    yield "</svg>"
