"""camera.yaml and model.yaml as frozen typed objects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from vision.config.addresses import (
    BIND_FORMS,
    FILE_FORMS,
    FOLDER_FORMS,
    MODEL_FORMS,
    PIPELINE_FORMS,
    check_bind,
    check_file_name,
    check_folder,
    check_model_name,
    check_pipeline,
)
from vision.config.analytics import CameraAnalytics, ClassNames
from vision.config.cascade import CascadeConfig
from vision.config.checks import References, camera_conflicts, config_conflicts, pipeline_name
from vision.config.engine import EngineConfig
from vision.config.profile import ProfileSpec
from vision.config.rules import RuleConfig
from vision.config.section import ConfigSection, Fraction, Identifier, raise_conflicts, unique_names
from vision.config.snapshots import SnapshotConfig
from vision.config.source_address import (
    SOURCE_FORMS,
    File,
    Folder,
    SourceAddress,
    check_source,
    parse_source,
    with_account,
)
from vision.config.tracking import TrackConfig
from vision.errors import redact


class DetectConfig(ConfigSection):
    """What to look for, and how the detector runs."""

    backend: Literal["auto", "tensorrt", "onnxruntime", "fake"] = Field(
        default="auto", description="auto: TensorRT where it and a GPU are there, ONNX Runtime otherwise"
    )
    score_threshold: Fraction = Field(default=0.35, description="lowest score of a published object")
    iou_threshold: Fraction | None = Field(
        default=None,
        description="overlap (IoU) above which NMS drops the weaker of two boxes; the model's own where absent",
    )
    classes: ClassNames | None = Field(default=None, description="class names to keep; all where absent")
    precision: Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8"] = Field(
        default="fp16", description="arithmetic of a TensorRT engine; ONNX Runtime computes in the model's own"
    )
    max_batch: int = Field(default=8, ge=1, le=256, description="most frames in one batch")
    batches_in_flight: int | None = Field(
        default=None, ge=1, le=8, description="batches in flight; chosen by the detector where absent"
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="CPU threads of the ONNX Runtime detector in all; every core where absent",
    )
    graphs: bool = Field(
        default=True, description="run a TensorRT engine as CUDA graphs; off is slower, and for finding faults"
    )
    engine: EngineConfig = Field(default=EngineConfig(), description="how a TensorRT engine is built")


class CameraConfig(ConfigSection):
    """One camera, file or generator."""

    id: Identifier = Field(description="name in topics, messages and logs")
    source: Annotated[str, AfterValidator(check_source)] = Field(
        title=SOURCE_FORMS,
        description="where frames come from; paths are relative to this file; ${NAME} is a secret of the environment",
        examples=["rtsp://gate.example.com/stream1", "/dev/video0", "csi:0", "videos/walk.mp4"],
    )
    user: str | None = Field(default=None, min_length=1, description="user of a network camera, as plain text")
    password: str | None = Field(
        default=None,
        min_length=1,
        repr=False,
        title="${NAME}, an environment variable that holds the password",
        description="password of a network camera, from the environment: ${NAME}",
        examples=["${GATE_PASSWORD}"],
    )
    reader: Literal["auto", "opencv", "gstreamer", "ffmpeg", "nvdec"] = Field(
        default="auto",
        description="library that opens the source, auto: the best that can; csi: needs gstreamer",
    )
    transport: Literal["tcp", "udp"] = Field(
        default="tcp", description="what carries RTSP: tcp loses nothing, udp waits for nothing"
    )
    width: int | None = Field(
        default=None,
        ge=16,
        le=16384,
        description="frame width to ask a csi: or USB camera for, pixels; its own where absent",
    )
    height: int | None = Field(
        default=None,
        ge=16,
        le=16384,
        description="frame height to ask a csi: or USB camera for, pixels; its own where absent",
    )
    fps: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="rate to ask a csi: or USB camera for, or to show a folder's images at, frames/s",
    )
    max_fps: float | None = Field(
        default=None, gt=0, le=1000, description="most frames/s of this camera that are inferred; all where absent"
    )
    loop: bool = Field(default=False, description="start a file again when it ends")
    open_timeout_s: float = Field(default=5.0, gt=0, le=120, description="longest wait for a connection, seconds")
    read_timeout_s: float = Field(
        default=5.0, gt=0, le=120, description="longest wait for a frame before reconnecting, seconds"
    )
    max_frame_age_s: float = Field(
        default=0.5, gt=0, le=60, description="a frame older than this many seconds is dropped, not inferred"
    )
    frozen_after_s: float | None = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="the same frame for this many seconds means a frozen camera; null: never",
    )

    @model_validator(mode="after")
    def _consistent(self) -> CameraConfig:
        raise_conflicts(camera_conflicts(self.model_dump(exclude_unset=True)))
        return self

    @property
    def address(self) -> SourceAddress:
        """Return the parsed source, with `user` and `password` in its URL. A path that is a folder is a `Folder`."""
        address = parse_source(self.source)
        if self.user is not None and self.password is not None:
            return with_account(address, self.user, self.password)
        return Folder(address.path) if isinstance(address, File) and os.path.isdir(address.path) else address  # noqa: PTH112 - no error for any text

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """As pydantic's, without the password of the source: configurations end up in logs and tracebacks."""
        for name, value in super().__repr_args__():
            yield name, redact(value) if name == "source" else value


