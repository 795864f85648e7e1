"""Pre-processing of BGR frames on one core: with OpenCV if it is installed, otherwise with NumPy.

Of all steps except the network, pre-processing takes the most CPU time per frame. Therefore, all memory is allocated
once per frame size. Decision 060 (``docs/decisions/060-letterbox-in-numpy.md``) contains measurements.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

try:
    import cv2
except ImportError:  # the demo runs without OpenCV
    cv2 = None  # type: ignore[assignment]

from vision.config import InputSpec
from vision.detect.reference.letterbox import Letterbox, gain_and_offset, taps

_MAX_SIZES: Final = 32  # maximum number of scalers to keep; each uses 2 MB
_BLOCK_BYTES: Final = 1 << 17  # source rows that are scaled together; intermediate results fit into the core's cache
_ROW_WEIGHTS: Final = 256  # sum of the weights of two rows, so that a weighted sum of levels fits into 16 bits


class Preprocessor:
    """Pre-processor that writes scaled and normalized frames to the network's input tensor. It is not thread-safe.

    The tensor is (B, H, W, 3) if `channels_last` is True, and otherwise (B, 3, H, W). Its type is float32, float16, or
    uint8. Its values differ from those of ``tests/letterbox_reference.py`` by at most one of 255 levels.
    """

    def __init__(self, spec: InputSpec, tensor: NDArray[Any], *, channels_last: bool = False) -> None:
        """Create a pre-processor that writes to `tensor`, whose rows are the frames of a batch."""
        self._spec = spec
        self._target = tensor.transpose(0, 3, 1, 2) if channels_last else tensor
        same = tensor.dtype == np.float32 and not channels_last
        self._tensor = tensor if same else np.zeros(self._target.shape, np.float32)
        self._scalers: dict[tuple[int, ...], _Scaler] = {}
        self._drawn: list[_Scaler | None] = [None] * len(tensor)

    def write(self, index: int, pixels: NDArray[np.uint8]) -> Letterbox:
        """Scale a frame, (H, W, 3) or (H, W, 4), into row `index` of the tensor. Return its position on the canvas."""
        scaler = self._scalers.get(pixels.shape)
        if scaler is None:  # this is rare, because cameras seldom change their frame size
            if len(self._scalers) >= _MAX_SIZES:
                self._scalers.clear()
            build = _Scaler if cv2 is None else _OpenCVScaler
            scaler = self._scalers[pixels.shape] = build(self._spec, pixels.shape)
        if self._drawn[index] is not scaler:  # the previous frame may have covered a different part
            self._drawn[index] = scaler
            self._tensor[index] = scaler.background
        scaler.write(pixels, self._tensor[index])
        if self._target is not self._tensor:
            np.copyto(self._target[index], self._tensor[index], casting="unsafe")
        return scaler.letterbox


class _Scaler:
    """Scaler of frames of one size, with bilinear interpolation. It rounds levels to integers, like the GPU kernel."""

    def __init__(self, spec: InputSpec, shape: tuple[int, ...]) -> None:
        height_px, width_px, channels = shape
        self.letterbox = Letterbox.fit(width_px, height_px, spec.width, spec.height, spec.letterbox)
        width, height = self.letterbox.content(width_px, height_px)
        gain, offset = (values[:, None] for values in gain_and_offset(spec.scale, spec.mean, spec.std))
        self._gain, self._offset = gain[:, :, None], offset[:, :, None]
        self.background = spec.fill * self._gain + self._offset
        x, y = self.letterbox.pad_x_px, self.letterbox.pad_y_px
        self._region = (slice(None), slice(y, y + height), slice(x, x + width))
        order = np.array([[0], [1], [2]] if spec.color == "bgr" else [[2], [1], [0]])
        columns, rows = taps(width, width_px), taps(height, height_px)
        self._columns = [(tap.pixels * channels + order).ravel() for tap in columns]
        self._column_weights = [np.tile(tap.weight / _ROW_WEIGHTS, 3).astype(np.float32) for tap in columns]
        self._rows = [tap.pixels for tap in rows]
        lower = np.rint(rows[1].weight * _ROW_WEIGHTS).astype(np.uint16)[:, None]
        self._row_weights = [_ROW_WEIGHTS - lower, lower]
        row_bytes = width_px * channels
        block = min(height, max(1, _BLOCK_BYTES // row_bytes))
        self._blocks = [slice(start, min(start + block, height)) for start in range(0, height, block)]
        self._source = np.empty((block, row_bytes), np.uint8)
        self._sums = np.empty((2, block, row_bytes), np.uint16)
        self._gathered = np.empty((block, 3 * width), np.uint16)
        self._levels = np.empty((2, block, 3 * width), np.float32)

    def write(self, pixels: NDArray[np.uint8], tensor: NDArray[np.float32]) -> None:
        """Write a scaled, normalized frame to the part of `tensor` (3, H, W) that the frame covers."""
        frame, region = pixels.reshape(len(pixels), -1), tensor[self._region]
        for block in self._blocks:
            count = block.stop - block.start
            source, sums = self._source[:count], self._sums[:, :count]
            gathered, levels = self._gathered[:count], self._levels[:, :count]
            for index, row_weights, weighted in zip(self._rows, self._row_weights, sums, strict=True):
                np.take(frame, index[block], 0, source, "clip")  # the mode "raise" would copy the output
                np.multiply(source, row_weights[block], weighted)
            np.add(sums[0], sums[1], sums[0])
            for index, column_weights, scaled in zip(self._columns, self._column_weights, levels, strict=True):
                np.take(sums[0], index, 1, gathered, "clip")
                np.multiply(gathered, column_weights, scaled)
            np.add(levels[0], levels[1], levels[0])
            np.rint(levels[0], levels[0])
            planes, output = levels[0].reshape(count, 3, -1).swapaxes(0, 1), region[:, block]
            np.multiply(planes, self._gain, output)
            np.add(output, self._offset, output)


class _OpenCVScaler(_Scaler):
    """Scaler that uses OpenCV. It takes half the time of `_Scaler`, and its results differ by at most one level."""

    def __init__(self, spec: InputSpec, shape: tuple[int, ...]) -> None:
        super().__init__(spec, shape)
        width, height = self.letterbox.content(shape[1], shape[0])
        self._scaled = np.empty((height, width, shape[2]), np.uint8)
        self._order = (0, 1, 2) if spec.color == "bgr" else (2, 1, 0)
        # OpenCV's own threads would spin on the cores that compute the network. The setting applies to the process.
        cv2.setNumThreads(1)

    def write(self, pixels: NDArray[np.uint8], tensor: NDArray[np.float32]) -> None:
        """Write a scaled, normalized frame to the part of `tensor` (3, H, W) that the frame covers."""
        cv2.resize(pixels, self._scaled.shape[1::-1], self._scaled, interpolation=cv2.INTER_LINEAR)
        planes, region = cv2.split(self._scaled), tensor[self._region]
        for target, source in enumerate(self._order):
            np.multiply(planes[source], self._gain[target], region[target])
            np.add(region[target], self._offset[target], region[target])
