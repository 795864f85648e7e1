"""Classes that hold the keys of camera.yaml. The sections `analytics:` and `rules:` have their own modules."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from vision.config.analytics import CameraAnalytics
from vision.config.archive import ArchiveConfig
from vision.config.checks import TRACK_SCORES, camera_conflicts, config_conflicts, pipeline_name, tracking_conflicts
from vision.config.fields import (
    BatchSize,
    BindAddress,
    ClassifierName,
    ClassNames,
    ConfigSection,
    Day,
    FolderPath,
    Fraction,
    FramesPerSecond,
    Hour,
    HttpAddress,
    Identifier,
    Identifiers,
    Minute,
    ModelName,
    PipelineName,
    Pixels,
    Processes,
    Source,
    Threads,
    TlsPolicy,
    free_of,
)
from vision.config.language import DescribeConfig, LanguageConfig, VerifyConfig
from vision.config.objects import ObjectsConfig
from vision.config.onvif import OnvifConfig
from vision.config.page import PageConfig
from vision.config.privacy import CameraPrivacy
from vision.config.recording import RecordingConfig
from vision.config.reporting import REALIGN_PATIENCE_S, ReportAfter
from vision.config.rules import RuleConfig
from vision.config.sinks import Sinks
from vision.config.source_address import File, Folder, SourceAddress, parse_source, with_account
from vision.errors import redact


class EngineConfig(ConfigSection):
    """Build options of a TensorRT engine."""

    optimization_level: int | None = Field(default=None, ge=0, le=5)
    """Effort of the build, from 0 (short build) to 5 (fast engine); TensorRT's default if absent."""
    workspace_mib: int | None = Field(default=None, ge=1, le=1_000_000)
    """Maximum scratch memory of a layer in MiB; if absent, a quarter of the memory on a Jetson; elsewhere no limit."""
    dla_core: int | None = Field(default=None, ge=0, le=15)
    """Number of the Jetson's deep-learning accelerator (DLA) to use; the GPU if absent or not available."""
    sparse_weights: bool = False
    """Let TensorRT use sparse tensor cores for layers whose weights follow the 2:4 pattern."""


class DetectConfig(ConfigSection):
    """Back-end, thresholds, classes, precision, and batches of the detector."""

    backend: Literal["auto", "tensorrt", "onnxruntime", "fake"] = "auto"
    """Library that runs the model; auto: TensorRT if TensorRT and a GPU are available, otherwise ONNX Runtime."""
    score_threshold: Fraction = 0.35
    """Minimum score of a published detection."""
    iou_threshold: Fraction | None = None
    """Overlap (IoU) above which NMS drops the box with the lower score; the model's value if absent."""
    classes: ClassNames | None = None
    """Classes to publish; all classes if absent."""
    precision: Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8"] = "fp16"
    """Precision of the TensorRT engine; ONNX Runtime uses the precision of the model."""
    max_batch: BatchSize = 8
    """Maximum number of frames in a batch."""
    batches_in_flight: int | None = Field(default=None, ge=1, le=8)
    """Maximum number of unfinished batches in the detector; chosen by the detector if absent."""
    threads: Threads | None = None
    """Total number of CPU threads of the ONNX Runtime detector; one for each core if absent."""
    graphs: bool = True
    """Run the TensorRT engine as CUDA graphs; false is slower, and only for debugging."""
    engine: EngineConfig = EngineConfig.model_construct()
    """Build options of the TensorRT engine."""


