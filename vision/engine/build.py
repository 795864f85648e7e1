# mypy: allow-subclassing-any
"""Functions that build an engine from an ONNX model, with TensorRT 10.3 to 11 or TensorRT-RTX.

Flags and calls that only some versions have are looked up by name, and omitted if the library lacks them. If the engine
would not match the configuration without a flag or a call, the build is refused instead.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from vision.engine.build_plan import (
    DEFAULT_LEVEL,
    BuildPlan,
    Precision,
    Refused,
    Typing,
    check_quantization,
    check_types,
    plan_typing,
    prepare_onnx,
    require_precision,
)
from vision.engine.library import (
    Gpu,
    LogLines,
    capability_names,
    collect_log,
    find_library,
    has_weak_typing,
    keeps_timing,
    logger,
    member_of,
    network_flags,
    or_none,
    start,
    supported_capabilities,
    trt,
)
from vision.engine.onnx_transform import INTERLEAVED_CHANNELS
from vision.engine.profiles import Profile, make_profiles
from vision.engine.progress import BuildListener, LogListener, Monitor, run_interruptible
from vision.engine.tensors import add_profile, halve_ends, inputs_of, quantization_of, types_of
from vision.errors import Closed, DeviceError, ModelError

if TYPE_CHECKING:
    from vision.config import AnySpec

_log = logging.getLogger(__name__)

DAMAGED_HINT: Final = (
    "download the file again, and compare its sha256 with the one in model.yaml, or export it again; "
    "`onnx.checker.check_model` shows what is wrong"
)
_WITHOUT_OPERATOR: Final = (
    "export the model without this operator; vision performs NMS, so NonMaxSuppression and NonZero "
    "after the network's last layers are not needed"
)
_OUT_OF_MEMORY: Final = ("OutOfMemory", "out of memory", "OUT_OF_MEMORY")


@dataclass(frozen=True, slots=True)
class Built:
    """Plan (serialized engine) that a build has produced, and information about the build."""

    plan: bytes
    layers: int  # number of layers in the ONNX file, before fusion
    profiles: tuple[Profile, ...]
    seconds: float
    weights_bytes: int | None  # from the log; None if the log has no size
    activation_bytes: int | None  # maximum over the profiles, from the log; None if the log has no size
    notes: tuple[str, ...]  # warnings, and log lines about sparsity
    timing_cache: bytes | None  # for the next build on this machine; None if the library does not support timing caches


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options that control how a build runs. They do not change the engine."""

    ahead_of_time: bool = False
    """True if the engine is for a GPU that is not in this machine. Only TensorRT-RTX supports this."""
    listener: BuildListener | None = None
    """Object that receives the progress of the build. If None, the progress is logged."""
    cancel: threading.Event = field(default_factory=threading.Event)
    """Event that cancels the build if another thread sets it. The build then raises `Closed`."""
    prepare_thread: Callable[[], object] = lambda: None
    """Function that the build thread calls first, for example to select the GPU."""


def build_engine(
    model: bytes,
    spec: AnySpec,
    plan: BuildPlan,
    gpu: Gpu,
    options: BuildOptions,
    *,
    timing_cache: bytes | None = None,
) -> Built:
    """Build an engine from a serialized ONNX model in a separate thread, and return its plan.

    A build takes from seconds (TensorRT-RTX) to many minutes (TensorRT). If the library refuses the model after changes
    to its shapes, the model is built without these changes. `timing_cache` is the timing cache of a previous build on
    the same GPU with the same library, or None. Errors of `options.prepare_thread` are passed on unchanged.

    Raises:
        ModelError: the model, the spec, and the settings do not fit together, or TensorRT cannot build the engine.
        DeviceMissing: TensorRT is missing, or no GPU works.
        Closed: the build was canceled.
        KeyboardInterrupt: the user pressed Ctrl-C. A second Ctrl-C ends the wait before TensorRT has stopped.
    """
    require_precision(plan.precision, gpu)

    def build(chosen: BuildPlan) -> Built:
        with collect_log() as log:
            return _Build(spec, chosen, gpu, options, log).run(model, timing_cache)

    def work() -> Built:
        options.prepare_thread()
        as_it_is = replace(plan, interleaved_input=False, folded=False)
        try:
            return build(plan)
        except Refused as error:
            if plan == as_it_is:
                raise
            built = build(as_it_is)  # raises an error if the model itself is the cause
            _log.warning("%s is built without changes to its shapes, and may be slower: %s", spec.name, error.args[0])
            return built

    return run_interruptible(work, options.cancel)


