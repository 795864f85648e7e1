"""Tests of builds with TensorRT-RTX on the CPU, without a GPU or a driver."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from numpy.typing import NDArray
from onnx import TensorProto

from tests.log_records import log_args
from tests.paths import ROOT
from tests.tiny_models import save_typed_model
from tests.unit.engine_models import (
    convolution,
    first_layer,
    needs_rtx,
    plan,
    quantized,
    spec,
    with_operator,
    with_shape_input,
)
from vision.config import DetectConfig, ModelSpec
from vision.engine import library
from vision.engine.build import (
    BuildOptions,
    Built,
    SparseLayers,
    attach_timing_cache,
    build_engine,
    build_failure,
    failed_build,
    make_monitor,
    notes_of,
    set_flags,
    sparse_layers,
    timings_of,
    workspace_limit,
)
from vision.engine.build_plan import DEFAULT_LEVEL, BuildPlan, Precision, Refused, plan_typing, resolve
from vision.engine.library import GpuDescription, LogLine, LogLines, keeps_timing
from vision.engine.onnx_transform import rewrite_onnx
from vision.engine.profiles import NetworkInput, Profile, Range
from vision.engine.progress import Phase
from vision.engine.tensors import add_profile, halve_ends, inputs_of
from vision.errors import Closed, ModelError

pytestmark = needs_rtx

AMPERE = GpuDescription("NVIDIA RTX A4000", (8, 6))
ADA = GpuDescription("NVIDIA L4", (8, 9))
MODELS = ROOT / "models"


class Recorder:
    """Listener that records the events of a build."""

    def __init__(self) -> None:
        self.layers = self.parses = 0
        self.plan_bytes = 0
        self.names: set[str] = set()
        self.deepest = 0

    def parsed(self, layers: int) -> None:
        self.layers = layers
        self.parses += 1

    def progress(self, phases: Sequence[Phase]) -> None:
        self.names |= {phase.name for phase in phases}
        self.deepest = max(self.deepest, *(phase.depth for phase in phases), 0)
        assert all(0 <= phase.done <= max(phase.steps, 1) for phase in phases)

    def built(self, plan_bytes: int) -> None:
        self.plan_bytes = plan_bytes


def build(
    model: bytes, chosen: BuildPlan | None = None, *, of: ModelSpec | None = None, gpu: GpuDescription = AMPERE
) -> Built:
    return build_engine(model, of or spec(), chosen or plan("fp32", 4, of=of), gpu, BuildOptions(ahead_of_time=True))


@pytest.mark.engine
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize(("half_input", "half_outputs"), [(False, False), (True, False), (True, True)])
def test_dynamic_batch_is_built_in_every_float_precision(
    precision: Precision, half_input: bool, half_outputs: bool
) -> None:
    built = build(convolution(), plan(precision, 8, half_input=half_input, half_outputs=half_outputs))
    assert len(built.plan) > 10_000
    assert [each.shapes["images"].max[0] for each in built.profiles] == [4, 8, 1, 2, 4, 8]
    assert built.weights_bytes is not None
    assert built.seconds > 0


@pytest.mark.engine
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("dtype", "channels_last"), [("FLOAT", True), ("UINT8", False), ("UINT8", True)])
def test_input_formats_and_constant_inputs_are_built(
    precision: Precision, dtype: str, channels_last: bool, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.onnx"
    outputs: dict[str, NDArray[Any]] = {"boxes": np.zeros((9, 4), np.float32), "labels": np.zeros(9, np.int64)}
    kind = getattr(TensorProto, dtype)
    constants = {"orig_target_sizes": (TensorProto.INT64, ("batch", 2))}
    sides = (spec().input.height, spec().input.width)
    save_typed_model(path, outputs, sides=sides, dtype=kind, channels_last=channels_last, constants=constants)
    built = build(path.read_bytes(), plan(precision, 4, half_input=precision == "fp16"))
    shapes = built.profiles[0].shapes
    assert shapes["orig_target_sizes"].max == (4, 2)
    assert shapes["images"].max == ((4, *sides, 3) if channels_last else (4, 3, *sides))


@pytest.mark.engine
def test_lower_precision_halves_the_weights_of_the_shipped_model() -> None:
    folder = MODELS / "nanodet-g-416"
    shipped = ModelSpec.model_validate(yaml.safe_load((folder / "model.yaml").read_text()))
    onnx = (folder / shipped.file).read_bytes()
    as_it_is = BuildPlan("fp32", 4)
    full, half = (build(onnx, replace(as_it_is, precision=precision), of=shipped) for precision in ("fp32", "fp16"))
    assert full.weights_bytes is not None
    assert half.weights_bytes is not None
    assert full.activation_bytes is not None
    assert half.activation_bytes is not None
    assert half.weights_bytes < 0.55 * full.weights_bytes
    assert half.activation_bytes < full.activation_bytes
    assert full.layers == 133


def test_dynamic_height_and_width_follow_the_profile() -> None:
    given = [{"batch": [1, 2, 4], "height": [16, 32, 64], "width": [16, 32, 64]}]
    built = build(convolution(("n", 3, "h", "w")), of=spec(size=32, profiles=given))
    assert built.profiles[0].shapes["images"] == Range((1, 3, 16, 16), (2, 3, 32, 32), (4, 3, 64, 64))


def test_fixed_model_needs_no_profile() -> None:
    built = build(convolution((2, 3, 16, 16)), plan("fp32", 2))
    assert str(built.profiles[0]) == "images 2x3x16x16"


def test_shape_tensor_input_gets_the_values_of_its_profile() -> None:
    given = [{"batch": [1, 2, 4], "values": {"size": [[8, 8], [16, 16], [32, 32]]}}]
    built = build(with_shape_input(), of=spec(profiles=given))
    assert built.profiles[0].values["size"].max == (32, 32)


def test_progress_is_reported_with_layer_counts() -> None:
    recorder = Recorder()
    built = build_engine(convolution(), spec(), plan("fp32", 4), AMPERE, BuildOptions(True, recorder))
    assert recorder.layers == built.layers > 0
    assert recorder.plan_bytes == len(built.plan)
    assert "Building engine" in recorder.names
    assert recorder.deepest >= 2


def test_cancelled_build_ends_as_closed() -> None:
    cancel = threading.Event()

    class Impatient(Recorder):
        def progress(self, phases: Sequence[Phase]) -> None:
            cancel.set()

    with pytest.raises(Closed):
        build_engine(convolution(), spec(), plan("fp32", 4), AMPERE, BuildOptions(True, Impatient(), cancel))


def test_ctrl_c_is_raised_after_tensorrt_has_stopped() -> None:
    import _thread

    class User(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.reports = 0

        def progress(self, phases: Sequence[Phase]) -> None:
            self.reports += 1
            if self.reports == 3:
                _thread.interrupt_main()
            threading.Event().wait(0.02)  # a slow build

    user = User()
    builders: list[threading.Thread] = []
    options = BuildOptions(True, user, prepare_thread=lambda: builders.append(threading.current_thread()))
    with pytest.raises(KeyboardInterrupt):
        build_engine(convolution(), spec(), plan("fp32", 8), AMPERE, options)
    assert not builders[0].is_alive()
    assert user.plan_bytes == 0
    assert user.reports < 60, "a whole build reports more than twice as much"


def test_building_thread_is_prepared_first() -> None:
    seen: list[str] = []
    options = BuildOptions(True, prepare_thread=lambda: seen.append(threading.current_thread().name))
    build_engine(convolution(), spec(), plan("fp32", 4), AMPERE, options)
    assert seen == ["engine build"]


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("precision", ["fp32", "fp16"])  # the file as it is, and a file that is rewritten for TensorRT
@pytest.mark.parametrize(
    ("model", "code", "part"),
    [
        (with_operator("WarpDrive", node="warp", domain="my.ops"), {"unsupported-operator"}, "WarpDrive (node warp)"),
        (with_operator("Unique", node="uniq"), {"unsupported-operator"}, "Unique (node uniq)"),
        (with_operator("WarpDrive", node="", domain="my.ops"), {"unsupported-operator"}, "WarpDrive (node number 1)"),
        (with_operator("NonZero", node="nz"), {"unsupported-operator", "build-failed"}, "(node nz)"),
        (b"this is no ONNX file", {"not-onnx", "damaged-model"}, ""),
        (b"", {"not-onnx", "damaged-model"}, ""),
        (convolution()[:200], {"not-onnx", "damaged-model"}, ""),
    ],
)
def test_unsupported_model_is_refused_with_the_operator(
    model: bytes, code: set[str], part: str, precision: Precision, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError) as caught:
        build(model, plan(precision, 4))
    assert caught.value.code in code
    assert part in caught.value.args[0]


def _damaged(how: str) -> bytes:
    model = onnx.load_model_from_string(convolution())
    if how == "an input that nothing gives":
        model.graph.node[2].input[0] = "typo"
    elif how == "weights cut short":
        model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:10]
    else:
        del model.opset_import[:]
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("how", ["an input that nothing gives", "weights cut short", "no opset"])
def test_damaged_model_is_reported(how: str, precision: Precision, capfd: pytest.CaptureFixture[str]) -> None:
    """The files can be read, but are invalid. onnx and ONNX Runtime raise many types of errors for such files."""
    if how == "no opset" and precision == "fp32":
        pytest.skip("TensorRT takes it")
    with pytest.raises(ModelError) as caught:
        build(_damaged(how), plan(precision, 4))
    assert caught.value.code != "unsupported-operator"
    assert "onnx.checker.check_model" in caught.value.hint


@pytest.mark.engine
def test_model_in_another_type_than_the_precision_is_refused() -> None:
    """Without this check, a library that builds strongly typed networks would report a float16 model as fp32."""
    half = rewrite_onnx(convolution(), "fp16", keep_inputs=True, keep_outputs=True)
    with pytest.raises(ModelError) as caught:
        build(half)
    assert caught.value.code == "precision-of-model"
    assert build(half, plan("fp16", 4)).plan


def test_lack_of_memory_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test simulates TensorRT's messages, because a real lack of memory would require a very large model."""
    monkeypatch.setattr("vision.gpu.cuda.memory_info", lambda: (3 << 20, 8 << 20))
    said = "getErrorStr::129] Error Code 2: OutOfMemory (Requested size was 68719477232 bytes.)"
    error = failed_build("tiny", said, "fp16")
    assert said in str(error)
    assert re.search(r"\b3\b.*\b8 MiB", str(error)), "the free and the total memory"
    assert "max_batch" in error.hint
    assert not isinstance(error, Refused), "the model as it is would need as much"
    assert isinstance(failed_build("tiny", "no runners", "fp16"), Refused)


