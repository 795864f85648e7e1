"""Tests of engines and contexts: False, None, and RuntimeError from TensorRT become exceptions that contain the reason.

TensorRT loads an engine only on a machine with a GPU. Therefore, these tests use stand-ins for TensorRT's objects,
which behave as the headers and bindings of TensorRT specify. `tests/gpu` tests the same wrappers with a real engine.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.log_records import log_args
from tests.unit.engine_models import convolution, needs_no_gpu, needs_rtx, needs_runtime, needs_tensorrt, spec
from vision.engine import library
from vision.engine.build import BuildOptions, build_engine
from vision.engine.build_plan import BuildPlan
from vision.engine.library import GpuDescription, take_message
from vision.engine.profiler import profile_layers
from vision.engine.runtime import Context, Engine, aim_at_dla, invalidity, load_engine
from vision.engine.tensors import Tensor, dtype_name
from vision.errors import DeviceError, DeviceMissing, ModelError
from vision.state.private_files import read_checked, write_checked

pytestmark = needs_tensorrt

trt = library.trt  # found at its first use, which is in the tests


class RawContext:
    """Stand-in for an execution context. `refusals` contains the names of the calls that fail."""

    def __init__(self, refusals: Sequence[str] = ()) -> None:
        self.refusals = set(refusals)
        self.shapes: dict[str, tuple[int, ...]] = {"images": (-1, 3, 8, 8), "size": (2,)}
        self.addresses: dict[str, int] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.memory = (0, 0)
        self.open_output = False
        self.unspecified: list[str] = []
        self.nvtx_verbosity: Any = None
        self.profiler: Any = None
        self.enqueue_emits_profile = True

    def answer(self, call: str, *details: Any) -> bool:
        self.calls.append((call, *details))
        if call in self.refusals:
            take_message("ERROR", f"refused: {call}")
            return False
        return True

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        return self.answer("profile", profile, stream)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return self.answer("shape", name, shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.answer("address", name)

    def get_tensor_shape(self, name: str) -> Any:
        if name == "boxes":
            return (
                library.trt.Dims([-1, 4]) if self.open_output else library.trt.Dims([self.shapes["images"][0], 10, 4])
            )
        return library.trt.Dims(list(self.shapes[name]))

    def get_max_output_size(self, name: str) -> int:
        return 4096

    def infer_shapes(self) -> list[str]:
        if "infer" in self.refusals:
            raise RuntimeError("refused: infer")
        return self.unspecified

    def set_device_memory(self, address: int, size: int) -> None:
        if "memory" in self.refusals:
            raise RuntimeError("refused: memory")
        self.memory = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        return self.answer("enqueue", stream)

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        return self.answer("allocator", name)

    def report_to_profiler(self) -> bool:
        if self.answer("report"):
            self.profiler.report_layer_time("conv", 0.5)
            return True
        return False


class RawEngine:
    """Stand-in for an engine with one input for frames, one shape tensor, and one output."""

    num_io_tensors = 3
    num_optimization_profiles = 2
    num_layers = 7

    def __init__(self, context: RawContext | None = None) -> None:
        self.context = context
        self.format: Any = trt.TensorFormat.LINEAR
        self.strategies: list[Any] = []

    def get_tensor_name(self, index: int) -> str:
        return ("images", "size", "boxes")[index]

    def get_tensor_mode(self, name: str) -> Any:
        return trt.TensorIOMode.OUTPUT if name == "boxes" else trt.TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return {"images": trt.DataType.HALF, "size": trt.DataType.INT64, "boxes": trt.DataType.FLOAT}[name]

    def get_tensor_shape(self, name: str) -> Any:
        return trt.Dims({"images": [-1, 3, 8, 8], "size": [2], "boxes": [-1, 10, 4]}[name])

    def get_tensor_location(self, name: str) -> Any:
        return trt.TensorLocation.HOST if name == "size" else trt.TensorLocation.DEVICE

    def get_tensor_format(self, name: str, profile: int) -> Any:
        assert profile == 0
        return self.format if name == "images" else trt.TensorFormat.LINEAR

    def is_shape_inference_io(self, name: str) -> bool:
        return name == "size"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Any]:
        if name == "boxes":
            raise AssertionError("asked for an output")
        if name == "size":
            return [trt.Dims([2])] * 3
        return [trt.Dims([batch, 3, 8, 8]) for batch in ((1, 4, 4), (4, 8, 8))[profile]]

    def get_tensor_profile_values(self, *arguments: Any) -> list[list[int]]:
        assert arguments[1] == "size"  # positional: index, then name
        return [[8, 8], [16, 16], [32, 32]]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return (1000, 2000)[profile]

    def create_execution_context(self, strategy: Any) -> RawContext | None:
        self.strategies.append(strategy)
        if self.context is None:
            take_message("ERROR", "refused: context")
        return self.context

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda kind: f'{{"Layers": [], "kind": "{kind.name}"}}')


class RuntimeConfig:
    """Stand-in for the settings of a context of TensorRT-RTX."""

    def __init__(self, accepts: bool = True) -> None:
        self.cuda_graph_strategy: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self.allocation: Any = None
        self.caches: list[Any] = []
        self._accepts = accepts

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> Any:
        return SimpleNamespace(
            deserialize=lambda _: self._accepts,
            serialize=lambda: memoryview(b"compiled kernels"),
        )

    def set_runtime_cache(self, cache: Any) -> bool:
        self.caches.append(cache)
        return True


class RawRtxEngine(RawEngine):
    """Stand-in for an engine of TensorRT-RTX, with settings of contexts."""

    def __init__(self, context: RawContext, accepts: bool = True) -> None:
        super().__init__(context)
        self.configs: list[RuntimeConfig] = []
        self._accepts = accepts

    def create_runtime_config(self) -> RuntimeConfig:
        self.configs.append(RuntimeConfig(self._accepts))
        return self.configs[-1]


def engine(raw: RawEngine | None = None, **more: Any) -> Engine:
    return Engine(raw or RawEngine(RawContext()), plan_bytes=99, label="tiny", **more)  # type: ignore[arg-type,unused-ignore]


def context(*refusals: str, profile: int = 0) -> tuple[Context, RawContext]:
    raw = RawContext()
    made = engine(RawEngine(raw)).create_context(profile, 5)
    raw.refusals = set(refusals)
    return made, raw


# ------------------------------------------------------------------------------------------------ engine


def test_tensors_and_profiles_are_plain_data() -> None:
    with engine() as opened:
        assert opened.tensors == (
            Tensor("images", "input", "float16", (-1, 3, 8, 8), "device", False),
            Tensor("size", "input", "int64", (2,), "host", True),
            Tensor("boxes", "output", "float32", (-1, 10, 4), "device", False),
        )
        assert [tensor.name for tensor in opened.inputs] == ["images", "size"]
        assert [tensor.name for tensor in opened.outputs] == ["boxes"]
        assert str(opened.profiles[1].shapes["images"]) == "4x3x8x8 .. 8x3x8x8 (best 8x3x8x8)"
        assert opened.profiles[0].values["size"].max == (32, 32)
        assert (opened.max_batch, opened.layers) == (8, 7)
        assert opened.weights_bytes == 99, "the size of the plan where TensorRT does not tell"
        assert opened.information() == '{"Layers": [], "kind": "JSON"}'


def test_batch_above_the_profiles_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        engine().choose({"images": (9, 3, 8, 8)})
    assert caught.value.code == "no-profile"
    assert "max_batch" in caught.value.hint
    assert engine().choose({"images": (5, 3, 8, 8)}) == 1


def test_interleaved_input_is_recognised() -> None:
    raw = RawEngine(RawContext())
    raw.format = trt.TensorFormat.CHW4
    assert [tensor.interleaved for tensor in engine(raw).tensors] == [True, False, False]


def test_unknown_tensor_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError) as caught:
        engine().tensor("scores")
    assert caught.value.code == "no-tensor"


def test_closed_engine_refuses_calls() -> None:
    opened = engine()
    opened.close()
    opened.close()
    with pytest.raises(DeviceError):
        opened.create_context(0, 5)


def test_failed_context_creation_is_reported_with_the_reason() -> None:
    with pytest.raises(DeviceError) as caught:
        engine(RawEngine(None)).create_context(0, 5)
    assert "refused: context" in caught.value.args[0]
    with pytest.raises(DeviceError) as caught:
        engine(RawEngine(None), pool=SimpleNamespace(last_failure="TensorRT requested 5 GiB")).create_context(0, 5)
    assert "5 GiB" in caught.value.args[0]


def test_refused_profile_is_reported_with_the_reason() -> None:
    raw = RawContext(["profile"])
    with pytest.raises(DeviceError) as caught:
        engine(RawEngine(raw)).create_context(1, 5)
    assert "refused: profile" in caught.value.args[0]


def test_context_memory_belongs_to_the_caller() -> None:
    raw = RawEngine(RawContext())
    made = engine(raw).create_context(1, 5)
    assert raw.strategies == [trt.ExecutionContextAllocationStrategy.USER_MANAGED]
    assert raw.context is not None
    assert raw.context.calls == [("profile", 1, 5)]
    assert raw.context.nvtx_verbosity == trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    assert made.memory_bytes == 2000


# ------------------------------------------------------------------------------------------------ TensorRT-RTX


@needs_rtx
def test_rtx_does_not_capture_graphs() -> None:
    raw = RawRtxEngine(RawContext())
    engine(raw).create_context(0, 5)
    (config,) = raw.configs
    assert config.cuda_graph_strategy == trt.CudaGraphStrategy.DISABLED
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    assert config.allocation == trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert raw.strategies == [config]


@needs_rtx
def test_kernels_are_shared_by_contexts_and_saved_once(tmp_path: Path) -> None:
    raw, file = RawRtxEngine(RawContext()), tmp_path / "tiny.kernels"
    opened = engine(raw, kernel_file=file)
    assert not opened.save_kernels(), "nothing was compiled yet"
    opened.create_context(0, 5)
    opened.create_context(1, 5)
    assert raw.configs[0].caches == raw.configs[1].caches
    assert opened.save_kernels()
    assert read_checked(file) == b"compiled kernels"
    written_ns = file.stat().st_mtime_ns
    assert opened.save_kernels()
    assert file.stat().st_mtime_ns == written_ns, "an unchanged file is not written again"


@needs_rtx
def test_kernels_of_another_driver_are_compiled_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    write_checked(tmp_path / "old.kernels", b"old")
    engine(RawRtxEngine(RawContext(), accepts=False), kernel_file=tmp_path / "old.kernels").create_context(0, 5)
    assert log_args(caplog, "vision.engine.runtime", logging.INFO) == [("tiny",)]


@needs_rtx
def test_without_a_file_no_kernels_are_kept() -> None:
    raw = RawRtxEngine(RawContext())
    opened = engine(raw)
    opened.create_context(0, 5)
    assert raw.configs[0].caches == []
    assert not opened.save_kernels()


# ------------------------------------------------------------------------------------------------ context


@pytest.mark.parametrize(
    ("call", "act", "subject"),
    [
        ("shape", lambda made: made.set_shape("images", (2, 3, 8, 8)), "images"),
        ("address", lambda made: made.set_address("images", 4096), "images"),
        ("allocator", lambda made: made.set_output_allocator("boxes", None), "boxes"),
        ("enqueue", lambda made: made.enqueue(5), "tiny"),
    ],
)
def test_failed_call_raises_an_error_with_the_reason(call: str, act: Any, subject: str) -> None:
    made, _ = context(call)
    with pytest.raises(DeviceError) as caught:
        act(made)
    assert subject in caught.value.args[0]
    assert f"refused: {call}" in caught.value.args[0]
    made, _ = context()
    act(made)


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (0, 3, 8, 8), (2, 3, 9, 8), (2, 3, 8)])
def test_shape_outside_the_profile_is_refused_before_the_tensorrt_call(shape: tuple[int, ...]) -> None:
    made, raw = context()
    with pytest.raises(ModelError) as caught:
        made.set_shape("images", shape)
    assert caught.value.code == "shape-outside-profile"
    assert ("shape", "images", shape) not in raw.calls


@pytest.mark.parametrize(("address", "refuses"), [(512, "memory"), (513, "")])
def test_unsuitable_scratch_memory_is_refused(address: int, refuses: str) -> None:
    made, _ = context(refuses)
    with pytest.raises(DeviceError) as caught:
        made.give_memory(address, 10)
    assert ("refused: memory" if refuses else "0x201") in caught.value.args[0]


def test_scratch_memory_is_passed_on() -> None:
    made, raw = context()
    made.give_memory(512, 10)
    assert raw.memory == (512, 10)


def test_values_of_shape_tensors_stay_in_host_memory() -> None:
    made, raw = context()
    made.set_values("size", [16, 24])
    found = (ctypes.c_int64 * 2).from_address(raw.addresses["size"])
    assert list(found) == [16, 24]


def set_largest_shapes(made: Context) -> None:
    made.set_shape("images", (8 if made.profile else 4, 3, 8, 8))
    made.set_values("size", [32, 32])


def test_output_sizes_cover_the_largest_shapes() -> None:
    made, _ = context(profile=1)
    set_largest_shapes(made)
    size = made.output_sizes()["boxes"]
    assert (size.shape, size.bytes) == ((8, 10, 4), 8 * 10 * 4 * 4)


def test_data_dependent_output_has_an_upper_bound_and_no_shape() -> None:
    made, raw = context()
    raw.open_output = True
    set_largest_shapes(made)
    size = made.output_sizes()["boxes"]
    assert (size.shape, size.bytes) == (None, 4096)


def test_output_sizes_need_input_shapes() -> None:
    """Without input shapes, TensorRT 10.3 crashes if the call occurs outside the main thread."""
    made, raw = context("infer")
    with pytest.raises(DeviceError) as caught:
        made.output_sizes()
    assert "images" in caught.value.args[0]
    set_largest_shapes(made)
    with pytest.raises(DeviceError) as caught:
        made.output_sizes()
    assert "refused: infer" in caught.value.args[0]
    raw.refusals = set()
    raw.unspecified = ["size"]
    with pytest.raises(DeviceError) as caught:
        made.output_sizes()
    assert "size" in caught.value.args[0]


def test_layer_times_are_fetched_after_each_run_and_not_during() -> None:
    made, raw = context()
    times = profile_layers(made, lambda: made.enqueue(5), lambda: raw.calls.append(("sync",)), runs=3, warm_up=2)
    assert raw.enqueue_emits_profile is False
    assert [call[0] for call in raw.calls[1:]] == ["enqueue", "sync"] * 2 + ["enqueue", "sync", "report"] * 3
    assert (times.runs, times.total_ms()) == (3, 0.5)
    raw.refusals = {"report"}
    with pytest.raises(DeviceError):
        profile_layers(made, lambda: made.enqueue(5), lambda: None, runs=1)


# ------------------------------------------------------------------------------------------------ loading


@needs_rtx
@needs_no_gpu
def test_plan_without_a_gpu_is_refused_with_a_hint(capfd: pytest.CaptureFixture[str]) -> None:
    """The plan and the runtime are real, but there is no driver."""
    ahead = BuildOptions(ahead_of_time=True)
    built = build_engine(convolution(), spec(), BuildPlan("fp32", 2), GpuDescription("A4000", (8, 6)), ahead)
    with pytest.raises(ModelError) as caught:
        load_engine(built.plan, label="tiny")
    assert caught.value.code == "engine-not-loaded"
    assert "cuda" in caught.value.args[0].lower()
    assert "vision doctor" in caught.value.hint


@pytest.mark.parametrize(("cores", "asked", "chosen"), [(2, 1, 1), (2, None, -1), (1, 1, -1), (0, 0, -1)])
def test_plan_runs_on_its_dla_core(cores: int, asked: int | None, chosen: int) -> None:
    runtime = SimpleNamespace(num_DLA_cores=cores, DLA_core=-1)
    aim_at_dla(runtime, asked)
    assert runtime.DLA_core == chosen


@needs_rtx
def test_library_has_the_dla_attributes() -> None:
    assert {"DLA_core", "num_DLA_cores"} <= set(dir(trt.Runtime))


@needs_runtime
@pytest.mark.parametrize("plan", [b"", b"no plan", bytes(4096)])
def test_invalid_plan_is_refused(plan: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError) as caught:
        load_engine(plan, label="tiny")
    assert caught.value.code == "engine-not-loaded"


@needs_rtx  # only TensorRT-RTX has the enumeration
@pytest.mark.parametrize(
    ("verdict", "bits", "says"),
    [
        ("INVALID", 1, "version mismatch"),
        ("INVALID", 2 | 4, "unsupported cc, old cuda driver"),
        ("INVALID", 32, "malformed engine"),
        ("INVALID", 0, ""),  # without a driver, the error of the deserialization is reported
        ("SUBOPTIMAL", 1, ""),
        ("VALID", 0, ""),
    ],
)
def test_rtx_reports_why_a_plan_is_invalid(verdict: str, bits: int, says: str) -> None:
    runtime = SimpleNamespace(get_engine_validity=lambda _: (SimpleNamespace(name=verdict), bits))
    assert ", ".join(invalidity(runtime, b"")) == says
    assert invalidity(SimpleNamespace(), b"") == []  # a library without this function


def test_null_builder_or_runtime_is_reported_as_missing_gpu() -> None:
    def null(logger: Any) -> Any:
        take_message("ERROR", "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(DeviceMissing) as caught:
        library.start(null)
    assert caught.value.code == "tensorrt-not-started"
    assert "error: 35" in caught.value.args[0]
    assert "nvidia-smi" in caught.value.hint


def test_object_that_would_crash_is_refused_and_never_released() -> None:
    """Without a driver, TensorRT 10.15 and later return an object whose release causes a segmentation fault."""
    released: list[bool] = []

    class Unusable:
        def __init__(self, logger: Any) -> None:
            take_message("ERROR", "createInferRuntime: CUDA initialization failure with error: 35")

        def __del__(self) -> None:
            released.append(True)

    with pytest.raises(DeviceMissing) as caught:
        library.start(Unusable)
    assert caught.value.code == "tensorrt-not-started"
    gc.collect()
    assert released == []


@pytest.mark.engine
@needs_no_gpu
def test_real_runtime_without_a_driver_is_started_or_refused() -> None:
    """TensorRT-RTX starts without a driver. TensorRT does not start, but must not crash, even when the process ends."""
    import subprocess

    code = (
        "from vision.engine.library import start, trt, find_library\n"
        "from vision.errors import DeviceMissing\n"
        "try:\n    start(trt.Runtime); print('started')\n"
        "except DeviceMissing as error: print(error.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = "started" if library.find_library().flavour == "tensorrt-rtx" else "tensorrt-not-started"
    assert (done.returncode, done.stdout.split()) == (0, [expected]), done.stderr


# ------------------------------------------------------------------------------------------------ plain data


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("float32", (2, 3), 24),
        ("float16", (2, 3), 12),
        ("bfloat16", (5,), 10),
        ("int64", (), 8),
        ("uint8", (7,), 7),
        ("bool", (7,), 7),
        ("fp8", (7,), 7),
        ("int4", (7,), 4),
        ("fp4", (1,), 1),
        ("float32", (0, 4), 0),
    ],
)
def test_tensor_bytes_follow_type_and_shape(dtype: str, shape: tuple[int, ...], size: int) -> None:
    assert Tensor("x", "input", dtype, (), "device", False).bytes_of(shape) == size


def test_open_shape_has_no_size() -> None:
    with pytest.raises(ValueError):
        Tensor("x", "input", "float32", (), "device", False).bytes_of((-1, 3))


def test_every_type_of_the_library_has_a_name_or_is_refused() -> None:
    """``trt.nptype`` is insufficient, because it raises an error for bf16, fp8, fp4, and int4."""
    names = set(trt.DataType.__members__)
    assert {dtype_name(name) for name in names - {"E8M0"}} <= {
        "float32", "float16", "bfloat16", "fp8", "fp4", "int64", "int32", "int8", "int4", "uint8", "bool",
    }  # fmt: skip
    with pytest.raises(ModelError) as caught:
        dtype_name("E8M0")
    assert caught.value.code == "tensor-type"
