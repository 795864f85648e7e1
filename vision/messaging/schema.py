"""Classes that define the fields of all messages. docs/messages.md and docs/schemas/ are generated from them.

A schema has the name ``vision.<kind>/<version>``. Within a version, fields are only added, and a reader ignores fields
that it does not know. An added field has a default, because older publishers do not send it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, TypedDict, get_args

import msgspec
from msgspec import Struct

from vision.messaging.message_fields import (
    Angle,
    Box,
    Compact,
    Corners,
    KeypointNames,
    Keypoints,
    ObjectMask,
    doc,
)
from vision.messaging.times import utc_ns
from vision.types import ViewNumbers

Encoding: TypeAlias = Literal["json", "msgpack"]

MaskFormat: TypeAlias = Literal["polygon", "rle"]
"""Format of masks in messages: polygons, or run-length encoding in the format of COCO."""

Kind: TypeAlias = Literal["detections", "status", "events", "counts", "objects"]
"""First part of a topic, as in ``detections/<camera>``. The second part of status and events can also be ``node``."""

KINDS: tuple[Kind, ...] = get_args(Kind)

REMOVED = "removed"
"""State in the last status of a camera that was removed while the program was running."""

NODE = "node"
"""The second part of ``status/node`` and ``events/node``, which are about the program. No camera can have this name."""


# The header of every message. The publisher adds it when it builds the message.
Node: TypeAlias = Annotated[str, doc("name of the publishing machine")]
Instance: TypeAlias = Annotated[str, doc("identifies one run of the publisher; in each run, `seq` starts at 1")]
Boot: TypeAlias = Annotated[str, doc("last boot of the machine; monotonic times with equal `boot` are comparable")]
Seq: TypeAlias = Annotated[int, doc("number of the message in its topic, from 1 on; a gap usually means a loss")]
Epoch: TypeAlias = Annotated[
    int, doc("increases when the camera reconnects, gets a new worker process, or changes its frame size")
]


class Header(TypedDict):
    """The sender of a message, and the number of the message in its topic."""

    node: str
    instance: str
    boot: str
    seq: int


class AttributeOfObject(Compact, frozen=True, kw_only=True):
    """The class that a second model assigned to an object."""

    model: Annotated[str, doc("name of the second model, from `cascade` in camera.yaml")]
    class_name: Annotated[str, doc("name of the class")] = msgspec.field(name="class")
    score: Annotated[float, doc("score of the class, from 0 to 1")]
    age_ms: Annotated[int, doc("time from the frame that the second model read to this frame, in ms")]


class DetectedObject(Compact, frozen=True, kw_only=True):
    """One object in one frame."""

    track_id: Annotated[int | None, doc("identifies the object from frame to frame; absent without tracking")] = None
    class_name: Annotated[str, doc("name of the class")] = msgspec.field(name="class")
    class_id: Annotated[int, doc("number of the class in the model")]
    score: Annotated[float, doc("score of the class, from 0 to 1")]
    box: Annotated[Box, doc("x1, y1, x2, y2 in pixels of the frame; y points down")]
    age_ms: Annotated[int | None, doc("ms since the first detection of the object; absent without tracking")] = None
    hidden_px: Annotated[
        float | None, doc("height in pixels of the part of the object hidden below its box; absent if none")
    ] = None
    previous_box: Annotated[Box | None, doc("previous box of the object; only in the first message of its track")] = (
        None
    )
    attributes: Annotated[list[AttributeOfObject] | None, doc("results of the second model; absent if none yet")] = None
    mask: ObjectMask = None
    keypoints: Keypoints = None
    angle_deg: Angle = None
    corners: Corners = None

    def __str__(self) -> str:
        """Return the object as text, such as ``person #17 0.88 at 412,220,499,471``."""
        track = "" if self.track_id is None else f" #{self.track_id}"
        return f"{self.class_name}{track} {self.score:.2f} at {','.join(f'{x:.0f}' for x in self.box)}"


