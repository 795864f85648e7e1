"""Detectors for tests: TensorRT on a real GPU, ONNX Runtime on the emulated GPU."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cuda.bindings import runtime

from vision.config import DetectConfig, ModelSpec
from vision.detect.classes import class_ids, class_names
from vision.detect.reference.heads import make_head
from vision.detect.tensorrt.detector import TensorRTDetector, build_detector, open_tensorrt_detector
from vision.detect.tensorrt.loaded_engine import LoadedEngine, StartupTimer
from vision.gpu.cuda import open_device
from vision.gpu.nvrtc import Module, Source
from vision.types import Frame

EMULATED = hasattr(runtime, "emulate")

Shapes = Mapping[str, tuple[int, ...]]

_NAP = """
extern "C" __global__ void nap(unsigned long long ns) {
    unsigned long long begin, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - begin < ns);
}
"""


def open_model(folder: Path, spec: ModelSpec, detect: DetectConfig, outputs: Shapes, **engine: Any) -> TensorRTDetector:
    """Open a detector for an ONNX file. `outputs` are output shapes, without the batch axis, of the emulated engine."""
    if not EMULATED:
        return open_tensorrt_detector(folder, spec, detect)
    from tests.emulator.engine import onnx_compute

    return open_computed(spec, detect, outputs, compute=onnx_compute(str(folder / spec.file)), **engine)


def open_computed(
    spec: ModelSpec,
    detect: DetectConfig,
    outputs: Shapes,
    *,
    compute: Callable[[Any], Any],
    stop: threading.Event | None = None,
    integrated: bool = False,
    clock: Callable[[], int] = time.monotonic_ns,
    **engine: Any,
) -> TensorRTDetector:
    """Open a detector with an emulated engine that calls `compute`.

    If `integrated` is True, the GPU shares its memory with the CPU.
    """
    from tests.emulator.engine import EmulatedEngine

    names = class_names(spec)
    head = make_head(spec, len(names), detect.score_threshold, class_ids(names, detect.classes, spec.name))
    with contextlib.ExitStack() as made:
        opened: Any = made.enter_context(
            EmulatedEngine(compute, (spec.input.height, spec.input.width), outputs, **engine)
        )
        model = LoadedEngine(opened, spec, head, names, detect)
        device = replace(open_device(), integrated=integrated)
        return build_detector(device, model, StartupTimer(), made, stop=stop, clock=clock)


class SlowDetector:
    """Detector that spends `seconds` more on the GPU for each batch."""

    def __init__(self, detector: TensorRTDetector, seconds: float) -> None:
        self._detector = detector
        self._seconds = seconds
        source = Source("nap.cu", _NAP, {}, {})
        self._module = None if EMULATED else Module.build(source, open_device().arch, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        stream = self._detector._uploads.copies
        if self._module is None:
            runtime.emulate(stream.handle, lambda: time.sleep(self._seconds))
        else:
            nap = self._module.kernel("nap").bind((1, 1, 1), (1, 1, 1), int(self._seconds * 1e9))
            nap.enqueue(stream)
        self._detector.submit(slot, frames)

    def close(self) -> None:
        self._detector.close()
        if self._module is not None:
            self._module.close()
