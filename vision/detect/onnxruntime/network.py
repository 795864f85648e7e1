"""The network alone on ONNX Runtime, at any batch, with random input: for measuring, and never for finding objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vision.config import ModelSpec
from vision.detect.onnxruntime.detector import checked_input, open_session
from vision.errors import ModelError


class OnnxNetwork:
    """One session with its input and outputs bound once."""

    def __init__(self, path: Path, spec: ModelSpec, batch: int, *, threads: int, profile: Path | None = None) -> None:
        """
        Args:
            path: the ONNX file.
            threads: that work on one batch.
            profile: as of `open_session`.

        Raises:
            ModelError: the model cannot be loaded, or has another batch that is fixed.
        """
        self._session = open_session(path, spec, threads, profile=profile)
        name, fixed = checked_input(self._session.get_inputs(), spec)
        shape = self._session.get_inputs()[0].shape
        if isinstance(shape[0], int) and shape[0] != batch:
            raise ModelError(f"{spec.name} takes batches of {fixed} and no others, {batch} was asked for")
        size = (batch, 3, spec.input.height, spec.input.width)
        self.input_shapes = {name: size}
        self._tensor = np.random.default_rng(1).standard_normal(size, np.float32)
        self._binding = self._session.io_binding()
        self._binding.bind_input(name, "cpu", 0, np.float32, size, self._tensor.ctypes.data)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, "cpu")

    def run(self) -> None:
        """Compute one batch. Releases the GIL."""
        self._session.run_with_iobinding(self._binding)

    def end_profiling(self) -> Path:
        """Stop the profiler; the file that it wrote."""
        return Path(self._session.end_profiling())