class CameraConfig(ConfigSection):
    """One source of frames: a camera, a recording, or a synthetic camera."""

    id: Identifier
    """Name of the camera in topics, messages, and logs."""
    source: Source = Field(examples=["rtsp://gate.example.com/stream1", "/dev/video0", "csi:0", "videos/walk.mp4"])
    """Address or path of the source; paths are relative to this file; ${NAME} is an environment variable."""
    user: str | None = Field(default=None, min_length=1)
    """User name of a network camera, as plain text."""
    password: str | None = Field(
        default=None,
        min_length=1,
        repr=False,
        title="${NAME}, an environment variable that holds the password",
        examples=["${GATE_PASSWORD}"],
    )
    """Password of a network camera, from the environment: ${NAME}."""
    reader: Literal["auto", "opencv", "gstreamer", "ffmpeg", "nvdec"] = "auto"
    """Library that reads the source; auto: the best installed library; csi: sources need gstreamer."""
    transport: Literal["tcp", "udp"] = "tcp"
    """Transport for RTSP; tcp is reliable; udp has a lower latency, but can lose packets."""
    tls: TlsPolicy = "verify"
    """Certificates of https:// and rtsps:// cameras; verify: checked with the system's authorities; accept-any: not
    checked; or a PEM file with the certificates to trust, relative to this file."""
    width: Pixels | None = None
    """Frame width to request from a csi:, USB, or synthetic: camera, in pixels; the camera's default if absent."""
    height: Pixels | None = None
    """Frame height to request from a csi:, USB, or synthetic: camera, in pixels; the camera's default if absent."""
    fps: FramesPerSecond | None = None
    """Frame rate in frames/s to request from a csi:, USB, or synthetic: camera, or at which to read the images of a
    folder or to request the snapshots of an http:// camera."""
    max_fps: FramesPerSecond | None = None
    """Maximum rate of inference in frames/s; no limit if absent."""
    loop: bool = False
    """Play a file or a folder of images again when it ends."""
    open_timeout_s: float = Field(default=5.0, gt=0, le=120)
    """Timeout in seconds for a connection."""
    read_timeout_s: float = Field(default=5.0, gt=0, le=120)
    """Seconds without a frame after which the camera is reconnected."""
    max_frame_age_s: Minute = 0.5
    """Maximum age in seconds of a frame when inference starts, and again when its result is processed. For the result,
    the time of inference does not count. Older frames are dropped."""
    report_after_s: ReportAfter = ReportAfter.model_construct()
    """Times after which events report faults of this camera; if a time is absent, that of all cameras applies."""
    frozen_after_s: Hour | None = 10.0
    """Seconds of identical frames after which the camera counts as frozen; null means never."""

    _consistent = free_of(camera_conflicts)

    @property
    def address(self) -> SourceAddress:
        """The parsed source, with `user` and `password` in its URL if set. An existing folder is always a `Folder`."""
        address = parse_source(self.source)
        if self.user is not None and self.password is not None:
            return with_account(address, self.user, self.password)
        return Folder(address.path) if isinstance(address, File) and os.path.isdir(address.path) else address  # noqa: PTH112 - no error for any text

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Return pydantic's arguments without the account in the source, because configurations are logged."""
        for name, value in super().__repr_args__():
            yield name, redact(value) if name == "source" else value


class TrackConfig(ConfigSection):
    """Scores that a detection needs to extend or start a track, and the duration of tracks.

    The detector must report detections down to `low_score`, so its threshold is the lower of `low_score` and the
    minimum score of published objects.
    """

    low_score: Fraction = TRACK_SCORES["low_score"]
    """Minimum score of a detection that can extend a track of the previous frame."""
    high_score: Fraction = TRACK_SCORES["high_score"]
    """Minimum score of a detection that can extend any track."""
    new_score: Fraction = TRACK_SCORES["new_score"]
    """Minimum score of a detection that starts a track."""
    confirm_s: float = Field(default=0.0, ge=0, le=60)
    """Seconds before a new track is published; the track always needs two detections."""
    tentative_s: float = Field(default=0.25, ge=0, le=60)
    """Seconds without a detection after which an unpublished track ends."""
    weak_s: float = Field(default=0.5, ge=0, le=60)
    """Maximum time in seconds for which only detections between `low_score` and `high_score` extend a track."""
    weak_standing_s: float = Field(default=20.0, ge=0, le=3600)
    """Maximum time in seconds for which only detections between `low_score` and `high_score` extend the track of an
    object that does not move, or that is partly behind another tracked object; a value below `weak_s` has no effect."""
    lost_s: Minute = 1.5
    """Seconds without a detection after which a published track ends."""
    reactivation: Literal["filter", "observation"] = "filter"
    """Motion of a track after a gap; filter: predicted and corrected; observation: from two positions only."""
    max_objects: int = Field(default=500, ge=1, le=10_000)
    """Maximum number of tracks at the same time."""
    class_groups: tuple[ClassNames, ...] | None = None
    """Groups of classes that the detector confuses; car, truck, and bus if absent and the model has them."""

    _consistent = free_of(tracking_conflicts)


