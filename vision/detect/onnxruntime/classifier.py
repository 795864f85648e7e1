"""Classifier of objects on the CPU with ONNX Runtime. It implements `vision.stages.secondary_model.Classifier`.

`crop` cuts out an object, and scales it to 8-bit BGR. `classify` converts the crops to a tensor. Thus only the crops,
which are much smaller than the frames, stay in memory between the two calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.config import ClassifierSpec
from vision.detect.onnxruntime.network import describe_tensors, open_session
from vision.detect.reference.classifier import ACTIVATIONS, Box, CropFit, output_mismatch, require_scores
from vision.detect.reference.crops import PartReader
from vision.detect.reference.letterbox import gain_and_offset
from vision.errors import Closed, DeviceError, ModelError
from vision.types import Frame

_Floats: TypeAlias = NDArray[np.float32]


class OnnxRuntimeClassifier:
    """`Classifier` that runs on the CPU. One thread can call `crop` while a second thread calls `classify`."""

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

    def allocate(self, count: int) -> list[NDArray[np.uint8]]:
        """Return `count` arrays for crops, each uint8 BGR (height, width, 3)."""
        return list(np.empty((count, *self.crop_shape), np.uint8))

    def crop(self, frame: Frame, box: Box, out: NDArray[np.uint8]) -> None:
        """Scale the part `box` of a frame into `out`, a uint8 BGR array of shape `crop_shape`.

        Raises:
            ValueError: the part is empty, or is not completely within the frame.
        """
        part = self._parts.read(frame, *box)
        height_px, width_px = part.shape[:2]
        fit = CropFit.of(self._spec.input, width_px, height_px)
        if (fit.width, fit.height) != (out.shape[1], out.shape[0]):
            out[:] = self._spec.input.fill
        out = out[fit.top : fit.top + fit.height, fit.left : fit.left + fit.width]
        interpolation = cv2.INTER_AREA if fit.shrinks else cv2.INTER_LINEAR
        cv2.resize(part, (fit.width, fit.height), dst=out, interpolation=interpolation)

    def is_reading(self) -> bool:
        """Return False, because `crop` returns only after it has read the frame."""
        return False

    def wait_until_read(self) -> None:
        """Return immediately, because no frame is being read after `crop` has returned."""

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
        return ACTIVATIONS[self._spec.head.activation](np.concatenate(chunks))

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
        """Free the model. Idempotent. Afterwards, `classify` raises `Closed`."""
        self._session = None

    def _check_output(self) -> None:
        outputs = self._session.get_outputs()
        mismatch = output_mismatch(self._spec, describe_tensors(outputs))
        if len(outputs) != 1 or outputs[0].type != "tensor(float)":
            raise mismatch
        try:
            sample = self._run([np.zeros(self.crop_shape, np.uint8)])
        except DeviceError as error:
            raise ModelError(f"{self.name}: the model cannot be run: {error.args[0]}", code="model-fails") from error
        if sample.shape != (1, len(self.class_names)):
            raise mismatch
        require_scores(self._spec, ACTIVATIONS[self._spec.head.activation](sample))


def _checked_input(inputs: Sequence[Any], spec: ClassifierSpec) -> tuple[str, int | None]:
    """Check the only input of a session. Return the name and the batch size of the input. A dynamic batch size is None.

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