class StageTimes(Compact, frozen=True, kw_only=True):
    """The duration of each step between camera and socket, in milliseconds."""

    wait: Annotated[float, doc("time from capture until the frame is added to a batch")]
    submit: Annotated[float, doc("time from the addition to the batch until the batch is submitted to the detector")]
    infer: Annotated[float, doc("time from the submission until the detections are known")]
    publish: Annotated[float, doc("time from the detections until the message is sent, in which the stages run")]
    total: Annotated[float, doc("time from capture until the message is sent")]


class DetectionsMessage(Compact, frozen=True, kw_only=True, tag_field="schema", tag="vision.detections/1"):
    """The objects in one frame of one camera. A message is sent for each processed frame, even without objects."""

    node: Node
    instance: Instance
    boot: Boot
    seq: Seq
    camera: Annotated[str, doc("`id` of the camera in camera.yaml")]
    epoch: Epoch
    frame: Annotated[int, doc("number of the frame in its epoch, including dropped frames")]
    captured_at: Annotated[str, doc("capture time of the frame in UTC, RFC 3339")]
    captured_monotonic_ns: Annotated[int, doc("the same time on the monotonic clock of the publishing machine")]
    clock: Annotated[str, doc("source of the time: `rtcp` (the camera), `arrival` (at this machine), `media` (file)")]
    timing_ms: Annotated[StageTimes, doc("duration of each step, in ms")]
    dropped_before: Annotated[dict[str, int], doc("frames of the camera dropped since its last message, by reason")]
    width: Annotated[int, doc("width of the frame in pixels")]
    height: Annotated[int, doc("height of the frame in pixels")]
    objects: Annotated[list[DetectedObject], doc("detected objects, highest score first")]
    truncated_candidates: Annotated[
        int, doc("possible objects that the detector ignored, because there were too many; absent means 0")
    ] = 0
    invalid: Annotated[int, doc("objects that the message omits, because a value is not finite; absent means 0")] = 0
    keypoint_names: KeypointNames = None

    @property
    def topic(self) -> str:
        return f"detections/{self.camera}"

    @property
    def captured_utc_ns(self) -> int:
        """The capture time in nanoseconds since 1970."""
        return utc_ns(self.captured_at)

    def __str__(self) -> str:
        """Return one line, such as ``gate frame 1061: person #17 0.88 at 412,220,499,471``."""
        return f"{self.camera} frame {self.frame}: {', '.join(map(str, self.objects)) or 'no objects'}"


class Verdict(Compact, frozen=True, kw_only=True):
    """The answer that a language model gave to a question about an event."""

    check: Annotated[str, doc("`name` of the entry of `verify` or `describe` in camera.yaml")]
    answer: Annotated[str, doc("one of the configured answers")]
    confidence: Annotated[float | None, doc("confidence from 0 to 1; absent if it is not known")] = None
    model: Annotated[str, doc("name of the model")]
    latency_ms: Annotated[float, doc("time from the request to the answer, in milliseconds")]


class Description(Compact, frozen=True, kw_only=True):
    """The description of an event by a language model. The fields have the same meaning as the fields of `Verdict`."""

    check: str
    text: Annotated[str, doc("description, as the model wrote it")]
    model: str
    latency_ms: float


