"""ONNX Runtime sessions on the CPU, checked against the model spec."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vision.config import ClassifierSpec, ModelSpec
from vision.detect.reference.alternatives import Sample, check_sample, of_batch
from vision.detect.reference.decoder import Decoder
from vision.detect.reference.heads import Head
from vision.detect.reference.inputs import constant_input, is_channels_last, require_levels
from vision.detect.reference.layout import Shape
from vision.detect.reference.preprocess import Preprocessor
from vision.detect.reference.sample import sample_frames
from vision.errors import ModelError

_log = logging.getLogger(__name__)

_DTYPES: Final[Mapping[str, str]] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(double)": "float64",
}
_FRAME_DTYPES: Final = ("float32", "float16", "uint8")


@dataclass(frozen=True, slots=True)
class FrameInput:
    """Name, type, and layout of the input through which a network receives frames."""

    name: str
    batch: int  # batch size; 1 if it is dynamic in the file
    dtype: str  # one of `_FRAME_DTYPES`
    channels_last: bool  # True for (batch, height, width, 3) instead of (batch, 3, height, width)
    any_size: bool  # True if the height or the width is dynamic

    def shape(self, spec: ModelSpec, batch: int | None = None) -> tuple[int, int, int, int]:
        """Return the shape of the input for `batch` frames. If `batch` is None, use `self.batch`."""
        size, count = spec.input, self.batch if batch is None else batch
        return (count, size.height, size.width, 3) if self.channels_last else (count, 3, size.height, size.width)


class Network:
    """ONNX Runtime session of a model, with the names and shapes of its tensors."""

    def __init__(self, path: Path, spec: ModelSpec, threads: int) -> None:
        """Load the model. `threads` threads compute each batch.

        Raises:
            ModelError: the file cannot be loaded, or its inputs differ from the spec.
        """
        self.spec = spec
        self.session = open_session(path, spec, threads)
        self.frames, self.constants = checked_inputs(self.session.get_inputs(), spec)
        self.output_shapes: dict[str, Shape] = {
            output.name: tuple(axis if isinstance(axis, int) else None for axis in output.shape)
            for output in self.session.get_outputs()
        }
        self.output_dtypes = {output.name: _DTYPES.get(output.type, "") for output in self.session.get_outputs()}

    def sample(self, head: Head) -> Decoder:
        """Run the network on the two frames of `sample_frames`, and check its outputs.

        Returns:
            The decoder for the outputs that `head` reads.

        Raises:
            ModelError: the network fails; an output does not have its declared size, the batch axis, or a supported
                type; or the head does not fit the outputs.
        """
        runs = self._run_sample()
        self._check_sizes(runs[0])
        sample, shapes = self._sample_of(runs), {name: output.shape for name, output in runs[0].items()}
        try:
            decoder = head.bind(shapes)
        except ModelError:
            check_sample(self.spec, sample)  # raises the same error, with a hint that was tested
            raise
        decoder.check_types([runs[0][name].dtype.name for name in decoder.outputs])
        for name in decoder.outputs:
            self._check_batch(decoder, name, runs[0][name])
        check_sample(self.spec, sample)
        return decoder

    def run_sample(self) -> Sample:
        """Run the network on the two frames of `sample_frames`. Return the outputs for each frame.

        Raises:
            ModelError: the network fails, or its output sizes differ from the declared sizes.
        """
        runs = self._run_sample()
        self._check_sizes(runs[0])
        return self._sample_of(runs)

    def _run_sample(self) -> list[dict[str, NDArray[Any]]]:
        """Run the network on the two frames of `sample_frames`. Return the outputs of each batch, by name.

        If the frames do not fill the last batch, frames are repeated.

        Raises:
            ModelError: the network fails.
        """
        batch = self.frames.batch
        tensor = np.zeros(self.frames.shape(self.spec), self.frames.dtype)
        preprocessor = Preprocessor(self.spec.input, tensor, channels_last=self.frames.channels_last)
        images, runs = sample_frames(), []
        for first in range(0, len(images), batch):
            for index in range(batch):
                preprocessor.write(index, images[(first + index) % len(images)])
            try:
                outputs = self.session.run(None, {**self.constants, self.frames.name: tensor})
            except Exception as error:
                message = f"{self.spec.name}: the model cannot be run: {error}"
                raise ModelError(message, hint=self._size_hint(), code="model-fails") from error
            runs.append(dict(zip(self.output_shapes, outputs, strict=True)))
        return runs

    def _sample_of(self, runs: Sequence[Mapping[str, NDArray[Any]]]) -> Sample:
        """Convert the outputs of the batches `runs` to outputs for each frame of `sample_frames`."""
        batch = self.frames.batch
        frames = [of_batch(run, index, batch) for run in runs for index in range(batch)]
        return Sample(frames[: len(sample_frames())])

    def _size_hint(self) -> str:
        size = self.spec.input
        text = f"`input` in model.yaml is {size.width}x{size.height}; write the size that the model was exported for"
        return text if self.frames.any_size else ""

    def _check_sizes(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """If the ONNX file accepts any input size, check that outputs have the sizes that the file declares.

        Raises:
            ModelError: the file was exported for an input size that differs from model.yaml.
        """
        size = self.spec.input
        for name, declared in self.output_shapes.items() if self.frames.any_size else ():
            actual = outputs[name].shape
            if not _same_sizes(declared, actual):
                raise ModelError(
                    f"{self.spec.name}: with an input of {size.width}x{size.height}, output {name} has the shape "
                    f"{actual}, but the file declares {declared}",
                    hint=self._size_hint(),
                    code="input-size",
                )

    def _check_batch(self, decoder: Decoder, name: str, output: NDArray[Any]) -> None:
        batch = self.frames.batch
        one_frame = name in decoder.without_batch
        if output.ndim == 0 or (batch != 1 if one_frame else len(output) != batch):
            raise ModelError(
                f"{self.spec.name}: expected the batch size {batch} as the first axis of output {name}; its shape is "
                f"{output.shape}",
                hint="export the model with one batch axis for its input and all outputs",
                code="output-without-batch",
            )


def _same_sizes(declared: Shape, actual: tuple[int, ...]) -> bool:
    """Compare the shape of an output with the shape `declared` in the model file, except the first axis (batch).

    Return False if an axis has a different size. A size of None in `declared` matches any size. If the numbers of axes
    differ, return True without a comparison.
    """
    if len(declared) != len(actual):
        return True
    return all(axis in {None, size} for axis, size in zip(declared[1:], actual[1:], strict=True))


def check_network(path: Path, spec: ModelSpec, head: Head) -> None:
    """Check that `head` can read the outputs of a model that a different back-end will run.

    If ONNX Runtime does not support the model, or cannot run it, the check passes, because the other back-end may
    support the model.

    Raises:
        ModelError: the file is missing or damaged, its inputs differ from the spec, or the head does not fit.
    """
    try:
        Network(path, spec, threads=1).sample(head)
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


def checked_inputs(inputs: Sequence[Any], spec: ModelSpec) -> tuple[FrameInput, dict[str, NDArray[Any]]]:
    """Check the inputs of a session against the spec.

    Returns:
        The input for frames, and the values of all other inputs, by name.

    Raises:
        ModelError: the input for frames differs from the spec, or the values of an additional input are not known.
    """
    size = spec.input
    expected = f"(batch, 3, {size.height}, {size.width}) or (batch, {size.height}, {size.width}, 3)"
    mismatch = ModelError(
        f"{spec.name}: expected one input for frames, {expected} in fp32, fp16, or uint8; "
        f"the model has {describe_tensors(inputs)}",
        hint="`input` in model.yaml sets width and height, in the order of the model's axes",
        code="input-mismatch",
    )
    images = [tensor for tensor in inputs if len(tensor.shape) == 4]
    if len(images) != 1 or _DTYPES.get(images[0].type) not in _FRAME_DTYPES:
        raise mismatch
    shape, dtype = images[0].shape, _DTYPES[images[0].type]
    last = is_channels_last(shape)
    sides, wanted = (shape[1:3], shape[3]) if last else (shape[2:], shape[1])
    if any(
        isinstance(side, int) and side != value
        for side, value in zip((wanted, *sides), (3, size.height, size.width), strict=True)
    ):
        raise mismatch
    if dtype == "uint8":
        require_levels(spec)
    any_size = any(not isinstance(side, int) for side in sides)
    if any_size:
        _log.info(
            "%s accepts any input size; it runs at %dx%d (`input` in model.yaml)", spec.name, size.width, size.height
        )
    batch = shape[0] if isinstance(shape[0], int) else 1
    return FrameInput(images[0].name, batch, dtype, last, any_size), {
        tensor.name: constant_input(spec, tensor.name, tensor.shape, _DTYPES.get(tensor.type, "float32"), batch)
        for tensor in inputs
        if tensor is not images[0]
    }


class OnnxNetwork:
    """Network that computes batches of random input, for measurements only."""

    def __init__(self, path: Path, spec: ModelSpec, batch: int, *, threads: int, profile: Path | None = None) -> None:
        """Open a session, and bind random input for `batch` frames. For `threads` and `profile`, see `open_session`.

        Raises:
            ModelError: the model cannot be loaded, its inputs differ from the spec, or it has a different batch size.
        """
        self._session = open_session(path, spec, threads, profile=profile)
        inputs = self._session.get_inputs()
        frames, _ = checked_inputs(inputs, spec)
        shape = next(tensor.shape for tensor in inputs if tensor.name == frames.name)
        if isinstance(shape[0], int) and shape[0] != batch:
            raise ModelError(
                f"{spec.name} accepts only batches of {shape[0]}, but {batch} was requested", code="fixed-batch"
            )
        size = frames.shape(spec, batch)
        self.input_shapes = {frames.name: size}
        random = np.random.default_rng(1)
        noise = random.integers(0, 256, size) if frames.dtype == "uint8" else random.standard_normal(size, np.float32)
        self._binding = self._session.io_binding()
        for tensor in inputs:
            if tensor.name != frames.name:
                dtype = _DTYPES.get(tensor.type, "float32")
                self._binding.bind_cpu_input(tensor.name, constant_input(spec, tensor.name, tensor.shape, dtype, batch))
        self._binding.bind_cpu_input(frames.name, noise.astype(frames.dtype))
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, "cpu")

    def run(self) -> None:
        """Compute one batch. The GIL is released during the computation."""
        self._session.run_with_iobinding(self._binding)

    def end_profiling(self) -> Path:
        """Stop the profiler that `profile` enabled. Return the path of the file that the profiler wrote."""
        return Path(self._session.end_profiling())
