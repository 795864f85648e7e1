# mypy: allow-subclassing-any
"""Implicit calibration with TensorRT 10: the builder runs a model on frames, and finds a scale for each activation.

The scales become Q/DQ nodes (`vision.optimize.quantize`), which all versions of TensorRT accept. TensorRT 11 and
TensorRT-RTX have no calibrators.
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from numpy.typing import NDArray

from vision.engine.build import build_failure, failed_build, make_monitor, refused_model
from vision.engine.library import collect_log, find_library, logger, member_of, network_flags, or_none, start, trt
from vision.engine.profiles import Profile, Range
from vision.engine.progress import LogListener, run_interruptible
from vision.engine.tensors import add_profile, inputs_of
from vision.errors import Closed, ModelError

if TYPE_CHECKING:
    from vision.config import ModelSpec

CalibratorKind: TypeAlias = Literal["entropy", "minmax"]
"""Algorithm of TensorRT: `IInt8EntropyCalibrator2` or `IInt8MinMaxCalibrator`."""

Batch: TypeAlias = Mapping[str, NDArray[Any]]
Upload: TypeAlias = Callable[[Batch], Mapping[str, int]]
"""Function that copies the inputs of a batch to the GPU, and returns their device addresses by name."""

_CLASSES: Final[Mapping[CalibratorKind, str]] = {
    "entropy": "IInt8EntropyCalibrator2",
    "minmax": "IInt8MinMaxCalibrator",
}
_LEVELS: Final = 127


def require_calibrators() -> None:
    """Raise `ModelError` if the installed TensorRT has no calibrators, and `DeviceMissing` if TensorRT is missing."""
    library = find_library()
    if not hasattr(trt.IBuilderConfig, "int8_calibrator"):
        raise ModelError(
            f"{library} has no calibrators; TensorRT 10.3 to 10.16 have them",
            hint="calibrate with ONNX Runtime, the default; the result also runs with this library",
            code="no-calibrators",
        )


class Calibrator:
    """Methods of TensorRT's calibrators, in a class that does not depend on TensorRT.

    The C++ code of the builder would lose an exception. Therefore, `error` keeps the exception, and the calibration
    ends.
    """

    def __init__(self, batches: Iterator[Batch], upload: Upload, ended: threading.Event) -> None:
        """Create the calibrator. `upload` copies a batch to the GPU, and returns the device addresses of its inputs.

        The calibrator sets `ended` when it has the scales, or has failed. In both cases, the rest of the build is not
        needed.
        """
        self.table: bytes | None = None  # the scales, as TensorRT writes them; None before the end of the calibration
        self.error: BaseException | None = None  # error that ended the calibration; None if there is none
        self._batches = batches
        self._upload = upload
        self._ended = ended

    def get_batch_size(self) -> int:
        """Return 1. The builder reads the batch size from the calibration profile instead."""
        return 1

    def get_batch(self, names: Sequence[str]) -> list[int] | None:
        """Return the device addresses of the inputs `names` of the next batch.

        Return None after the last batch, or after an error.
        """
        try:
            batch = next(self._batches, None)
            if batch is None:
                return None
            addresses = self._upload(batch)
            return [addresses[name] for name in names]
        except BaseException as error:  # noqa: BLE001 - `find_scales` raises it
            self.error = error
            self._ended.set()
            return None

    def read_calibration_cache(self) -> bytes | None:
        """Return None, because `vision.optimize.calibration` stores the scales of previous calibrations."""
        return None

    def write_calibration_cache(self, cache: Any) -> None:
        """Keep the scales, and set `ended`, because the rest of the build is not needed."""
        self.table = bytes(cache)
        self._ended.set()


def make_calibrator(kind: CalibratorKind, batches: Iterator[Batch], upload: Upload, ended: threading.Event) -> Any:
    """Return an instance of TensorRT's calibrator class for `kind` that has the methods of `Calibrator`."""
    base: Any = getattr(trt, _CLASSES[kind])

    class TensorRtCalibrator(Calibrator, base):
        def __init__(self) -> None:
            base.__init__(self)  # called by name, because pybind otherwise raises TypeError
            Calibrator.__init__(self, batches, upload, ended)

    return TensorRtCalibrator()