class EventMessage(Compact, frozen=True, kw_only=True, tag_field="schema", tag="vision.events/1"):
    """An event of one camera."""

    node: Node
    instance: Instance
    boot: Boot
    seq: Seq
    camera: Annotated[str, doc("`id` of the camera in camera.yaml, or `node` for an event of the program")]
    epoch: Annotated[int, doc("epoch of the frame in which the event was detected; 0 for an event of the program")]
    frame: Annotated[int, doc("number of the frame in which the event was detected; 0 if there is no such frame")]
    at: Annotated[str, doc("time of the event in UTC, RFC 3339")]
    at_monotonic_ns: Annotated[int, doc("the same time on the monotonic clock of the publishing machine")]
    kind: Annotated[str, doc("kind of event, such as `line_crossed`")]
    name: Annotated[str, doc("name of the line, zone, rule, or other subject of the event")]
    track_id: Annotated[int | None, doc("track of the object; absent if the event is not about one object")] = None
    data: Annotated[dict[str, Any], doc("details, depending on `kind`")]
    box: Annotated[Box | None, doc("box of the object in this frame; absent if the object is not in it")] = None
    mask: ObjectMask = None
    keypoints: Keypoints = None
    keypoint_names: KeypointNames = None
    angle_deg: Angle = None
    corners: Corners = None
    snapshot: Annotated[
        str | None, doc("path of a JPEG file of the frame on the publishing machine; absent if there is none")
    ] = None
    journal: Annotated[str | None, doc("id of the journal that stores the event; absent if none does")] = None
    number: Annotated[
        int | None, doc("number of the event in its journal, across all cameras and restarts; absent without a journal")
    ] = None
    id: Annotated[str | None, doc("id of an event about which a language model is asked; otherwise absent")] = None
    amends: Annotated[int | None, doc("in an amendment: `seq` of the first message; otherwise absent")] = None
    verdict: Annotated[Verdict | None, doc("answer of a language model; absent if there is none")] = None
    description: Annotated[Description | None, doc("description by a language model; absent if there is none")] = None

    @property
    def topic(self) -> str:
        return f"events/{self.camera}"


class LineCrossing(Compact, frozen=True, kw_only=True):
    """A crossing of a line by one object."""

    name: Annotated[str, doc("name of the line")]
    direction: Annotated[str, doc("`in` (from the left side of the line to its right side) or `out`")]
    at: Annotated[str, doc("time in UTC, RFC 3339")]


class ZoneVisit(Compact, frozen=True, kw_only=True):
    """A stay of one object in a zone."""

    name: Annotated[str, doc("name of the zone")]
    entered_at: Annotated[str, doc("time in UTC, RFC 3339")]
    left_at: Annotated[str | None, doc("time in UTC, RFC 3339; absent if the track ended inside the zone")] = None


class ObjectMessage(Compact, frozen=True, kw_only=True, tag_field="schema", tag="vision.objects/1"):
    """A summary of one object, sent after the object has left the scene."""

    node: Node
    instance: Instance
    boot: Boot
    seq: Seq
    camera: Annotated[str, doc("`id` of the camera in camera.yaml")]
    epoch: Annotated[int, doc("epoch in which the object was tracked")]
    track_id: Annotated[int, doc("track of the object, as in detections and events")]
    class_name: Annotated[str, doc("name of the class")] = msgspec.field(name="class")
    class_id: Annotated[int, doc("number of the class in the model")]
    score: Annotated[float, doc("highest score of its detections, from 0 to 1")]
    first_seen: Annotated[str, doc("time of its first detection in UTC, RFC 3339")]
    at: Annotated[str, doc("time of its last detection in UTC, RFC 3339")]
    at_monotonic_ns: Annotated[int, doc("the same time on the monotonic clock of the publishing machine")]
    duration_s: Annotated[float, doc("time from the first to the last detection, in seconds")]
    width: Annotated[int, doc("width of the frame in pixels")]
    height: Annotated[int, doc("height of the frame in pixels")]
    box: Annotated[Box, doc("last box of the object, as in detections")]
    path: Annotated[
        list[tuple[int, float, float]],
        doc("up to 64 positions: time since `first_seen` in ms, x and y of the bottom center of the box in pixels"),
    ]
    lines: Annotated[list[LineCrossing], doc("the last 64 crossings of lines, oldest first; absent if none")] = (
        msgspec.field(default_factory=list)
    )
    zones: Annotated[list[ZoneVisit], doc("the last 64 stays in zones, oldest first; absent if none")] = msgspec.field(
        default_factory=list
    )
    attributes: Annotated[list[AttributeOfObject] | None, doc("results of the second model; absent if none")] = None
    snapshot: Annotated[bytes | None, doc("JPEG of the object, if possible large and clear; absent if none")] = None
    snapshot_at: Annotated[str | None, doc("time of the frame of the snapshot in UTC, RFC 3339; absent if none")] = None
    snapshot_box: Annotated[Box | None, doc("box of the object in the frame of the snapshot; absent if none")] = None

    @property
    def topic(self) -> str:
        return f"objects/{self.camera}"

    def __str__(self) -> str:
        """Return one line, such as ``gate: person #17 left after 12.4 s``."""
        return f"{self.camera}: {self.class_name} #{self.track_id} left after {self.duration_s:.1f} s"


