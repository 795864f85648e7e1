"""Inputs for any network, and the comparison of the network's outputs with the outputs of a changed network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vision.config import ModelSpec
from vision.detect.classes import class_names
from vision.detect.reference.heads import make_head
from vision.detect.reference.letterbox import Letterbox
from vision.detect.reference.postprocess import to_detections
from vision.errors import ConfigError, ModelError
from vision.evaluation.passes import LOWEST_SCORE
from vision.optimize.accuracy import agreement
from vision.optimize.feed import Feed, Image, Inputs, Letterboxer
from vision.optimize.onnx_graph import Graph, open_session
from vision.types import Detections

if TYPE_CHECKING:
    import onnx

Outputs = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]

_RANDOM_BATCHES: Final = 16
_FLAG_VALUES: Final = 1  # value of integer inputs that are no indices, such as masks


@dataclass(frozen=True, slots=True)
class Samples:
    """Batches of inputs for a network, with which a changed network and its parent are compared."""

    shapes: Shapes
    """Shape of each input, by name."""
    batches: Sequence[Inputs]
    """Values of the inputs of each batch, by name."""
    origin: str
    """Origin of the values, for the report."""
    spec: ModelSpec | None = None
    """Spec of a detection model; None for any other network."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The differences between the outputs of a network and the outputs of its float32 parent."""

    error: float | None
    """Root mean square (RMS) of the difference, divided by the RMS of the parent's output; mean of all float outputs.

    None if an output contains NaN or infinite values, for example because the range of the precision is too small.
    """
    agreement: float | None
    """Fraction of equal results, from 0 to 1: of the objects of a detector, or of the best classes of another network.

    None if the parent finds no objects, or if no output, or more than one, can be the scores of classes.
    """


def frame_samples(graph: Graph, spec: ModelSpec, images: Sequence[Image], batch: int) -> Samples:
    """Return batches of frames for a detection model.

    Raises:
        ModelError: the inputs differ from the spec, or the file fixes a different batch size.
    """
    letterboxer = Letterboxer(spec.input)
    session = open_session(graph.serialized(), threads=1)
    feed = Feed(session, spec, batch=batch)
    scaled = [letterboxer.scale(image)[0] for image in images]
    batches = [
        {name: values.copy() for name, values in inputs.items()} for inputs, count in feed.batches(scaled) if count
    ]
    shapes = {name: values.shape for name, values in batches[0].items()}
    return Samples(shapes, batches, f"{len(images)} frames", spec)


def random_samples(graph: Graph, batch: int, given: Shapes) -> Samples:
    """Return random inputs for any network.

    Integers with which a Gather node selects rows of a table are in the range of the table. All other integers are 1.

    Args:
        given: shapes of inputs whose shape is not fixed in the file, by name.

    Raises:
        ConfigError: a shape is missing, or does not fit the file.
    """
    shapes = {tensor.name: _shape(tensor, batch, given) for tensor in _inputs(graph)}
    for name in given:
        if name not in shapes:
            raise ConfigError(f"--shape: the model has no input {name!r}, only {', '.join(shapes)}", code="no-input")
    limits, random = _index_limits(graph), np.random.default_rng(1)
    batches = [
        {tensor.name: _values(tensor, shapes[tensor.name], limits, random) for tensor in _inputs(graph)}
        for _ in range(_RANDOM_BATCHES)
    ]
    return Samples(shapes, batches, f"{_RANDOM_BATCHES} random inputs")


def _inputs(graph: Graph) -> list[onnx.ValueInfoProto]:
    return [tensor for tensor in graph.model.graph.input if tensor.name not in graph.initializers]


def _shape(tensor: onnx.ValueInfoProto, batch: int, given: Shapes) -> tuple[int, ...]:
    """Return the shape of an input from `given`, otherwise from the file. `batch` replaces a dynamic first axis.

    Raises:
        ConfigError: the size of an axis is not known, or `given` contradicts the file.
    """
    declared = [axis.dim_value or None for axis in tensor.type.tensor_type.shape.dim]
    shape = given.get(tensor.name)
    if shape is None:
        shape = tuple((batch if index == 0 else 0) if size is None else size for index, size in enumerate(declared))
    fits = len(shape) == len(declared) and all(a in (None, b) for a, b in zip(declared, shape, strict=True))
    if not fits or 0 in shape:
        text = "x".join("?" if size is None else str(size) for size in declared)
        raise ConfigError(
            f"input {tensor.name} has the shape {text}; expected a size for each axis",
            hint=f"add `--shape {tensor.name}={'x'.join(str(size or 1) for size in declared)}`, with your sizes",
            code="dynamic-shape",
        )
    return shape


