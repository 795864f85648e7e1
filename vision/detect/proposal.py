"""A proposal for the model.yaml of an ONNX file, from its metadata and shapes, and its outputs for sample frames."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vision.config import HeadSpec, ModelSpec
from vision.config.model_file import read_model_header, refuse_other_format, sha256_of
from vision.config.onnx_header import OnnxHeader
from vision.detect.metadata import ModelMetadata, is_coco80, read_metadata, yaml_list
from vision.detect.reference.alternatives import Match, Sample, head_text, try_heads
from vision.detect.reference.extras import TASKS
from vision.detect.reference.heads import make_head
from vision.detect.reference.inputs import is_channels_last
from vision.errors import ModelError

_log = logging.getLogger(__name__)

_LEVEL: Final = 1 / 255
_SIZES: Final = ((640, 640), (416, 416), (320, 320))
"""Input sizes (width, height) to try if neither the shapes nor the metadata of a file contain the size."""

_UNIT: Final[Mapping[str, object]] = {"scale": _LEVEL}
_INPUTS: Final[Mapping[str, Mapping[str, object]]] = {
    "nanodet": {"color": "bgr", "mean": (103.53, 116.28, 123.675), "std": (57.375, 57.12, 58.395)},
    "nanodet-plus": {"color": "bgr", "mean": (103.53, 116.28, 123.675), "std": (57.375, 57.12, 58.395)},
    "picodet": {"scale": _LEVEL, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "yolox": {"color": "bgr", "letterbox": "top-left"},
    "yunet": {"color": "bgr", "letterbox": "top-left"},
}
"""Pre-processing of the original exporters, by the kind of head. Models with another kind expect RGB from 0 to 1."""

_IOU: Final[Mapping[str, float]] = {"yolov8": 0.7, "yolov5": 0.45, "yolox": 0.45}
_COCO: Final[Mapping[int, str]] = {80: "coco80", 91: "coco91"}
_UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class _Origin:
    """Notes on where the keys of a model.yaml come from, collected for a `Proposal`, which explains the fields."""

    found: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposed model.yaml, the origin of each known key, and the reason why other keys need a check by a person."""

    spec: ModelSpec
    found: Mapping[str, str]
    """Origin of each key that is known from the file, the sample, or the command line."""
    missing: Mapping[str, str]
    """For each key that a person must check or fill in, the reason why its value was assumed or left open."""

    def yaml(self) -> str:
        """Return the text of model.yaml, with a comment for each key in `missing`."""
        spec = self.spec
        given = spec.input.model_dump(mode="json", exclude_defaults=True)
        input_ = {"width": given.pop("width"), "height": given.pop("height"), **given}
        classes = spec.classes if isinstance(spec.classes, str) else yaml_list(spec.classes)
        limits = spec.nms.model_dump(mode="json", exclude_defaults=True)
        lines = [
            "# Proposed by `vision models add`. docs/models.md explains every key.",
            f"name: {spec.name}",
            f"file: {spec.file}",
            f"sha256: {spec.sha256}",
            f"input: {{{_mapping(input_)}}}",
            f"head: {head_text(spec.head)}",
            f"classes: {classes}",
            f"nms: {{{_mapping(limits)}}}" if limits else "",
            f"licence: {yaml_list([spec.licence])[1:-1]}",
        ]
        open_keys = [f"# check `{key}`: {reason}" for key, reason in self.missing.items()]
        return "\n".join([lines[0], *open_keys, *filter(None, lines[1:])]) + "\n"


def _mapping(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())


def model_name(path: Path) -> str:
    """Return a model name of at most 64 characters: the file name without its suffix, or else ``model``.

    Hyphens replace characters that model names cannot contain.
    """
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-_")
    return name[:64] or "model"


def spec_of_file(path: Path) -> ModelSpec:
    """Return the specification of a model that needs no model.yaml, because its file describes the model completely.

    The metadata that Ultralytics writes suffices. It contains the class names and the input size. Together with the
    shapes of the outputs, the metadata shows the head. The pre-processing is that of models from Ultralytics.

    Raises:
        ModelError: the file is not a complete ONNX file, does not detect objects, or does not describe the model
            completely.
        Unavailable: the file cannot be read at present, for example because the disk fails.
    """
    refuse_other_format(path)
    header = read_model_header(path)
    metadata = read_metadata(header)
    frames = _frame_size(header)
    size = frames or (metadata.width, metadata.height)
    require_detection(path, metadata)
    missing = [
        text
        for text, known in (
            ("the names of its classes", metadata.names is not None),
            ("its input size", None not in size),
            ("its pre-processing", metadata.ultralytics),
        )
        if not known
    ]
    head = None if missing else _head_of_shapes(header, metadata)
    if head is None:
        what = " and ".join(missing) or "the layout of its outputs"
        raise ModelError(
            f"{path} does not describe {what}, so it needs a model.yaml",
            hint=f"`vision models add {path}` writes one; use its folder as `model` in camera.yaml",
            code="model-incomplete",
        )
    return _spec(path, metadata, input_={"width": size[0], "height": size[1], **_UNIT}, head=head)