_INTERVAL = "95 % interval [low, high] of the true `{}`; absent without `accuracy` in camera.yaml"


class LineCounts(Compact, frozen=True, kw_only=True):
    """The counts of one line."""

    in_: Annotated[int, doc("crossings from the left to the right side of the line")] = msgspec.field(name="in")
    out: Annotated[int, doc("crossings from the right to the left side of the line")]
    in_by_class: Annotated[dict[str, int], doc("`in` by class")]
    out_by_class: Annotated[dict[str, int], doc("`out` by class")]
    in_interval: Annotated[tuple[int, int] | None, doc(_INTERVAL.format("in"))] = None
    out_interval: Annotated[tuple[int, int] | None, doc(_INTERVAL.format("out"))] = None


class ZoneCounts(Compact, frozen=True, kw_only=True):
    """The counts of one zone."""

    occupancy: Annotated[int, doc("number of objects in the zone now")]
    entered: Annotated[int, doc("number of objects that entered")]
    left: Annotated[int, doc("number of objects that left, including those whose track ended inside the zone")]
    entered_by_class: Annotated[dict[str, int], doc("`entered` by class")]
    left_by_class: Annotated[dict[str, int], doc("`left` by class")]
    entered_interval: Annotated[tuple[int, int] | None, doc(_INTERVAL.format("entered"))] = None
    left_interval: Annotated[tuple[int, int] | None, doc(_INTERVAL.format("left"))] = None


class CountsReport(Compact, frozen=True, kw_only=True):
    """A `CountsMessage` without its header."""

    camera: Annotated[str, doc("`id` of the camera in camera.yaml")]
    at: Annotated[str, doc("time in UTC, RFC 3339")]
    at_monotonic_ns: Annotated[int, doc("the same time on the monotonic clock of the publishing machine")]
    lines: Annotated[dict[str, LineCounts], doc("counts of each line, by name")]
    zones: Annotated[dict[str, ZoneCounts], doc("counts of each zone, by name")]
    view: Annotated[ViewNumbers | None, doc("how `realign` has moved the lines and zones; absent if not moved")] = None

    @property
    def topic(self) -> str:
        return f"counts/{self.camera}"


class CountsMessage(CountsReport, frozen=True, kw_only=True, tag_field="schema", tag="vision.counts/1"):
    """The counts of one camera's lines and zones. The counts persist across restarts if `state_dir` is configured."""

    node: Node
    instance: Instance
    boot: Boot
    seq: Seq


class LatencyPercentiles(Compact, frozen=True, kw_only=True):
    """Percentiles of a latency since the previous status message, in milliseconds."""

    p50: Annotated[float, doc("median in ms")]
    p99: Annotated[float, doc("99th percentile in ms")]
    max: Annotated[float, doc("maximum in ms")]


