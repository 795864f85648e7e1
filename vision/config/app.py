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
    """Classes and thresholds, and how the detector runs."""

    backend: Literal["auto", "tensorrt", "onnxruntime", "fake"] = Field(
        default="auto", description="auto: TensorRT if it and a GPU are available, otherwise ONNX Runtime"
    )
    score_threshold: Fraction = Field(default=0.35, description="minimum score of a published detection")
    iou_threshold: Fraction | None = Field(
        default=None,
        description="overlap (IoU) above which NMS drops the box with the lower score; the model's value if absent",
    )
    classes: ClassNames | None = Field(default=None, description="classes to publish; all if absent")
    precision: Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8"] = Field(
        default="fp16", description="precision of the TensorRT engine; ONNX Runtime uses the model's own"
    )
    max_batch: int = Field(default=8, ge=1, le=256, description="maximum number of frames in a batch")
    batches_in_flight: int | None = Field(
        default=None, ge=1, le=8, description="number of batches in flight; the detector's choice if absent"
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="CPU threads of the ONNX Runtime detector, for all its sessions; one for each core if absent",
    )
    graphs: bool = Field(
        default=True, description="run the TensorRT engine as CUDA graphs; slower if false, for debugging"
    )
    engine: EngineConfig = Field(default=EngineConfig(), description="how a TensorRT engine is built")


class CameraConfig(ConfigSection):
    """One source of frames: a camera, a recording or a synthetic camera."""

    id: Identifier = Field(description="name in topics, messages and logs")
    source: Annotated[str, AfterValidator(check_source)] = Field(
        title=SOURCE_FORMS,
        description="address or path; paths are relative to this file; ${NAME} is an environment variable",
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
        description="library that reads the source; auto: the best one that is installed; csi: needs gstreamer",
    )
    transport: Literal["tcp", "udp"] = Field(
        default="tcp", description="RTSP transport; tcp: reliable; udp: lower latency, may lose packets"
    )
    width: int | None = Field(
        default=None,
        ge=16,
        le=16384,
        description="frame width to request from a csi: or USB camera, pixels; its default if absent",
    )
    height: int | None = Field(
        default=None,
        ge=16,
        le=16384,
        description="frame height to request from a csi: or USB camera, pixels; its default if absent",
    )
    fps: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="rate to request from a csi: or USB camera, or to play the images of a folder at, frames/s",
    )
    max_fps: float | None = Field(
        default=None, gt=0, le=1000, description="maximum rate of inference, frames/s; no limit if absent"
    )
    loop: bool = Field(default=False, description="restart a file when it ends")
    open_timeout_s: float = Field(default=5.0, gt=0, le=120, description="timeout for a connection, seconds")
    read_timeout_s: float = Field(
        default=5.0, gt=0, le=120, description="timeout for a frame before the camera is reconnected, seconds"
    )
    max_frame_age_s: float = Field(
        default=0.5,
        gt=0,
        le=60,
        description="maximum age of a frame when inference begins, seconds; older frames are dropped",
    )
    frozen_after_s: float | None = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="seconds of identical frames after which the camera counts as frozen; null: never",
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
        """Return pydantic's arguments with the account of the source redacted: configurations end up in logs."""
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
        description="maximum number of messages that wait for a slow subscriber; it loses further messages",
    )
    replay: Annotated[str, AfterValidator(check_bind)] | None = Field(
        default=None,
        title=BIND_FORMS,
        description="address where subscribers request missed events; needs `state_dir`; none if absent",
    )
    max_events: int = Field(
        default=10_000, ge=100, le=1_000_000, description="number of newest events that can be requested"
    )


class StatusConfig(ConfigSection):
    """Status messages."""

    interval_s: float = Field(default=1.0, gt=0, le=3600, description="seconds between two status messages")


