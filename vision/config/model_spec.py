"""Classes that hold the keys of model.yaml, for detection models and for classifiers (`cascade:`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag

from vision.config.fields import (
    ClassNames,
    ConfigSection,
    FileName,
    Fraction,
    Identifier,
    LibraryName,
    Pixels,
    Positive,
)
from vision.config.wording import InvalidValue

_Stride: TypeAlias = Annotated[int, Field(ge=1, le=1024)]


class _NormalizedInput(ConfigSection):
    """Pre-processing of pixels from 0 to 255: ``tensor = (pixels * scale - mean) / std`` per channel."""

    color: Literal["bgr", "rgb"] = "rgb"
    """Order of the color channels."""
    scale: float = Field(default=1.0, gt=0)
    """Factor for the pixels; 1/255 = 0.00392156862745098 if the model expects values from 0 to 1."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Value to subtract from each channel, in the order of `color`."""
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    """Divisor for each channel, in the order of `color`."""
    fill: int = Field(default=114, ge=0, le=255)
    """Gray level around a letterboxed frame or object, before normalization."""


class InputSpec(_NormalizedInput):
    """Pre-processing of a frame: ``tensor = (pixels * scale - mean) / std`` per channel, pixels from 0 to 255, NCHW."""

    width: Pixels
    """Width of the model's input in pixels."""
    height: Pixels
    """Height of the model's input in pixels."""
    letterbox: Literal["top-left", "center"] = "center"
    """Position of the scaled frame in the model's input; the rest is padded."""
    constants: dict[str, tuple[float, ...]] = Field(default={})
    """Values of additional inputs of the model, by name; `orig_target_sizes`, `im_shape`, and `scale_factor` are set
    automatically."""


class CropSpec(_NormalizedInput):
    """Pre-processing of a crop of an object: ``tensor = (pixels * scale - mean) / std``, as for a frame."""

    width: int = Field(ge=8, le=4096)
    """Width of the model's input in pixels."""
    height: int = Field(ge=8, le=4096)
    """Height of the model's input in pixels."""
    constants: ClassVar[Mapping[str, tuple[float, ...]]] = {}
    fit: Literal["stretch", "letterbox"] = "stretch"
    """How to fit the crop into the input; letterbox: keep the aspect ratio, and pad the rest."""


class HeadSpec(ConfigSection):
    """Layout of the outputs of a detection model."""

    kind: Literal[
        "nanodet", "nanodet-plus", "picodet", "yolov5", "yolox", "yolov8", "yunet", "corners", "end-to-end", "rt-detr",
        "paddle", "tensorflow", "yolov7", "yolo-nas-flat",
    ]  # fmt: skip
    """Model family that defines the layout of the outputs."""
    task: Literal["detect", "segment", "pose", "obb"] = "detect"
    """Outputs of the model for each object, with the names of Ultralytics; detect: a box; segment: a box and a mask;
    pose: a box and keypoints; obb: an oriented box. Only yolov8 and end-to-end have all; yolov5 has detect and
    segment; yunet has detect and pose, and finds keypoints with both."""
    keypoints: Annotated[ClassNames, Field(min_length=1, max_length=256)] | None = None
    """Only pose: names of the keypoints in the order of the model; if absent, 17 keypoints have the names of COCO, and
    those of yunet have the names of parts of the face."""
    strides: Annotated[tuple[_Stride, ...], Field(min_length=1, max_length=8)] | None = None
    """Only nanodet, nanodet-plus, picodet, yolox, and yunet: sizes of the grid cells, in pixels of the model's input;
    if absent, those of the family."""
    bins: Annotated[int, Field(ge=2, le=64)] | None = None
    """Only nanodet, nanodet-plus, and picodet: number of bins of the distribution of each side's distance; if absent,
    that of the family."""
    box_scale: Literal["pixels", "fraction"] = "pixels"
    """Unit of the boxes in the outputs: pixels or fractions of the model's input."""
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    """Function to apply to the scores; sigmoid or softmax if the model outputs logits. Only corners and rt-detr have
    softmax, over all classes of a box; the model can have one more class at the end, which means no object."""