class PublishConfig(ConfigSection):
    """The ZeroMQ socket."""

    bind: Annotated[str, AfterValidator(check_bind)] = Field(
        default="tcp://127.0.0.1:5555",
        title=BIND_FORMS,
        description="address of the PUB socket; tcp://127.0.0.1:5555 serves this machine, tcp://*:5555 the network",
    )
    encoding: Literal["json", "msgpack"] = Field(default="json", description="payload of every message")
    queue: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="messages kept for one slow subscriber; what comes while it is full is lost to it",
    )
    replay: Annotated[str, AfterValidator(check_bind)] | None = Field(
        default=None,
        title=BIND_FORMS,
        description="where subscribers ask for events that they missed; needs `state_dir`; nowhere where absent",
    )
    max_events: int = Field(
        default=10_000, ge=100, le=1_000_000, description="newest events that can be asked for again"
    )


class StatusConfig(ConfigSection):
    """Messages about the program itself."""

    interval_s: float = Field(default=1.0, gt=0, le=3600, description="seconds between two status messages")


class AppConfig(ConfigSection):
    """One camera.yaml."""

    node: Identifier | None = Field(
        default=None, description="name of this machine in messages; its host name where absent"
    )
    pipeline: Annotated[str, AfterValidator(check_pipeline)] = Field(
        default="detect",
        title=PIPELINE_FORMS,
        description="processing steps after detection: detect, track, count, or a Python file relative to this file; "
        "count where absent and analytics is given",
    )
    model: Annotated[str, AfterValidator(check_model_name)] = Field(
        default="nanodet-g-416",
        title=MODEL_FORMS,
        description="what finds objects: a name that `vision models` lists, or a path (with a /) relative to this file",
    )
    detect: DetectConfig = Field(default=DetectConfig(), description="what to look for, and how the detector runs")
    cameras: tuple[CameraConfig, ...] = Field(min_length=1, description="cameras, files and generators")
    track: TrackConfig = Field(default=TrackConfig(), description="how objects are followed from frame to frame")
    analytics: Mapping[Identifier, CameraAnalytics] = Field(
        default_factory=dict,
        description="lines and zones of each camera, by its id; needs a pipeline that follows objects",
    )
    rules: tuple[RuleConfig, ...] = Field(default=(), max_length=1000, description="what is worth an event of its own")
    cascade: CascadeConfig | None = Field(
        default=None, description="a second model on the frames of followed objects; none where absent"
    )
    snapshots: SnapshotConfig | None = Field(
        default=None, description="a JPEG of the frame of every event; none where absent"
    )
    state_dir: Annotated[str, AfterValidator(check_folder)] | None = Field(
        default=None,
        title=FOLDER_FORMS,
        description="where counters and events outlive a restart, relative to this file; they do not where absent",
    )
    publish: PublishConfig = Field(default=PublishConfig(), description="the ZeroMQ socket")
    status: StatusConfig = Field(default=StatusConfig(), description="messages about the program itself")
    stop_timeout_s: float = Field(default=1.5, gt=0, le=60, description="longest orderly stop, seconds")

    @model_validator(mode="before")
    @classmethod
    def _choose_pipeline(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "pipeline" not in data:
            return {**data, "pipeline": pipeline_name(data)}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> AppConfig:
        raise_conflicts(config_conflicts(self.model_dump(exclude_unset=True), References()))
        return self


_Positive: TypeAlias = Annotated[float, Field(gt=0)]
_Stride: TypeAlias = Annotated[int, Field(ge=1, le=1024)]


def _kind_of_classes(value: object) -> str:
    return "set" if isinstance(value, str) else "names"


class ModelSpec(ConfigSection):
    """model.yaml: what a model takes, what it gives, whose it is."""

    name: Identifier = Field(description="what camera.yaml calls it")
    file: Annotated[str, AfterValidator(check_file_name)] = Field(
        title=FILE_FORMS, description="ONNX file beside model.yaml"
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", title="64 of the digits 0-9 and a-f")] | None = Field(
        default=None, description="checked when the model is loaded; a warning where absent"
    )
    input: InputSpec = Field(description="how pixels go in")
    head: HeadSpec = Field(description="how boxes come out")
    classes: Annotated[
        Annotated[tuple[str, ...], AfterValidator(unique_names), Tag("names")]
        | Annotated[Literal["coco80"], Tag("set")],
        Discriminator(_kind_of_classes),
    ] = Field(description="class names in the model's order, or coco80")
    nms: NmsSpec = Field(default_factory=lambda: NmsSpec(), description="defaults of the last step")  # noqa: PLW0108 - defined below
    profiles: Annotated[tuple[ProfileSpec, ...], Field(min_length=1)] | None = Field(
        default=None, description="shapes that a TensorRT engine is tuned for; made from max_batch where absent"
    )
    licence: str = Field(min_length=1, description="of the weights, as an SPDX name where there is one")
    provenance: str = Field(default="", description="where the weights come from")


class InputSpec(ConfigSection):
    """How pixels go in: ``tensor = (pixels * scale - mean) / std`` per channel, pixels 0..255, NCHW."""

    width: int = Field(ge=16, le=16384, description="of the model's frame, pixels")
    height: int = Field(ge=16, le=16384, description="of the model's frame, pixels")
    color: Literal["bgr", "rgb"] = Field(default="rgb", description="order of the channels")
    scale: float = Field(default=1.0, gt=0, description="1/255 = 0.00392156862745098 for models that take 0..1")
    mean: tuple[float, float, float] = Field(default=(0.0, 0.0, 0.0), description="in the order of `color`")
    std: tuple[_Positive, _Positive, _Positive] = Field(default=(1.0, 1.0, 1.0), description="in the order of `color`")
    letterbox: Literal["top-left", "center"] = Field(default="center", description="where the frame lies on the canvas")
    fill: int = Field(
        default=114, ge=0, le=255, description="grey of the canvas around the frame, before normalisation"
    )


class HeadSpec(ConfigSection):
    """How boxes come out."""

    kind: Literal["nanodet", "yolov5", "yolov8", "end-to-end", "rt-detr"] = Field(description="layout of the outputs")
    strides: Annotated[tuple[_Stride, ...], Field(min_length=1, max_length=8)] = Field(
        default=(8, 16, 32), description="nanodet: cell sizes, model pixels"
    )
    bins: int = Field(default=11, ge=2, le=64, description="nanodet: bins of each side's distance distribution")
    box_scale: Literal["pixels", "fraction"] = Field(
        default="pixels", description="unit of the boxes that the model gives"
    )
    activation: Literal["none", "sigmoid"] = Field(
        default="none", description="applied to the scores; rt-detr exports give logits"
    )


class NmsSpec(ConfigSection):
    """Defaults of the last step. End-to-end and RT-DETR heads need none."""

    iou_threshold: Fraction = Field(default=0.6, description="overlap (IoU) above which the weaker of two boxes goes")
    class_aware: bool = Field(default=True, description="compare boxes of one class only")
    max_candidates: int = Field(default=1024, ge=1, le=8192, description="best scores that NMS looks at")
    max_objects: int = Field(default=300, ge=1, le=4096, description="most objects of one frame")


ModelSpec.model_rebuild()


def folder_of_model(name: str, models: Path) -> Path:
    """`name` as a folder: a path where it has a slash or exists, else one of the shipped models."""
    given = Path(name)
    return given if "/" in name or given.is_dir() else models / name
