# mypy: allow-subclassing-any
"""ONNX to engine, with TensorRT 10.3 to 11 and TensorRT-RTX.

Flags and calls that only some of them have are looked up by name and left out where they are absent; where leaving one
out would change what was asked for, the build is refused instead.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from vision.engine.channel_packing import INTERLEAVED_CHANNELS
from vision.engine.library import (
    Gpu,
    LogLines,
    builder_flag,
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
from vision.engine.onnx_transform import Unrewritable
from vision.engine.options import BuildOptions, prepare_onnx, settled
from vision.engine.precision import (
    FLOATS,
    Precision,
    Quantised,
    Typing,
    check_quantisation,
    check_types,
    plan_typing,
    require_precision,
)
from vision.engine.profiles import NetworkInput, Profile, make_profiles
from vision.engine.progress import BuildListener, Monitor, Silent, run_interruptible
from vision.engine.tensors import as_shape, dtype_name
from vision.errors import Closed, DeviceError, ModelError

if TYPE_CHECKING:
    from vision.config.app import ModelSpec

_log = logging.getLogger(__name__)

_DAMAGED: Final = (
    "download it again, and compare its sha256 with the one in model.yaml; or export it anew: "
    "`onnx.checker.check_model` says more"
)
_WITHOUT_OPERATOR: Final = (
    "export the model without this operator; vision does NMS itself, so NonMaxSuppression and NonZero "
    "behind the network's last layers can go"
)
_OUT_OF_MEMORY: Final = ("OutOfMemory", "out of memory", "OUT_OF_MEMORY")


class Refused(ModelError):
    """TensorRT does not take the network: reshaped by us it may do that, as it is it may not."""


@dataclass(frozen=True, slots=True)
class Built:
    """An engine and what is known of its making."""

    plan: bytes
    layers: int  # of the ONNX file, before fusion
    profiles: tuple[Profile, ...]
    seconds: float
    weights_bytes: int | None  # as the builder's log says
    activation_bytes: int | None  # of the greediest profile, as the log says
    notes: tuple[str, ...]  # warnings, and lines on sparsity
    timing_cache: bytes | None  # to be kept for the next build on this machine


def build_plan(
    model: bytes,
    spec: ModelSpec,
    settings: BuildOptions,
    gpu: Gpu,
    *,
    ahead_of_time: bool = False,
    timing_cache: bytes | None = None,
    listener: BuildListener | None = None,
    cancel: threading.Event | None = None,
    prepare_thread: Callable[[], object] = lambda: None,
) -> Built:
    """Build an engine. Takes seconds (TensorRT-RTX) to many minutes (TensorRT), in a thread of its own.

    Args:
        model: serialised ONNX.
        card: its size and profiles.
        gpu: what it is built for.
        ahead_of_time: `gpu` is not in this machine (TensorRT-RTX only).
        timing_cache: of an earlier build on the same GPU and library.
        listener: is told how it goes.
        cancel: set it, and the build ends soon, with `Closed`.
        prepare_thread: called first in the building thread, to choose the GPU there.

    Raises:
        ModelError: the model, the card and the settings do not fit together, or TensorRT cannot build them.
        DeviceMissing: there is no TensorRT or no GPU that works.
        Closed: cancelled.
        KeyboardInterrupt: Ctrl-C; TensorRT has stopped by then.
    """
    require_precision(settings.precision, gpu)
    stop = cancel or threading.Event()

    def build(wanted: BuildOptions) -> Built:
        with collect_log() as log:
            job = _Build(
                spec=spec,
                settings=wanted,
                gpu=gpu,
                ahead_of_time=ahead_of_time,
                listener=listener or Silent(),
                cancel=stop,
                log=log,
            )
            return job.run(model, timing_cache)

    def work() -> Built:
        prepare_thread()
        wanted = settled(settings, spec)
        plain = replace(wanted, interleaved_input=False, folded=False)
        try:
            return build(wanted)
        except Refused as error:
            if wanted == plain:
                raise
            built = build(plain)  # what is wrong with the model itself is told by this one
            _log.warning("%s is built as it is, and may run slower: reshaped, %s", spec.name, error.args[0])
            return built

    return run_interruptible(work, stop)


class _Build:
    """One build: the steps of `run` are its methods."""

    def __init__(
        self,
        *,
        spec: ModelSpec,
        settings: BuildOptions,
        gpu: Gpu,
        ahead_of_time: bool,
        listener: BuildListener,
        cancel: threading.Event,
        log: LogLines,
    ) -> None:
        self._card = spec
        self._settings = settings
        self._gpu = gpu
        self._ahead_of_time = ahead_of_time
        self._listener = listener
        self._cancel = cancel
        self._log_lines = log
        self._typing = plan_typing(settings.precision, weak_typing=has_weak_typing())
        self._kept: list[object] = []  # profiles and caches: TensorRT before 10.16 does not keep them alive
        self._refuse_untested()
        self._builder = start(trt.Builder, log)

    def _refuse_untested(self) -> None:
        """TensorRT-RTX runs on GPUs that it cannot name, and fp8 convolutions gave wrong results on one (9.0)."""
        capabilities = supported_capabilities()
        quantised = self._settings.precision in ("fp8", "int8")
        if quantised and capabilities and self._gpu.compute_capability not in capabilities:
            known = ", ".join(f"{major}.{minor}" for major, minor in capabilities)
            major, minor = self._gpu.compute_capability
            raise ModelError(
                f"{find_library()} was not made for compute capability {major}.{minor} but for {known}: "
                f"{self._settings.precision} gives wrong results there",
                hint="set `detect: {precision: fp16}`, or use TensorRT in place of TensorRT-RTX",
            )

    def run(self, model: bytes, timing_cache: bytes | None) -> Built:
        """Parse, configure, build."""
        started_ns = time.monotonic_ns()
        try:
            prepared = prepare_onnx(model, self._settings)
        except Unrewritable as error:
            raise Refused(f"{self._card.file}: {error.args[0]}", hint=error.hint) from error
        network, parser = self._parse(prepared.onnx)
        check_quantisation(self._settings.precision, quantisation_of(network))
        if self._typing.strongly_typed:
            check_types(self._settings.precision, types_of(network))
        if not self._typing.strongly_typed:
            halve_ends(network, self._settings)
        if prepared.channels == INTERLEAVED_CHANNELS:
            network.get_input(0).allowed_formats = 1 << int(trt.TensorFormat.CHW4)  # it has no other
        self._listener.parsed(network.num_layers)
        config = self._configure(timing_cache)
        profiles = self._add_profiles(network, config, prepared.channels)
        if self._settings.dla_core is not None:
            self._say_what_dla_takes(network, config)
        plan = self._build(network, config)
        del parser  # the network points into it
        self._listener.built(len(plan))
        return Built(
            plan=plan,
            layers=network.num_layers,
            profiles=profiles,
            seconds=(time.monotonic_ns() - started_ns) / 1e9,
            weights_bytes=_bytes_in(self._log_lines, "Total Weights Memory"),
            activation_bytes=_bytes_in(self._log_lines, "Total Activation Memory"),
            notes=notes_of(self._log_lines),
            timing_cache=timings_of(config) if keeps_timing() else None,
        )

    def _parse(self, model: bytes) -> tuple[trt.INetworkDefinition, trt.OnnxParser]:
        network = self._builder.create_network(network_flags(strongly_typed=self._typing.strongly_typed))
        parser = trt.OnnxParser(network, logger())
        parsed = parser.parse(model)
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        if not parsed or errors:
            damaged = any(is_damage(each) for each in errors)
            reasons = "; ".join(map(_fault, errors)) or "no reason given"
            raise Refused(
                f"{find_library()} cannot take {self._card.file}: {reasons}",
                hint=_DAMAGED if damaged else _WITHOUT_OPERATOR,
            )
        if (
            not network.num_layers or not network.num_outputs
        ):  # the parser takes bytes that are no ONNX for an empty model
            raise ModelError(
                f"{self._card.file} is not an ONNX model ({len(model)} bytes without a graph)", hint=_DAMAGED
            )
        return network, parser

    def _configure(self, timing_cache: bytes | None) -> trt.IBuilderConfig:
        config = self._builder.create_builder_config()
        set_flags(config, self._typing, self._settings.flags)
        if self._settings.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self._settings.workspace_mib << 20)
        if self._settings.optimization_level is not None:
            config.builder_optimization_level = self._settings.optimization_level
        if self._settings.max_aux_streams is not None:
            config.max_aux_streams = self._settings.max_aux_streams
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for `vision profile`; costs nothing at run time
        self._aim(config)
        self._use_dla(config)
        if keeps_timing():
            self._kept.append(attach_timing_cache(config, timing_cache))
        monitor = make_monitor(self._listener, self._cancel)
        config.progress_monitor = monitor
        self._kept.append(monitor)
        return config

    def _aim(self, config: Any) -> None:
        """Tell TensorRT-RTX which GPU the engine is for. One that it cannot name (9.0) gets the default."""
        capabilities = supported_capabilities()
        if not hasattr(config, "set_compute_capability"):
            if self._ahead_of_time:
                raise ModelError(
                    f"{find_library()} builds for the GPU in this machine only",
                    hint=f"run `vision build` on the machine with the {self._gpu.name}",
                )
            return
        capability = self._gpu.compute_capability
        if capability in capabilities:
            config.num_compute_capabilities = 1
            name = f"SM{capability[0]}{capability[1]}"
            if not config.set_compute_capability(member_of("ComputeCapability", name), 0):
                raise ModelError(f"{find_library()} refuses to build for {name}")
        elif self._ahead_of_time:
            known = ", ".join(f"{major}.{minor}" for major, minor in capabilities)
            raise ModelError(f"{find_library()} builds for compute capabilities {known}, not for {capability}")

    def _use_dla(self, config: trt.IBuilderConfig) -> None:
        core = self._settings.dla_core
        if core is None:
            return
        cores = int(self._builder.num_DLA_cores)
        if core >= cores:
            _log.warning("DLA core %d was asked for and this machine has %d: building for the GPU", core, cores)
            return
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)

    def _say_what_dla_takes(self, network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> None:
        """What a DLA does not take runs on the GPU, which may be all of it."""
        if config.default_device_type != trt.DeviceType.DLA:
            return
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        taken = sum(bool(config.can_run_on_DLA(layer)) for layer in layers)
        level = logging.INFO if taken else logging.WARNING
        _log.log(level, "%d of %d layers can run on DLA core %d", taken, len(layers), config.DLA_core)

    def _add_profiles(
        self, network: trt.INetworkDefinition, config: trt.IBuilderConfig, channels: int
    ) -> tuple[Profile, ...]:
        inputs = inputs_of(network)
        profiles = make_profiles(
            inputs,
            self._card,
            self._settings.max_batch,
            fixed_batches=bool(self._settings.fixed_batches),
            channels=channels,
            one_size=self._settings.dla_core is not None,
        )
        if not any(each.is_shape_tensor or min(each.shape, default=0) < 0 for each in inputs):
            return profiles  # all is fixed: TensorRT wants no profile
        for profile in profiles:
            self._kept.append(add_profile(self._builder, config, inputs, profile))
        return profiles

    def _build(self, network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> bytes:
        plan = or_none(self._builder.build_serialized_network(network, config))
        if self._cancel.is_set():
            raise Closed("the build was cancelled")
        if plan is None:
            what = f"{find_library()} cannot build {self._card.name} in {self._settings.precision} for {self._gpu.name}"
            raise failed_build(what, build_failure(self._log_lines, network), self._settings.precision)
        return bytes(memoryview(plan))


# ------------------------------------------------------------------------------------------------ single steps


def make_monitor(listener: BuildListener, cancel: threading.Event) -> trt.IProgressMonitor:
    """A progress monitor that tells `listener` and stops the build once `cancel` is set."""
    inner = Monitor(listener, cancel)

    class ProgressMonitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            inner.phase_start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return inner.step_complete(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            inner.phase_finish(phase_name)

    return ProgressMonitor()


def set_flags(config: trt.IBuilderConfig, typing: Typing, further: Sequence[str] = ()) -> None:
    """Set and clear builder flags by name.

    Raises:
        ModelError: this library does not have one that is needed.
    """
    for name in (*typing.flags_on, *further):
        flag = builder_flag(name)
        if flag is None:
            raise ModelError(f"{find_library()} has no builder flag {name}", hint="another precision or library has")
        config.set_flag(flag)
    for name in typing.flags_off:
        flag = builder_flag(name)
        if flag is not None:
            config.clear_flag(flag)


def attach_timing_cache(config: trt.IBuilderConfig, blob: bytes | None) -> trt.ITimingCache:
    """Give a build the timings of earlier ones. The caller keeps the result until the build has ended."""
    cache = or_none(config.create_timing_cache(blob or b""))
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache
    _log.info("the timing cache is of another GPU or library, or damaged: measuring anew")
    fresh = config.create_timing_cache(b"")
    config.set_timing_cache(fresh, ignore_mismatch=False)
    return fresh


def timings_of(config: trt.IBuilderConfig) -> bytes | None:
    """What a build measured, for the next; None where nothing is kept."""
    cache = or_none(config.get_timing_cache())
    return bytes(memoryview(cache.serialize())) if cache is not None else None


def inputs_of(network: trt.INetworkDefinition) -> tuple[NetworkInput, ...]:
    """The inputs of a parsed network."""
    tensors = (network.get_input(index) for index in range(network.num_inputs))
    return tuple(NetworkInput(each.name, as_shape(each.shape), bool(each.is_shape_tensor)) for each in tensors)


def add_profile(
    builder: trt.Builder, config: trt.IBuilderConfig, inputs: Sequence[NetworkInput], profile: Profile
) -> trt.IOptimizationProfile:
    """Add a profile to a configuration. The caller keeps the result until the build has ended.

    TensorRT accepts `set_shape_input` for inputs that are no shape tensors, and then the build fails for want of a
    range; it accepts a minimum above the maximum too, and says so by the profile's truth value alone.

    Raises:
        ModelError: TensorRT finds it inconsistent.
    """
    made = builder.create_optimization_profile()
    try:
        for each in inputs:
            if each.is_shape_tensor:
                values = profile.values[each.name]
                made.set_shape_input(each.name, list(values.min), list(values.opt), list(values.max))
            elif min(each.shape, default=0) < 0:
                shapes = profile.shapes[each.name]
                dims = (trt.Dims(list(shape)) for shape in (shapes.min, shapes.opt, shapes.max))
                made.set_shape(each.name, *dims)
        accepted = bool(made) and config.add_optimization_profile(made) >= 0
    except RuntimeError as error:
        raise ModelError(f"{find_library()} refuses the profile {profile}: {error}") from error
    if not accepted:
        raise ModelError(f"{find_library()} finds the profile inconsistent: {profile}")
    return made


def quantisation_of(network: trt.INetworkDefinition) -> Quantised:
    """Whether a network has QuantizeLinear in it, and to what."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.QUANTIZE and dtype_name(layer.get_output(0).dtype.name) == "fp8":
            return "fp8"
        if layer.type == trt.LayerType.QUANTIZE:
            return "int8"
    return "none"


