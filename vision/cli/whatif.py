"""The command `vision whatif`, which evaluates archived tracks or stored video with a different configuration."""

from __future__ import annotations

import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from vision.cli.options import ConfigName, argument_parser, parse_duration
from vision.cli.session import command
from vision.errors import Closed

_FORMS: Final = "expected a duration such as 7d, or a time such as 2026-11-28T06:00"


def parse_moment(text: str) -> int:
    """Parse a time. Return the time in microseconds since 1970 (UTC).

    A duration, such as ``7d``, is counted back from the current time. A time without a time zone is in the local time
    of the machine.

    Raises:
        ValueError: the text is neither a duration nor a time.
    """
    try:
        return time.time_ns() // 1000 - round(parse_duration(text) * 1e6)
    except typer.BadParameter:
        pass
    try:
        return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1e6)
    except ValueError as error:
        raise ValueError(f"{_FORMS}, got {text!r}") from error


Since = Annotated[
    int,
    typer.Option(
        parser=argument_parser(parse_moment), metavar="TIME", help="Start: a duration ago, such as 7d, or a time."
    ),
]
Until = Annotated[
    int | None,
    typer.Option(parser=argument_parser(parse_moment), metavar="TIME", help="End, in the same forms. [default: now]"),
]
ArchiveFolder = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder of the archive. [default: `archive.folder` in CONFIG]")
]


@command(orderly=True)
def whatif(
    context: typer.Context,
    config: ConfigName,
    since: Annotated[
        int | None,
        typer.Option(
            parser=argument_parser(parse_moment), metavar="TIME", help="Start: a duration ago, such as 7d, or a time."
        ),
    ] = None,
    until: Until = None,
    camera: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Camera to judge. Can be repeated. [default: all]")
    ] = None,
    archive: ArchiveFolder = None,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --against: the video. [default: recordings of OLD.yaml]")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="OLD.yaml", help="Compare CONFIG with OLD.yaml on video, without an archive.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all differences to FILE, as JSON.")] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write all differences to FILE.html, with drawings.")
    ] = None,
) -> int:
    """Judge archived tracks again with different lines, zones, and rules.

    The command uses the lines, zones, and rules of CONFIG, and shows which events differ from the published events.
    With --against, it compares the events of CONFIG and OLD.yaml on video instead.

    Examples:
      vision whatif new.yaml --since 7d
      vision whatif new.yaml --since 2026-11-28T06:00 --until 2026-11-28T20:00 --camera gate
      vision whatif new-model.yaml --against camera.yaml --since 2h --camera gate
      vision whatif new-model.yaml --against camera.yaml --video monday.mp4
      vision whatif new.yaml --since 7d --json difference.json --page difference.html
    """
    try:
        from vision.evaluation.whatif.report import Files

        files = Files(json, page)
        if video is not None or against is not None:
            from vision.evaluation.whatif.video import Comparison, run_on_recordings, run_on_video

            old = _check_video_options(context, against, camera or [])
            request = Comparison(config, old, next(iter(camera or ()), None))
            if video is not None:
                return run_on_video(request, video, files, context.obj.stop)
            return run_on_recordings(request, *_check_range(since, until), files, context.obj.stop)
        from vision.evaluation.whatif.run import Selection, run

        since, until_us = _check_range(since, until)
        return run(Selection(config, since, until_us, tuple(camera or ()), archive), files, context.obj.stop)
    except Closed:  # an incomplete difference is no result
        return 128 + signal.SIGINT


def _check_range(since: int | None, until: int | None) -> tuple[int, int]:
    """Return the start and the end of the range, in microseconds since 1970 (UTC). The default end is the current time.

    Raises:
        typer.BadParameter: the start is missing, or is not before the end.
    """
    until_us = time.time_ns() // 1000 if until is None else until
    if since is None:
        raise typer.BadParameter("expected a start, such as --since 7d", param_hint="--since")
    if since >= until_us:
        raise typer.BadParameter("expected a start before the end", param_hint="--since")
    return since, until_us


def _check_video_options(context: typer.Context, against: str | None, cameras: list[str]) -> str:
    """Return the configuration to compare with. Raise `typer.BadParameter` if the options contradict each other."""
    for name in ("since", "until", "archive") if context.params["video"] is not None else ("archive",):
        if context.params.get(name) is not None:
            raise typer.BadParameter("expected no value when two configurations are compared", param_hint=f"--{name}")
    if against is None:
        raise typer.BadParameter("expected the configuration to compare with", param_hint="--against")
    if len(cameras) > 1:
        raise typer.BadParameter("expected at most one camera with --against", param_hint="--camera")
    return against
