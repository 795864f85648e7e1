"""`vision build`: engines ahead of time, what is in the cache, and what can go."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from vision.engine.build import BuildOptions
from vision.engine.build_plan import resolve
from vision.engine.cache import EngineCache, Entry, Loaded, foreign
from vision.engine.library import Gpu, Library, find_library
from vision.engine.open import load_or_build
from vision.engine.progress import Phase
from vision.engine.runtime import load_engine
from vision.errors import EXIT_OK, DeviceMissing, ModelError

if TYPE_CHECKING:
    from vision.config import DetectConfig, ModelSpec


class Bars:
    """A build in the terminal: a bar for each open phase, inside its parent's."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),  # TensorRT's names of phases have brackets
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @property
    def tasks(self) -> list[Task]:
        """The bars that are shown."""
        return self._progress.tasks

    def parsed(self, layers: int) -> None:
        """Say how large the model is."""
        self._console.print(f"{layers} layers before fusion")

    def progress(self, phases: Sequence[Phase]) -> None:
        """Show the open phases and no others."""
        with self._lock:
            for name in self._tasks.keys() - {phase.name for phase in phases}:
                self._progress.remove_task(self._tasks.pop(name))
            for phase in phases:
                if phase.name not in self._tasks:
                    title = "  " * phase.depth + phase.name
                    self._tasks[phase.name] = self._progress.add_task(title, total=phase.steps)
                self._progress.update(self._tasks[phase.name], completed=phase.done, total=phase.steps)

    def built(self, plan_bytes: int) -> None:
        """Remove the bars."""
        self.progress(())
        self._console.print(f"built: {_mib(plan_bytes)}")


def build_command(
    model: tuple[Path, ModelSpec] | None,
    detect: DetectConfig,
    gpu: Gpu | None,
    *,
    show_list: bool = False,
    prune: bool = False,
    force: bool = False,
    ahead_of_time: bool = False,
    cache_folder: Path | None = None,
    console: Console | None = None,
    cancel: threading.Event | None = None,
    prepare_thread: Callable[[], object] = lambda: None,
    as_json: bool = False,
) -> int:
    """Build a model's engine, after pruning and before listing where those are asked for too.

    Args:
        model: folder and card; None where only `show_list` or `prune` is wanted.
        detect: gives precision, max_batch and how the engine is built.
        gpu: of this machine, or (`ahead_of_time`) of another one. None: no GPU; enough to list and to prune.

    Returns:
        The exit code. Ctrl-C comes out as KeyboardInterrupt, once TensorRT has stopped.

    Raises:
        VisionError: whatever `build_engine` and `EngineCache` raise; or the engine could not be kept.
    """
    out = console or Console()
    cache = EngineCache(cache_folder)
    if prune:
        _print_pruned(cache, _library(), gpu, out)
    if model is not None:
        if gpu is None:
            raise DeviceMissing(
                "building an engine needs the GPU that it is for", hint="`vision doctor` says what is missing"
            )
        folder, spec = model
        plan = resolve(detect, spec)
        out.print(
            f"{spec.name}, {plan.precision}, batch up to {plan.max_batch}, for {gpu.name}, {find_library()}",
            markup=False,
        )
        with Bars(out) as bars:
            options = BuildOptions(ahead_of_time, bars, cancel or threading.Event(), prepare_thread)
            loaded = load_or_build(folder, spec, gpu, plan, options, cache=cache, force=force)
        _print_loaded(loaded, loads_here=not ahead_of_time, out=out)
    if show_list:
        show = _print_list_as_json if as_json else _print_list
        show(cache.entries(), _library(), gpu, out)
    return EXIT_OK


def _library() -> Library | None:
    try:
        return find_library()
    except DeviceMissing:
        return None


def _print_loaded(loaded: Loaded, *, loads_here: bool, out: Console) -> None:
    built = loaded.built
    if built is None:
        out.print(
            f"already built: {loaded.path} ({_mib(len(loaded.plan))}); --force builds it again",
            soft_wrap=True,
            markup=False,
        )
        return
    after = ""
    if loads_here:  # the proof that it was built for this machine
        with load_engine(loaded.plan, label=loaded.path.stem) as engine:
            after = f", {engine.layers} after it"
    out.print(f"{built.layers} layers before fusion{after}; built in {built.seconds:.1f} s")
    for index, profile in enumerate(built.profiles):
        out.print(f"profile {index}: {profile}", markup=False)
    if built.weights_bytes is not None and built.activation_bytes is not None:
        out.print(f"weights {_mib(built.weights_bytes)}, activations of one context {_mib(built.activation_bytes)}")
    for note in built.notes:
        out.print(f"TensorRT says: {note}", markup=False)
    if loaded.not_kept:
        raise ModelError(
            f"the engine was built and could not be kept: {loaded.not_kept}",
            hint="free some space, or set XDG_CACHE_HOME to a folder that can be written",
        )
    out.print(f"{loaded.path} ({_mib(len(loaded.plan))})", soft_wrap=True, markup=False)


def _print_pruned(cache: EngineCache, library: Library | None, gpu: Gpu | None, out: Console) -> None:
    gone = cache.prune(library, gpu)
    for name, reason in gone.items():
        out.print(f"removed {name}: {reason}", markup=False, soft_wrap=True)
    if not gone:
        out.print(f"nothing to remove in {cache.folder}", soft_wrap=True, markup=False)


def _print_list_as_json(entries: Sequence[Entry], library: Library | None, gpu: Gpu | None, _out: Console) -> None:
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
    print(json.dumps({"schema": "vision.engines/1", "engines": engines}, indent=2, default=str))


def _print_list(entries: Sequence[Entry], library: Library | None, gpu: Gpu | None, out: Console) -> None:
    if not entries:
        out.print("no engines in the cache")
        return
    table = Table("model", "precision", "batch", "GPU", "library", "MiB", "built", "last used", "state", "file")
    for entry in entries:
        settings = entry.key.get("settings", {})
        used = datetime.fromtimestamp(datetime.now(timezone.utc).timestamp() - entry.unused_s, timezone.utc)
        cells = (
            entry.model,
            str(settings.get("precision", "")),
            str(settings.get("max_batch", "")),
            str(entry.key.get("gpu_name", "")),
            f"{entry.key.get('flavour', '')} {entry.key.get('version', '')}",
            f"{entry.plan_bytes / 2**20:.1f}",
            entry.built_at,
            used.strftime("%Y-%m-%d"),
            entry.fault or foreign(entry.key, library, gpu) or "usable",
            entry.path.name,
        )
        table.add_row(*map(escape, cells))
    out.print(table)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