def require_detection(path: Path, metadata: ModelMetadata) -> None:
    """Raise `ModelError` if the metadata names a task that no head supports."""
    if metadata.head_task is None:
        raise ModelError(
            f"the task of {path} is {metadata.task!r}, according to its metadata; expected a detector",
            hint="export a detection model",
            code="wrong-task",
        )


def _spec(
    path: Path,
    metadata: ModelMetadata,
    *,
    input_: Mapping[str, object],
    head: HeadSpec,
    classes: object = None,
    **more: object,
) -> ModelSpec:
    names = metadata.names
    given = classes or ("coco80" if names is not None and is_coco80(names) else names)
    iou = _IOU.get(head.kind)
    data = {
        "name": model_name(path),
        "file": path.name,
        "input": input_,
        "head": head.model_dump(exclude_defaults=True),
        "classes": given,
        "nms": {} if iou is None else {"iou_threshold": iou},
        "licence": metadata.licence or _UNKNOWN,
        **more,
    }
    return ModelSpec.model_validate(data)


def _frame_size(header: OnnxHeader) -> tuple[int, int] | None:
    """Return the width and height of the input for frames, or None if the file does not fix both.

    Raises:
        ModelError: the file has no input for frames.
    """
    for tensor in header.inputs:
        if len(tensor.shape) == 4:
            last = is_channels_last(tensor.shape)
            height, width = tensor.shape[1:3] if last else tensor.shape[2:]
            return (width, height) if isinstance(width, int) and isinstance(height, int) else None
    inputs = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in header.inputs) or "none"
    raise ModelError(
        f"expected an input for frames, (batch, 3, height, width) or (batch, height, width, 3); the file has {inputs}",
        hint="this is not a detector for frames",
        code="input-mismatch",
    )


def _head_of_shapes(header: OnnxHeader, metadata: ModelMetadata) -> HeadSpec | None:
    """Return the head that fits the declared output shapes of a model from Ultralytics. Return None if no head fits."""
    names = metadata.names or ()
    shapes = {
        tensor.name: tuple(axis if isinstance(axis, int) else None for axis in tensor.shape)
        for tensor in header.outputs
    }
    kinds: list[dict[str, object]] = [{"kind": "yolov8"}, {"kind": "yolov5"}]
    kinds.append({"kind": "rt-detr", "box_scale": "fraction"})
    if metadata.suppressed:
        kinds = [{"kind": "end-to-end"}]
    for data in kinds:
        if metadata.head_task != "detect" and data["kind"] not in TASKS.get(str(metadata.head_task), ()):
            continue
        head = HeadSpec.model_validate({**data, "task": metadata.head_task})
        spec = _probe(head, {"width": 640, "height": 640}, len(names))
        layout = make_head(spec, len(names), 0.5).fits(shapes)
        if layout is not None and (layout.classes == len(names) or layout.class_ids is not None):
            return head
    return None


def _probe(head: HeadSpec, input_: Mapping[str, object], count: int) -> ModelSpec:
    """Return a temporary specification with which a test finds out whether `head` can read the outputs of a model.

    It has `count` classes with placeholder names, but at least one.
    """
    data = {
        "name": "sample",
        "file": "sample.onnx",
        "input": input_,
        "head": head.model_dump(exclude_defaults=True),
        "classes": [f"class-{index}" for index in range(max(1, count))],
        "licence": _UNKNOWN,
    }
    return ModelSpec.model_validate(data)


