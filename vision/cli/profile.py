"""The command `vision profile`, which shows the time of each layer and each stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from vision.benchmark import commands
from vision.benchmark.profile import ProfileSettings, profile_json, profile_model
from vision.cli.console import with_progress
from vision.cli.options import (
    MAX_BATCH,
    JsonFile,
    ModelConfig,
    ModelName,
    Precision,
    TraceFile,
    select_model,
    table_console,
    write_text,
)
from vision.cli.session import command
from vision.engine.profiler import Profile
from vision.errors import EXIT_OK
from vision.runtime.builder import find_model


@command()
def profile(
    context: typer.Context,
    model: ModelName = None,
    config: ModelConfig = None,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, metavar="N", help="Number of frames per batch.")] = 1,
    precision: Annotated[
        Precision | None, typer.Option(help="Precision of the engine. [default: fp16, or the value in --config]")
    ] = None,
    backend: Annotated[
        Literal["auto", "tensorrt", "onnxruntime"] | None,
        typer.Option(help="Inference back-end. [default: auto, or the value in --config]"),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, metavar="N", help="Number of runs to average.")] = 50,
    top: Annotated[int | None, typer.Option(min=1, metavar="N", help="Print only the N slowest layers.")] = None,
    json: JsonFile = None,
    trace: TraceFile = None,
    print_nsys: Annotated[
        bool, typer.Option("--print-nsys", help="Print the command for Nsight Systems, and exit.")
    ] = False,
    print_trtexec: Annotated[
        bool, typer.Option("--print-trtexec", help="Print the commands for trtexec, and exit.")
    ] = False,
) -> int:
    """Show the time of each layer and each stage.

    Examples:
      vision profile nanodet-g-416 --top 10
      vision profile --config camera.yaml --trace trace.json
    """
    if model is None and config is None:
        context.fail("expected MODEL or --config")
    name, detect = select_model(model, config, precision=precision, backend=backend)
    if config is not None and batch > detect.max_batch:
        context.fail(f"--batch: expected at most {detect.max_batch}, the `detect.max_batch` of {config}, got {batch}")
    detect = detect.model_copy(update={"max_batch": max(detect.max_batch, batch)})
    folder, spec = find_model(str(name))
    if print_nsys:
        print(commands.nsys(str(name), batch, detect.precision))
    if print_trtexec:
        named = [str(name)] if config is None else [str(name), "--config", config]
        print(commands.trtexec(folder, spec, batch, detect, named))
    if print_nsys or print_trtexec:
        return EXIT_OK
    settings = ProfileSettings(batch, detect, runs, trace)
    measured = with_progress(lambda progress: profile_model(folder, spec, settings, progress))
    try:
        if json is not None:
            write_text(profile_json(measured), json)
    finally:
        _print_profile(measured, top, trace, table_console(json))
    return EXIT_OK


def _print_profile(profile: Profile, top: int | None, trace: Path | None, console: Console) -> None:
    console.print(f"{profile.label}, {profile.shape}", highlight=False, markup=False)
    console.print(profile.table(top), highlight=False, markup=False, soft_wrap=True)
    if trace is not None:
        console.print(f"timeline: {trace} (open it in https://ui.perfetto.dev or chrome://tracing)", highlight=False)
