"""The command `vision run`, which detects objects in camera streams, and publishes the results."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vision.cli.console import terminal
from vision.cli.options import ConfigName, ForTime, Nvtx, argument_parser, read_config, start_nvtx
from vision.cli.session import command
from vision.cli.status_view import StatusView
from vision.config import AppConfig, resolve_config
from vision.config.checks import publish_conflicts
from vision.config.fields import check_bind
from vision.errors import EXIT_OK, ConfigError, Unavailable
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions, open_state
from vision.runtime.descriptors import NO_DESCRIPTORS, raise_limit
from vision.runtime.reload import Reloader, open_control
from vision.runtime.runtime import Runtime
from vision.runtime.start import open_patiently
from vision.stages.stage import Report
from vision.state.database import StateDatabase


@command(orderly=True, reloads=True)
def run(
    context: typer.Context,
    config: ConfigName,
    for_s: ForTime = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Process every frame of every file once, as fast as possible.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Write each result to FILE.jsonl, as one line of JSON.")
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.mp4", help="Write an annotated video to OUT.mp4; with several cameras, to OUT-CAMERA.mp4."
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Show the annotated frames in a window.")] = False,
    bind: Annotated[
        str | None,
        typer.Option(
            parser=argument_parser(check_bind), metavar="ADDRESS", help="Publish at ADDRESS instead of `publish.bind`."
        ),
    ] = None,
    nvtx: Nvtx = False,
) -> int:
    """Detect objects in camera streams, and publish the results.

    Examples:
      vision run demo --for 30s
      vision run camera.yaml --bind tcp://127.0.0.1:5556
      vision run counting --offline --record results.jsonl
      vision run counting --offline --video counted.mp4
    """
    raise_limit()
    start_nvtx(nvtx)
    options = RunOptions(stop=context.obj.stop, offline=offline, record=record, video=video, show=show)

    def read() -> AppConfig:
        return _with_bind(read_config(config), bind)

    def open_parts(opened: ExitStack) -> tuple[Runtime, AppConfig, StateDatabase | None]:
        app_config = read()
        build = load_pipeline(app_config.pipeline)
        state = None if offline else open_state(app_config, opened)
        started = replace(options, state=state, config_file=resolve_config(config))
        return build(app_config, started, opened), app_config, state

    with ExitStack() as resources:
        runtime, app_config, state = open_patiently(open_parts, resources, options.stop)
        control = open_control(Reloader(runtime, app_config, read, resolve_config(config)), resources)
        if control is not None:
            context.obj.hangup.handle_with(control.request_reload)
        # The objects created so far persist. Exclude them from garbage collections, during which all threads stop.
        gc.collect()
        gc.freeze()
        with _exit_without_descriptors(), StatusView(terminal()) as view:
            runtime.run(context.obj.stop, for_s=for_s, on_report=_on_report(view, state), end_process=True)
    return EXIT_OK


@contextmanager
def _exit_without_descriptors() -> Iterator[None]:
    """If the program runs out of file descriptors, print the error, and end the process without closing its sockets.

    Other processes reconnect while the program closes its sockets. Without a free descriptor, libzmq would then abort
    the process. All events are already stored, so this loses no more than a kill of the process.
    """
    try:
        yield
    except Unavailable as error:
        if error.code != NO_DESCRIPTORS:
            raise
        print(f"vision: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)


def _on_report(view: StatusView, state: StateDatabase | None) -> Callable[[Report], None]:
    """Return a function that shows a report, and raises `Unavailable` if somebody has removed the state database."""

    def show(report: Report) -> None:
        view.show(report)
        if state is not None:
            state.placement.require()

    return show


def _with_bind(config: AppConfig, bind: str | None) -> AppConfig:
    if bind is None:
        return config
    publish = config.publish.model_copy(update={"bind": bind})
    for conflict in publish_conflicts(publish.model_dump()):
        raise ConfigError(f"--bind: {conflict.message}", code=conflict.code)
    return config.model_copy(update={"publish": publish})