class CameraReport(Compact, frozen=True, kw_only=True):
    """A `CameraStatusMessage` without its header."""

    camera: Annotated[str, doc("`id` of the camera in camera.yaml")]
    at: Annotated[str, doc("time in UTC, RFC 3339")]
    at_monotonic_ns: Annotated[int, doc("the same time on the monotonic clock of the publishing machine")]
    state: Annotated[
        str, doc("`connecting`, `streaming`, `frozen`, `backing-off`, `ended`, or, as the last status, `removed`")
    ]
    state_for_s: Annotated[float, doc("time in this state, in seconds")]
    epoch: Epoch
    reconnects: Annotated[int, doc("number of connections after the first")]
    grabbed: Annotated[int, doc("number of received frames: `published` + `dropped` + frames in flight")]
    published: Annotated[int, doc("number of frames whose detections were published")]
    dropped: Annotated[dict[str, int], doc("number of dropped frames, by reason")]
    dropped_by_stage: Annotated[
        dict[str, int],
        doc("the `superseded` and `stale` frames of `dropped`, by stage: `capture`, `detector`, or `results`"),
    ] = msgspec.field(default_factory=dict)
    fps: Annotated[float, doc("received frames per second")]
    published_fps: Annotated[float, doc("published frames per second")]
    last_frame_age_s: Annotated[float | None, doc("seconds since the last frame; absent before the first")] = None
    objects: Annotated[int, doc("number of objects in the last published frame")]
    latency_ms: Annotated[
        LatencyPercentiles | None,
        doc("latency from capture to publication; absent if no frame was published, and for files"),
    ] = None
    last_error: Annotated[str | None, doc("why the last connection ended; absent while frames arrive")] = None
    hint: Annotated[str | None, doc("what to do about `last_error`; absent if there is no advice")] = None
    error_code: Annotated[str | None, doc("code of `last_error`, as in the output of `vision check`")] = None
    next_retry_in_s: Annotated[float | None, doc("seconds until the next attempt to connect; absent if none")] = None
    width: Annotated[int | None, doc("width of the frame in pixels; absent before the first connection")] = None
    height: Annotated[int | None, doc("height of the frame in pixels; absent before the first connection")] = None
    decoder: Annotated[str | None, doc("name of the decoder, such as `pyav-h264`")] = None
    clock: Annotated[str | None, doc("source of capture times, as in detections")] = None

    @property
    def topic(self) -> str:
        return f"status/{self.camera}"


class CameraStatusMessage(CameraReport, frozen=True, kw_only=True, tag_field="schema", tag="vision.camera-status/1"):
    """The status of one camera. Counts start at 0 when the publisher starts."""

    node: Node
    instance: Instance
    boot: Boot
    seq: Seq
    view_fault: Annotated[
        str | None,
        doc("`moved` or `covered` while the state `camera_moved` or `camera_covered` lasts; otherwise absent"),
    ] = None


class DetectorStatus(Compact, frozen=True, kw_only=True):
    """The status of the detector."""

    batches_in_flight: Annotated[int, doc("maximum number of batches in flight")]
    max_batch: Annotated[int, doc("maximum number of frames in a batch")]
    graphs: Annotated[bool | None, doc("true if each batch runs as one CUDA graph; absent without a GPU")] = None
    graphs_off: Annotated[str | None, doc("why CUDA graphs are off; absent if they are on")] = None
    gpu_unused: Annotated[str | None, doc("why the NVIDIA GPU is not used; otherwise absent")] = None
    device_bytes: Annotated[
        int | None,
        doc("GPU memory of the detector in bytes, including the buffers of the cameras; absent without a GPU"),
    ] = None
    page_locked_bytes: Annotated[int | None, doc("page-locked host memory in bytes; absent without a GPU")] = None


