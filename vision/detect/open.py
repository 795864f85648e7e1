"""From a configuration to a detector: the one place that chooses between the backends."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vision.config import DetectConfig, ModelSpec
from vision.detect.classes import class_ids, class_names
from vision.detect.detector import SLOTS_CPU, Detector
from vision.detect.model_file import checked_model_file
from vision.errors import DeviceMissing
from vision.test_pattern import FAKE_CLASSES

log = logging.getLogger(__name__)


def open_detector(
    folder: Path, spec: ModelSpec, detect: DetectConfig, *, stop: threading.Event | None = None
) -> Detector:
    """The detector that `detect` asks for, with the model of `folder`.

    A backend that is named is used or refused. ``auto`` takes TensorRT where it and a GPU are there, and says in the
    log why it did not.

    Args:
        stop: ends it early where it takes long: TensorRT may build an engine for minutes.

    Raises:
        Closed: stopped.
        ConfigError: `detect.classes` names a class that the model does not have.
        ModelError: the file is not the model that the card describes.
        DeviceMissing: the named backend is not there.
        DeviceError: the device failed.
    """
    backends: dict[str, Callable[[Path, ModelSpec, DetectConfig], Detector]] = {
        "auto": partial(_open_auto, stop=stop),
        "tensorrt": partial(_open_tensorrt, stop=stop),
        "onnxruntime": open_onnxruntime_detector,
        "fake": _open_fake,
    }
    return backends[detect.backend](folder, spec, detect)


def published_class_names(spec: ModelSpec, detect: DetectConfig) -> tuple[str, ...]:
    """`class_names` of the detector that `open_detector` would open."""
    return FAKE_CLASSES if detect.backend == "fake" else class_names(spec)


def _open_auto(folder: Path, spec: ModelSpec, detect: DetectConfig, *, stop: threading.Event | None) -> Detector:
    try:
        return _open_tensorrt(folder, spec, detect, stop=stop)
    except DeviceMissing as missing:
        unused = has_nvidia_gpu()  # then it is no choice, but something to be mended
        hint = f"; {missing.hint}" if unused and missing.hint else ""
        level = logging.WARNING if unused else logging.INFO
        log.log(level, "no TensorRT here, so ONNX Runtime detects on the CPU: %s%s", missing.args[0], hint)
    return open_onnxruntime_detector(folder, spec, detect)


def has_nvidia_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether the kernel shows one, of a Jetson or of a card, whatever else is missing to use it."""
    return any((devices / name).exists() for name in ("nvidiactl", "nvhost-gpu", "nvgpu"))


def _open_tensorrt(folder: Path, spec: ModelSpec, detect: DetectConfig, *, stop: threading.Event | None) -> Detector:
    class_ids(class_names(spec), detect.classes, spec.name)  # a wrong name is found before an engine is built for it
    try:
        module = importlib.import_module("vision.detect.tensorrt.detector")
    except ImportError as error:
        raise DeviceMissing(
            f"the TensorRT backend cannot be loaded: {error}",
            hint="`vision doctor` says what is missing; `detect: {backend: onnxruntime}` runs on the CPU",
        ) from error
    detector: Detector = module.open_tensorrt_detector(folder, spec, detect, stop=stop)
    return detector


def open_onnxruntime_detector(folder: Path, spec: ModelSpec, detect: DetectConfig) -> Detector:
    """The CPU's detector: two batches at a time, one frame a batch.

    Larger batches do not pay on a CPU and make the first frame wait for the last: on one core of a Xeon at 2.1 GHz
    nanodet-g-416 takes 31.3 ms a frame in batches of 1, 31.6 ms in batches of 2 and 31.4 ms in batches of 4. So
    `detect.max_batch` has no effect here.
    """
    ids = class_ids(class_names(spec), detect.classes, spec.name)
    path = checked_model_file(folder, spec)
    try:
        from vision.detect.onnxruntime.detector import OnnxRuntimeDetector
    except ImportError as error:
        raise DeviceMissing(
            f"the ONNX Runtime backend cannot be loaded: {error}", hint="pip install 'vision[laptop]'"
        ) from error
    return OnnxRuntimeDetector(
        path,
        spec,
        score=detect.score_threshold,
        iou=detect.iou_threshold,
        classes=ids,
        slots=detect.batches_in_flight or SLOTS_CPU,
        threads=detect.threads,
    )


def _open_fake(_folder: Path, _card: ModelSpec, detect: DetectConfig) -> Detector:
    from vision.detect.fake import FakeDetector

    ids = class_ids(FAKE_CLASSES, detect.classes, "of the fake backend")
    return FakeDetector(
        score=detect.score_threshold,
        classes=ids,
        slots=detect.batches_in_flight or SLOTS_CPU,
        max_batch=detect.max_batch,
    )