def types_of(network: trt.INetworkDefinition) -> frozenset[str]:
    """Floating-point types that a network computes in."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    outputs = (layer.get_output(index) for layer in layers for index in range(layer.num_outputs))
    return frozenset(dtype_name(each.dtype.name) for each in outputs if each is not None) & FLOATS


def halve_ends(network: Any, settings: BuildOptions) -> None:
    """Let a weakly typed network take or give 16 bits. (A strongly typed one has them in its ONNX file.)

    What stays float32 is said too: an output's type may otherwise follow from that of the input.
    """
    half = {"fp16": "HALF", "bf16": "BF16"}.get(settings.precision)
    if half is None or not (settings.half_input or settings.half_outputs):
        return
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    kinds = [(tensor, half if settings.half_input else "FLOAT") for tensor in inputs]
    kinds += [(tensor, half if settings.half_outputs else "FLOAT") for tensor in outputs]
    floats = [(tensor, kind) for tensor, kind in kinds if dtype_name(tensor.dtype.name) == "float32"]
    with warnings.catch_warnings():  # deprecated since strong typing, and right without it
        warnings.simplefilter("ignore", DeprecationWarning)
        for tensor, kind in floats:
            tensor.dtype = getattr(trt.DataType, kind)


# ------------------------------------------------------------------------------------------------ what went wrong


def _fault(error: Any) -> str:
    """One error of the parser: which node, which operator, what is wrong."""
    operator, node, text = error.node_operator(), error.node_name(), str(error.desc()).strip()
    if not operator:
        return text
    where = f"node {node}" if node else f"node number {error.node()}"
    return f"operator {operator} ({where}){'' if is_damage(error) else ' is not supported'}: {text}"


def is_damage(error: Any) -> bool:
    """Whether the parser found fault with the file, and not with what it asks for."""
    return error.code().name in ("INVALID_GRAPH", "MODEL_DESERIALIZE_FAILED")


def free_memory() -> str:
    """What is free of the GPU's memory, to be put behind a message; empty where there is no GPU to ask."""
    try:
        from vision.gpu.cuda import memory_info

        free_bytes, total_bytes = memory_info()
    except DeviceError:  # built ahead of time, for a GPU that is elsewhere
        return ""
    return f"; {free_bytes >> 20} of {total_bytes >> 20} MiB of the GPU are free"


