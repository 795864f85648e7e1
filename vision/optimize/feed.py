"""Scaling of frames to a network's input size, and conversion of the scaled frames to the inputs of the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.config import InputSpec, ModelSpec
from vision.detect.reference.letterbox import Letterbox
from vision.detect.reference.preprocess import Preprocessor
from vision.errors import ModelError

Image = NDArray[np.uint8]
Inputs = Mapping[str, NDArray[Any]]


class Letterboxer:
    """Scaler of BGR frames to a model's canvas. It works like the detector's scaler, but does not normalize."""

    def __init__(self, spec: InputSpec) -> None:
        plain = {"color": "bgr", "scale": 1.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        self._canvas = np.zeros((1, spec.height, spec.width, 3), np.uint8)
        self._preprocessor = Preprocessor(spec.model_copy(update=plain), self._canvas, channels_last=True)

    def scale(self, frame: Image) -> tuple[Image, Letterbox]:
        """Return the canvas, uint8 (height, width, 3), as a new array, and the position of the frame on it."""
        letterbox = self._preprocessor.write(0, frame)
        return self._canvas[0].copy(), letterbox


class Feed:
    """Converter of scaled frames to the inputs of an ONNX Runtime session of a detection model."""

    def __init__(self, session: Any, spec: ModelSpec, *, batch: int | None = None) -> None:
        """Check the inputs of the session.

        Args:
            batch: number of frames in a batch. None means 1, or the number that the file fixes.

        Raises:
            ModelError: the inputs differ from the spec, or the file fixes a different batch size.
        """
        from vision.detect.onnxruntime.network import checked_inputs

        frames, self._constants = checked_inputs(session.get_inputs(), spec)
        self._name = frames.name
        (declared,) = [tensor.shape[0] for tensor in session.get_inputs() if tensor.name == frames.name]
        if batch is not None and isinstance(declared, int) and declared != batch:
            raise ModelError(f"the batch of {spec.name} is fixed to {declared}, got {batch}", code="fixed-batch")
        self._tensor = np.zeros(frames.shape(spec, batch), frames.dtype)
        self._preprocessor = Preprocessor(spec.input, self._tensor, channels_last=frames.channels_last)

    @property
    def batch(self) -> int:
        """Number of frames in a batch."""
        return len(self._tensor)

    def batches(self, images: Iterable[Image]) -> Iterator[tuple[Inputs, int]]:
        """Yield the inputs of each batch by name, and the number of images in the batch.

        The next batch overwrites the arrays. If the images do not fill the last batch, the first image of this batch is
        repeated.
        """
        size, source = len(self._tensor), iter(images)
        for first in source:
            batch = [first, *islice(source, size - 1)]
            for index, image in enumerate(chain(batch, [first] * (size - len(batch)))):
                self._preprocessor.write(index, image)
            yield {**self._constants, self._name: self._tensor}, len(batch)
