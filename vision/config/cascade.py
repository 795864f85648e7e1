"""The `cascade:` section, a second model that classifies tracked objects, and the model.yaml of such a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vision.config.addresses import FILE_FORMS, MODEL_FORMS, check_file_name, check_model_name
from vision.config.analytics import ClassNames
from vision.config.section import ConfigSection, Fraction, Identifier, unique_names


class CascadeConfig(ConfigSection):
    """A second model that classifies tracked objects."""

    model: Annotated[str, AfterValidator(check_model_name)] = Field(
        title=MODEL_FORMS,
        description="a classifier: a name under models, or a path (with a /) relative to this file",
    )
    classes: ClassNames | None = Field(default=None, description="classes of the objects to classify; all if absent")
    score_threshold: Fraction = Field(default=0.5, description="minimum score of an attribute")
    refresh_s: float | None = Field(
        default=5.0,
        gt=0,
        le=86_400,
        description="seconds after which an object is classified again; null: once only",
    )
    min_size_px: int = Field(
        default=32, ge=1, le=16384, description="minimum length of the shorter side of a box, pixels"
    )
    margin: float = Field(
        default=0.0, ge=0, le=1, description="margin around the box on every side, as a fraction of the box"
    )
    max_batch: int = Field(default=8, ge=1, le=256, description="maximum number of objects in a batch")
    queue: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="maximum number of objects that wait; others are tried again with a later frame",
    )
    threads: int = Field(default=1, ge=1, le=256, description="CPU threads")


_Positive = Annotated[float, Field(gt=0)]


class CropSpec(ConfigSection):
    """Pre-processing of a crop: ``(pixels * scale - mean) / std`` per channel, pixels 0..255, NCHW."""

    width: int = Field(ge=8, le=4096, description="width of the model's input, pixels")
    height: int = Field(ge=8, le=4096, description="height of the model's input, pixels")
    color: Literal["bgr", "rgb"] = Field(default="rgb", description="order of the channels")
    scale: float = Field(default=1.0, gt=0, description="1/255 = 0.00392156862745098 for models that take 0..1")
    mean: tuple[float, float, float] = Field(default=(0.0, 0.0, 0.0), description="in the order of `color`")
    std: tuple[_Positive, _Positive, _Positive] = Field(default=(1.0, 1.0, 1.0), description="in the order of `color`")
    fit: Literal["stretch", "letterbox"] = Field(
        default="stretch", description="letterbox keeps the object's proportions and fills the rest"
    )
    fill: int = Field(default=114, ge=0, le=255, description="grey around a letterboxed object, before normalisation")


class ClassifierHead(ConfigSection):
    """Layout of the output: (batch, classes)."""

    kind: Literal["classifier"] = Field(description="layout of the outputs")
    labels: Literal["one", "many"] = Field(
        default="one", description="one: the best class; many: each class independently"
    )
    activation: Literal["softmax", "sigmoid", "none"] = Field(
        default="softmax", description="converts outputs to scores from 0 to 1; none: they are scores already"
    )


class ClassifierSpec(ConfigSection):
    """model.yaml of a classifier: input, output and origin."""

    name: Identifier = Field(description="name in camera.yaml and messages")
    file: Annotated[str, AfterValidator(check_file_name)] = Field(
        title=FILE_FORMS, description="ONNX file in the folder of model.yaml"
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", title="64 of the digits 0-9 and a-f")] | None = Field(
        default=None, description="checksum, verified when the model is loaded; a warning if absent"
    )
    input: CropSpec = Field(description="pre-processing")
    head: ClassifierHead = Field(description="layout of the output")
    classes: Annotated[tuple[str, ...], AfterValidator(unique_names)] = Field(description="names in the model's order")
    licence: str = Field(min_length=1, description="licence of the weights, as an SPDX name if there is one")
    provenance: str = Field(default="", description="origin of the weights")
