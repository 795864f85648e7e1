"""The commands `vision clips` and `vision verify`, which list and check recorded files."""

from __future__ import annotations

import json as json_module
import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vision.cli.options import ConfigName, Json, parse_duration, read_config
from vision.cli.session import command
from vision.errors import EXIT_OK, EXIT_RUNTIME, ConfigError, Unavailable
from vision.messaging.times import rfc3339
from vision.outputs.recording.index import Recording, RecordingIndex, open_for_reading
from vision.outputs.recording.recorder import LOCK, open_or_replace
from vision.outputs.recording.repair import Difference, find_differences, repair
from vision.state.private_files import Held, locked


@command()
def clips(
    context: typer.Context,
    config: ConfigName,
    camera: Annotated[str | None, typer.Option(metavar="ID", help="List only the recordings of this camera.")] = None,
    since: Annotated[
        float | None,
        typer.Option(parser=parse_duration, metavar="TIME", help="List only recordings of the last TIME, such as 2h."),
    ] = None,
    json: Json = False,
) -> int:
    """List the recorded clips and continuous recordings.

    Examples:
      vision clips camera.yaml
      vision clips camera.yaml --camera gate --since 2h --json
    """
    state_dir, folder = _folders(config)
    since_utc_ns = 0 if since is None else time.time_ns() - round(since * 1e9)
    with closing(open_for_reading(state_dir)) as index:
        found = index.recordings(camera, since_utc_ns)
    if json:
        recordings = [_as_json(recording, folder) for recording in found]
        print(json_module.dumps({"schema": "vision.clips/1", "recordings": recordings}, indent=2))
        return EXIT_OK
    table = Table("start", "camera", "kind", "seconds", "MB", "lost", "events", header_style="bold")
    table.add_column("files", overflow="fold")
    for recording in found:
        files = recording.files
        table.add_row(
            datetime.fromtimestamp(files[0].start_utc_ns // 10**9, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ"),
            recording.camera,
            recording.kind,
            f"{sum(file.end_utc_ns - file.start_utc_ns for file in files) / 1e9:.1f}",
            f"{sum(file.nbytes for file in files) / 1e6:.1f}",
            str(sum(file.lost for file in files)),
            ", ".join(dict.fromkeys(f"{event.kind} {event.name}" for event in recording.events)),
            "\n".join(file.name for file in files),
        )
    print(f"files in {folder}:")
    Console().print(table)
    return EXIT_OK


def _as_json(recording: Recording, folder: Path) -> dict[str, object]:
    files = [
        {
            "path": str(folder / file.name),
            "start": rfc3339(file.start_utc_ns),
            "end": rfc3339(file.end_utc_ns),
            "bytes": file.nbytes,
            "frames": file.frames,
            "lost": file.lost,
            "complete": file.state == "complete",
        }
        for file in recording.files
    ]
    events = [asdict(event) for event in recording.events]
    return {"camera": recording.camera, "kind": recording.kind, "files": files, "events": events}


@command()
def verify(
    context: typer.Context,
    config: ConfigName,
    repair_index: Annotated[
        bool, typer.Option("--repair", help="Correct the index, and delete files that cannot be read.")
    ] = False,
    json: Json = False,
) -> int:
    """Read all recorded files, and compare them with the index.

    While `vision run` records, the command ignores the files that are being written. Stop `vision run` before you use
    `--repair`, because the running program changes the index.

    Exit codes: 0 if everything fits or was repaired, 1 if there are differences, 75 if `--repair` is used while the
    program is running.

    Examples:
      vision verify camera.yaml
      vision verify camera.yaml --repair
    """
    state_dir, folder = _folders(config)
    with ExitStack() as opened:
        is_running = not _lock(state_dir, opened)
        if repair_index and is_running:
            text = f"the recordings in {folder} are in use"
            raise Unavailable(text, hint="stop `vision run`, and repeat the command", code="recordings-in-use")
        index: RecordingIndex = open_or_replace(state_dir) if repair_index else open_for_reading(state_dir)
        opened.enter_context(closing(index))
        found = find_differences(index, folder, thorough=True, live=is_running)
        if repair_index:
            repair(index, folder, found)
    _print_differences(found, json=json, repaired=repair_index)
    return EXIT_OK if repair_index or not found else EXIT_RUNTIME


def _print_differences(found: list[Difference], *, json: bool, repaired: bool) -> None:
    if json:
        document = {"schema": "vision.verify/1", "repaired": repaired, "differences": [asdict(each) for each in found]}
        print(json_module.dumps(document, indent=2))
        return
    for difference in found:
        print(f"{difference.fault}: {difference.name}")
    print(f"{len(found)} differences{' were repaired' if repaired and found else ''}")


def _lock(state_dir: Path, opened: ExitStack) -> bool:
    """Hold the lock in `state_dir` that a recording program holds, until `opened` is closed.

    Return False if another program holds the lock.
    """
    try:
        opened.enter_context(locked(state_dir / LOCK, timeout_s=0))
    except Held:
        return False
    return True


def _folders(name: str) -> tuple[Path, Path]:
    """Return the folders of the index and of the recordings.

    Raise `ConfigError` if the configuration has no section `recording`.
    """
    config = read_config(name)
    if config.recording is None or config.state_dir is None:
        raise ConfigError(f"{name} has no section `recording`", code="no-recordings")
    return Path(config.state_dir), Path(config.recording.folder)