class SinkStatus(Compact, frozen=True, kw_only=True):
    """The status of one sink."""

    protocol: Annotated[str, doc("`mqtt`, `kafka`, `redis`, `nats`, or `webhook`")]
    connected: Annotated[bool, doc("true if the last call to the sink succeeded; absent means false")] = False
    queued: Annotated[int, doc("number of messages that wait on disk; absent means 0")] = 0
    queued_bytes: Annotated[int, doc("size of the messages that wait on disk, in bytes; absent means 0")] = 0
    sent: Annotated[int, doc("number of messages that the sink has confirmed; absent means 0")] = 0
    lost: Annotated[int, doc("number of messages that the sink did not get; absent means 0")] = 0
    last_error: Annotated[str | None, doc("the last error of the sink; absent if there was none")] = None


class DiskStatus(Compact, frozen=True, kw_only=True):
    """The free space of the disk that contains a folder."""

    free_bytes: Annotated[int, doc("free space in bytes")]
    size_bytes: Annotated[int, doc("size of the disk in bytes")]
    min_free_bytes: Annotated[int, doc("`status.min_free_mb` in bytes, below which `disk_low` is published")]


class NodeReport(Compact, frozen=True, kw_only=True):
    """A `NodeStatusMessage` without its header."""

    at: Annotated[str, doc("time in UTC, RFC 3339")]
    at_monotonic_ns: Annotated[int, doc("the same time on the monotonic clock of the publishing machine")]
    uptime_s: Annotated[float, doc("time since the start of the program, in seconds")]
    started_at: Annotated[str | None, doc("start of the program in UTC, RFC 3339")] = None
    version: Annotated[str, doc("version of the program")]
    backend: Annotated[str, doc("back-end of the detector, with its device and precision")]
    model: Annotated[str, doc("name of the model")]
    rates: Annotated[dict[str, float], doc("frames per second of all cameras: `grabbed` and `published`")]
    latency_ms: Annotated[
        dict[str, LatencyPercentiles],
        doc("latencies since the last status: `queue` (capture to detector), `detect`, `results` (after the detector)"),
    ]
    dropped: Annotated[dict[str, int], doc("number of dropped frames, by reason")]
    queues: Annotated[dict[str, int], doc("`results`: frames of batches whose results are not finished")]
    rss_bytes: Annotated[int, doc("resident memory of the main process, in bytes")]
    memory_bytes: Annotated[dict[str, int], doc("memory by process; shared memory is divided among its users")] = (
        msgspec.field(default_factory=dict)
    )
    counters: Annotated[dict[str, int], doc("other counters, such as `detector.truncated_candidates`")] = msgspec.field(
        default_factory=dict
    )
    detector: Annotated[DetectorStatus | None, doc("status of the detector")] = None

    @property
    def topic(self) -> str:
        return f"status/{NODE}"


class NodeStatusMessage(NodeReport, frozen=True, kw_only=True, tag_field="schema", tag="vision.node-status/1"):
    """The status of the program. Counts start at 0 when the program starts, and include all cameras."""

    node: Node
    instance: Instance
    boot: Boot
    seq: Seq
    replay: Annotated[str | None, doc("address for requests of missed events; absent if there is none")] = None
    sinks: Annotated[dict[str, SinkStatus], doc("status of each configured sink, by name; absent if none")] = (
        msgspec.field(default_factory=dict)
    )
    disks: Annotated[
        dict[str, DiskStatus],
        doc("free space for `state_dir`, the snapshots, the recordings, and the archive, by folder; absent if none"),
    ] = msgspec.field(default_factory=dict)


StatusReport: TypeAlias = CameraReport | CountsReport | NodeReport
StatusMessage: TypeAlias = CameraStatusMessage | CountsMessage | NodeStatusMessage
"""A message that the publisher sends to each new subscriber, until a newer message of the same topic replaces it."""

AnyMessage: TypeAlias = (
    DetectionsMessage | EventMessage | CameraStatusMessage | CountsMessage | NodeStatusMessage | ObjectMessage
)


def schema_of(message: type[Struct]) -> str:
    """Return the name of the schema of a message type, such as ``vision.detections/1``."""
    return str(message.__struct_config__.tag)
