"""Functions that open the detector or the second model that a configuration selects."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from vision.config import CascadeConfig, ClassifierSpec, DetectConfig, ModelSpec, checked_model_file
from vision.config.model_file import read_model_header
from vision.detect.classes import class_ids, class_names
from vision.detect.detector import IN_FLIGHT_CPU, Detector
from vision.detect.gpu_presence import reason_for_cpu
from vision.detect.metadata import check_metadata, read_metadata
from vision.detect.reference.heads import make_head
from vision.drawing.test_pattern import FAKE_CLASSES
from vision.engine.plugins import check_plugins
from vision.errors import DeviceMissing, ModelError
from vision.types import PixelFormat
from vision.version import install_hint, require_cv2

if TYPE_CHECKING:
    from vision.detect.onnxruntime.classifier import OnnxRuntimeClassifier
    from vision.detect.onnxruntime.network import Network
    from vision.detect.tensorrt.classifier import TensorRTClassifier
    from vision.engine.build_plan import Precision

log = logging.getLogger(__name__)


def open_detector(
    folder: Path, spec: ModelSpec, detect: DetectConfig, *, stop: threading.Event | None = None
) -> Detector:
    """Open the detector for the model in `folder` with the configured back-end.

    The back-end ``auto`` means TensorRT if TensorRT and a GPU are present, and otherwise ONNX Runtime. In the second
    case, the reason is logged. If this machine has a GPU, `DetectorSpec.gpu_unused` also contains the reason. TensorRT
    can take minutes to build an engine. Another thread can set `stop` to cancel the call.

    Raises:
        Closed: `stop` was set.
        ConfigError: `detect.classes` names a class that the model does not have, or the back-end is ``fake`` and OpenCV
            is not installed.
        ModelError: the ONNX file or a plugin library is missing or damaged, or does not match the spec.
        Untrusted: other users can replace a plugin library.
        DeviceMissing: the configured back-end is not available.
        DeviceNotReady: this machine has a GPU, but its driver does not answer. ``auto`` also raises this error.
        DeviceError: the device failed.
        Unavailable: the file of the model or the cache of engines cannot be used at present.
    """
    if detect.backend == "fake":
        return _open_fake(detect)
    _check_files(folder, spec)
    if detect.backend != "onnxruntime":
        class_ids(class_names(spec), detect.classes, spec.name)  # refuses an unknown name before an engine is built
        try:
            detector: Detector = _tensorrt_module("detector").open_tensorrt_detector(folder, spec, detect, stop=stop)
        except ModelError as error:
            if error.code == "head-mismatch":
                _check_with_onnxruntime(folder / spec.file, spec)  # raises the same error, with a hint that was tested
            raise
        except DeviceMissing as missing:
            if detect.backend == "tensorrt":
                raise
            return _open_onnxruntime(folder, spec, detect, gpu_unused=_report_cpu(missing, "detect"))
        else:
            return detector
    return _open_onnxruntime(folder, spec, detect)


def check_model(folder: Path, spec: ModelSpec, config: DetectConfig) -> tuple[PixelFormat, ...]:
    """Check a model: raise the errors of `open_detector` that can be detected without building an engine.

    Return the pixel formats that the detector will accept.

    The ONNX file is read and, if ONNX Runtime is installed, run on sample frames on the CPU. If TensorRT would run the
    model, the GPU must support the precision. With the back-end ``fake``, no file is read.

    Raises:
        ConfigError: `detect.classes` names a class that the model does not have.
        ModelError: the file is missing, damaged, or not the model that the spec describes; or the GPU does not support
            the precision.
        DeviceMissing: the configured back-end is not available.
        Unavailable: the file cannot be read at present.
    """
    if config.backend == "fake":
        with closing(_open_fake(config)) as fake:
            return fake.spec.pixel_formats
    _check_files(folder, spec)
    ids = class_ids(class_names(spec), config.classes, spec.name)
    path = checked_model_file(folder, spec)
    if config.backend != "onnxruntime" and _has_tensorrt(
        config.precision, "detect", required=config.backend == "tensorrt"
    ):
        _check_with_onnxruntime(path, spec, ids)
        formats: tuple[PixelFormat, ...] = _tensorrt_module("frames").PIXEL_FORMATS
        return formats
    one_thread = config.model_copy(update={"batches_in_flight": 1, "threads": 1})
    with closing(_open_onnxruntime(folder, spec, one_thread)) as detector:
        return detector.spec.pixel_formats


def _check_with_onnxruntime(path: Path, spec: ModelSpec, ids: Sequence[int] | None = None) -> None:
    """Check a model on sample frames with ONNX Runtime, if it is installed. For the errors, see `check_network`."""
    if spec.plugins:
        return  # ONNX Runtime cannot run TensorRT plugins, so only the start checks the outputs, with the engine
    try:
        network = importlib.import_module("vision.detect.onnxruntime.network")
    except ImportError:
        return  # without ONNX Runtime, only the start checks the outputs, with the engine
    network.check_network(path, spec, make_head(spec, len(class_names(spec)), 0.5, ids))


def _check_files(folder: Path, spec: ModelSpec) -> None:
    """Check that a model's ONNX file is complete and its metadata fits the spec. Also check the plugin libraries.

    Call this function before a GPU is opened, because an error in a file does not depend on the GPU.

    Raises:
        ModelError: see `read_model_header`, `check_metadata`, and `check_plugins`.
        Untrusted: see `check_plugins`.
    """
    check_metadata(spec, read_metadata(read_model_header(folder / spec.file, spec.name)))
    check_plugins(folder, spec)


def _has_tensorrt(precision: Precision, section: str, *, required: bool) -> bool:
    """Return True if TensorRT and a GPU that supports the precision are available.

    `section` is the section of camera.yaml to name in error messages.

    Raises:
        DeviceMissing: `required` is True, but TensorRT or the GPU is not available.
        DeviceNotReady: this machine has a GPU, but its driver does not answer; see `reason_for_cpu`.
        ModelError: the GPU does not support the precision.
    """
    try:
        _tensorrt_module("detector").check_device(precision)
    except DeviceMissing as missing:
        if required:
            raise
        reason_for_cpu(missing, section)
        return False
    return True


def published_class_names(spec: ModelSpec, detect: DetectConfig) -> tuple[str, ...]:
    """Return the class names of the detector that `open_detector` would open."""
    return FAKE_CLASSES if detect.backend == "fake" else class_names(spec)


def _report_cpu(missing: DeviceMissing, section: str) -> str:
    """Log why a model runs on the CPU. Return the result of `reason_for_cpu`, or raise its error `DeviceNotReady`."""
    reason = reason_for_cpu(missing, section)
    if reason:
        log.warning("the GPU is not used; detecting on the CPU with ONNX Runtime: %s", reason)
    else:
        log.info("no NVIDIA GPU: detecting on the CPU with ONNX Runtime")
        log.debug("%s", missing.args[0])
    return reason


def _tensorrt_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"vision.detect.tensorrt.{name}")
    except ImportError as error:
        raise DeviceMissing(
            f"the TensorRT back-end cannot be loaded: {error}",
            hint="`vision doctor` shows what is missing; `detect: {backend: onnxruntime}` runs on the CPU",
            code="tensorrt-missing",
        ) from error


def _open_onnxruntime(folder: Path, spec: ModelSpec, detect: DetectConfig, *, gpu_unused: str = "") -> Detector:
    """Open the detector on the CPU.

    The detector ignores `detect.max_batch`, for the reason given in `OnnxRuntimeDetector`. For `gpu_unused`, see
    `DetectorSpec`.
    """
    refuse_plugins(spec)
    ids = class_ids(class_names(spec), detect.classes, spec.name)
    path = checked_model_file(folder, spec)
    try:
        from vision.detect.onnxruntime.detector import OnnxRuntimeDetector
    except ImportError as error:
        raise _no_onnxruntime(error, "onnx") from error
    return OnnxRuntimeDetector(
        path,
        spec,
        score=detect.score_threshold,
        iou=detect.iou_threshold,
        classes=ids,
        batches_in_flight=detect.batches_in_flight or IN_FLIGHT_CPU,
        threads=detect.threads,
        gpu_unused=gpu_unused,
    )


def open_network(path: Path, spec: ModelSpec) -> Network:
    """Load the network of an ONNX file on the CPU with one thread, to run it on the frames of `sample_frames`.

    Raises:
        ModelError: the model needs TensorRT plugins, the file cannot be loaded, or its inputs differ from the spec.
        DeviceMissing: ONNX Runtime is not installed.
    """
    refuse_plugins(spec)
    try:
        from vision.detect.onnxruntime.network import Network
    except ImportError as error:
        raise _no_onnxruntime(error, "onnx") from error
    return Network(path, spec, threads=1)


def open_second_model(
    folder: Path, spec: ClassifierSpec, cascade: CascadeConfig, *, stop: threading.Event | None = None
) -> OnnxRuntimeClassifier | TensorRTClassifier:
    """Open the second model in `folder`, a classifier of detected objects. For ``auto``, see `open_detector`.

    Raises:
        Closed: `stop` was set while an engine was built.
        ConfigError: OpenCV, which the back-end for the CPU needs, is not installed.
        ModelError: the file is missing, damaged, or not the model that the spec describes, or no engine can be built.
        DeviceMissing: the configured back-end is not available.
        DeviceError: the device failed.
        Unavailable: the cache of engines cannot be used at present.
    """
    if cascade.backend != "onnxruntime":
        try:
            module = _tensorrt_module("classifier")
            classifier: TensorRTClassifier = module.open_tensorrt_classifier(folder, spec, cascade, stop=stop)
        except DeviceMissing as missing:
            if cascade.backend == "tensorrt":
                raise
            _report_cpu(missing, "cascade")
        else:
            return classifier
    return open_classifier(folder, spec, threads=cascade.threads, max_batch=cascade.max_batch)


def check_second_model(folder: Path, spec: ClassifierSpec, cascade: CascadeConfig) -> None:
    """Check a second model, which classifies detected objects, without building an engine.

    Raise the errors of `open_second_model` that can be detected without the engine.
    """
    if cascade.backend != "onnxruntime" and _has_tensorrt(
        cascade.precision, "cascade", required=cascade.backend == "tensorrt"
    ):
        read_model_header(checked_model_file(folder, spec), spec.name)
        if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("cv2") is None:
            return  # only the start checks the outputs, with the engine
    open_classifier(folder, spec, threads=1, max_batch=1).close()


def open_classifier(
    folder: Path, spec: ClassifierSpec, *, threads: int = 1, max_batch: int = 8
) -> OnnxRuntimeClassifier:
    """Open the second model in `folder` on the CPU. `threads` threads compute each batch of at most `max_batch` crops.

    Raises:
        ConfigError: OpenCV is not installed.
        ModelError: the file is missing, damaged, or not the model that the spec describes.
        DeviceMissing: ONNX Runtime is not installed.
    """
    path = checked_model_file(folder, spec)
    require_cv2("cascade")
    try:
        from vision.detect.onnxruntime.classifier import OnnxRuntimeClassifier
    except ImportError as error:
        raise _no_onnxruntime(error, "laptop") from error
    return OnnxRuntimeClassifier(path, spec, threads=threads, max_batch=max_batch)


def refuse_plugins(spec: ModelSpec) -> None:
    """Raise `ModelError` if a model needs TensorRT plugins, and therefore cannot run with ONNX Runtime."""
    if spec.plugins:
        raise ModelError(
            f"{spec.name} needs TensorRT plugins, so it does not run on the CPU with ONNX Runtime",
            hint="run it on a GPU with TensorRT, or export the model without the plugins",
            code="plugins-need-tensorrt",
        )


def _no_onnxruntime(error: ImportError, extra: str) -> DeviceMissing:
    return DeviceMissing(
        f"the ONNX Runtime back-end cannot be loaded: {error}",
        hint=install_hint(extra),
        code="onnxruntime-missing",
    )


def _open_fake(detect: DetectConfig) -> Detector:
    require_cv2("`detect: {backend: fake}`")
    from vision.detect.fake import FakeDetector

    ids = class_ids(FAKE_CLASSES, detect.classes, "of the fake back-end")
    return FakeDetector(
        score=detect.score_threshold,
        classes=ids,
        batches_in_flight=detect.batches_in_flight or IN_FLIGHT_CPU,
        max_batch=detect.max_batch,
    )
