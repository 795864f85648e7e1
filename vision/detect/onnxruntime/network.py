"""ONNX Runtime sessions on the CPU, checked against the model spec."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vision.config import ClassifierSpec, ModelSpec
from vision.detect.reference.heads import Head, Shape
from vision.errors import ModelError

_log = logging.getLogger(__name__)

_DTYPES: Mapping[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Network:
    """ONNX Runtime session of a model, with the names and shapes of its tensors."""

    def __init__(self, path: Path, spec: ModelSpec, threads: int, *, allow_half: bool = False) -> None:
        """Load the model. `threads` threads compute each batch. If `allow_half` is True, the input can also be float16.

        Raises:
            ModelError: the file cannot be loaded, or its input differs from the spec.
        """
        self.spec = spec
        self.session = open_session(path, spec, threads)
        self.input_name, self.batch = checked_input(self.session.get_inputs(), spec, allow_half=allow_half)
        self.input_shape = (self.batch, 3, spec.input.height, spec.input.width)
        self.output_shapes: dict[str, Shape] = {
            output.name: tuple(axis if isinstance(axis, int) else None for axis in output.shape)
            for output in self.session.get_outputs()
        }

    def sample(self, head: Head) -> dict[str, NDArray[Any]]:
        """Run the network on zeros, choose the outputs that `head` reads, and check their scores.

        Returns:
            The chosen outputs by name, in the order of `head.decode`.

        Raises:
            ModelError: the network fails, an output does not have its declared size, or the head does not fit.
        """
        (tensor,) = self.session.get_inputs()
        any_size = has_free_size(tensor.shape)
        size = self.spec.input
        hint = f"`input` in model.yaml is {size.width}x{size.height}; write the size that the model was exported for"
        hint = hint if any_size else ""
        try:
            outputs = self.session.run(None, {self.input_name: np.zeros(self.input_shape, _DTYPES[tensor.type])})
        except Exception as error:
            message = f"{self.spec.name}: the model cannot be run: {error}"
            raise ModelError(message, hint=hint, code="model-fails") from error
        by_name = dict(zip(self.output_shapes, outputs, strict=True))
        for name, declared in self.output_shapes.items():
            actual = by_name[name].shape
            if any_size and not _same_sizes(declared, actual):
                raise ModelError(
                    f"{self.spec.name}: with an input of {size.width}x{size.height}, output {name} has the shape "
                    f"{actual}, but the file declares {declared}",
                    hint=hint,
                    code="input-size",
                )
        names = head.choose_outputs({name: output.shape for name, output in by_name.items()})
        head.check_scores([np.asarray(by_name[name][0], np.float32) for name in names])
        return {name: by_name[name] for name in names}


def _same_sizes(declared: Shape, actual: tuple[int, ...]) -> bool:
    """Return False if the axes after the batch show that the file was exported for a different input size."""
    if len(declared) != len(actual):
        return True
    return all(axis in {None, size} for axis, size in zip(declared[1:], actual[1:], strict=True))


def has_free_size(shape: Sequence[int | str | None]) -> bool:
    """Return True if an input of this shape (batch, channels, height, width) has a variable height or width."""
    return any(not isinstance(side, int) for side in shape[2:])


def check_network(path: Path, spec: ModelSpec, head: Head) -> None:
    """Check that `head` can read the outputs of a model that a different back-end will run.

    A model that ONNX Runtime cannot load or run passes, because the other back-end may support its operators.

    Raises:
        ModelError: the file is damaged, its input differs from the spec, or the head does not fit.
    """
    try:
        Network(path, spec, threads=1, allow_half=True).sample(head)
    except ModelError as error:
        if error.code not in {"unsupported-model", "model-fails"}:
            raise
        _log.debug("ONNX Runtime cannot check the model's outputs: %s", error.args[0])


def open_session(
    path: Path, spec: ModelSpec | ClassifierSpec, threads: int, *, profile: Path | None = None
) -> ort.InferenceSession:
    """Load a model into a new ONNX Runtime session.

    Args:
        threads: number of threads that compute each batch.
        profile: prefix of the path to which ONNX Runtime writes a profile. None disables the profiler.

    Raises:
        ModelError: the file cannot be loaded.
    """
    options = ort.SessionOptions()
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # log only errors, which are also raised as exceptions
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning would slow down video decoding
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        damaged = type(error).__name__ in {"InvalidProtobuf", "NoSuchFile", "NoModel"}
        raise ModelError(
            f"{spec.name}: {path} is not a model that ONNX Runtime {ort.__version__} can load: {error}",
            hint="the file may be truncated or not in ONNX format; `check-model FILE` from the package onnx checks it",
            code="damaged-model" if damaged else "unsupported-model",
        ) from error


def describe_tensors(tensors: Sequence[Any]) -> str:
    """Return the names, types, and shapes of tensors as text for error messages."""
    return ", ".join(f"{tensor.name} {tensor.type} {tuple(tensor.shape)}" for tensor in tensors)


def checked_input(
    inputs: Sequence[Any], spec: ModelSpec | ClassifierSpec, *, allow_half: bool = False
) -> tuple[str, int]:
    """Check the inputs of a session against the spec.

    Returns:
        The name of the input, and its batch size, which is 1 if the file does not fix it.

    Raises:
        ModelError: the input differs from the spec.
    """
    expected = (3, spec.input.height, spec.input.width)
    mismatch = ModelError(
        f"{spec.name}: expected one input, float32 (batch, {', '.join(map(str, expected))}); "
        f"the model has {describe_tensors(inputs)}",
        hint="`input` in model.yaml sets width and height; export the model with one input, in fp32 and NCHW",
        code="input-mismatch",
    )
    types = set(_DTYPES) if allow_half else {"tensor(float)"}
    if len(inputs) != 1 or inputs[0].type not in types or len(inputs[0].shape) != 4:
        raise mismatch
    batch, *sides = inputs[0].shape
    if any(isinstance(side, int) and side != size for side, size in zip(sides, expected, strict=True)):
        raise mismatch
    if has_free_size(inputs[0].shape):
        size = spec.input
        _log.info(
            "%s accepts any input size; it runs at %dx%d (`input` in model.yaml)", spec.name, size.width, size.height
        )
    return inputs[0].name, batch if isinstance(batch, int) else 1


class OnnxNetwork:
    """Network that computes batches of any size from random input. For measurements only."""

    def __init__(self, path: Path, spec: ModelSpec, batch: int, *, threads: int, profile: Path | None = None) -> None:
        """Open a session (see `open_session`), and bind its input and outputs.

        Raises:
            ModelError: the model cannot be loaded, or accepts only batches of a different size.
        """
        self._session = open_session(path, spec, threads, profile=profile)
        name, fixed = checked_input(self._session.get_inputs(), spec)
        shape = self._session.get_inputs()[0].shape
        if isinstance(shape[0], int) and shape[0] != batch:
            raise ModelError(
                f"{spec.name} accepts only batches of {fixed}, but {batch} was requested", code="fixed-batch"
            )
        size = (batch, 3, spec.input.height, spec.input.width)
        self.input_shapes = {name: size}
        self._tensor = np.random.default_rng(1).standard_normal(size, np.float32)
        self._binding = self._session.io_binding()
        self._binding.bind_input(name, "cpu", 0, np.float32, size, self._tensor.ctypes.data)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, "cpu")

    def run(self) -> None:
        """Compute one batch. The GIL is released during the computation."""
        self._session.run_with_iobinding(self._binding)

    def end_profiling(self) -> Path:
        """Stop the profiler, and return the path of the file that it wrote."""
        return Path(self._session.end_profiling())
