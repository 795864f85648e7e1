"""Classifier of objects on the CPU with ONNX Runtime. It implements `vision.stages.secondary_model.Classifier`.

Objects are cut out and scaled to 8-bit BGR immediately, and converted to a tensor only when the network runs. Thus only
the crops, which are much smaller than the frames, stay in memory until then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.config import ClassifierSpec
from vision.detect.onnxruntime.network import describe_tensors, open_session
from vision.detect.reference.crops import PartReader
from vision.detect.reference.letterbox import Letterbox, gain_and_offset
from vision.errors import Closed, DeviceError, ModelError
from vision.types import Frame

_Floats: TypeAlias = NDArray[np.float32]


class OnnxRuntimeClassifier:
    """`Classifier` that runs on the CPU. Call `crop` from one thread, and the other methods from a second thread."""

    def __init__(self, path: Path, spec: ClassifierSpec, *, threads: int = 1, max_batch: int = 8) -> None:
        """Load the model, and run it once to check its output.

        Args:
            threads: number of threads that compute each batch.
            max_batch: maximum number of crops in one call of `classify`.

        Raises:
            ModelError: the model cannot be loaded or run, or its input, output, or scores do not fit the spec.
        """
        self.name = spec.name
        self.class_names = spec.classes
        self.exclusive = spec.head.labels == "one"
        self.crop_shape = (spec.input.height, spec.input.width, 3)
        self.max_batch = max_batch
        self._spec = spec
        self._session: Any = open_session(path, spec, threads)
        self._input_name, batch = _checked_input(self._session.get_inputs(), spec)
        self._fixed = batch is not None  # True if the network accepts only one batch size
        size = batch or max_batch
        self._tensor = np.zeros((size, 3, spec.input.height, spec.input.width), np.float32)
        self._gain, self._offset = gain_and_offset(spec.input.scale, spec.input.mean, spec.input.std)
        self._channels = (0, 1, 2) if spec.input.color == "bgr" else (2, 1, 0)
        self._parts = PartReader()
        self._check_output()

    def crop(self, frame: Frame, box: tuple[int, int, int, int], out: NDArray[np.uint8]) -> None:
        """Scale the part `box` (left, top, right, bottom) of a frame into `out`, a BGR array of shape `crop_shape`.

        Raises:
            ValueError: the part is empty, or is not completely within the frame.
        """
        part = self._parts.read(frame, *box)
        height_px, width_px = part.shape[:2]
        if self._spec.input.fit == "letterbox":
            size = self._spec.input
            letterbox = Letterbox.fit(width_px, height_px, size.width, size.height, "center")
            columns, rows = letterbox.content(width_px, height_px)
            out[:] = size.fill
            out = out[letterbox.pad_y_px : letterbox.pad_y_px + rows, letterbox.pad_x_px : letterbox.pad_x_px + columns]
        shrinks = out.shape[0] < height_px and out.shape[1] < width_px
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        cv2.resize(part, (out.shape[1], out.shape[0]), dst=out, interpolation=interpolation)

    def classify(self, crops: Sequence[NDArray[np.uint8]]) -> _Floats:
        """Classify 1 to `max_batch` crops. Return their scores from 0 to 1, float32 (N, classes).

        Raises:
            ValueError: there are no crops, or more than `max_batch`.
            Closed: the classifier is closed.
            DeviceError: the network failed.
        """
        if not 1 <= len(crops) <= self.max_batch:
            raise ValueError(f"expected a batch of 1 to {self.max_batch} crops, got {len(crops)}")
        if self._session is None:
            raise Closed("the classifier is closed")
        size = len(self._tensor)
        chunks = [self._run(crops[start : start + size]) for start in range(0, len(crops), size)]
        return _ACTIVATIONS[self._spec.head.activation](np.concatenate(chunks))

    def _run(self, crops: Sequence[NDArray[np.uint8]]) -> _Floats:
        for tensor, crop in zip(self._tensor, crops, strict=False):
            for target, source in enumerate(self._channels):
                np.multiply(crop[:, :, source], self._gain[target], out=tensor[target])
                tensor[target] += self._offset[target]
        tensors = self._tensor if self._fixed else self._tensor[: len(crops)]
        try:
            (output,) = self._session.run(None, {self._input_name: tensors})
        except Exception as error:
            raise DeviceError(f"{self.name}: classification failed: {error}") from error
        return np.asarray(output, np.float32)[: len(crops)]

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._session = None

    def _check_output(self) -> None:
        outputs = self._session.get_outputs()
        mismatch = ModelError(
            f"{self.name}: expected one output, float32 (batch, {len(self.class_names)}), with a score for each "
            f"class; the model has {describe_tensors(outputs)}",
            hint="`classes` in model.yaml must list the classes in the model's order",
            code="output-mismatch",
        )
        if len(outputs) != 1 or outputs[0].type != "tensor(float)":
            raise mismatch
        try:
            sample = self._run([np.zeros(self.crop_shape, np.uint8)])
        except DeviceError as error:
            raise ModelError(f"{self.name}: the model cannot be run: {error.args[0]}", code="model-fails") from error
        if sample.shape != (1, len(self.class_names)):
            raise mismatch
        if self._spec.head.activation == "none" and not (sample.min() >= 0 and sample.max() <= 1):
            raise ModelError(
                f"{self.name}: expected scores from 0 to 1, got {float(sample.min()):.3g} to {float(sample.max()):.3g}",
                hint="write `head: {activation: softmax}` or `sigmoid` in model.yaml",
                code="scores-out-of-range",
            )


def _checked_input(inputs: Sequence[Any], spec: ClassifierSpec) -> tuple[str, int | None]:
    """Check the only input. Return its name and its batch size; the batch size is None if it is dynamic.

    Raises:
        ModelError: the input differs from the spec.
    """
    expected = (3, spec.input.height, spec.input.width)
    shape = inputs[0].shape if len(inputs) == 1 and inputs[0].type == "tensor(float)" else []
    if len(shape) != 4 or any(
        isinstance(side, int) and side != size for side, size in zip(shape[1:], expected, strict=True)
    ):
        raise ModelError(
            f"{spec.name}: expected one input, float32 (batch, {', '.join(map(str, expected))}); "
            f"the model has {describe_tensors(inputs)}",
            hint="`input` in model.yaml sets width and height; export the model with one input, in fp32 and NCHW",
            code="input-mismatch",
        )
    return inputs[0].name, shape[0] if isinstance(shape[0], int) else None


def _softmax(values: _Floats) -> _Floats:
    weights = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _sigmoid(values: _Floats) -> _Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -80.0, 80.0))), np.float32)


_ACTIVATIONS: Final[Mapping[str, Callable[[_Floats], _Floats]]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "none": lambda values: values,
}
