"""The shipped pipelines, with one file for each, and functions that load a pipeline or add stages to it.

A pipeline consists of the stages between the detector and the publisher. Its file defines a function
`build(config, options, resources) -> Runtime`. `pipeline_with` creates this function (docs/pipelines.md).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Literal

from vision.config import AppConfig
from vision.errors import ConfigError
from vision.runtime import result_worker
from vision.runtime.builder import Build, OpenStages, RunOptions
from vision.runtime.pipeline import Pipeline, pipeline, with_video
from vision.runtime.runtime import Runtime
from vision.runtime.worker_channel import WorkerChannel
from vision.stages.inquiries import InquiryStage
from vision.stages.snapshots import SnapshotStage
from vision.stages.stage import Sink, Stage
from vision.state.private_files import Untrusted, require_private_file, require_private_folder


def pipeline_with(
    stages: Sequence[Stage], *, after: Literal["detect", "track", "count"] = "detect", sinks: Sequence[Sink] = ()
) -> Build:
    """Return the `build` function of a shipped pipeline with additional stages.

    Args:
        stages: additional stages, in the order in which they run. They run after the other stages of the pipeline
            `after`, but before the stages that save snapshots and ask the language model, so these two stages also
            process the events of the additional stages.
        after: name of the shipped pipeline.
        sinks: sinks that receive the results in addition to the publisher.
    """

    def open_stages(config: AppConfig, options: RunOptions, resources: ExitStack) -> Sequence[Stage]:
        open_shipped: OpenStages = importlib.import_module(f"{__name__}.{after}").open_stages
        shipped = open_shipped(config, options, resources)
        last = [stage for stage in shipped if isinstance(stage, SnapshotStage | InquiryStage)]
        return [*(stage for stage in shipped if stage not in last), *stages, *last]

    return pipeline(open_stages, sinks=sinks)


def load_pipeline(name: str) -> Build:
    """Return the `build` function of a shipped pipeline or, if `name` ends in .py, of the user's Python file.

    The runtime that `build` returns also writes or shows the annotated video, if requested.

    Raises:
        ConfigError: the pipeline or the file does not exist, the file cannot be imported, it has no function `build`
            with the expected arguments, or other users can write to the file or to a folder above it. If `build` in
            the user's file does not return a runtime, the returned function raises this error.
    """
    return with_video(_load_build(name))


def run_result_worker(channel: WorkerChannel, setup: bytes) -> None:
    """Process detection results with the stages of the pipeline that `setup`, an encoded `WorkerSetup`, names.

    A worker process calls this function, which runs until the main process stops the worker. It raises the same errors
    as `vision.runtime.result_worker.run`.
    """
    result_worker.run(channel, setup, _load_stages)


def _load_stages(name: str) -> OpenStages:
    build = _load_build(name)
    assert isinstance(build, Pipeline)
    return build.open_stages


def _load_build(name: str) -> Build:
    module = _import_file(Path(name)) if name.endswith(".py") else _import_shipped(name)
    build: Build | None = getattr(module, "build", None)
    if not callable(build):
        raise ConfigError(
            f"pipeline: {name} has no function `build`",
            hint="add `build = pipeline_with([...])`, as docs/pipelines.md describes",
            code="pipeline-without-build",
        )
    return replace(build, name=name) if isinstance(build, Pipeline) else _checked(build, name)


def _checked(build: Build, name: str) -> Build:
    """Check that `build` accepts its three arguments. Return a function that calls `build`, and checks its result.

    Raises:
        ConfigError: `build` cannot be called with (config, options, resources).
    """
    hint = "write `def build(config, options, resources)`, which returns a `Runtime`, as docs/pipelines.md describes"
    try:
        inspect.signature(build).bind(None, None, None)
    except TypeError as error:
        text = f"pipeline: `build` in {name} cannot be called with (config, options, resources): {error}"
        raise ConfigError(text, hint=hint, code="pipeline-arguments") from error

    def checked(config: AppConfig, options: RunOptions, resources: ExitStack) -> Runtime:
        runtime: object = build(config, options, resources)
        if not isinstance(runtime, Runtime):
            text = f"pipeline: expected a Runtime from `build` in {name}, got {type(runtime).__name__}"
            raise ConfigError(text, hint=hint, code="pipeline-result")
        return runtime

    return checked


def _import_shipped(name: str) -> ModuleType:
    shipped = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in shipped:
        raise ConfigError(
            f"pipeline: expected one of {', '.join(shipped)} or a file that ends in .py, got {name!r}",
            code="unknown-pipeline",
        )
    return importlib.import_module(f"{__name__}.{name}")


def _require_trusted(path: Path) -> None:
    """Raise `ConfigError` if other users can change the program in a file or replace the file."""
    try:
        require_private_folder(path.parent, content="programs", shared=True)
        require_private_file(path, shared=True)
    except Untrusted as error:
        raise ConfigError(f"pipeline: {error.args[0]}", hint=error.hint, code="pipeline-untrusted") from error


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"pipeline: no such file: {path}", code="no-such-pipeline")
    _require_trusted(path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # any exception in the user's file is a configuration error
        raise ConfigError(
            f"pipeline: {path} cannot be imported: {type(error).__name__}: {error}", code="pipeline-import"
        ) from error
    return module