class ClassifierHead(ConfigSection):
    """Layout of the output of a classifier, which has the shape (batch, classes)."""

    kind: Literal["classifier"]
    """Layout of the output."""
    labels: Literal["one", "many"] = "one"
    """Number of classes that apply to an object; one: the best class; many: each class independently."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """Function that converts outputs to scores from 0 to 1; none: the outputs already are scores."""


class NmsSpec(ConfigSection):
    """Defaults of non-maximum suppression. End-to-end and RT-DETR models do not need it."""

    iou_threshold: Fraction = 0.6
    """Overlap (IoU) above which the box with the lower score is dropped."""
    class_aware: bool = True
    """Apply `iou_threshold` only to boxes of the same class."""
    iou_across_classes: Fraction = 0.7
    """Overlap (IoU) above which boxes of different classes are one object; 1: boxes of different classes are never one
    object."""
    max_candidates: int = Field(default=1024, ge=1, le=8192)
    """Maximum number of candidate boxes in a frame; those with the highest scores are used."""
    max_objects: int = Field(default=300, ge=1, le=4096)
    """Maximum number of objects in a frame."""


_Extents: TypeAlias = tuple[int, int, int]
_Shapes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _ascending(extents: _Extents) -> _Extents:
    """Return [min, opt, max] of a dimension if 1 <= min <= opt <= max <= 16384; otherwise, raise `InvalidValue`."""
    if not 1 <= extents[0] <= extents[1] <= extents[2] <= 16384:
        raise InvalidValue("extents", "[min, opt, max] with 1 <= min <= opt <= max <= 16384")
    return extents


def _ascending_shapes(shapes: _Shapes) -> _Shapes:
    """Return the lists [min, opt, max] of an input's dimensions or values if they are in ascending order.

    Raises:
        InvalidValue: the lists have different lengths, or a number exceeds the number at the same index in the next
            list.
    """
    if len(set(map(len, shapes))) > 1 or any(list(sizes) != sorted(sizes) for sizes in zip(*shapes, strict=True)):
        expected = "three lists of equal length, [min, opt, max], in which no number exceeds that of the next list"
        raise InvalidValue("shape-extents", expected)
    return shapes


Extent = Annotated[_Extents, AfterValidator(_ascending)]
ShapeExtent = Annotated[_Shapes, AfterValidator(_ascending_shapes)]


Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", title="64 hexadecimal digits, 0-9 and a-f")]


class ProfileSpec(ConfigSection):
    """An optimization profile of TensorRT: [min, opt, max] of every dynamic dimension of the ONNX file."""

    batch: Extent
    """[min, opt, max] number of frames in a batch."""
    height: Extent | None = None
    """[min, opt, max] height of the model's input in pixels; `input.height` if absent."""
    width: Extent | None = None
    """[min, opt, max] width of the model's input in pixels; `input.width` if absent."""
    shapes: dict[str, ShapeExtent] = Field(default={})
    """[min, opt, max] shape of each additional input, by name."""
    values: dict[str, ShapeExtent] = Field(default={})
    """[min, opt, max] values of each shape input, by name."""


class PluginSpec(ConfigSection):
    """A library with TensorRT plugins, which the ONNX file needs."""

    file: LibraryName
    """Name of the library in the folder of model.yaml."""
    sha256: Sha256
    """SHA-256 of the library, verified when the library is loaded."""


def _kind_of_plugin(value: object) -> str:
    return "name" if isinstance(value, str) else "[library]"


BuiltInPlugin: TypeAlias = Literal["VisionNMS", "VisionStarRelu", "StarRelu"]
Plugin: TypeAlias = Annotated[
    Annotated[PluginSpec, Tag("[library]")] | Annotated[BuiltInPlugin, Tag("name")], Discriminator(_kind_of_plugin)
]


class _Spec(ConfigSection):
    """Base class with the keys that model.yaml has for detection models as well as for classifiers."""

    name: Identifier
    """Name of the model in camera.yaml and messages."""
    file: FileName
    """Name of the ONNX file in the folder of model.yaml."""
    sha256: Sha256 | None = None
    """SHA-256 of the ONNX file, verified when the model is loaded; if absent, a warning is logged."""
    licence: str = Field(min_length=1)
    """License of the weights, as an SPDX name if there is one."""
    provenance: str = ""
    """Origin of the weights."""


def _kind_of_classes(value: object) -> str:
    return "set" if isinstance(value, str) else "names"


class ModelSpec(_Spec):
    """The model.yaml of a detection model: inputs, outputs, and origin of the model."""

    input: InputSpec
    """Pre-processing of frames."""
    head: HeadSpec
    """Layout of the outputs."""
    classes: Annotated[
        Annotated[ClassNames, Tag("names")] | Annotated[Literal["coco80", "coco91"], Tag("set")],
        Discriminator(_kind_of_classes),
    ]
    """Class names in the order of the model's outputs; coco80: the 80 classes of COCO; coco91: its 91 category ids. A
    class with the name `background` is not reported."""
    nms: NmsSpec = NmsSpec.model_construct()
    """Defaults of non-maximum suppression."""
    profiles: Annotated[tuple[ProfileSpec, ...], Field(min_length=1)] | None = None
    """Ranges of the input shapes of a TensorRT engine; derived from `detect.max_batch` if absent."""
    plugins: tuple[Plugin, ...] = Field(default=())
    """TensorRT plugins that the ONNX file needs; VisionNMS, VisionStarRelu, and StarRelu are part of this program;
    others are libraries. Such a model runs only with TensorRT."""

    @property
    def plugin_libraries(self) -> tuple[PluginSpec, ...]:
        """Libraries in `plugins`, without the plugins that are part of this program."""
        return tuple(plugin for plugin in self.plugins if isinstance(plugin, PluginSpec))


class ClassifierSpec(_Spec):
    """The model.yaml of a classifier: input, output, and origin of the model."""

    profiles: ClassVar[None] = None
    plugins: ClassVar[tuple[()]] = ()
    plugin_libraries: ClassVar[tuple[()]] = ()

    input: CropSpec
    """Pre-processing of crops."""
    head: ClassifierHead
    """Layout of the output."""
    classes: ClassNames
    """Class names in the order of the model's output."""


AnySpec: TypeAlias = ModelSpec | ClassifierSpec
"""Specification of a model for which an engine can be built."""
