"""The command `vision build`, which builds TensorRT engines ahead of time, and lists or prunes the cached engines."""

from __future__ import annotations

import json as json_module
import threading
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from vision.cli.options import (
    MAX_BATCH,
    Json,
    ModelConfig,
    ModelName,
    Precision,
    argument_parser,
    given,
    read_config,
    select_model,
    table_console,
)
from vision.cli.session import command
from vision.config import AnySpec, DetectConfig, ModelSpec
from vision.detect.open import open_detector
from vision.detect.tensorrt.plugins.register import register_plugins
from vision.engine.build import BuildOptions, sparse_layers
from vision.engine.build_plan import BuildPlan, resolve, resolve_classifier
from vision.engine.cache import EngineCache, Entry, Loaded, foreign
from vision.engine.library import Gpu, GpuDescription, Library, find_library
from vision.engine.open import load_or_build
from vision.engine.plugins import check_plugins
from vision.engine.progress import Phase
from vision.engine.runtime import load_engine
from vision.errors import EXIT_OK, DeviceError, DeviceMissing, ModelError
from vision.runtime.builder import find_model, find_second_model


def parse_gpu(text: str) -> GpuDescription:
    """Parse the description of a GPU, such as ``Orin:87``. Raise `ValueError` if its form is not ``NAME:SM``."""
    name, _, capability = text.rpartition(":")
    if not name or not capability.isdecimal() or len(capability) < 2:
        raise ValueError(f"expected a name and a compute capability, such as Orin:87, got {text!r}")
    return GpuDescription(name, (int(capability[:-1]), int(capability[-1])))


_ForGpu = Annotated[
    GpuDescription | None,
    typer.Option(
        parser=argument_parser(parse_gpu),
        metavar="NAME:SM",
        help="Build for a different GPU, such as 'RTX 4090:89' (TensorRT-RTX only).",
    ),
]


_Sparse = Annotated[
    bool, typer.Option("--sparse", help="Let TensorRT use sparse tensor cores, for models with 2:4 sparsity.")
]


@command()
def build(
    context: typer.Context,
    model: ModelName = None,
    config: ModelConfig = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Precision of the engine. [default: fp16, or the value in --config]")
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_BATCH, metavar="N", help="Maximum batch size, by default 8 or as in --config."),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the engines in the cache.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove the engines that this machine cannot use.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build the engine even if the cache contains it.")] = False,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the cache. [default: the cache of `vision run`]")
    ] = None,
    workspace_mib: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, metavar="MIB", help="Maximum scratch memory of each layer, in MiB."),
    ] = None,
    level: Annotated[
        int | None,
        typer.Option(min=0, max=5, help="Optimization level, 0 (short build) to 5 (fast engine)."),
    ] = None,
    dla: Annotated[int | None, typer.Option(min=0, max=15, metavar="CORE", help="DLA core of a Jetson to use.")] = None,
    sparse: _Sparse = False,
    for_gpu: _ForGpu = None,
    json: Json = False,
) -> int:
    """Build, list, or prune TensorRT engines.

    `vision run` uses an engine from the cache if it was built with the values of `detect.precision`,
    `detect.max_batch`, and `detect.engine` in camera.yaml. With --config, the command also builds the engine of the
    second model.

    Examples:
      vision build nanodet-g-416
      vision build --config camera.yaml
      vision build --list --json
    """
    if model is None and config is None and not (show_list or prune):
        context.fail("nothing to do: expected MODEL, --config, --list or --prune")
    if json and not show_list:
        context.fail("--json requires --list")
    name, detect = select_model(model, config, precision=precision, max_batch=max_batch)
    engine = given(workspace_mib=workspace_mib, optimization_level=level, dla_core=dla, sparse_weights=sparse or None)
    detect = detect.model_copy(update={"engine": detect.engine.model_copy(update=engine)})
    found_model = None if name is None else _find_checked(name)
    gpu = for_gpu or _open_gpu(required=found_model is not None)
    engines, console = EngineCache(cache), table_console(Path("-") if json else None)
    if prune:
        print_pruned(engines, gpu, console)
    if found_model is not None:
        build_engine(*found_model, detect, gpu, engines, console, force=force)
        build_second_engine(config, gpu, engines, console, force=force)
        if for_gpu is None and cache is None:
            _start_once(*found_model, detect, console)
    if show_list:
        (print_engines_as_json if json else print_engines)(engines.entries(), gpu, console)
    return EXIT_OK