def find_scales(model: bytes, spec: ModelSpec, kind: CalibratorKind, batches: Iterator[Batch]) -> dict[str, float]:
    """Calibrate a serialized ONNX model on the GPU. Return the scale of each tensor by name.

    Args:
        batches: inputs of the network by name. All batches have the same shapes. If the iterator raises an error, for
            example `Closed`, the calibration ends, and the error is passed on.

    Raises:
        DeviceMissing: TensorRT is missing, or no GPU works.
        DeviceError: the GPU fails or lacks memory.
        ModelError: the library has no calibrators, or cannot calibrate the model.
        KeyboardInterrupt: the user pressed Ctrl-C.
    """
    require_calibrators()
    from vision.gpu.cuda import open_device, use_device

    device = open_device()
    first = next(batches)
    ended = threading.Event()

    def work() -> dict[str, float]:
        use_device(device)
        with ExitStack() as memory, collect_log() as log:
            upload = device_memory(first, memory)
            calibrator = make_calibrator(kind, itertools.chain([first], batches), upload, ended)
            network = _calibrate(model, spec, calibrator, first, ended)
            if calibrator.error is not None:
                raise calibrator.error
            if calibrator.table is None and ended.is_set():
                raise Closed("the calibration was canceled")
            if calibrator.table is None:
                problem = f"{find_library()} cannot calibrate {spec.name}"
                raise failed_build(problem, build_failure(log, network), "int8")
            return scales_in(calibrator.table)

    return run_interruptible(work, ended)


def device_memory(first: Batch, resources: ExitStack) -> Upload:
    """Allocate GPU memory for batches with the shapes of `first`. `resources` frees the memory.

    Return a function that copies a batch to this memory, and returns the address of each input by name.
    """
    from vision.gpu.memory import DeviceBuffer

    buffers = {
        name: resources.enter_context(DeviceBuffer(array.nbytes, f"calibration of the input {name}"))
        for name, array in first.items()
    }

    def upload(batch: Batch) -> Mapping[str, int]:
        for name, array in batch.items():
            buffers[name].write(array)
        return {name: buffer.address for name, buffer in buffers.items()}

    return upload


def _calibrate(model: bytes, spec: ModelSpec, calibrator: Any, first: Batch, ended: threading.Event) -> Any:
    """Make the builder calibrate a model. Return the parsed network, so that `build_failure` can explain a failure."""
    builder = start(trt.Builder)
    network = builder.create_network(network_flags(strongly_typed=False))
    parser = trt.OnnxParser(network, logger())
    if not parser.parse(model):
        raise refused_model(spec.file, [parser.get_error(index) for index in range(parser.num_errors)])
    config: Any = builder.create_builder_config()
    config.set_flag(member_of("BuilderFlag", "INT8"))
    config.int8_calibrator = calibrator
    monitor = make_monitor(LogListener(f"{spec.name} calibration"), ended)
    config.progress_monitor = monitor
    inputs = inputs_of(network)
    if any(tensor.is_shape_tensor for tensor in inputs):
        raise ModelError(
            f"{spec.name} has an input whose values determine shapes, which TensorRT does not calibrate here",
            hint="calibrate with ONNX Runtime, the default",
            code="shape-inputs",
        )
    profile = None
    if any(min(tensor.shape, default=0) < 0 for tensor in inputs):  # TensorRT accepts no profile for fixed shapes
        shapes = {name: Range(array.shape, array.shape, array.shape) for name, array in first.items()}
        profile = add_profile(builder, config, inputs, Profile(shapes, {}))
        if not config.set_calibration_profile(profile):
            raise ModelError(f"{find_library()} refuses the profile of {spec.name}", code="profile-refused")
    or_none(builder.build_serialized_network(network, config))
    del parser, profile  # not earlier, because TensorRT refers to their memory
    return network


def scales_in(table: bytes) -> dict[str, float]:
    """Return the scale of each tensor, by name, from a calibration table that TensorRT wrote.

    The first line of a table names the version and the algorithm. Each other line consists of the name of a tensor, a
    colon, and the bits of the scale as a hexadecimal number.

    Raises:
        ModelError: the table has a different format.
    """
    lines = table.decode(errors="replace").splitlines()
    try:
        if not lines or not lines[0].startswith("TRT-"):
            raise ValueError("no header")
        pairs = (line.rsplit(": ", 1) for line in lines[1:] if line)
        return {name: struct.unpack(">f", bytes.fromhex(bits.zfill(8)))[0] for name, bits in pairs}
    except (ValueError, struct.error) as error:
        raise ModelError(
            f"TensorRT wrote a calibration table in an unknown format: {error}", code="bad-table"
        ) from error


def thresholds_in(scales: Mapping[str, float], names: Sequence[str], label: str) -> dict[str, float]:
    """Return, for each tensor in `names`, the largest absolute value that int8 represents with the tensor's scale.

    Raises:
        ModelError: TensorRT found no scale for a tensor of the model `label`.
    """
    missing = [name for name in names if name not in scales]
    if missing:
        raise ModelError(
            f"{label}: TensorRT found no scale for {', '.join(missing[:3])}, and {len(missing)} tensors in total",
            hint="calibrate with ONNX Runtime, the default",
            code="calibration-incomplete",
        )
    return {name: scales[name] * _LEVELS for name in names}
