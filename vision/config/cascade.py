"""The `cascade:` section, a second model on the frames of followed objects, and the model.yaml of such a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vision.config.addresses import FILE_FORMS, MODEL_FORMS, check_file_name, check_model_name
from vision.config.analytics import ClassNames
from vision.config.section import ConfigSection, Fraction, Identifier, unique_names


class CascadeConfig(ConfigSection):
    """What a second model says of followed objects."""

    model: Annotated[str, AfterValidator(check_model_name)] = Field(
        title=MODEL_FORMS,
        description="a classifier: a name under models, or a path (with a /) relative to this file",
    )
    classes: ClassNames | None = Field(
        default=None, description="class names of the objects that it looks at; all where absent"
    )
    score_threshold: Fraction = Field(default=0.5, description="lowest score of what is told of an object")
    refresh_s: float | None = Field(
        default=5.0,
        gt=0,
        le=86_400,
        description="seconds after which an object is looked at again; null: once",
    )
    min_size_px: int = Field(
        default=32, ge=1, le=16384, description="an object whose shorter side is less is not looked at"
    )
    margin: float = Field(
        default=0.0, ge=0, le=1, description="of the object's sides, looked at around it on every side"
    )
    max_batch: int = Field(default=8, ge=1, le=256, description="most objects at once")
    queue: int = Field(default=32, ge=1, le=1024, description="most objects that wait; others wait for a later frame")
    threads: int = Field(default=1, ge=1, le=256, description="CPU threads")


_Positive = Annotated[float, Field(gt=0)]


class CropSpec(ConfigSection):
    """How the frame of an object goes in: ``(pixels * scale - mean) / std`` per channel, pixels 0..255, NCHW."""

    width: int = Field(ge=8, le=4096, description="of the model's frame, pixels")
    height: int = Field(ge=8, le=4096, description="of the model's frame, pixels")
    color: Literal["bgr", "rgb"] = Field(default="rgb", description="order of the channels")
    scale: float = Field(default=1.0, gt=0, description="1/255 = 0.00392156862745098 for models that take 0..1")
    mean: tuple[float, float, float] = Field(default=(0.0, 0.0, 0.0), description="in the order of `color`")
    std: tuple[_Positive, _Positive, _Positive] = Field(default=(1.0, 1.0, 1.0), description="in the order of `color`")
    fit: Literal["stretch", "letterbox"] = Field(
        default="stretch", description="letterbox keeps the object's proportions and fills the rest"
    )
    fill: int = Field(default=114, ge=0, le=255, description="grey around a letterboxed object, before normalisation")


class ClassifierHead(ConfigSection):
    """What comes out: (batch, classes)."""

    kind: Literal["classifier"] = Field(description="layout of the outputs")
    labels: Literal["one", "many"] = Field(
        default="one", description="one: the best class; many: every class on its own, as attributes"
    )
    activation: Literal["softmax", "sigmoid", "none"] = Field(
        default="softmax", description="makes scores from 0 to 1 of the outputs; none: they are such already"
    )


class ClassifierSpec(ConfigSection):
    """model.yaml of a classifier: what it takes, what it gives, whose it is."""

    name: Identifier = Field(description="what camera.yaml and messages call it")
    file: Annotated[str, AfterValidator(check_file_name)] = Field(
        title=FILE_FORMS, description="ONNX file beside model.yaml"
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", title="64 of the digits 0-9 and a-f")] | None = Field(
        default=None, description="checked when the model is loaded; a warning where absent"
    )
    input: CropSpec = Field(description="how pixels go in")
    head: ClassifierHead = Field(description="what comes out")
    classes: Annotated[tuple[str, ...], AfterValidator(unique_names)] = Field(description="names in the model's order")
    licence: str = Field(min_length=1, description="of the weights, as an SPDX name where there is one")
    provenance: str = Field(default="", description="where the weights come from")
