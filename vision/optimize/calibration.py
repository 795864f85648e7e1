"""Calibration: it runs a model on frames to find thresholds for the int8 values of activations, and caches them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from vision.config import ModelSpec
from vision.errors import ConfigError, ModelError, Unavailable
from vision.evaluation.passes import Progress
from vision.optimize.feed import Feed, Inputs
from vision.optimize.frames import Frames
from vision.optimize.histogram import Histogram
from vision.optimize.onnx_graph import Graph, open_session
from vision.optimize.quantize import quantized_inputs
from vision.optimize.thresholds import Algorithm, thresholds
from vision.state.private_files import (
    Unwritable,
    cache_folder,
    make_private_folder,
    read_checked,
    sha256_of,
    write_checked,
)

if TYPE_CHECKING:
    from vision.engine.calibrators import CalibratorKind

_log = logging.getLogger(__name__)

_VERSION: Final = 1  # increase this number when a change of the code gives different thresholds for the same frames


class _Table(msgspec.Struct, frozen=True):
    """Contents of a cache file: the thresholds, and the model, frames, and algorithm for which they were computed."""

    model_sha256: str
    frames_sha256: str
    algorithm: str
    thresholds: dict[str, float]
    version: int = _VERSION


Route: TypeAlias = Literal["onnxruntime", "tensorrt"]
"""Library that runs the model on the frames. TensorRT also computes the thresholds."""


def require_tensorrt(algorithms: Sequence[Algorithm]) -> None:
    """Check that TensorRT can calibrate on this machine with these algorithms.

    Raises:
        ConfigError: an algorithm is not available with TensorRT.
        ModelError: the installed version of TensorRT has no calibrators.
        DeviceMissing: TensorRT or a GPU is missing.
    """
    for algorithm in algorithms:
        _calibrator_kind(algorithm)
    from vision.engine.calibrators import require_calibrators

    require_calibrators()
    from vision.gpu.cuda import open_device

    open_device()


def _calibrator_kind(algorithm: Algorithm) -> CalibratorKind:
    if algorithm == "entropy" or algorithm == "minmax":  # noqa: PLR1714 - narrows the type
        return algorithm
    raise ConfigError(
        f"--with tensorrt: expected the algorithm entropy or minmax, got {algorithm}", code="invalid-value"
    )


class Calibration:
    """Thresholds for the int8 activations of a model, from one set of frames.

    The model runs only if the cache lacks a result.
    """

    def __init__(
        self,
        graph: Graph,
        spec: ModelSpec,
        frames: Frames,
        *,
        route: Route = "onnxruntime",
        cache: Path | None = None,
    ) -> None:
        """Prepare the calibration.

        Args:
            route: library that runs the model.
            cache: folder of the cache. None means the default folder.
        """
        self._route = route
        self._graph = graph
        self._spec = spec
        self._frames = frames
        self._names = quantized_inputs(graph)
        self._folder = cache or cache_folder("calibration")
        self._histograms: Mapping[str, Histogram] | None = None

    def is_cached(self, algorithm: Algorithm) -> bool:
        """Return True if `thresholds` can return a result for this algorithm without running the model."""
        return self._histograms is not None or self._cached(algorithm) is not None

    def thresholds(self, algorithm: Algorithm, progress: Progress) -> Mapping[str, float]:
        """Return, for each tensor by name, the largest absolute value that int8 represents.

        If the cache does not contain the result, run the model on all frames.

        Raises:
            Closed: `progress` raised this error.
            ConfigError: ONNX Runtime is not installed, or TensorRT does not have the algorithm.
            ModelError: the model cannot be run or calibrated, or computes values that are not finite.
            DeviceMissing: TensorRT or a GPU is missing, and the route is ``tensorrt``.
            DeviceError: the GPU fails, and the route is ``tensorrt``.
            Unavailable: the cache cannot be read at present.
        """
        cached = self._cached(algorithm)
        if cached is not None:
            return cached
        if self._route == "tensorrt":
            found = self._find_with_tensorrt(algorithm, progress)
        else:
            if self._histograms is None:
                self._histograms = self._collect(progress)
            found = thresholds(self._histograms, algorithm)
        table = _Table(self._graph.sha256, self._frames.sha256, self._label(algorithm), found)
        try:
            make_private_folder(self._folder)
            write_checked(self._path(algorithm), msgspec.json.encode(table))
        except (Unwritable, Unavailable, ModelError) as error:
            _log.warning("cannot store the calibration, so the next one starts again: %s", error.args[0])
        return found

    def _label(self, algorithm: Algorithm) -> str:
        """Return the name under which the results of an algorithm are cached.

        It is the name of the algorithm, preceded by the name of the route if TensorRT runs the model.
        """
        return algorithm if self._route == "onnxruntime" else f"{self._route}-{algorithm}"

    def _path(self, algorithm: Algorithm) -> Path:
        label = self._label(algorithm)
        key = f"{_VERSION} {self._graph.sha256} {self._frames.sha256} {label}"
        return self._folder / f"{self._spec.name}-{label}-{sha256_of(key.encode())[:20]}.table"

    def _cached(self, algorithm: Algorithm) -> Mapping[str, float] | None:
        """Return the thresholds in the cache. Return None if the cache has none for this model and these frames."""
        path = self._path(algorithm)
        contents = None
        with suppress(ModelError):  # a file or folder that other users can write
            contents = read_checked(path)
        if contents is None:
            return None
        try:
            table = msgspec.json.decode(contents, type=_Table)
        except msgspec.DecodeError:
            _log.warning("%s is damaged and is not used", path)
            return None
        wanted = (self._graph.sha256, self._frames.sha256, self._label(algorithm), _VERSION)
        if (table.model_sha256, table.frames_sha256, table.algorithm, table.version) != wanted:
            _log.warning("%s is for a different model or for different frames, and is not used", path)
            return None
        return table.thresholds if table.thresholds.keys() >= set(self._names) else None

    def _find_with_tensorrt(self, algorithm: Algorithm, progress: Progress) -> dict[str, float]:
        """Calibrate the model with TensorRT. Return the thresholds by tensor."""
        from vision.engine.calibrators import find_scales, thresholds_in

        kind = _calibrator_kind(algorithm)
        model = self._graph.serialized()
        batches = Feed(open_session(model), self._spec).batches(self._frames.images())

        def counted() -> Iterator[Inputs]:
            done = 0
            for inputs, count in batches:
                yield inputs
                done += count
                progress(done)

        return thresholds_in(find_scales(model, self._spec, kind, counted()), self._names, self._spec.name)

    def _collect(self, progress: Progress) -> Mapping[str, Histogram]:
        """Run the model on all frames, and count the values of each tensor."""
        session = open_session(self._graph.with_outputs(list(self._names)))
        batches = Feed(session, self._spec).batches(self._frames.images())
        return collect(session, self._names, batches, self._spec.name, progress)


def collect(
    session: Any, names: Sequence[str], batches: Iterable[tuple[Inputs, int]], label: str, progress: Progress
) -> Mapping[str, Histogram]:
    """Run a session on all batches, and count the values of its outputs `names`.

    Args:
        batches: for each batch, the inputs by name, and the number of frames.
        label: name of the model in messages.

    Raises:
        ModelError: the model cannot be run, or computes values that are not finite.
    """
    histograms = {name: Histogram.empty() for name in names}
    done = 0
    for inputs, count in batches:
        for name, values in zip(names, run(session, inputs, label), strict=True):
            if not histograms[name].add(values):
                raise ModelError(
                    f"{label}: tensor {name} has values that are not finite in frame {done + 1}",
                    hint="check `input` in model.yaml, and export the model in float32",
                    code="not-finite",
                )
        done += count
        progress(done)
    return histograms


def run(session: Any, inputs: Mapping[str, Any], label: str) -> list[Any]:
    """Run an ONNX Runtime session, and return all outputs. If this fails, raise `ModelError` with the name `label`."""
    try:
        return list(session.run(None, dict(inputs)))
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise ModelError(f"{label}: the model cannot be run: {error}", code="model-fails") from error
