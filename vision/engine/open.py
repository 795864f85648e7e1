"""Functions that load the engine of a model from the cache, or build it from the ONNX file in the model's folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from vision.config import checked_model_file
from vision.engine.build import BuildOptions, Built, build_engine
from vision.engine.build_plan import BuildPlan
from vision.engine.cache import EngineCache, Loaded, key_of
from vision.engine.library import Gpu, find_library
from vision.engine.memory import MemoryPool
from vision.engine.onnx_transform import with_weights
from vision.engine.plugins import load_plugins
from vision.engine.runtime import Engine, load_engine
from vision.errors import ModelError

if TYPE_CHECKING:
    from vision.config import AnySpec

_log = logging.getLogger(__name__)


def read_onnx(folder: Path, spec: AnySpec) -> bytes:
    """Read the ONNX file of a model, including its external weights. Raise `ModelError` if a file cannot be used."""
    return with_weights(checked_model_file(folder, spec).read_bytes(), folder)


def load_or_build(
    folder: Path,
    spec: AnySpec,
    gpu: Gpu,
    plan: BuildPlan,
    options: BuildOptions,
    *,
    cache: EngineCache,
    force: bool = False,
) -> Loaded:
    """Load the plan of a model from `cache`, or build it. For the errors, see `open_engine`.

    If `force` is True, the plan is always built.
    """
    onnx = read_onnx(folder, spec)
    load_plugins(folder, spec)

    def build(timing_cache: bytes | None) -> Built:
        return build_engine(onnx, spec, plan, gpu, options, timing_cache=timing_cache)

    key = key_of(onnx, find_library(), gpu, plan, spec)
    return cache.load_or_build(spec.name, key, build, force=force, canceled=options.cancel.is_set)


def open_engine(
    folder: Path,
    spec: AnySpec,
    gpu: Gpu,
    plan: BuildPlan,
    options: BuildOptions,
    *,
    cache_folder: Path | None = None,
    pool: MemoryPool | None = None,
) -> Engine:
    """Load the engine of a model on the GPU that is current in this thread. Build it if the cache has no usable engine.

    If the engine from the cache cannot be loaded, build a new engine. If `cache_folder` is None, the default folder is
    used. `pool` provides TensorRT's memory, and must outlive the engine. Without `pool`, TensorRT allocates memory
    itself.

    Raises:
        ModelError: the model, spec, settings, and GPU do not fit together, or the cache cannot be used.
        DeviceMissing: TensorRT is missing, or no GPU works.
        DeviceError: the engine does not fit into the memory of `pool`. Without `pool`, the error is `ModelError`.
        Unavailable: a file of the cache cannot be used at present, or another process built the engine for an hour.
        Closed: the build, or the wait for a build in another process, was canceled.
        KeyboardInterrupt: the user pressed Ctrl-C during the build.
    """
    cache = EngineCache(cache_folder)

    def load(loaded: Loaded) -> Engine:
        core = plan.dla_core if plan.on_dla else None
        kernel_file = loaded.path.with_suffix(".kernels")
        return load_engine(loaded.plan, pool=pool, kernel_file=kernel_file, label=loaded.path.stem, dla_core=core)

    loaded = load_or_build(folder, spec, gpu, plan, options, cache=cache)
    try:
        return load(loaded)
    except ModelError as error:
        if loaded.built is not None:
            raise
        _log.warning("cannot load the engine from the cache, so it is built again: %s", error.args[0])
    return load(load_or_build(folder, spec, gpu, plan, options, cache=cache, force=True))
