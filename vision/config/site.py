"""camera.yaml as frozen typed objects. Validation reads no file, opens no device and looks up no host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""Names of cameras, lines and zones: they become parts of topics and file names."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A mapping of camera.yaml: unknown keys are refused, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DetectConfig(Section):
    """What to look for, and how the detector runs."""

    backend: Literal["auto", "tensorrt", "onnxruntime", "fake"] = Field(
        "auto", description="auto: TensorRT where it and a GPU are there, ONNX Runtime otherwise"
    )
    score: Fraction = Field(0.35, description="lowest score of a published object")
    iou: Fraction | None = Field(None, description="NMS threshold; the model's own where absent")
    classes: tuple[str, ...] | None = Field(None, description="class names to keep; all where absent")
    precision: Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8"] = Field(
        "fp16", description="arithmetic of a TensorRT engine; ONNX Runtime computes in the model's own"
    )
    max_batch: int = Field(8, ge=1, le=256, description="most frames in one batch")
    slots: int | None = Field(None, ge=1, le=8, description="batches in flight; chosen by the detector where absent")
    threads: int | None = Field(
        None, ge=1, le=256, description="CPU threads of the ONNX Runtime detector in all; every core where absent"
    )


class CameraConfig(Section):
    """One camera, file or generator."""

    id: Identifier = Field(description="name in topics, messages and logs")
    source: str = Field(
        min_length=1,
        description="rtsp:// rtsps:// http:// https:// URL, a file, a folder of images, /dev/videoN, csi:N, or synthetic:",
    )
    via: Literal["auto", "opencv", "gstreamer"] = Field("auto", description="library that opens the source")
    transport: Literal["tcp", "udp"] = Field("tcp", description="RTSP transport")
    width: int | None = Field(None, ge=16, le=16384, description="picture width to ask a camera for, pixels")
    height: int | None = Field(None, ge=16, le=16384, description="picture height to ask a camera for, pixels")
    fps: float | None = Field(None, gt=0, le=1000, description="rate to ask a camera for, frames/s; of an image folder")
    max_fps: float | None = Field(None, gt=0, le=1000, description="most frames/s of this camera that are inferred")
    loop: bool = Field(False, description="start a file again when it ends")
    open_timeout_s: float = Field(5.0, gt=0, le=120, description="longest wait for a connection")
    read_timeout_s: float = Field(5.0, gt=0, le=120, description="longest wait for a picture before reconnecting")
    staleness_s: float = Field(0.5, gt=0, le=60, description="a frame older than this is dropped, not inferred")
    frozen_after_s: float | None = Field(
        10.0, gt=0, le=3600, description="the same picture for this long means a frozen camera; null: never"
    )


class PublishConfig(Section):
    """The ZeroMQ socket."""

    bind: str = Field("tcp://127.0.0.1:5555", description="address of the PUB socket: tcp:// or ipc://")
    encoding: Literal["json", "msgpack"] = Field("json", description="payload of every message")
    queue: int = Field(1000, ge=1, le=1_000_000, description="messages kept for one slow subscriber before its oldest go")


class StatusConfig(Section):
    """Messages about the program itself."""

    interval_s: float = Field(1.0, gt=0, le=3600, description="time between two status messages")


class SiteConfig(Section):
    """One camera.yaml."""

    node: Identifier | None = Field(None, description="name of this machine in messages; its host name where absent")
    pipeline: str = Field("detect", description="detect, or a Python file of your own")
    model: str = Field("nanodet-g-416", description="a name under models/, or a folder with model.yaml")
    detect: DetectConfig = DetectConfig()
    cameras: tuple[CameraConfig, ...] = Field(min_length=1)
    publish: PublishConfig = PublishConfig()
    status: StatusConfig = StatusConfig()
    stop_timeout_s: float = Field(1.5, gt=0, le=60, description="longest orderly stop")


class ModelCard(Section):
    """model.yaml: what a model takes, what it gives, whose it is."""

    name: Identifier
    file: str = Field(description="ONNX file beside model.yaml")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="checked when the model is loaded; a warning where absent"
    )
    input: InputCard
    head: HeadCard
    classes: tuple[str, ...] | Literal["coco80"] = Field(description="class names in the model's order, or coco80")
    nms: NmsCard
    licence: str
    provenance: str = Field("", description="where the weights come from")


class InputCard(Section):
    """How pixels go in: ``tensor = (pixels * scale - mean) / std`` per channel, pixels 0..255, NCHW."""

    width: int = Field(ge=16, le=16384)
    height: int = Field(ge=16, le=16384)
    color: Literal["bgr", "rgb"] = "rgb"
    scale: float = Field(1.0, gt=0, description="1/255 = 0.00392156862745098 for models that take 0..1")
    mean: tuple[float, float, float] = Field((0.0, 0.0, 0.0), description="in the order of `color`")
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    letterbox: Literal["top-left", "center"] = Field("center", description="where the picture lies on the canvas")
    fill: int = Field(114, ge=0, le=255, description="grey of the canvas around the picture, before normalisation")


class HeadCard(Section):
    """How boxes come out."""

    kind: Literal["nanodet", "yolov5", "yolov8", "end-to-end", "rt-detr"]
    strides: tuple[int, ...] = Field((8, 16, 32), description="nanodet: cell sizes, model pixels")
    bins: int = Field(11, ge=2, le=64, description="nanodet: bins of each side's distance distribution")
    box_scale: Literal["pixels", "fraction"] = Field("pixels", description="unit of the boxes that the model gives")
    activation: Literal["none", "sigmoid"] = Field("none", description="applied to the scores; rt-detr exports give logits")


class NmsCard(Section):
    """Defaults of the last step. End-to-end and RT-DETR heads need none."""

    iou: Fraction = 0.6
    class_aware: bool = True
    max_candidates: int = Field(1024, ge=1, le=8192, description="best scores that NMS looks at")
    max_objects: int = Field(300, ge=1, le=4096, description="most objects of one picture")


ModelCard.model_rebuild()


def folder_of_model(name: str, models: Path) -> Path:
    """`name` as a folder: a path where it has a slash or exists, else one of the shipped models."""
    given = Path(name)
    return given if "/" in name or given.is_dir() else models / name