def _index_limits(graph: Graph) -> Mapping[str, int]:
    """Return, for each input that selects rows of a table, the number of rows of this table."""
    limits: dict[str, int] = {}
    for node in graph.model.graph.node:
        if node.op_type == "Gather" and node.input[0] in graph.initializers:
            rows = graph.initializers[node.input[0]].dims[0]
            limits[node.input[1]] = min(limits.get(node.input[1], rows), rows)
    return limits


def _values(
    tensor: onnx.ValueInfoProto, shape: tuple[int, ...], limits: Mapping[str, int], random: np.random.Generator
) -> NDArray[Any]:
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type)
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    if tensor.name in limits:
        return random.integers(0, limits[tensor.name], shape).astype(dtype)
    return np.full(shape, _FLAG_VALUES, dtype)


def with_fixed_shapes(graph: Graph, shapes: Shapes) -> Graph:
    """Return a copy of a model whose inputs have these shapes."""
    result = graph.copy()
    for tensor in _inputs(result):
        for axis, size in zip(tensor.type.tensor_type.shape.dim, shapes[tensor.name], strict=True):
            axis.dim_value = size
    return result


def run_samples(session: Any, samples: Samples) -> list[Outputs]:
    """Return the outputs of an ONNX Runtime session for each batch. Raise `ModelError` if a run fails."""
    names = [output.name for output in session.get_outputs()]
    try:
        return [dict(zip(names, session.run(names, dict(each)), strict=True)) for each in samples.batches]
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise ModelError(f"the model cannot be run: {error}", code="model-fails") from error


def compare(samples: Samples, reference: Sequence[Outputs], found: Sequence[Outputs]) -> Difference:
    """Return the differences between the outputs of a changed network (`found`) and of its parent (`reference`).

    Both sequences contain the outputs for each batch of `samples`.
    """
    errors = [
        _relative_error([each[name] for each in reference], [each[name] for each in found])
        for name, values in reference[0].items()
        if values.dtype.kind == "f"
    ]
    mean = float(np.mean(errors)) if errors else 0.0
    error = mean if np.isfinite(mean) else None
    if samples.spec is not None:
        count = len(class_names(samples.spec))
        parent, changed = (_objects(samples.spec, outputs) for outputs in (reference, found))
        return Difference(error, agreement(parent, changed, count))
    scores = [name for name, values in reference[0].items() if values.ndim == 2 and values.shape[1] > 1]
    if len(scores) != 1:
        return Difference(error, None)
    best = [np.concatenate([each[scores[0]].argmax(axis=1) for each in outputs]) for outputs in (reference, found)]
    return Difference(error, float((best[0] == best[1]).mean()))


def _relative_error(expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]) -> float:
    power = sum(float(np.square(each, dtype=np.float64).sum()) for each in expected)
    noise = sum(
        float(np.square(a.astype(np.float64) - b.astype(np.float64)).sum())
        for a, b in zip(expected, found, strict=True)
    )
    return float((noise / power) ** 0.5) if power > 0 else float(noise > 0)


def _objects(spec: ModelSpec, outputs: Sequence[Outputs]) -> list[Detections]:
    """Decode the outputs of a detection model. Return the objects of each frame, in pixels of the model's input."""
    names = class_names(spec)
    decoder = make_head(spec, len(names), LOWEST_SCORE).bind({name: each.shape for name, each in outputs[0].items()})
    size, found = spec.input, []
    letterbox = Letterbox.fit(size.width, size.height, size.width, size.height, size.letterbox)
    limits = spec.nms if decoder.needs_nms else None
    for each in outputs:
        values = [each[name] for name in decoder.outputs]
        frames = 1 if decoder.without_batch else len(values[0])
        for index in range(frames):
            candidates = decoder.decode(decoder.of_frame(values, index))
            found.append(to_detections(candidates, limits, letterbox, size.width, size.height))
    return found
