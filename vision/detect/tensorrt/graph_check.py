"""Comparison of each CUDA graph's results with the results of the steps from which the graph was captured.

The comparison takes place at every start. A graph stores addresses and shapes. If a library replaces a kernel, a shape,
or a buffer after the capture, the graph silently produces wrong results. Therefore each graph is compared with the same
work, run step by step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.config import InputSpec
from vision.detect.reference.alternatives import Sample
from vision.detect.reference.sample import sample_frames
from vision.detect.tensorrt.kernels import FrameLayout, Output, describe_frame
from vision.detect.tensorrt.slot import BatchGraph, Slot, SlotMemory
from vision.errors import DeviceError
from vision.gpu.cuda import Resource, Stream
from vision.gpu.memory import DeviceBuffer

_TOLERANCE = 1e-3  # relative to the largest value; so far, the results of all graphs have been identical


class SampleFrames(Resource):
    """The frames of the sample (`vision.detect.reference.sample`) on the GPU."""

    def __init__(self, spec: InputSpec) -> None:
        self._frames: list[DeviceBuffer] = []
        self._descriptions: list[bytes] = []
        self._opened = True
        for pixels in sample_frames():
            buffer = DeviceBuffer(pixels.nbytes + 16, "sample frame")
            self._frames.append(buffer)
            buffer.write(pixels.ravel())
            layout = FrameLayout(pixels.shape[0], pixels.shape[1], "bgr")
            self._descriptions.append(describe_frame(spec, layout, buffer.address))

    def fill(self, memory: SlotMemory, batch: int, stream: Stream) -> None:
        """Describe the two sample frames, alternately, in the first `batch` rows of a slot's memory.

        Queue the upload of these rows to the GPU.
        """
        for index in range(batch):
            memory.row(index)[:] = self._descriptions[index % len(self._descriptions)]
        memory.upload_rows(batch, stream)

    def _release(self) -> None:
        for frame in self._frames:
            frame.close()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Results of a batch, for comparison: the engine's outputs for the first and last frame, and all objects."""

    outputs: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
    counts: NDArray[np.uint32]
    boxes: NDArray[np.float32]  # (N, 4 + extra values), without masks

    def sample(self, without_batch: frozenset[str]) -> Sample:
        """Return the outputs for the first and the last frame.

        `without_batch` contains the names of the outputs that have no batch axis.
        """
        frames: list[dict[str, NDArray[Any]]] = [{}, {}]
        for name, ends in self.outputs.items():
            for frame, output in zip(frames, ends, strict=True):
                frame[name] = output if name in without_batch else output[None]
        return Sample(frames)

    def first(self, name: str) -> NDArray[np.float32]:
        """Return the output `name` for the first frame, as float32."""
        return self.outputs[name][0].astype(np.float32)


@dataclass(frozen=True, slots=True)
class GraphCheck:
    """Check that, in one slot and for one batch size, a CUDA graph gives the same results as its separate steps."""

    slot: Slot
    graph: BatchGraph
    outputs: Mapping[str, Output]  # outputs of the engine by name
    label: str  # names the graph in error messages

    def run(self) -> Snapshot:
        """Overwrite the output memory, run the batch (as a CUDA graph if captured), and return the results."""
        memory, stream, batch = self.slot.memory, self.slot.stream, self.graph.batch
        for buffer in memory.outputs.values():
            buffer.fill(0xFF, stream)
        stream.synchronize()
        memory.result.counts[:] = 0xFFFFFFFF
        self.graph.run()
        stream.synchronize()
        counts = memory.result.counts[:batch].copy()
        rows = np.concatenate([memory.result.boxes_xyxy, memory.result.extras], axis=2)
        boxes = np.concatenate([rows[index, : counts[index, 0]] for index in range(batch)])
        return Snapshot({name: self._ends(name, output) for name, output in self.outputs.items()}, counts, boxes)

    def _ends(self, name: str, output: Output) -> tuple[NDArray[Any], NDArray[Any]]:
        buffer = self.slot.memory.outputs[name]
        nbytes = output.nbytes
        first = buffer.read(output.shape, output.dtype)
        return first, buffer.read(output.shape, output.dtype, (self.graph.batch - 1) * nbytes)

    def require_same(self, eager: Snapshot) -> None:
        """Run the graph, and compare its results with `eager`, the results of the separate steps.

        Raises:
            DeviceError: an output differs by more than 0.1 % of its largest value, or all outputs are identical but
                the objects differ.
        """
        graph = self.run()
        for name, pair in eager.outputs.items():
            for expected, given in zip(pair, graph.outputs[name], strict=True):
                difference = relative_difference(expected, given)
                if not difference <= _TOLERANCE:
                    raise self._differs(f"output {name} differs by {difference:.2g} of its largest value")
        same = all(
            np.array_equal(a, b, equal_nan=True)
            for name, pair in eager.outputs.items()
            for a, b in zip(pair, graph.outputs[name], strict=True)
        )
        if same and not (np.array_equal(eager.counts, graph.counts) and np.array_equal(eager.boxes, graph.boxes)):
            raise self._differs("the objects differ, but the network's outputs are the same")

    def _differs(self, difference: str) -> DeviceError:
        return DeviceError(
            f"the CUDA graph of {self.label} and the same work without a graph give different results: {difference}",
            hint="set `detect: {graphs: off}`, or build the engine again: `vision build MODEL --force`",
            code="graph-differs",
        )


def relative_difference(expected: NDArray[Any], given: NDArray[Any]) -> float:
    """Return the largest absolute difference divided by the largest absolute expected value.

    The result is infinite if a value is finite in only one of the two arrays, and 0 if no value is finite.
    """
    a, b = expected.astype(np.float64), given.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    finite = np.isfinite(a)
    if not finite.any():
        return 0.0
    greatest = float(np.abs(a[finite]).max())
    return float(np.abs(a[finite] - b[finite]).max()) / max(greatest, 1e-12)