@pytest.mark.parametrize(
    ("precision", "gpu", "code"),
    [
        ("fp8", AMPERE, "precision-of-gpu"),
        ("int8", AMPERE, "not-quantised"),
        ("fp8", GpuDescription("H100", (9, 0)), "untested-precision"),
        ("fp16", GpuDescription("H100", (9, 0)), "other-gpu"),
        ("fp16", GpuDescription("Orin", (8, 7)), "other-gpu"),
    ],
)
def test_unsupported_precision_is_refused(precision: Precision, gpu: GpuDescription, code: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(convolution(), plan(precision), gpu=gpu)
    assert caught.value.code == code


@pytest.mark.parametrize(("precision", "warned"), [("fp32", True), ("tf32", True), ("fp16", False), ("bf16", False)])
def test_precision_that_was_wrong_on_unlisted_gpus_is_warned_about(
    precision: Precision, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelError):  # this library can build for that GPU only on a machine with one
        build(convolution(), plan(precision), gpu=GpuDescription("H100", (9, 0)))
    assert bool([each for each in caplog.records if each.levelname == "WARNING" and "9.0" in each.message]) == warned


def test_batch_outside_the_models_range_is_refused() -> None:
    recorder = Recorder()
    with pytest.raises(ModelError) as caught:
        build_engine(convolution((2, 3, 16, 16)), spec(), plan("fp16", 8), AMPERE, BuildOptions(True, recorder))
    assert caught.value.code == "batch-fixed"
    assert recorder.parses == 1, "no other shape of the model would help"


def test_precision_that_contradicts_the_model_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        build(quantized())
    assert caught.value.code == "quantised"


def test_int8_builds_or_names_an_alternative(capfd: pytest.CaptureFixture[str]) -> None:
    """TensorRT-RTX before 1.7 parses int8 convolutions, but has no kernels for them. Later versions have kernels."""
    if not library.find_library().version.startswith(("1.4", "1.6")):
        assert build(quantized(), plan("int8", 4)).plan
        return
    with pytest.raises(ModelError) as caught:
        build(quantized(), plan("int8", 4))
    assert caught.value.code == "build-failed"
    assert "precision: fp16" in caught.value.hint


def test_fp8_model_is_built_if_the_library_supports_it(capfd: pytest.CaptureFixture[str]) -> None:
    model = quantized(TensorProto.FLOAT8E4M3FN, opset=19)
    if str(library.find_library()).startswith("TensorRT-RTX 1.4"):
        pytest.skip("1.4 asks the driver for the GPU's properties")
    assert build(model, plan("fp8", 4), gpu=ADA).plan
    with pytest.raises(ModelError) as caught:
        build(model, plan("fp16", 4), gpu=ADA)
    assert caught.value.code == "quantised"


def test_workspace_is_limited_where_it_is_shared_with_the_cpu() -> None:
    orin = GpuDescription("Orin", (8, 7), integrated=True, total_bytes=8 << 30)
    assert workspace_limit(BuildPlan("fp16", 4), orin) == 2 << 30
    assert workspace_limit(BuildPlan("fp16", 4, workspace_mib=64), orin) == 64 << 20
    assert workspace_limit(BuildPlan("fp16", 4), AMPERE) == 0
    assert workspace_limit(BuildPlan("fp16", 4, workspace_mib=64), AMPERE) == 64 << 20


def test_workspace_and_level_are_accepted() -> None:
    assert build(convolution(), plan(workspace_mib=64, optimization_level=1)).plan


def test_default_level_equals_that_of_the_library() -> None:
    config = library.trt.Builder(library.logger()).create_builder_config()
    assert config.builder_optimization_level == DEFAULT_LEVEL


def test_missing_dla_falls_back_to_the_gpu_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert build(convolution(), plan("fp16", 4, on_dla=True, fixed_batches=False)).plan
    assert (0, 0) in log_args(caplog, "vision.engine.build")


def test_dla_gets_one_batch_size() -> None:
    built = build(convolution(), plan("fp16", 4, on_dla=True, fixed_batches=False))
    (frames,) = (profile.shapes["images"] for profile in built.profiles)
    assert frames.min == frames.opt == frames.max
    assert frames.max[0] == 4


def test_gpu_unknown_to_tensorrt_rtx_gets_the_default() -> None:
    unnamed = GpuDescription("NVIDIA H100", (9, 0))
    assert build_engine(convolution(), spec(), plan("fp32", 4), unnamed, BuildOptions()).plan


# ------------------------------------------------------------------------------------------------ single steps


def test_weak_typing_flags_are_set_if_the_library_has_them() -> None:
    """TensorRT 10 uses these flags. The test uses a library with the same names (TensorRT-RTX 1.4)."""
    if library.member_of("BuilderFlag", "FP16") is None:
        pytest.skip("a library without weak typing")
    config = library.trt.Builder(library.logger()).create_builder_config()
    old: tuple[Precision, ...] = ("fp16", "bf16", "fp8", "int8")
    for precision in old:
        typing = plan_typing(precision, weak_typing=True)
        set_flags(config, typing)
        assert all(config.get_flag(getattr(library.trt.BuilderFlag, name)) for name in typing.flags_on)
    set_flags(config, plan_typing("fp32", weak_typing=True))
    assert not config.get_flag(library.trt.BuilderFlag.TF32)


@pytest.mark.parametrize(("half_input", "half_outputs"), [(False, False), (True, False), (True, True)])
def test_inputs_and_outputs_become_half_where_types_can_be_set(half_input: bool, half_outputs: bool) -> None:
    if library.trt.ITensor.dtype.fset is None:  # type: ignore[attr-defined,unused-ignore]
        pytest.skip("a library whose types come from the ONNX file alone")
    kinds: dict[Precision, str] = {"fp16": "HALF", "bf16": "BF16", "fp32": "FLOAT"}
    for precision, kind in kinds.items():
        network = library.trt.Builder(library.logger()).create_network(0)
        given = network.add_input("images", library.trt.float32, library.trt.Dims([1, 3, 4, 4]))
        network.mark_output(network.add_identity(given).get_output(0))
        halve_ends(network, plan(precision, half_input=half_input, half_outputs=half_outputs))
        assert given.dtype.name == (kind if half_input else "FLOAT")
        assert network.get_output(0).dtype.name == (kind if half_outputs else "FLOAT")


def test_plan_follows_from_precision_and_head() -> None:
    nanodet = spec(head={"kind": "nanodet"})
    fp16, fp32 = DetectConfig(precision="fp16"), DetectConfig(precision="fp32")
    half = BuildPlan(
        "fp16", 8, half_input=True, half_outputs=True, interleaved_input=True, folded=True, fixed_batches=True
    )
    assert resolve(fp16, nanodet) == half
    assert resolve(fp16, spec()) == replace(half, half_outputs=False)
    assert resolve(fp32, nanodet) == BuildPlan("fp32", 8, fixed_batches=True)


def test_plan_has_the_values_of_the_configuration() -> None:
    engine = {"workspace_mib": 64, "optimization_level": 5, "dla_core": 1, "sparse_weights": True}
    detect = DetectConfig.model_validate({"precision": "fp32", "max_batch": 4, "engine": engine})
    expected = BuildPlan("fp32", 4, workspace_mib=64, optimization_level=5, on_dla=True, dla_core=1, sparse=True)
    assert resolve(detect, spec()) == expected


def test_tensorrt_gets_the_model_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test simulates that TensorRT is installed."""
    monkeypatch.setattr("vision.engine.build_plan.keeps_timing", lambda: True)
    found = resolve(DetectConfig(precision="fp16"), spec())
    assert (found.interleaved_input, found.folded, found.fixed_batches) == (False, False, False)


@pytest.mark.engine
def test_interleaved_engine_has_a_profile_for_every_batch(caplog: pytest.LogCaptureFixture) -> None:
    built = build(convolution(), plan("fp16", 6))
    frames = [profile.shapes["images"] for profile in built.profiles]
    assert [each.max[0] for each in frames if each.min == each.max] == [1, 2, 4, 6]
    (shape,) = {each.max[1:] for each in frames}
    as_it_is = bool(log_args(caplog, "vision.engine.build"))  # TensorRT-RTX 1.4 fails at such an input
    assert shape == ((3, 16, 16) if as_it_is else (4, 16, 16))
    assert as_it_is == library.find_library().version.startswith("1.4.")


def test_model_with_four_channels_is_not_interleaved() -> None:
    """The fourth channel contains other data, such as heat, which vision cannot provide."""
    with pytest.raises(ModelError) as caught:
        build(first_layer(channels=4), plan("fp16", 2))
    assert caught.value.code == "dimension-fixed"


def test_unbuildable_reshaped_model_is_built_unchanged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def reshaped(model: bytes, *, interleave: bool, fold: bool) -> tuple[bytes, bool]:
        return (with_operator("Abracadabra") if interleave or fold else model), interleave

    monkeypatch.setattr("vision.engine.build_plan.reshape_onnx", reshaped)
    built = build(convolution(), plan("fp16", 1))
    assert built.profiles[0].shapes["images"].max == (1, 3, 16, 16)
    ((name, _),) = log_args(caplog, "vision.engine.build")
    assert name == "tiny"
    with pytest.raises(ModelError) as caught:
        build(with_operator("Abracadabra"), plan("fp16", 1))
    assert "Abracadabra" in caught.value.args[0]


@pytest.mark.filterwarnings("ignore:Use Deprecated:DeprecationWarning")  # TensorRT-RTX keeps none
def test_timings_are_attached_and_read_back() -> None:
    """The test checks only the calls, because measuring requires a GPU and TensorRT."""
    builder = library.trt.Builder(library.logger())
    config = builder.create_builder_config()
    kept = attach_timing_cache(config, None)
    measured = timings_of(config)
    assert measured is not None
    again = attach_timing_cache(builder.create_builder_config(), measured)
    assert kept is not again


@pytest.mark.filterwarnings("ignore:Use Deprecated:DeprecationWarning")  # TensorRT-RTX keeps none
def test_damaged_timings_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    config = library.trt.Builder(library.logger()).create_builder_config()
    attach_timing_cache(config, b"damaged")
    assert timings_of(config) is not None


def test_rtx_keeps_no_timings() -> None:
    assert not keeps_timing()
    assert build(convolution()).timing_cache is None


def test_missing_builder_flag_is_refused() -> None:
    if library.member_of("BuilderFlag", "FP16") is not None:
        pytest.skip("a library that has them")
    config = library.trt.Builder(library.logger()).create_builder_config()
    with pytest.raises(ModelError) as caught:
        set_flags(config, plan_typing("fp16", weak_typing=True))
    assert caught.value.code == "no-builder-flag"


def test_profile_refused_by_tensorrt_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    builder = library.trt.Builder(library.logger())
    network = builder.create_network(0)
    network.add_input("images", library.trt.float32, library.trt.Dims([-1, 3, 16, 16]))
    (given,) = inputs_of(network)
    assert given == NetworkInput("images", (-1, 3, 16, 16))
    negative = Profile({"images": Range((-1, 3, 16, 16), (-1, 3, 16, 16), (-1, 3, 16, 16))}, {})
    with pytest.raises(ModelError) as caught:
        add_profile(builder, builder.create_builder_config(), [given], negative)
    assert caught.value.code == "profile-refused"
    backwards = Range((2, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))
    object.__setattr__(backwards, "opt", (8, 3, 16, 16))  # bypass the check of `vision`, to test TensorRT's check
    with pytest.raises(ModelError) as caught:
        add_profile(builder, builder.create_builder_config(), [given], Profile({"images": backwards}, {}))
    assert caught.value.code == "profile-refused"


def test_monitor_works_as_a_tensorrt_progress_monitor() -> None:
    cancel = threading.Event()
    recorder = Recorder()
    monitor = make_monitor(recorder, cancel)
    monitor.phase_start("outer", None, 2)  # type: ignore[arg-type,unused-ignore]
    monitor.phase_start("inner", "outer", 3)
    assert monitor.step_complete("inner", 0)
    cancel.set()
    assert not monitor.step_complete("inner", 1)
    monitor.phase_finish("outer")
    assert recorder.names == {"outer", "inner"}


def test_failure_is_reported_once() -> None:
    network = library.trt.Builder(library.logger()).create_network(0)
    lines = [LogLine("ERROR", "cause"), LogLine("ERROR", "[catchCudaError] echo"), LogLine("INFO", "noise")]
    assert build_failure(LogLines(lines), network) == "cause"
    assert build_failure(LogLines(lines[1:2]), network) == "[catchCudaError] echo"
    assert build_failure(LogLines([]), network) != ""


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        (("careful",), None),
        (
            (
                "(Sparsity) Layers eligible for sparse math: conv_1 + act_2, conv_3",
                "(Sparsity) TRT inference plan picked sparse implementation for layers: conv_3",
            ),
            SparseLayers(("conv_1 + act_2", "conv_3"), ("conv_3",)),
        ),
        (
            (
                "(Sparsity) Layers eligible for sparse math: a",
                "(Sparsity) TRT inference plan picked sparse implementation for layers:",
            ),
            SparseLayers(("a",), ()),
        ),
    ],
)
def test_layers_with_sparse_kernels_are_read_from_the_log(
    notes: tuple[str, ...], expected: SparseLayers | None
) -> None:
    assert sparse_layers(notes) == expected


def test_sparse_weights_are_permitted_on_request() -> None:
    flags = library.trt.BuilderFlag
    for sparse in (False, True):
        config = library.trt.Builder(library.logger()).create_builder_config()
        set_flags(config, plan_typing("fp16", weak_typing=False), sparse=sparse)
        assert config.get_flag(flags.SPARSE_WEIGHTS) is sparse
    assert build(convolution(), plan(sparse=True)).plan


def test_notes_are_warnings_and_sparsity() -> None:
    lines = [
        LogLine("INFO", "(Sparsity) Layers eligible for sparse math: a, b"),
        LogLine("INFO", "Total Weights Memory: 1 bytes"),
        LogLine("WARNING", "careful"),
        LogLine("WARNING", "careful"),
    ]
    assert notes_of(LogLines(lines)) == ("(Sparsity) Layers eligible for sparse math: a, b", "careful")