_NO_RUNNER = re.compile(r"(?P<node>\S+) has no runners that implement it")


def build_failure(log: LogLines, network: trt.INetworkDefinition) -> str:
    """Why a build failed, from the log: with the node and its operator where the log names one."""
    errors = [text for text in log.errors() if "catchCudaError" not in text] or list(log.errors())
    layers = {network.get_layer(index).name: network.get_layer(index) for index in range(network.num_layers)}
    for text in errors:
        found = _NO_RUNNER.search(text)
        if found and found["node"] in layers:
            return f"operator {layers[found['node']].type.name} (node {found['node']}) is not supported on this GPU"
    return "; ".join(errors) or "no reason given"


def failed_build(what: str, cause: str, precision: Precision) -> ModelError:
    """The error to raise. `Refused` where another form of the model might do; not for lack of memory, of which the
    cause tells what was asked.
    """
    if any(word in cause for word in _OUT_OF_MEMORY):
        return ModelError(f"{what}: {cause}{free_memory()}", hint="lower `detect: {max_batch: ...}`")
    return Refused(f"{what}: {cause}", hint=failure_hint(precision))


def failure_hint(precision: Precision) -> str:
    """What to try after a failed build."""
    if precision in ("int8", "fp8"):
        return f"this library or GPU may have no {precision} kernels for the model's layers: `precision: fp16` works"
    return "export the model without operators that are named above; `--level 1` and a smaller max_batch ask for less"


def notes_of(log: LogLines) -> tuple[str, ...]:
    """Warnings of a build, and what it says of sparsity, each once."""
    lines = (line.text.strip() for line in log.lines if line.severity == "WARNING" or "(Sparsity)" in line.text)
    return tuple(dict.fromkeys(lines))


def _bytes_in(log: LogLines, what: str) -> int | None:
    """The greatest number of bytes that the log gives for `what`: there is a line for each profile."""
    pattern = re.compile(re.escape(what) + r": (\d+)")
    numbers = [int(found[1]) for text in log.containing(what) if (found := pattern.search(text))]
    return max(numbers, default=None)
