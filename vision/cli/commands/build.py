"""`vision build`: build TensorRT engines ahead of time, and list or prune those in the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vision.cli.options import (
    MAX_BATCH,
    Json,
    ModelConfig,
    ModelName,
    Precision,
    find_named_model,
    read_config,
    table_console,
)
from vision.cli.session import add_command
from vision.errors import DeviceError, VisionError

if TYPE_CHECKING:
    from rich.console import Console

    from vision.config import DetectConfig, ModelSpec

_EXAMPLES = """
vision build nanodet-g-416
vision build --config camera.yaml
vision build --list --json
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "build", _EXAMPLES)(build)


def build(
    context: typer.Context,
    model: ModelName = None,
    config: ModelConfig = None,
    precision: Annotated[Precision | None, typer.Option(help="Default: fp16, or that of --config.")] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, max=MAX_BATCH, metavar="N", help="Default: 8, or that of --config.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the engines in the cache.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove engines that this machine cannot use.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build again.")] = False,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: the cache that `vision run` uses.")
    ] = None,
    workspace_mib: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, metavar="MIB", help="Maximum scratch memory of a layer (workspace_mib)."),
    ] = None,
    level: Annotated[
        int | None,
        typer.Option(min=0, max=5, help="0: short build .. 5: fast engine (optimization_level)."),
    ] = None,
    dla: Annotated[
        int | None, typer.Option(min=0, max=15, metavar="CORE", help="DLA core of a Jetson (dla_core).")
    ] = None,
    for_gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME:SM", help="Build for another GPU, such as 'RTX 4090:89' (TensorRT-RTX only)."),
    ] = None,
    json: Json = False,
) -> int:
    """Build, list or prune TensorRT engines.

    `vision run` finds an engine if camera.yaml has the same settings: `detect.precision`, `detect.max_batch`,
    `detect.engine`.
    """
    from vision.cli.build import build_command
    from vision.config import DetectConfig
    from vision.runtime.builder import find_model

    if model is None and config is None and not (show_list or prune):
        context.fail("nothing to do: expected MODEL, --config, --list or --prune")
    if json and not show_list:
        context.fail("--json belongs to --list")
    detect, found_model = DetectConfig(), None
    if config is not None:
        app_config = read_config(config)
        detect, found_model = app_config.detect, find_model(app_config)
    if model is not None:
        found_model = find_named_model(model)
    engine = _given(workspace_mib=workspace_mib, optimization_level=level, dla_core=dla)
    changes = _given(precision=precision, max_batch=max_batch)
    detect = detect.model_copy(update={**changes, "engine": detect.engine.model_copy(update=engine)})
    gpu, prepare = _open_gpu(for_gpu, required=found_model is not None)
    console = table_console(Path("-") if json else None)
    code = build_command(
        found_model,
        detect,
        gpu,
        show_list=show_list,
        prune=prune,
        force=force,
        ahead_of_time=for_gpu is not None,
        cache_folder=cache,
        console=console,
        prepare_thread=prepare,
        as_json=json,
    )
    if found_model is not None and for_gpu is None and cache is None:
        _start_once(*found_model, detect, console)
    return code


def _given(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _start_once(folder: Path, spec: ModelSpec, detect: DetectConfig, console: Console) -> None:
    """Open the detector as `vision run` does.

    TensorRT-RTX compiles and keeps an engine's kernels only then, which may take as long as the build; and CUDA
    graphs with wrong results are noticed here.
    """
    from contextlib import closing

    from vision.detect.open import open_detector

    console.print("starting the detector once: compiles and keeps kernels, checks graphs")
    with closing(open_detector(folder, spec, detect.model_copy(update={"backend": "tensorrt"}))) as detector:
        console.print(f"{detector.spec.name}: ready", markup=False)


def _open_gpu(description: str | None, *, required: bool) -> tuple[Any, Callable[[], object]]:
    """Return the GPU to build for, and a function that makes it current in another thread.

    The GPU is None if there is none and none is required.

    Raises:
        DeviceError: there is no GPU, or it does not work.
        VisionError: the description is wrong.
    """
    from vision.engine.library import GpuDescription

    if description is not None:
        name, _, capability = description.rpartition(":")
        if not name or not capability.isdecimal() or len(capability) < 2:
            raise VisionError(
                f"--for-gpu: expected a name and a compute capability, got {description!r}", hint="Orin:87"
            )
        return GpuDescription(name, (int(capability[:-1]), int(capability[-1]))), lambda: None
    try:
        from vision.gpu.cuda import open_device, use_device

        device = open_device()
    except DeviceError:
        if required:
            raise
        return None, lambda: None
    return device, lambda: use_device(device)