class AppConfig(ConfigSection):
    """One camera.yaml."""

    node: Identifier | None = Field(
        default=None, description="name of this machine in messages; the host name if absent"
    )
    pipeline: Annotated[str, AfterValidator(check_pipeline)] = Field(
        default="detect",
        title=PIPELINE_FORMS,
        description="processing steps after detection: detect, track, count, or a Python file relative to this file; "
        "default: count if analytics is given, otherwise detect",
    )
    model: Annotated[str, AfterValidator(check_model_name)] = Field(
        default="nanodet-g-416",
        title=MODEL_FORMS,
        description="detection model: a name that `vision models` lists, or a path (with a /) relative to this file",
    )
    detect: DetectConfig = Field(
        default=DetectConfig(), description="classes and thresholds, and how the detector runs"
    )
    cameras: tuple[CameraConfig, ...] = Field(min_length=1, description="sources of frames")
    track: TrackConfig = Field(default=TrackConfig(), description="how objects are tracked from frame to frame")
    analytics: Mapping[Identifier, CameraAnalytics] = Field(
        default_factory=dict,
        description="lines and zones of each camera, by its id; needs a pipeline with analytics",
    )
    rules: tuple[RuleConfig, ...] = Field(
        default=(), max_length=1000, description="rules that report additional events"
    )
    cascade: CascadeConfig | None = Field(
        default=None, description="a second model that classifies tracked objects; none if absent"
    )
    snapshots: SnapshotConfig | None = Field(
        default=None, description="a JPEG of the frame of every event; none if absent"
    )
    state_dir: Annotated[str, AfterValidator(check_folder)] | None = Field(
        default=None,
        title=FOLDER_FORMS,
        description="folder for counters and events that outlive a restart, relative to this file; not kept if absent",
    )
    publish: PublishConfig = Field(default=PublishConfig(), description="the ZeroMQ socket")
    status: StatusConfig = Field(default=StatusConfig(), description="status messages")
    stop_timeout_s: float = Field(default=1.5, gt=0, le=60, description="timeout for an orderly stop, seconds")

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
    """model.yaml: inputs, outputs and origin of a detection model."""

    name: Identifier = Field(description="name in camera.yaml")
    file: Annotated[str, AfterValidator(check_file_name)] = Field(
        title=FILE_FORMS, description="ONNX file in the folder of model.yaml"
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", title="64 of the digits 0-9 and a-f")] | None = Field(
        default=None, description="checksum, verified when the model is loaded; a warning if absent"
    )
    input: InputSpec = Field(description="pre-processing")
    head: HeadSpec = Field(description="layout of the outputs")
    classes: Annotated[
        Annotated[tuple[str, ...], AfterValidator(unique_names), Tag("names")]
        | Annotated[Literal["coco80"], Tag("set")],
        Discriminator(_kind_of_classes),
    ] = Field(description="class names in the model's order, or coco80")
    nms: NmsSpec = Field(default_factory=lambda: NmsSpec(), description="defaults of non-maximum suppression")  # noqa: PLW0108 - defined below
    profiles: Annotated[tuple[ProfileSpec, ...], Field(min_length=1)] | None = Field(
        default=None, description="ranges of shapes of a TensorRT engine; derived from max_batch if absent"
    )
    licence: str = Field(min_length=1, description="licence of the weights, as an SPDX name if there is one")
    provenance: str = Field(default="", description="origin of the weights")


class InputSpec(ConfigSection):
    """Pre-processing: ``tensor = (pixels * scale - mean) / std`` per channel, pixels 0..255, NCHW."""

    width: int = Field(ge=16, le=16384, description="width of the model's input, pixels")
    height: int = Field(ge=16, le=16384, description="height of the model's input, pixels")
    color: Literal["bgr", "rgb"] = Field(default="rgb", description="order of the channels")
    scale: float = Field(default=1.0, gt=0, description="1/255 = 0.00392156862745098 for models that take 0..1")
    mean: tuple[float, float, float] = Field(default=(0.0, 0.0, 0.0), description="in the order of `color`")
    std: tuple[_Positive, _Positive, _Positive] = Field(default=(1.0, 1.0, 1.0), description="in the order of `color`")
    letterbox: Literal["top-left", "center"] = Field(
        default="center", description="position of the frame on the canvas"
    )
    fill: int = Field(
        default=114, ge=0, le=255, description="grey of the canvas around the frame, before normalisation"
    )


class HeadSpec(ConfigSection):
    """Layout of the outputs."""

    kind: Literal["nanodet", "yolov5", "yolov8", "end-to-end", "rt-detr"] = Field(description="layout of the outputs")
    strides: Annotated[tuple[_Stride, ...], Field(min_length=1, max_length=8)] = Field(
        default=(8, 16, 32), description="nanodet: cell sizes, model pixels"
    )
    bins: int = Field(default=11, ge=2, le=64, description="nanodet: bins of each side's distance distribution")
    box_scale: Literal["pixels", "fraction"] = Field(default="pixels", description="unit of the output boxes")
    activation: Literal["none", "sigmoid"] = Field(
        default="none", description="activation applied to the scores; rt-detr exports give logits"
    )


class NmsSpec(ConfigSection):
    """Defaults of non-maximum suppression. End-to-end and RT-DETR heads need none."""

    iou_threshold: Fraction = Field(
        default=0.6, description="overlap (IoU) above which the box with the lower score is dropped"
    )
    class_aware: bool = Field(default=True, description="compare boxes of the same class only")
    max_candidates: int = Field(default=1024, ge=1, le=8192, description="maximum number of candidates, by score")
    max_objects: int = Field(default=300, ge=1, le=4096, description="maximum number of objects in a frame")


ModelSpec.model_rebuild()


def folder_of_model(name: str, models: Path) -> Path:
    """Return the folder of a model: a path if `name` has a slash or exists, else the shipped model of this name."""
    given = Path(name)
    return given if "/" in name or given.is_dir() else models / name