class _Build:
    """A single build of an engine: its settings, and a method for each step of `run`."""

    def __init__(self, spec: AnySpec, plan: BuildPlan, gpu: Gpu, options: BuildOptions, log: LogLines) -> None:
        self._spec = spec
        self._plan = plan
        self._gpu = gpu
        self._options = options
        self._listener = options.listener or LogListener(f"{spec.name} {plan.precision}")
        self._log_lines = log
        self._typing = plan_typing(plan.precision, weak_typing=has_weak_typing())
        self._kept: list[object] = []  # profiles and caches, which TensorRT before 10.16 does not keep alive
        self._refuse_untested()
        self._builder = start(trt.Builder)

    def _refuse_untested(self) -> None:
        """Raise `ModelError` for fp8 and int8 if TensorRT-RTX does not list the GPU's compute capability.

        For fp32 and tf32, only log a warning. With the unlisted compute capability 9.0, the results of these four
        precisions were wrong.
        """
        capabilities = supported_capabilities()
        precision = self._plan.precision
        if not capabilities or self._gpu.compute_capability in capabilities or precision in ("fp16", "bf16"):
            return
        text = (
            f"{find_library()} supports compute capabilities {capability_names(capabilities)}; with "
            f"{capability_names([self._gpu.compute_capability])}, {precision} can give wrong results"
        )
        hint = "set `detect: {precision: fp16}`, or use TensorRT instead of TensorRT-RTX"
        if precision in ("fp8", "int8"):
            raise ModelError(text, hint=hint, code="untested-precision")
        _log.warning("%s: %s; %s", self._spec.name, text, hint)

    def run(self, model: bytes, timing_cache: bytes | None) -> Built:
        """Rewrite and parse the model, configure the builder, and build the engine. Return the result."""
        started_ns = time.monotonic_ns()
        onnx, channels = prepare_onnx(model, self._plan, self._spec.file)
        network, parser = self._parse(onnx)
        check_quantization(self._plan.precision, quantization_of(network))
        if self._typing.strongly_typed:
            check_types(self._plan.precision, types_of(network))
        else:
            halve_ends(network, self._plan)
        if channels == INTERLEAVED_CHANNELS:
            network.get_input(0).allowed_formats = 1 << int(trt.TensorFormat.CHW4)  # the only supported format
        self._listener.parsed(network.num_layers)
        config = self._configure(timing_cache)
        profiles = self._add_profiles(network, config, channels)
        if self._plan.on_dla:
            self._use_dla(network, config)
        engine = self._build(network, config)
        del parser  # not earlier, because the network refers to the memory of the parser
        self._listener.built(len(engine))
        return Built(
            plan=engine,
            layers=network.num_layers,
            profiles=profiles,
            seconds=(time.monotonic_ns() - started_ns) / 1e9,
            weights_bytes=bytes_in(self._log_lines, "Total Weights Memory"),
            activation_bytes=bytes_in(self._log_lines, "Total Activation Memory"),
            notes=notes_of(self._log_lines),
            timing_cache=timings_of(config) if keeps_timing() else None,
        )

    def _parse(self, model: bytes) -> tuple[trt.INetworkDefinition, trt.OnnxParser]:
        network = self._builder.create_network(network_flags(strongly_typed=self._typing.strongly_typed))
        parser = trt.OnnxParser(network, logger())
        parsed = parser.parse(model)
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        if not parsed or errors:
            raise refused_model(self._spec.file, errors)
        if not network.num_layers or not network.num_outputs:  # TensorRT parses some invalid files as an empty model
            raise ModelError(
                f"{self._spec.file} is not an ONNX model ({len(model)} bytes without a graph)",
                hint=DAMAGED_HINT,
                code="not-onnx",
            )
        return network, parser

    def _configure(self, timing_cache: bytes | None) -> trt.IBuilderConfig:
        config = self._builder.create_builder_config()
        set_flags(config, self._typing, sparse=self._plan.sparse)
        workspace_bytes = workspace_limit(self._plan, self._gpu)
        if workspace_bytes:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
        if self._plan.optimization_level != DEFAULT_LEVEL:
            config.builder_optimization_level = self._plan.optimization_level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for `vision profile`; does not slow down runs
        self._aim(config)
        if keeps_timing():
            self._kept.append(attach_timing_cache(config, timing_cache))
        monitor = make_monitor(self._listener, self._options.cancel)
        config.progress_monitor = monitor
        self._kept.append(monitor)
        return config

    def _aim(self, config: Any) -> None:
        """Set the compute capability to build for. If the library does not list it, build for the GPU in this machine.

        Raises:
            ModelError: the library refuses the compute capability, or the build is for a different machine whose
                compute capability the library does not list.
        """
        capability, capabilities = self._gpu.compute_capability, supported_capabilities()
        if capability in capabilities:
            config.num_compute_capabilities = 1
            name = f"SM{capability[0]}{capability[1]}"
            if not config.set_compute_capability(member_of("ComputeCapability", name), 0):
                raise ModelError(f"{find_library()} refuses to build for {name}", code="other-gpu")
        elif self._options.ahead_of_time:
            raise ModelError(
                f"{find_library()} cannot build for compute capability {capability_names([capability])}, only for "
                f"{capability_names(capabilities) or 'the GPU in this machine'}",
                hint=f"run `vision build` on the machine with the {self._gpu.name}",
                code="other-gpu",
            )

    def _use_dla(self, network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> None:
        """Select the configured DLA core, and the GPU for layers that the DLA cannot run.

        If this machine does not have the core, log a warning, and build for the GPU.
        """
        core = self._plan.dla_core
        cores = int(self._builder.num_DLA_cores)
        if core >= cores:
            _log.warning("DLA core %d is configured, but this machine has %d; building for the GPU", core, cores)
            return
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        taken = sum(bool(config.can_run_on_DLA(layer)) for layer in layers)
        level = logging.INFO if taken else logging.WARNING
        _log.log(level, "%d of %d layers can run on DLA core %d; the others run on the GPU", taken, len(layers), core)

    def _add_profiles(
        self, network: trt.INetworkDefinition, config: trt.IBuilderConfig, channels: int
    ) -> tuple[Profile, ...]:
        inputs = inputs_of(network)
        if all(not tensor.is_shape_tensor and min(tensor.shape, default=0) >= 0 for tensor in inputs) and not any(
            len(tensor.shape) == 4 for tensor in inputs
        ):
            return ()  # a network for other data than frames, with fixed shapes
        profiles = make_profiles(inputs, self._spec, self._plan, channels=channels)
        if not any(tensor.is_shape_tensor or min(tensor.shape, default=0) < 0 for tensor in inputs):
            return profiles  # TensorRT accepts no profile if all shapes are fixed
        for profile in profiles:
            self._kept.append(add_profile(self._builder, config, inputs, profile))
        return profiles

    def _build(self, network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> bytes:
        engine = or_none(self._builder.build_serialized_network(network, config))
        if self._options.cancel.is_set():
            raise Closed("the build was canceled")
        if engine is None:
            problem = f"{find_library()} cannot build {self._spec.name} in {self._plan.precision} for {self._gpu.name}"
            raise failed_build(problem, build_failure(self._log_lines, network), self._plan.precision)
        return bytes(memoryview(engine))


# ------------------------------------------------------------------------------------------------ single steps


def workspace_limit(plan: BuildPlan, gpu: Gpu) -> int:
    """Return the maximum scratch memory of one layer in bytes. 0 means no limit.

    If CPU and GPU share their memory, the default is a quarter of the memory. Without a limit, TensorRT would measure
    kernels that need all memory, and the system would end the program.
    """
    if plan.workspace_mib:
        return plan.workspace_mib << 20
    return gpu.total_bytes // 4 if gpu.integrated else 0


def make_monitor(listener: BuildListener, cancel: threading.Event) -> trt.IProgressMonitor:
    """Return a progress monitor that reports to `listener`, and stops the build when `cancel` is set."""

    class ProgressMonitor(Monitor, trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # called by name, because pybind otherwise raises TypeError
            Monitor.__init__(self, listener, cancel)

    return ProgressMonitor()


def set_flags(config: trt.IBuilderConfig, typing: Typing, *, sparse: bool = False) -> None:
    """Set and clear the builder flags of `typing`, and permit sparse kernels if `sparse` is True.

    Raise `ModelError` if the library lacks a flag to set.
    """
    for name in (*typing.flags_on, *(("SPARSE_WEIGHTS",) if sparse else ())):
        flag = member_of("BuilderFlag", name)
        if flag is None:
            raise ModelError(f"{find_library()} has no builder flag {name}", code="no-builder-flag")
        config.set_flag(flag)
    for name in typing.flags_off:
        flag = member_of("BuilderFlag", name)
        if flag is not None:
            config.clear_flag(flag)


def attach_timing_cache(config: trt.IBuilderConfig, blob: bytes | None) -> trt.ITimingCache:
    """Attach a timing cache, which contains kernel times of previous builds, to a build configuration. Return it.

    If `blob`, the contents of the cache, is None or unusable, attach an empty cache. The caller must keep the returned
    cache until the build has ended.
    """
    cache = or_none(config.create_timing_cache(blob or b""))
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache
    _log.info("the timing cache is damaged, or for a different GPU or library; kernels are measured again")
    fresh = config.create_timing_cache(b"")
    config.set_timing_cache(fresh, ignore_mismatch=False)
    return fresh


def timings_of(config: trt.IBuilderConfig) -> bytes | None:
    """Return the timing cache of a build, for use by the next build. Return None if the library has no timing cache."""
    cache = or_none(config.get_timing_cache())
    return bytes(memoryview(cache.serialize())) if cache is not None else None


# ------------------------------------------------------------------------------------------------ reasons of failures


def refused_model(file: str, errors: Sequence[Any]) -> Refused:
    """Return the error to raise for a file that the parser refuses. `errors` are the errors of the parser."""
    reasons = "; ".join(map(_fault, errors)) or "no reason given"
    damaged = any(is_damage(error) for error in errors)
    return Refused(
        f"{find_library()} cannot parse {file}: {reasons}",
        hint=DAMAGED_HINT if damaged else _WITHOUT_OPERATOR,
        code="damaged-model" if damaged else "unsupported-operator",
    )


def _fault(error: Any) -> str:
    """Return a parser error as text: its reason and, if the error names an operator, the operator and its node."""
    operator, node, text = error.node_operator(), error.node_name(), str(error.desc()).strip()
    if not operator:
        return text
    where = f"node {node}" if node else f"node number {error.node()}"
    return f"operator {operator} ({where}){'' if is_damage(error) else ' is not supported'}: {text}"


def is_damage(error: Any) -> bool:
    """Return True if a parser error means that the file is invalid, not that an operator is not supported."""
    return error.code().name in ("INVALID_GRAPH", "MODEL_DESERIALIZE_FAILED")


def free_memory() -> str:
    """Return the free and total memory of the GPU as text for the end of a message.

    Return an empty string if no GPU works.
    """
    try:
        from vision.gpu.cuda import memory_info

        free_bytes, total_bytes = memory_info()
    except DeviceError:  # the build is for a GPU in a different machine
        return ""
    return f"; {free_bytes >> 20} of {total_bytes >> 20} MiB of the GPU are free"


_NO_RUNNER = re.compile(r"(?P<node>\S+) has no runners that implement it")


def build_failure(log: LogLines, network: trt.INetworkDefinition) -> str:
    """Return the reason why a build failed: an operator that the GPU does not support, or the errors in the log."""
    errors = [text for text in log.errors() if "catchCudaError" not in text] or list(log.errors())
    layers = {network.get_layer(index).name: network.get_layer(index) for index in range(network.num_layers)}
    for text in errors:
        match = _NO_RUNNER.search(text)
        if match and match["node"] in layers:
            return f"operator {layers[match['node']].type.name} (node {match['node']}) is not supported on this GPU"
    return "; ".join(errors) or "no reason given"


def failed_build(problem: str, cause: str, precision: Precision) -> ModelError:
    """Return the error for a failed build: `ModelError` if `cause` is a lack of memory, otherwise `Refused`."""
    if any(word in cause for word in _OUT_OF_MEMORY):
        hint = "lower `detect: {max_batch: ...}`"
        return ModelError(f"{problem}: {cause}{free_memory()}", hint=hint, code="out-of-memory")
    hint = "export the model without the operators named above; `--level 1` and a smaller max_batch need less memory"
    if precision in ("int8", "fp8"):
        hint = f"this library or GPU may lack {precision} kernels for the model's layers; use `precision: fp16`"
    return Refused(f"{problem}: {cause}", hint=hint, code="build-failed")


def notes_of(log: LogLines) -> tuple[str, ...]:
    """Return the warnings of a build and its log lines about sparsity, without duplicates."""
    lines = (line.text.strip() for line in log.lines if line.severity == "WARNING" or "(Sparsity)" in line.text)
    return tuple(dict.fromkeys(lines))


@dataclass(frozen=True, slots=True)
class SparseLayers:
    """Layers that TensorRT names in its log lines about sparsity."""

    eligible: tuple[str, ...]
    """Layers whose weights follow the 2:4 pattern."""
    chosen: tuple[str, ...]
    """Layers that run sparse kernels, because these are faster."""


_ELIGIBLE: Final = "Layers eligible for sparse math:"
_CHOSEN: Final = "picked sparse implementation for layers:"


def sparse_layers(notes: Sequence[str]) -> SparseLayers | None:
    """Return the layers that `notes`, the result of `notes_of`, names as suitable for sparse kernels or as using them.

    Return None if the library reported nothing about sparsity.
    """

    def named(words: str) -> tuple[str, ...]:
        lists = [note.partition(words)[2] for note in notes if words in note]
        return tuple(name for names in lists for name in map(str.strip, names.split(",")) if name)

    if not any("(Sparsity)" in note for note in notes):
        return None
    return SparseLayers(named(_ELIGIBLE), named(_CHOSEN))


def bytes_in(log: LogLines, what: str) -> int | None:
    """Return the largest size in bytes that the log reports for `what`, or None if the log reports no size."""
    pattern = re.compile(re.escape(what) + r": (\d+)")
    matches = (pattern.search(line.text) for line in log.lines)
    return max((int(match[1]) for match in matches if match), default=None)
