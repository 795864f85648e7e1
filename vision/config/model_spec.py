"""model.yaml as frozen typed objects: of a detection model, and of a classifier (`cascade:`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag

from vision.config.fields import ClassNames, ConfigSection, FileName, Fraction, Identifier, Pixels, Positive
from vision.config.wording import InvalidValue

_Stride: TypeAlias = Annotated[int, Field(ge=1, le=1024)]


class _NormalisedInput(ConfigSection):
    """Pre-processing: ``tensor = (pixels * scale - mean) / std`` per channel, pixels 0..255, NCHW."""

    color: Literal["bgr", "rgb"] = "rgb"
    """Order of the channels."""
    scale: float = Field(default=1.0, gt=0)
    """1/255 = 0.00392156862745098 for models that expect 0..1."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """In the order of `color`."""
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    """In the order of `color`."""
    fill: int = Field(default=114, ge=0, le=255)
    """Gray level around a letterboxed frame or object, before normalization."""


class InputSpec(_NormalisedInput):
    """Pre-processing of a frame: ``tensor = (pixels * scale - mean) / std`` per channel, pixels 0..255, NCHW."""

    width: Pixels
    """Width of the model's input, pixels."""
    height: Pixels
    """Height of the model's input, pixels."""
    letterbox: Literal["top-left", "center"] = "center"
    """Position of the frame on the canvas."""


class CropSpec(_NormalisedInput):
    """Pre-processing of a crop, as `InputSpec`."""

    width: int = Field(ge=8, le=4096)
    """Width of the model's input, pixels."""
    height: int = Field(ge=8, le=4096)
    """Height of the model's input, pixels."""
    fit: Literal["stretch", "letterbox"] = "stretch"
    """letterbox: keep the aspect ratio of the object and pad the rest."""


class HeadSpec(ConfigSection):
    """Layout of the outputs."""

    kind: Literal["nanodet", "yolov5", "yolov8", "end-to-end", "rt-detr"]
    """Layout of the outputs."""
    strides: Annotated[tuple[_Stride, ...], Field(min_length=1, max_length=8)] = (8, 16, 32)
    """nanodet: cell sizes, model pixels."""
    bins: int = Field(default=11, ge=2, le=64)
    """nanodet: bins of each side's distance distribution."""
    box_scale: Literal["pixels", "fraction"] = "pixels"
    """Unit of the output boxes."""
    activation: Literal["none", "sigmoid"] = "none"
    """Activation to apply to the scores; rt-detr exports return logits."""


class ClassifierHead(ConfigSection):
    """Layout of the output: (batch, classes)."""

    kind: Literal["classifier"]
    """Layout of the outputs."""
    labels: Literal["one", "many"] = "one"
    """one: the best class; many: each class independently."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """Conversion of outputs to scores from 0 to 1; none: the outputs are scores already."""


class NmsSpec(ConfigSection):
    """Defaults of non-maximum suppression. End-to-end and RT-DETR heads need none."""

    iou_threshold: Fraction = 0.6
    """Overlap (IoU) above which the box with the lower score is dropped."""
    class_aware: bool = True
    """Compare boxes of the same class only."""
    max_candidates: int = Field(default=1024, ge=1, le=8192)
    """Maximum number of candidates, by score."""
    max_objects: int = Field(default=300, ge=1, le=4096)
    """Maximum number of objects in a frame."""


_Extents: TypeAlias = tuple[int, int, int]
_Shapes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _ascending(extents: _Extents) -> _Extents:
    """Return [min, opt, max] of one dimension if they are in ascending order; otherwise raise InvalidValue."""
    if not 1 <= extents[0] <= extents[1] <= extents[2] <= 16384:
        raise InvalidValue("extents", "[min, opt, max] with 1 <= min <= opt <= max <= 16384")
    return extents


def _ascending_shapes(shapes: _Shapes) -> _Shapes:
    """Return [min, opt, max] of the dimensions or values of one input if they are in ascending order."""
    if len(set(map(len, shapes))) > 1 or any(list(sizes) != sorted(sizes) for sizes in zip(*shapes, strict=True)):
        expected = "three lists of one length, [min, opt, max], each number at most that of the next list"
        raise InvalidValue("shape-extents", expected)
    return shapes


Extent = Annotated[_Extents, AfterValidator(_ascending)]
ShapeExtent = Annotated[_Shapes, AfterValidator(_ascending_shapes)]


class ProfileSpec(ConfigSection):
    """One optimization profile: [min, opt, max] of every dynamic dimension of the ONNX file."""

    batch: Extent
    """[min, opt, max] frames in a batch."""
    height: Extent | None = None
    """[min, opt, max] of the canvas; the input's height if absent."""
    width: Extent | None = None
    """[min, opt, max] of the canvas; the input's width if absent."""
    shapes: dict[str, ShapeExtent] = Field(default={})
    """[min, opt, max] shapes of other inputs, by name."""
    values: dict[str, ShapeExtent] = Field(default={})
    """[min, opt, max] values of shape inputs, by name."""


class _Spec(ConfigSection):
    """Keys of every model.yaml."""

    name: Identifier
    """Name in camera.yaml and messages."""
    file: FileName
    """ONNX file in the folder of model.yaml."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", title="64 of the digits 0-9 and a-f")] | None = None
    """Checksum, verified when the model is loaded; if absent, a warning is logged."""
    licence: str = Field(min_length=1)
    """License of the weights, as an SPDX name if there is one."""
    provenance: str = ""
    """Origin of the weights."""


def _kind_of_classes(value: object) -> str:
    return "set" if isinstance(value, str) else "names"


class ModelSpec(_Spec):
    """model.yaml: inputs, outputs and origin of a detection model."""

    input: InputSpec
    """Pre-processing."""
    head: HeadSpec
    """Layout of the outputs."""
    classes: Annotated[
        Annotated[ClassNames, Tag("names")] | Annotated[Literal["coco80"], Tag("set")], Discriminator(_kind_of_classes)
    ]
    """Class names in the model's order, or coco80."""
    nms: NmsSpec = NmsSpec()
    """Defaults of non-maximum suppression."""
    profiles: Annotated[tuple[ProfileSpec, ...], Field(min_length=1)] | None = None
    """Ranges of shapes of a TensorRT engine; derived from max_batch if absent."""


class ClassifierSpec(_Spec):
    """model.yaml of a classifier: input, output and origin."""

    input: CropSpec
    """Pre-processing."""
    head: ClassifierHead
    """Layout of the output."""
    classes: ClassNames
    """Names in the model's order."""


def folder_of_model(name: str, models: Path) -> Path:
    """Return the folder of a model: a path if `name` has a slash or exists, else the shipped model of this name."""
    given = Path(name)
    return given if "/" in name or given.is_dir() else models / name