def propose(path: Path, licence: str | None = None) -> Proposal:
    """Run an ONNX file on the sample with ONNX Runtime, and return a proposal for its model.yaml.

    Args:
        licence: license of the weights. None means the license in the metadata, or ``unknown`` if the metadata contains
            no license.

    Raises:
        ModelError: the file is not a complete ONNX file, does not detect objects, or cannot be run; or no head fits its
            outputs.
        DeviceMissing: ONNX Runtime is not installed.
        Unavailable: the file cannot be read at present, for example because the disk fails.
    """
    refuse_other_format(path)
    header = read_model_header(path)
    metadata = read_metadata(header)
    require_detection(path, metadata)
    origin = _Origin()
    found, missing = origin.found, origin.missing
    (width, height), match = _tried(path, header, metadata, origin)
    input_ = {"width": width, "height": height, **_input(header, metadata, match.head.kind, origin)}
    if metadata.names is None and match.classes is None:
        missing["classes"] = "the file contains no class names, and its outputs do not show how many classes it has"
    elif metadata.names is None:
        missing["classes"] = f"the file contains no class names; the outputs show their number, {match.classes}"
    else:
        found["classes"] = f"{len(metadata.names)} names, from the metadata"
    if licence is not None:
        found["licence"] = "from the command line"
    elif metadata.licence is not None:
        found["licence"] = "from the metadata"
    else:
        missing["licence"] = "the file does not name the license of its weights"
    classes: object = None
    if metadata.names is None:
        count = match.classes or 80
        classes = _COCO.get(count) or [f"class-{index}" for index in range(count)]
    more: dict[str, object] = {"sha256": sha256_of(path)}
    if licence is not None:
        more["licence"] = licence
    spec = _spec(path, metadata, input_=input_, head=match.head, classes=classes, **more)
    return Proposal(spec, found, missing)


def _tried(path: Path, header: OnnxHeader, metadata: ModelMetadata, origin: _Origin) -> tuple[tuple[int, int], Match]:
    """Run a model on sample frames. Return the input size (width, height) and the head that fits the outputs best.

    Note in `origin` where the size and the head come from.

    Raises:
        ModelError: the model cannot be run, or no head fits its outputs.
    """
    found, missing = origin.found, origin.missing
    declared = _frame_size(header)
    sizes: tuple[tuple[int, int], ...] = _SIZES
    if declared is not None:
        sizes = (declared,)
        found["input.width, input.height"] = "from the shape of the input"
    elif metadata.width is not None and metadata.height is not None:
        sizes = ((metadata.width, metadata.height),)
        found["input.width, input.height"] = "from the metadata; the file accepts any size"
    else:
        missing["input.width, input.height"] = "the file accepts any size; write the size used in training"
    counts = [] if metadata.names is None else [len(metadata.names)]
    failure: ModelError | None = None
    for size in sizes:
        try:
            sample = _run(path, header, size)
        except ModelError as error:
            failure = failure or error
            continue
        probe = _probe(HeadSpec(kind="yolov8"), {"width": size[0], "height": size[1]}, (counts or [1])[0])
        matches = try_heads(probe, counts, sample)
        if metadata.task is not None:
            matches = [match for match in matches if match.head.task == metadata.head_task]
        if matches:
            found["head"] = "tried on the sample"
            return size, matches[0]
        failure = _no_head(path, sample)
    assert failure is not None
    raise failure


def _run(path: Path, header: OnnxHeader, size: tuple[int, int]) -> Sample:
    """Run the model on the frames of `sample_frames`, scaled to `size` (width, height). Return the outputs.

    For errors, see `open_network` and `Network.run_sample`.
    """
    from vision.detect.open import open_network

    dtype = next((tensor.dtype for tensor in header.inputs if len(tensor.shape) == 4), "")
    unit = {} if dtype == "uint8" else _UNIT
    spec = _probe(HeadSpec(kind="yolov8"), {"width": size[0], "height": size[1], **unit}, 1)
    return open_network(path, spec.model_copy(update={"name": model_name(path)})).run_sample()


def _no_head(path: Path, sample: Sample) -> ModelError:
    """Return the error for outputs that no head can read."""
    shapes = ", ".join(f"{name} {shape}" for name, shape in sample.shapes.items())
    hint = "docs/models.md lists the outputs that each head expects"
    text = f"no head can read the outputs of {path}: {shapes}"
    return ModelError(text, hint=hint, code="head-mismatch")


def _input(header: OnnxHeader, metadata: ModelMetadata, kind: str, origin: _Origin) -> dict[str, object]:
    """Return the keys of model.yaml's section `input`, which describe the pre-processing. Note their origin."""
    key = "input.color, input.scale, input.mean, input.std"
    if metadata.ultralytics:
        origin.found[key] = "as Ultralytics exports models"
        return dict(_UNIT)
    family = dict(_INPUTS.get(kind, _UNIT))
    if any(tensor.dtype == "uint8" for tensor in header.inputs if len(tensor.shape) == 4):
        family = {name: value for name, value in family.items() if name not in {"scale", "mean", "std"}}
    origin.missing[key] = f"the file does not contain them; those of most models with the head {kind} are assumed"
    return family
