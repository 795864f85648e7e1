"""Tests of engines on a real GPU: results with and without CUDA graphs, and the data stored for the next start."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from tests.log_records import log_args
from tests.unit.engine_models import convolution, quantized, spec
from vision.config import DetectConfig
from vision.engine.build import BuildOptions
from vision.engine.build_plan import resolve
from vision.engine.cache import EngineCache, key_of
from vision.engine.library import find_library, supported_capabilities
from vision.engine.memory import MemoryPool
from vision.engine.open import load_or_build, open_engine
from vision.engine.profiler import parse_layers, profile_layers
from vision.engine.runtime import Context, Engine
from vision.errors import DeviceMissing, ModelError

pytestmark = pytest.mark.gpu

cuda = pytest.importorskip("vision.gpu.cuda")
memory = pytest.importorskip("vision.gpu.memory")

DETECT = DetectConfig.model_validate({"precision": "fp16", "max_batch": 8})


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    """Skip all tests of this module if the machine has no GPU."""
    try:
        cuda.open_device()
        find_library()
    except DeviceMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models") / "tiny"
    made.mkdir()
    (made / "tiny.onnx").write_bytes(convolution())
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "engines"


@pytest.fixture(scope="module")
def pool() -> Iterator[MemoryPool]:

    cuda.open_device()
    made = MemoryPool(memory.CudaMemory())
    yield made
    made.close()


def opened(folder: Path, cache: Path, pool: MemoryPool | None = None, detect: DetectConfig = DETECT) -> Engine:
    device, plan = cuda.open_device(), resolve(detect, spec())
    return open_engine(folder, spec(), device, plan, BuildOptions(), cache_folder=cache, pool=pool)


@pytest.fixture
def engine(folder: Path, cache: Path, pool: MemoryPool) -> Iterator[Engine]:
    with opened(folder, cache, pool) as engine:
        yield engine


class Bench:
    """Execution context for one batch size, with all buffers that a run needs."""

    def __init__(self, engine: Engine, batch: int, made: contextlib.ExitStack) -> None:
        self.stream = made.enter_context(cuda.Stream())
        self._images, self._y = engine.tensor("images"), engine.tensor("y")
        shape = (batch, self._images.channels, 16, 16)
        self.context: Context = engine.create_context(engine.choose({"images": shape}), self.stream.address)
        self.context.set_shape("images", shape)
        size = self.context.output_sizes()["y"]
        assert size.shape is not None
        assert size.bytes is not None
        input_bytes = self._images.bytes_of(shape)
        self.pixels = made.enter_context(memory.HostBuffer(input_bytes, "test"))
        self.result = made.enter_context(memory.HostBuffer(size.bytes, "test"))
        self._input = made.enter_context(memory.DeviceBuffer(input_bytes, "test"))
        self._output = made.enter_context(memory.DeviceBuffer(size.bytes, "test"))
        self._scratch = made.enter_context(memory.DeviceBuffer(self.context.memory_bytes, "test"))
        self._output_shape = size.shape
        self.context.give_memory(self._scratch.address, self.context.memory_bytes)
        self.context.set_address("images", self._input.address)
        self.context.set_address("y", self._output.address)

    def launch(self) -> None:
        """Queue the copy of the input, the computation, and the copy of the outputs."""
        memory.copy_to_device(self._input.address, self.pixels.address, self._input.nbytes, self.stream)
        self.context.enqueue(self.stream.address)
        memory.copy_to_host(self.result.address, self._output.address, self._output.nbytes, self.stream)

    def run(self, frames: NDArray[np.float32]) -> NDArray[Any]:
        """Run the engine once on `frames`. Return its outputs."""
        extra = self._images.channels - frames.shape[1]
        channels = np.pad(frames, ((0, 0), (0, extra), (0, 0), (0, 0)))
        laid_out = channels.transpose(0, 2, 3, 1) if self._images.interleaved else channels
        self.pixels.array(laid_out.shape, self._images.dtype)[...] = laid_out
        self.launch()
        self.stream.synchronize()
        return np.array(self.outcome())

    def outcome(self) -> NDArray[Any]:
        """Return the outputs of the previous launch. The work on the stream must have finished."""
        array: NDArray[Any] = self.result.array(self._output_shape, self._y.dtype)
        return array


def frames(batch: int) -> NDArray[np.float32]:
    return np.random.default_rng(batch).normal(size=(batch, 3, 16, 16)).astype(np.float32)


def right(batch: int) -> NDArray[np.float32]:
    """Return the expected outputs for `frames(batch)`, which ONNX Runtime computes on the CPU."""
    session = onnxruntime.InferenceSession(convolution(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"images": frames(batch)})[0]
    return found


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 8])
def test_every_profile_matches_onnx_runtime_eagerly_and_as_a_graph(engine: Engine, batch: int) -> None:
    with contextlib.ExitStack() as made:
        bench = Bench(engine, batch, made)
        eager = bench.run(frames(batch))
        assert float(np.linalg.norm(eager - right(batch)) / np.linalg.norm(right(batch))) < 5e-3
        graph = made.enter_context(cuda.Graph.capture(bench.stream, bench.launch, "the test"))
        bench.outcome()[...] = 0
        graph.launch(bench.stream)
        bench.stream.synchronize()
        np.testing.assert_array_equal(bench.outcome(), eager)


def test_batch_above_the_profiles_is_refused(engine: Engine) -> None:
    channels = engine.tensor("images").channels
    with pytest.raises(ModelError) as caught:
        engine.choose({"images": (9, channels, 16, 16)})
    assert caught.value.code == "no-profile"


def test_tensorrt_allocates_from_the_pool_and_frees(folder: Path, cache: Path, pool: MemoryPool) -> None:
    before = pool.report()
    with (
        opened(folder, cache, pool) as engine,
        contextlib.ExitStack() as made,
    ):
        Bench(engine, 1, made).run(frames(1))
        during = pool.report()
        assert during.allocations > before.allocations
    gc.collect()
    assert pool.report().used_bytes == before.used_bytes


def test_layers_have_times_and_descriptions(engine: Engine) -> None:
    with contextlib.ExitStack() as made:
        bench = Bench(engine, 4, made)
        bench.run(frames(4))
        times = profile_layers(
            bench.context, lambda: bench.context.enqueue(bench.stream.address), bench.stream.synchronize, runs=5
        )
    assert times.runs == 5
    assert times.total_ms() > 0
    layers = parse_layers(engine.information())
    assert layers
    assert any(layer.kind for layer in layers), "detailed"
    assert engine.layers > 0
    assert 0 < engine.weights_bytes <= engine.plan_bytes


def test_kernels_are_kept_for_the_next_start(folder: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    if find_library().flavour != "tensorrt-rtx":
        pytest.skip("TensorRT compiles nothing at run time")
    caplog.set_level(logging.INFO)
    logged = []
    for start in range(2):
        caplog.clear()
        with opened(folder, cache) as engine, contextlib.ExitStack() as made:
            Bench(engine, 1, made).run(frames(1))
            assert engine.save_kernels(), start
        logged.append(log_args(caplog, "vision.engine.runtime", logging.INFO))
    assert len(list(cache.glob("*.kernels"))) == 1
    assert [len(records) for records in logged] == [1, 0], "kernels are compiled once"


def test_engine_that_does_not_load_is_built_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The name and the hash of the plan are correct, but TensorRT cannot load the plan."""
    device = cuda.open_device()
    cache = EngineCache(tmp_path / "engines")
    settings = resolve(DetectConfig(precision="fp16"), spec())
    real = load_or_build(folder, spec(), device, settings, BuildOptions(), cache=cache).built
    assert real is not None
    key = key_of((folder / "tiny.onnx").read_bytes(), find_library(), device, settings, spec())
    cache.load_or_build("tiny", key, lambda _: dataclasses.replace(real, plan=bytes(5000)), force=True)
    with opened(folder, cache.folder) as engine:
        assert engine.plan_bytes > 5000
    assert log_args(caplog, "vision.engine.open")


def test_quantized_models_are_refused_on_untested_gpus(tmp_path: Path) -> None:
    device = cuda.open_device()
    if not supported_capabilities() or device.compute_capability in supported_capabilities():
        pytest.skip("a library that was made for this GPU")
    (tmp_path / "tiny.onnx").write_bytes(quantized())
    detect = DetectConfig.model_validate({"precision": "int8", "max_batch": 4})
    with pytest.raises(ModelError) as caught:
        opened(tmp_path, tmp_path / "engines", detect=detect)
    assert caught.value.code == "untested-precision"