class CascadeConfig(ConfigSection):
    """A second model that classifies tracked objects."""

    model: ClassifierName
    """Classifier: the name of a shipped model, or a path (with a /) relative to this file."""
    classes: ClassNames | None = None
    """Classes of the objects to classify; all if absent."""
    score_threshold: Fraction = 0.5
    """Minimum score of a class that is published as an attribute."""
    refresh_s: Day | None = 5.0
    """Seconds after which an object is classified again; null means only once."""
    min_size_px: int = Field(default=32, ge=1, le=16384)
    """Minimum length in pixels of the shorter side of a box."""
    margin: float = Field(default=0.0, ge=0, le=1)
    """Margin on every side of the box, as a fraction of the box's width and height."""
    backend: Literal["auto", "tensorrt", "onnxruntime"] = "auto"
    """Library that runs the second model; auto: TensorRT if TensorRT and a GPU are available and one process handles
    all results, otherwise ONNX Runtime."""
    precision: Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8"] = "fp16"
    """Precision of the TensorRT engine; ONNX Runtime uses the precision of the model."""
    max_batch: BatchSize = 8
    """Maximum number of objects in a batch."""
    queue: int = Field(default=32, ge=1, le=1024)
    """Maximum number of objects that wait for the model; other objects are retried with a later frame."""
    threads: Threads = 1
    """Number of CPU threads of the second model, if ONNX Runtime runs it."""


class SnapshotConfig(ConfigSection):
    """JPEG files that show the frame of each event."""

    folder: FolderPath
    """Folder for the JPEG files, relative to this file; created if missing."""
    kinds: Identifiers | None = None
    """Kinds of events for which a file is written; all if absent."""
    max_files: int = Field(default=10_000, ge=1, le=1_000_000)
    """Maximum number of files; the oldest are deleted first."""
    max_mb: int = Field(default=1000, ge=1, le=10_000_000)
    """Maximum total size in megabytes; the oldest files are deleted first."""
    max_side_px: int = Field(default=1280, ge=64, le=16384)
    """Maximum length in pixels of the longer side; larger frames are scaled down."""
    quality: int = Field(default=85, ge=1, le=100)
    """JPEG quality in percent."""
    annotate: bool = True
    """Draw the object, the line or zone, and the time of the event on the frame."""


class PublishConfig(ConfigSection):
    """The ZeroMQ socket that publishes messages."""

    bind: BindAddress = "tcp://127.0.0.1:5555"
    """Address of the PUB socket; tcp://127.0.0.1:5555 serves only this machine; tcp://*:5555 also serves other
    machines, and should be used with `curve`."""
    encoding: Literal["json", "msgpack"] = "json"
    """Format of the payload of every message."""
    masks: Literal["polygon", "rle"] = "polygon"
    """Format of the masks of objects, if the model finds masks; polygon: outlines, which need OpenCV; rle: run lengths
    as in COCO."""
    queue: int = Field(default=1000, ge=1, le=1_000_000)
    """Maximum number of messages that wait for a slow subscriber; the subscriber loses further messages."""
    curve: FolderPath | None = None
    """Folder with the keys of this program and of its subscribers (`vision keys`), relative to this file; with it,
    messages are encrypted, and only subscribers with an allowed key can connect."""
    insecure: bool = False
    """Permit, without `curve`, an address that other machines can reach; everyone there can then read the messages."""
    max_subscribers: int = Field(default=256, ge=1, le=10_000)
    """Maximum number of connections. Further subscribers wait until a subscriber disconnects."""
    replay: BindAddress | None = None
    """Address at which subscribers request missed events; needs `state_dir`; no such address if absent."""
    max_events: int = Field(default=10_000, ge=100, le=1_000_000)
    """Number of newest events that stay stored and can be requested; older events are deleted."""


class HttpConfig(ConfigSection):
    """An HTTP server for metrics and health."""

    bind: HttpAddress = "127.0.0.1:9102"
    """Address and port; an address that other machines can reach needs `token`."""
    token: str | None = Field(
        default=None, min_length=16, repr=False, title="${NAME}, an environment variable with at least 16 characters"
    )
    """Token that clients of /metrics and /healthz must send, from the environment: ${NAME}; not needed if absent."""


class StatusConfig(ConfigSection):
    """Status messages about the program and its cameras."""

    interval_s: Hour = 1.0
    """Seconds between two status messages."""
    min_free_mb: int = Field(default=500, ge=0, le=10_000_000)
    """Free space in megabytes below which an event reports the disk of `state_dir` and `snapshots` as low."""


