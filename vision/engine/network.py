"""Reads and changes a network that TensorRT has parsed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from vision.engine.build_plan import BuildPlan
from vision.engine.library import find_library, trt
from vision.engine.precision import FLOATS, Quantised
from vision.engine.profiles import NetworkInput, Profile
from vision.engine.tensors import as_shape, dtype_name
from vision.errors import ModelError


def inputs_of(network: trt.INetworkDefinition) -> tuple[NetworkInput, ...]:
    """Return the inputs of a parsed network."""
    tensors = (network.get_input(index) for index in range(network.num_inputs))
    return tuple(NetworkInput(tensor.name, as_shape(tensor.shape), bool(tensor.is_shape_tensor)) for tensor in tensors)


def add_profile(
    builder: trt.Builder, config: trt.IBuilderConfig, inputs: Sequence[NetworkInput], profile: Profile
) -> trt.IOptimizationProfile:
    """Add a profile to a configuration. The caller keeps the result until the build has ended.

    TensorRT accepts `set_shape_input` for inputs that are not shape tensors, and then the build fails because of a
    missing range. It also accepts a minimum above the maximum, and reports that only by the truth value of the profile.

    Raises:
        ModelError: TensorRT finds the profile inconsistent.
    """
    made = builder.create_optimization_profile()
    try:
        for tensor in inputs:
            if tensor.is_shape_tensor:
                values = profile.values[tensor.name]
                made.set_shape_input(tensor.name, list(values.min), list(values.opt), list(values.max))
            elif min(tensor.shape, default=0) < 0:
                shapes = profile.shapes[tensor.name]
                dims = (trt.Dims(list(shape)) for shape in (shapes.min, shapes.opt, shapes.max))
                made.set_shape(tensor.name, *dims)
        accepted = bool(made) and config.add_optimization_profile(made) >= 0
    except RuntimeError as error:
        raise ModelError(f"{find_library()} refuses the profile {profile}: {error}") from error
    if not accepted:
        raise ModelError(f"{find_library()} finds the profile inconsistent: {profile}")
    return made


def quantisation_of(network: trt.INetworkDefinition) -> Quantised:
    """Return the type that the QuantizeLinear nodes of a network have, or "none"."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.QUANTIZE and dtype_name(layer.get_output(0).dtype.name) == "fp8":
            return "fp8"
        if layer.type == trt.LayerType.QUANTIZE:
            return "int8"
    return "none"


def types_of(network: trt.INetworkDefinition) -> frozenset[str]:
    """Return the floating-point types that a network computes in."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    outputs = (layer.get_output(index) for layer in layers for index in range(layer.num_outputs))
    return frozenset(dtype_name(tensor.dtype.name) for tensor in outputs if tensor is not None) & FLOATS


def halve_ends(network: Any, plan: BuildPlan) -> None:
    """Give a weakly typed network 16-bit inputs or outputs. A strongly typed one has them in its ONNX file.

    Also sets the float32 ends, because the type of an output may otherwise follow from that of the input.
    """
    half = {"fp16": "HALF", "bf16": "BF16"}.get(plan.precision)
    if half is None or not (plan.half_input or plan.half_outputs):
        return
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    kinds = [(tensor, half if plan.half_input else "FLOAT") for tensor in inputs]
    kinds += [(tensor, half if plan.half_outputs else "FLOAT") for tensor in outputs]
    floats = [(tensor, kind) for tensor, kind in kinds if dtype_name(tensor.dtype.name) == "float32"]
    with warnings.catch_warnings():  # deprecated since strong typing, and right without it
        warnings.simplefilter("ignore", DeprecationWarning)
        for tensor, kind in floats:
            tensor.dtype = getattr(trt.DataType, kind)
