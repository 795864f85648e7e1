"""The way from a model's folder to an engine that runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vision.engine.build import Built, build_engine
from vision.engine.build_plan import BuildPlan, resolve
from vision.engine.cache import EngineCache, Loaded, key_of
from vision.engine.library import Gpu, find_library, trt
from vision.engine.onnx_transform import with_weights
from vision.engine.progress import BuildListener, LogListener
from vision.engine.runtime import Engine, load_engine
from vision.errors import ModelError
from vision.state.private_files import sha256_of

if TYPE_CHECKING:
    from vision.config.app import DetectConfig, ModelSpec

_log = logging.getLogger(__name__)


def read_onnx(folder: Path, spec: ModelSpec) -> bytes:
    """Return the ONNX file of a model, checked against its spec, with its external weights inside.

    Raises:
        ModelError: the file is missing or is not the one in the spec; or see `with_weights`.
    """
    path = folder / spec.file
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", hint="`file` in model.yaml names it") from error
    if spec.sha256 is None:
        _log.warning(
            "%s has no sha256: nobody would notice another file in place of %s", folder / "model.yaml", spec.file
        )
    elif sha256_of(contents) != spec.sha256:
        raise ModelError(
            f"{path} has sha256 {sha256_of(contents)}, model.yaml says {spec.sha256}",
            hint="download it again; or, if the file is the right one, put its sha256 into model.yaml",
        )
    return with_weights(contents, folder)


def load_or_build(
    folder: Path,
    spec: ModelSpec,
    gpu: Gpu,
    plan: BuildPlan,
    *,
    cache: EngineCache,
    force: bool = False,
    ahead_of_time: bool = False,
    listener: BuildListener | None = None,
    cancel: threading.Event | None = None,
    prepare_thread: Callable[[], object] = lambda: None,
) -> Loaded:
    """Return the plan of a model from the cache, or build it. Errors as of `build_engine` and `EngineCache`."""
    onnx = read_onnx(folder, spec)
    stop = cancel or threading.Event()

    def build(timing_cache: bytes | None) -> Built:
        return build_engine(
            onnx,
            spec,
            plan,
            gpu,
            ahead_of_time=ahead_of_time,
            timing_cache=timing_cache,
            listener=listener or LogListener(f"{spec.name} {plan.precision}"),
            cancel=stop,
            prepare_thread=prepare_thread,
        )

    key = key_of(onnx, find_library(), gpu, plan, spec)
    return cache.load_or_build(spec.name, key, build, force=force, cancelled=stop.is_set)


def open_engine(
    folder: Path,
    spec: ModelSpec,
    detect: DetectConfig,
    gpu: Gpu,
    *,
    plan: BuildPlan | None = None,
    cache_folder: Path | None = None,
    allocator: trt.IGpuAllocator | None = None,
    listener: BuildListener | None = None,
    cancel: threading.Event | None = None,
    prepare_thread: Callable[[], object] = lambda: None,
) -> Engine:
    """Open the engine of a model on the GPU of this machine, from the cache or after a build.

    Args:
        folder: folder with the ONNX file that `spec` names.
        spec: description of the model.
        detect: precision, max_batch and build settings, unless `plan` is given.
        gpu: the GPU that is current in the calling thread.
        plan: settings in place of those of `detect`.
        cache_folder: `default_folder()` if None.
        allocator: serves TensorRT's own memory; must outlive the engine.
        listener: receives the progress of a build; the log if None.
        cancel: ends a build.
        prepare_thread: called first in the thread that builds, to select the GPU there.

    Raises:
        ModelError: model, spec, settings and GPU do not fit together; or other users can write to the cache.
        DeviceMissing: no TensorRT, or no GPU that works.
        DeviceError: not enough memory on the GPU.
        Closed: cancelled.
    """
    chosen = plan or resolve(detect, spec)
    cache = EngineCache(cache_folder)
    load = partial(load_or_build, folder, spec, gpu, chosen, cache=cache)
    load = partial(load, listener=listener, cancel=cancel, prepare_thread=prepare_thread)

    def start(loaded: Loaded) -> Engine:
        core = chosen.dla_core if chosen.on_dla else None
        kernels, label = cache.kernels_of(loaded.path), loaded.path.stem
        return load_engine(loaded.plan, allocator=allocator, kernels=kernels, label=label, dla_core=core)

    return _start_or_rebuild(load, start)


def _start_or_rebuild(load: Callable[..., Loaded], start: Callable[[Loaded], Engine]) -> Engine:
    """Start the engine of the cache; build it again if it does not load."""
    loaded = load()
    try:
        return start(loaded)
    except ModelError as error:
        if loaded.built is not None:
            raise
        _log.warning("the engine in the cache does not load, building it again: %s", error.args[0])
    return start(load(force=True))
