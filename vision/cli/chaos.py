"""The command `vision chaos`, which checks that the program survives faults."""

from __future__ import annotations

import json as json_module
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from vision.benchmark.chaos.invariants import check_all
from vision.benchmark.chaos.record import Injected
from vision.benchmark.chaos.report import all_held, as_json, print_report
from vision.benchmark.chaos.run import Plan, new_folders, run
from vision.benchmark.chaos.schedule import KINDS, make_schedule
from vision.benchmark.chaos.settings import Subject, demo, of_user
from vision.benchmark.stand_ins import probe_cameras
from vision.cli.options import CONFIG_HELP, JsonFile, Values, read_config, table_console, values_parser, write_text
from vision.cli.session import command
from vision.errors import EXIT_OK, EXIT_RUNTIME, Closed

_KIND_LIST = "kinds that `vision chaos --list` shows"


@command(orderly=True)
def chaos(
    context: typer.Context,
    config: Annotated[str | None, typer.Option(metavar="CONFIG", help=CONFIG_HELP)] = None,
    minutes: Annotated[float, typer.Option(min=0.1, max=1440, help="Duration of the run.")] = 2.0,
    cameras: Annotated[int, typer.Option(min=1, max=64, help="Number of cameras.")] = 4,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the schedule. Without it, the seed is random.")
    ] = None,
    faults: Annotated[
        Values | None,
        typer.Option(
            parser=values_parser(KINDS, _KIND_LIST),
            metavar="KIND,...",
            help="Kinds of faults, comma-separated. All kinds if absent.",
        ),
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="List the kinds and the schedule, and exit.")] = False,
    json: JsonFile = None,
) -> int:
    """Run the program with faults, and check that it survives them.

    Cameras fail, processes are killed, and disks are full. The program runs the model, the pipeline, and the analytics
    of CONFIG, but RTSP cameras on this machine replace the cameras of CONFIG. Without CONFIG, the program runs a small
    demo. Faults follow a schedule that depends only on the options.

    The exit code is 0 if no check is broken: for example, no crash, no lost event, all frames accounted for, and every
    camera back in time.

    Examples:
      vision chaos
      vision chaos --minutes 30 --cameras 8 --seed 7 --json report.json
      vision chaos --config camera.yaml --faults camera-down,freeze
    """
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    kinds = faults or tuple(KINDS)
    arguments = {"seed": seed, "minutes": minutes, "cameras": cameras, "faults": list(kinds), "config": config}
    schedule = make_schedule(seed, minutes * 60, cameras, kinds)
    if list_only:
        print("\n".join([*(f"{kind:18} {spec.text}" for kind, spec in KINDS.items()), *map(str, schedule)]))
        return EXIT_OK
    print(f"seed {seed}: {len(schedule)} faults in {minutes:g} minutes", file=sys.stderr)
    stop = context.obj.stop
    with new_folders() as folders:
        try:
            record = run(Plan(_subject(config, cameras), schedule, minutes * 60), folders, stop, _show)
        except Closed:
            return EXIT_RUNTIME
        verdicts = check_all(record)
        if not all_held(verdicts):
            print(f"the log of the program: {_keep(folders.log, seed)}", file=sys.stderr)
    print_report(record, verdicts, table_console(json))
    if json is not None:
        write_text(json_module.dumps(as_json(record, verdicts, **arguments), indent=1), json)
    if stop.is_set():
        print("stopped: the report covers only the faults so far", file=sys.stderr)
    return EXIT_OK if all_held(verdicts) and not stop.is_set() else EXIT_RUNTIME


def _subject(config: str | None, cameras: int) -> Subject:
    if config is None:
        return demo(cameras)
    app_config = read_config(config)
    return of_user(app_config, probe_cameras(app_config), cameras)


def _keep(log: Path, seed: int) -> Path:
    """Copy a log out of the folder of the run, which is removed after the run. Return the path of the copy."""
    kept = Path(tempfile.mkdtemp(prefix="vision-chaos-log-")) / f"seed-{seed}.log"
    shutil.copyfile(log, kept)
    return kept


def _show(injected: Injected) -> None:
    """Print a fault of the schedule that was started, or the reason why it was left out."""
    text = f": left out, because {injected.left_out}" if injected.left_out else ""
    print(f"{injected.fault}{text}", file=sys.stderr, flush=True)