def _find_checked(name: str) -> tuple[Path, ModelSpec]:
    """Find a model, and check its plugin libraries without the GPU. Return the folder and the spec of the model."""
    folder, spec = find_model(name)
    check_plugins(folder, spec)
    return folder, spec


def _start_once(folder: Path, spec: ModelSpec, detect: DetectConfig, console: Console) -> None:
    """Open the detector once, as `vision run` does.

    When an engine starts for the first time, TensorRT-RTX compiles and stores its kernels. This can take as long as the
    build. The start also detects CUDA graphs that compute wrong results.
    """
    console.print("starting the detector once, to compile and store its kernels and to check its CUDA graphs")
    with closing(open_detector(folder, spec, detect.model_copy(update={"backend": "tensorrt"}))) as detector:
        console.print(f"{detector.spec.name}: ready", markup=False)


def _open_gpu(*, required: bool) -> Gpu | None:
    """Open the GPU of this machine. If this fails, return None, or raise the `DeviceError` if `required` is True."""
    try:
        from vision.gpu.cuda import open_device

        return open_device()
    except DeviceError:
        if required:
            raise
        return None


class Bars:
    """Progress display of a build, with a bar for each open phase, indented below the bar of its parent phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.progress_bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),  # TensorRT's names of phases contain brackets
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Bars:
        self.progress_bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress_bars.stop()

    def parsed(self, layers: int) -> None:
        """Print the number of layers of the model."""
        self._console.print(f"{layers} layers before fusion")

    def progress(self, phases: Sequence[Phase]) -> None:
        """Show one bar for each of the open `phases`, and remove the other bars."""
        with self._lock:
            for name in self._tasks.keys() - {phase.name for phase in phases}:
                self.progress_bars.remove_task(self._tasks.pop(name))
            for phase in phases:
                if phase.name not in self._tasks:
                    title = "  " * phase.depth + phase.name
                    self._tasks[phase.name] = self.progress_bars.add_task(title, total=phase.steps)
                self.progress_bars.update(self._tasks[phase.name], completed=phase.done, total=phase.steps)

    def built(self, plan_bytes: int) -> None:
        """Remove the bars, and print the size of the engine."""
        self.progress(())
        self._console.print(f"built: {_mib(plan_bytes)}")


def build_engine(
    folder: Path,
    spec: ModelSpec,
    detect: DetectConfig,
    gpu: Gpu | None,
    cache: EngineCache,
    console: Console,
    *,
    force: bool = False,
) -> None:
    """Build the engine of a model if the cache lacks it, or if `force` is True. Print the progress and the result.

    Raises:
        DeviceMissing: the GPU or TensorRT is missing.
        VisionError: the engine cannot be built or stored.
    """
    register_plugins(spec)
    _build(folder, spec, resolve(detect, spec), gpu, cache, console, force=force)


def build_second_engine(
    config: str | None, gpu: Gpu | None, cache: EngineCache, console: Console, *, force: bool
) -> None:
    """Build the engine of the second model in a configuration, as `build_engine` does.

    Do nothing if `config` is None, or if the configuration has no second model or runs it with `backend: onnxruntime`.

    Raises:
        ConfigError: the configuration is invalid.
        DeviceMissing: the GPU or TensorRT is missing.
        VisionError: the engine cannot be built or stored.
    """
    cascade = None if config is None else read_config(config).cascade
    if cascade is None or cascade.backend == "onnxruntime":
        return
    folder, spec = find_second_model(cascade)
    _build(folder, spec, resolve_classifier(cascade, folder, spec), gpu, cache, console, force=force)


def _build(
    folder: Path,
    spec: AnySpec,
    plan: BuildPlan,
    gpu: Gpu | None,
    cache: EngineCache,
    console: Console,
    *,
    force: bool,
) -> None:
    if gpu is None:
        hint = "`vision doctor` shows what is missing"
        raise DeviceMissing("building an engine requires the GPU that runs it", hint=hint, code="gpu-missing")
    ahead_of_time = isinstance(gpu, GpuDescription)
    batch = f"batch up to {plan.max_batch}"
    console.print(f"{spec.name}, {plan.precision}, {batch}, for {gpu.name}, {find_library()}", markup=False)
    with Bars(console) as bars:
        prepare = (lambda: None) if ahead_of_time else partial(_use_device, gpu)
        options = BuildOptions(ahead_of_time, bars, prepare_thread=prepare)
        loaded = load_or_build(folder, spec, gpu, plan, options, cache=cache, force=force)
    _print_loaded(loaded, loads_here=not ahead_of_time, sparse=plan.sparse, console=console)


def _use_device(gpu: Any) -> None:
    from vision.gpu.cuda import use_device

    use_device(gpu)


def _sparsity(notes: Sequence[str]) -> str:
    """Return a text that states how many layers run sparse kernels, according to the notes of a build."""
    layers = sparse_layers(notes)
    if layers is None:
        return "sparsity: the library does not report which layers run sparse kernels"
    chosen = ", ".join(layers.chosen) or "none, because TensorRT measured that dense kernels are as fast"
    return f"sparsity: {len(layers.chosen)} of {len(layers.eligible)} eligible layers run sparse kernels: {chosen}"


def _print_loaded(loaded: Loaded, *, loads_here: bool, sparse: bool, console: Console) -> None:
    built, size = loaded.built, _mib(len(loaded.plan))
    if built is None:
        text = f"already built: {loaded.path} ({size}); --force builds it again"
        console.print(text, soft_wrap=True, markup=False)
        return
    after = ""
    if loads_here:  # loading shows that the engine runs on this machine
        with load_engine(loaded.plan, label=loaded.path.stem) as engine:
            after = f", {engine.layers} after fusion"
    console.print(f"{built.layers} layers before fusion{after}; built in {built.seconds:.1f} s")
    for index, profile in enumerate(built.profiles):
        console.print(f"profile {index}: {profile}", markup=False)
    if built.weights_bytes is not None and built.activation_bytes is not None:
        activations = _mib(built.activation_bytes)
        console.print(f"weights {_mib(built.weights_bytes)}, activations of one context {activations}")
    for note in built.notes:
        console.print(f"TensorRT: {note}", markup=False)
    if sparse:
        console.print(_sparsity(built.notes), markup=False)
    if loaded.not_kept:
        raise ModelError(
            f"the engine was built, but could not be stored: {loaded.not_kept}",
            hint="free some disk space, or set XDG_CACHE_HOME to a folder that you can write to",
            code="engine-not-kept",
        )
    console.print(f"{loaded.path} ({size})", soft_wrap=True, markup=False)


def print_pruned(cache: EngineCache, gpu: Gpu | None, console: Console) -> None:
    """Remove the engines that this machine cannot use, and print the name and the reason for each of them."""
    removed = cache.prune(_library(), gpu)
    for name, reason in removed.items():
        console.print(f"removed {name}: {reason}", markup=False, soft_wrap=True)
    if not removed:
        console.print(f"{cache.folder} contains no engines to remove", soft_wrap=True, markup=False)


def _library() -> Library | None:
    try:
        return find_library()
    except DeviceMissing:
        return None


def print_engines_as_json(entries: Sequence[Entry], gpu: Gpu | None, _console: Console) -> None:
    """Print the engines in the cache as JSON to standard output. `gpu` is this machine's GPU, or None if unknown."""
    library = _library()
    engines = [
        {
            "model": entry.model,
            "file": str(entry.path),
            "bytes": entry.plan_bytes,
            "built": entry.built_at,
            "unused_s": entry.unused_s,
            "fault": entry.fault or foreign(entry.key, library, gpu) or None,
            "key": entry.key,
        }
        for entry in entries
    ]
    print(json_module.dumps({"schema": "vision.engines/1", "engines": engines}, indent=2, default=str))


def print_engines(entries: Sequence[Entry], gpu: Gpu | None, console: Console) -> None:
    """Print the engines of the cache as a table. `gpu` is this machine's GPU, or None if unknown."""
    if not entries:
        console.print("no engines in the cache")
        return
    library, now = _library(), datetime.now(timezone.utc)
    table = Table("model", "precision", "batch", "GPU", "library", "MiB", "built", "last used", "state", "file")
    for entry in entries:
        settings = entry.key.get("settings", {})
        cells = (
            entry.model,
            str(settings.get("precision", "")),
            str(settings.get("max_batch", "")),
            str(entry.key.get("gpu_name", "")),
            f"{entry.key.get('flavour', '')} {entry.key.get('version', '')}",
            f"{entry.plan_bytes / 2**20:.1f}",
            entry.built_at,
            (now - timedelta(seconds=entry.unused_s)).strftime("%Y-%m-%d"),
            entry.fault or foreign(entry.key, library, gpu) or "usable",
            entry.path.name,
        )
        table.add_row(*map(escape, cells))
    console.print(table)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