class AppConfig(ConfigSection):
    """The content of a camera.yaml."""

    node: Identifier | None = None
    """Name of this machine in messages; the host name if absent."""
    pipeline: PipelineName = "detect"
    """Steps after detection: detect, track, count, or a Python file; if absent, count with analytics, track with
    objects, else detect."""
    model: ModelName = "nanodet-g-416"
    """Detection model: a name that `vision models` lists, or a path (with a / or .onnx) relative to this file."""
    detect: DetectConfig = DetectConfig.model_construct()
    """Classes, thresholds, back-end, and speed of the detector."""
    cameras: tuple[CameraConfig, ...] = Field(min_length=1, max_length=1000)
    """Sources of frames."""
    report_after_s: ReportAfter = ReportAfter.model_construct()
    """Times after which events report faults of cameras."""
    track: TrackConfig = TrackConfig.model_construct()
    """Tracking of objects from frame to frame."""
    analytics: Mapping[Identifier, CameraAnalytics] = Field(default_factory=dict)
    """Lines and zones of each camera, by camera id; needs a pipeline with analytics."""
    rules: tuple[RuleConfig, ...] = Field(default=(), max_length=1000)
    """Rules that report additional events."""
    cascade: CascadeConfig | None = None
    """A second model that classifies tracked objects; none if absent."""
    snapshots: SnapshotConfig | None = None
    """A JPEG file of the frame of every event; none if absent."""
    objects: ObjectsConfig | None = None
    """A message about each object that leaves the scene; none if absent."""
    privacy: Mapping[Identifier, CameraPrivacy] = Field(default_factory=dict)
    """Areas and objects of each camera that no image or video shows, by camera id."""
    recording: RecordingConfig | None = None
    """MP4 files of the coded video; not recorded if absent."""
    language: LanguageConfig | None = None
    """The server of a language model, for `verify` and `describe`; none if absent."""
    verify: tuple[VerifyConfig, ...] = Field(default=(), max_length=100)
    """Events that the language model confirms or refutes; the first entry that chooses an event applies."""
    describe: tuple[DescribeConfig, ...] = Field(default=(), max_length=100)
    """Events that the language model describes, and statements that it watches; the first entry that chooses an event
    applies."""
    state_dir: FolderPath | None = None
    """Folder for counters and events that persist across restarts, relative to this file; not stored if absent."""
    archive: ArchiveConfig | None = None
    """An archive of the tracks, events, and counts of every frame; none if absent."""
    publish: PublishConfig = PublishConfig.model_construct()
    """The ZeroMQ socket that publishes messages."""
    sinks: Sinks = ()
    """Brokers and servers that receive messages."""
    http: HttpConfig | None = None
    """An HTTP server for metrics and health; none if absent."""
    onvif: OnvifConfig | None = None
    """An RTSP server with ONVIF metadata; none if absent."""
    page: PageConfig | None = None
    """A web page with live views, events, and counts; none if absent."""
    status: StatusConfig = StatusConfig.model_construct()
    """Status messages about the program and its cameras."""
    processes: Processes | Literal["auto"] = "auto"
    """Number of worker processes that read the cameras, and also of those that process results; 1: everything in one
    process; auto: depends on the frame rates and the CPU cores."""
    stop_timeout_s: Minute = 1.5
    """Timeout in seconds for an orderly stop; a capture worker that closes many cameras has more time."""
    hang_s: float = Field(default=30.0, ge=1, le=600)
    """Seconds without progress after which a camera's thread or a capture worker is replaced, or the program ends if
    another part hangs."""

    @model_validator(mode="before")
    @classmethod
    def _choose_pipeline(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "pipeline" not in data:
            return {**data, "pipeline": pipeline_name(data)}
        return data

    _consistent = free_of(config_conflicts)

    def report_after(self, camera: CameraConfig) -> ReportAfter:
        """Return the times after which events report faults of a camera.

        For each fault, this is the camera's own time, or else the time for all cameras.
        """
        own = camera.report_after_s
        chosen = self.report_after_s.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})
        if camera.id not in self.analytics or not self.analytics[camera.id].realign:
            return chosen
        missing = [key for key in ("moved", "covered") if getattr(chosen, key) is None]
        return chosen.model_copy(update=dict.fromkeys(missing, REALIGN_PATIENCE_S))

    @property
    def watched_views(self) -> tuple[str, ...]:
        """The ids of the cameras whose frames must be compared with the background of the same camera."""
        return tuple(camera.id for camera in self.cameras if self.report_after(camera).watches_view)
