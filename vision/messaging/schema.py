"""The fields of every message, once; the tables of docs/messages.md and docs/schemas/ are generated from them.

A schema is called ``vision.<kind>/<version>``. Within a version fields are only added, and a reader ignores those it
does not know; an added field has a default, because older publishers do not send it.
"""

from __future__ import annotations

import calendar
import time
from datetime import datetime, timezone
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeAlias, TypedDict, get_args

import msgspec
from msgspec import Meta, Struct

Encoding: TypeAlias = Literal["json", "msgpack"]

Kind: TypeAlias = Literal["detections", "status", "events", "counts"]
"""First part of a topic, as in ``detections/<camera>``. The second is a camera, or for status also ``node``."""

KINDS: tuple[Kind, ...] = get_args(Kind)

NODE = "node"
"""``status/node`` is about the program itself, so no camera may have this name."""


def about(description: str) -> Meta:
    """What a field means: goes into the JSON Schema and into docs/messages.md."""
    return Meta(description=description)


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="schema"):
    """Who sends, and which of its topic's messages this is. `Numbering.stamp` fills these fields in."""

    node: Annotated[str, about("name of the publishing machine")]
    instance: Annotated[str, about("of this start of the publisher: when it changes, `seq` starts at 1 again")]
    boot: Annotated[str, about("of this start of the machine: where yours is equal, so is the monotonic clock")]
    seq: Annotated[int, about("1, 2, 3, … per topic and instance: a missing number was lost on the way")]

    @property
    def topic(self) -> str:
        """What the message is published under."""
        raise NotImplementedError


class Header(TypedDict):
    """The fields that `Numbering.stamp` sets."""

    node: str
    instance: str
    boot: str
    seq: int


UNNUMBERED: Header = {"node": "", "instance": "", "boot": "", "seq": 0}
"""The header of a message that the publisher has not numbered yet."""


class AttributeOfObject(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a second model says of an object."""

    model: Annotated[str, about("name of the model that says it")]
    class_name: Annotated[str, about("what it says")] = msgspec.field(name="class")
    score: Annotated[float, about("0 to 1")]
    age_ms: Annotated[int, about("how much older than this one the frame is that the model looked at")]


class DetectedObject(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object in one frame."""

    track_id: Annotated[int | None, about("the same from frame to frame; absent where nothing tracks")] = None
    class_name: Annotated[str, about("what it is")] = msgspec.field(name="class")
    class_id: Annotated[int, about("the model's number of the class")]
    score: Annotated[float, about("0 to 1")]
    box: Annotated[tuple[float, float, float, float], about("x1, y1, x2, y2 in pixels of the frame; y goes down")]
    age_ms: Annotated[int | None, about("since the object was first found; absent where nothing tracks")] = None
    attributes: Annotated[
        list[AttributeOfObject] | None, about("what a second model says; absent where none does, or not yet")
    ] = None


class StageTimes(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the milliseconds between camera and socket went."""

    wait: Annotated[float, about("captured → bound to a batch: waiting for the detector")]
    submit: Annotated[float, about("bound → handed to the detector")]
    infer: Annotated[float, about("handed to the detector → boxes back")]
    publish: Annotated[float, about("boxes back → handed to the socket, with every stage between")]
    total: Annotated[float, about("captured → handed to the socket")]


class DetectionsMessage(Message, frozen=True, kw_only=True, omit_defaults=True, tag="vision.detections/1"):
    """What is in one frame of one camera. Sent for each frame that was inferred, also when nothing was found."""

    camera: Annotated[str, about("the camera's `id` in camera.yaml")]
    epoch: Annotated[int, about("grows by 1 when the camera reconnects or changes its frame size")]
    frame: Annotated[int, about("number of the frame in its epoch, dropped ones counted")]
    captured_at: Annotated[str, about("UTC, RFC 3339")]
    captured_monotonic_ns: Annotated[int, about("the same instant on the machine's monotonic clock")]
    clock: Annotated[
        str, about("where the time comes from: `rtcp` (the camera), `arrival` (this machine), `media` (a file)")
    ]
    timing_ms: Annotated[StageTimes, about("how long each stage took")]
    dropped_before: Annotated[dict[str, int], about("frames dropped since the camera's last message, by reason")]
    width: Annotated[int, about("of the frame, pixels")]
    height: Annotated[int, about("of the frame, pixels")]
    objects: Annotated[list[DetectedObject], about("best score first")]
    truncated_candidates: Annotated[
        int, about("candidates beyond the detector's capacity, not looked at; absent: 0")
    ] = 0
    invalid: Annotated[int, about("objects left out because a number was not finite; absent: 0")] = 0

    @property
    def topic(self) -> str:
        return f"detections/{self.camera}"

    @property
    def captured_utc_ns(self) -> int:
        """`captured_at` as a number."""
        return utc_ns(self.captured_at)

    def timing_line(self) -> str:
        """Where the time went, for people."""
        t = self.timing_ms
        return (
            f"{self.camera} frame {self.frame}: {t.total:.1f} ms = {t.wait:.1f} waiting + {t.submit:.1f} submitting "
            f"+ {t.infer:.1f} inferring + {t.publish:.1f} publishing"
        )


class EventMessage(Message, frozen=True, kw_only=True, omit_defaults=True, tag="vision.events/1"):
    """Something happened in front of one camera."""

    camera: Annotated[str, about("the camera's `id` in camera.yaml")]
    epoch: Annotated[int, about("of the frame in which it was seen")]
    frame: Annotated[int, about("of the frame in which it was seen")]
    at: Annotated[str, about("when it happened; UTC, RFC 3339")]
    at_monotonic_ns: Annotated[int, about("the same instant on the machine's monotonic clock")]
    kind: Annotated[str, about("what happened")]
    name: Annotated[str, about("of the line or zone where it happened, or of the rule that found it")]
    track_id: Annotated[int | None, about("who did it; absent where no single object did")] = None
    data: Annotated[dict[str, Any], about("more, by `kind`")]
    box: Annotated[
        tuple[float, float, float, float] | None,
        about("of the object in this frame, as in detections; absent where it was not found in it"),
    ] = None
    snapshot: Annotated[
        str | None, about("path of a JPEG of the frame on the publishing machine; absent where none was taken")
    ] = None
    journal: Annotated[str | None, about("which journal has kept the event; absent where none has")] = None
    number: Annotated[
        int | None, about("1, 2, 3, … in that journal, over all cameras, beyond restarts; absent without a journal")
    ] = None

    @property
    def topic(self) -> str:
        return f"events/{self.camera}"


class LineCounts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many have crossed one line."""

    in_: Annotated[int, about("crossings from its left to its right")] = msgspec.field(name="in")
    out: Annotated[int, about("crossings from its right to its left")]
    in_by_class: Annotated[dict[str, int], about("the same by class")]
    out_by_class: Annotated[dict[str, int], about("the same by class")]


class ZoneCounts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many are in one zone, and have been."""

    occupancy: Annotated[int, about("objects inside now")]
    entered: Annotated[int, about("objects that came in")]
    left: Annotated[int, about("objects that went out or were lost inside")]
    entered_by_class: Annotated[dict[str, int], about("the same by class")]
    left_by_class: Annotated[dict[str, int], about("the same by class")]


class CountsMessage(Message, frozen=True, kw_only=True, omit_defaults=True, tag="vision.counts/1"):
    """What the lines and zones of one camera have counted; since the first start where `state` is configured."""

    camera: Annotated[str, about("the camera's `id` in camera.yaml")]
    at: Annotated[str, about("UTC, RFC 3339")]
    at_monotonic_ns: Annotated[int, about("the same instant on the machine's monotonic clock")]
    lines: Annotated[dict[str, LineCounts], about("by name")]
    zones: Annotated[dict[str, ZoneCounts], about("by name")]

    @property
    def topic(self) -> str:
        return f"counts/{self.camera}"


class LatencyPercentiles(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Percentiles of a latency since the last status message, milliseconds."""

    p50: Annotated[float, about("half were quicker, ms")]
    p99: Annotated[float, about("99 of 100 were quicker, ms")]
    max: Annotated[float, about("the slowest, ms")]


class CameraStatusMessage(Message, frozen=True, kw_only=True, omit_defaults=True, tag="vision.status/1"):
    """How one camera is. Counts are since the publisher's start."""

    camera: Annotated[str, about("the camera's `id` in camera.yaml")]
    at: Annotated[str, about("UTC, RFC 3339")]
    at_monotonic_ns: Annotated[int, about("the same instant on the machine's monotonic clock")]
    state: Annotated[str, about("`connecting`, `streaming`, `frozen`, `backing-off` or `ended`")]
    state_for_s: Annotated[float, about("how long it has been in this state, seconds")]
    epoch: Annotated[int, about("grows by 1 when the camera reconnects or changes its frame size")]
    reconnects: Annotated[int, about("connections after the first")]
    grabbed: Annotated[int, about("frames that came; `published` + `dropped` + those in flight")]
    published: Annotated[int, about("frames whose detections were published")]
    dropped: Annotated[dict[str, int], about("frames not inferred, by reason")]
    fps: Annotated[float, about("frames that come per second")]
    published_fps: Annotated[float, about("messages per second")]
    last_frame_age_s: Annotated[float | None, about("since the last frame, seconds; absent before the first")] = None
    objects: Annotated[int, about("objects in the last published frame")]
    latency_ms: Annotated[
        LatencyPercentiles | None,
        about("capture to publication since the last status; absent if no frame was published, and for files"),
    ] = None
    last_error: Annotated[str | None, about("why the last connection failed or ended; absent while frames arrive")] = (
        None
    )
    hint: Annotated[str | None, about("what to do about `last_error`; absent if there is no advice")] = None
    next_retry_in_s: Annotated[float | None, about("until the next attempt to connect, seconds")] = None
    width: Annotated[int | None, about("of the frame, pixels; absent before the first connection")] = None
    height: Annotated[int | None, about("of the frame, pixels; absent before the first connection")] = None
    decoder: Annotated[str | None, about("who decodes")] = None
    clock: Annotated[str | None, about("where capture times come from")] = None

    @property
    def topic(self) -> str:
        return f"status/{self.camera}"


class DetectorStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the detector runs."""

    batches_in_flight: Annotated[int, about("maximum number of batches in flight")]
    max_batch: Annotated[int, about("frames in one batch at most")]
    graphs: Annotated[bool | None, about("whether a batch runs as one CUDA graph; absent: not on a GPU")] = None
    graphs_off: Annotated[str | None, about("why it does not; absent where it does")] = None
    device_bytes: Annotated[
        int | None, about("GPU memory that it holds, the cameras' frames included; absent: not on a GPU")
    ] = None
    page_locked_bytes: Annotated[int | None, about("memory of the host that the GPU reads and writes")] = None


class NodeStatusMessage(Message, frozen=True, kw_only=True, omit_defaults=True, tag="vision.status/1"):
    """How the program is. Counts are since its start, over all cameras."""

    at: Annotated[str, about("UTC, RFC 3339")]
    at_monotonic_ns: Annotated[int, about("the same instant on the machine's monotonic clock")]
    uptime_s: Annotated[float, about("since the program's start, seconds")]
    version: Annotated[str, about("of the program")]
    backend: Annotated[str, about("detector, device and precision")]
    model: Annotated[str, about("name of the model")]
    rates: Annotated[dict[str, float], about("frames per second, by what happened to them")]
    latency_ms: Annotated[dict[str, LatencyPercentiles], about("how long each stage took since the last status")]
    dropped: Annotated[dict[str, int], about("frames not inferred, by reason")]
    queues: Annotated[dict[str, int], about("frames that wait, by queue")]
    rss_bytes: Annotated[int, about("memory of the process")]
    counters: Annotated[dict[str, int], about("what else is counted, such as `detector.truncated_candidates`")] = {}
    replay: Annotated[str | None, about("where missed events can be asked for; absent: nowhere")] = None
    detector: Annotated[DetectorStatus | None, about("how the detector runs")] = None

    @property
    def topic(self) -> str:
        return f"status/{NODE}"


StatusMessage: TypeAlias = CameraStatusMessage | CountsMessage | NodeStatusMessage
"""What is kept for whoever joins later."""

AnyMessage: TypeAlias = DetectionsMessage | EventMessage | CameraStatusMessage | CountsMessage | NodeStatusMessage


class ReplayRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="schema", tag="vision.ask/1"):
    """Which events a subscriber asks for, on the address that `status/node` gives as `replay`."""

    since: Annotated[int, about("number of the last event that you have; 0: all that are kept")] = 0
    journal: Annotated[
        str | None, about("its journal; where that is no longer in use, `since` counts as 0. Absent: the present one")
    ] = None
    most: Annotated[int, about("events in the answer; never more than 1000")] = 500


class ReplayReply(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="schema", tag="vision.replay/1"):
    """First part of the answer; each part after it is an event as it was published, oldest first."""

    node: Annotated[str, about("name of the publishing machine")]
    journal: Annotated[str, about("the journal that is in use")]
    oldest: Annotated[int, about("number of the oldest event that is kept")]
    newest: Annotated[int, about("number of the newest event that was published")]
    more: Annotated[bool, about("there are further events: ask again, with the number of the last one here")]
    error: Annotated[str | None, about("why the request cannot be answered; absent where it is")] = None


def rfc3339(utc_ns: int) -> str:
    """Nanoseconds since 1970 as ``2026-01-31T12:00:00.123456Z``."""
    seconds, ns = divmod(utc_ns, 1_000_000_000)
    return f"{_second(seconds)}.{ns // 1000:06d}Z"


@lru_cache(maxsize=64)
def _second(utc_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(utc_s))


def utc_ns(text: str) -> int:
    """The opposite of `rfc3339`."""
    moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    return (calendar.timegm(moment.utctimetuple()) * 1_000_000 + moment.microsecond) * 1000


def schema_of(message: type[Struct]) -> str:
    """Such as ``vision.detections/1``."""
    return str(message.__struct_config__.tag)


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema of every message, by the name of its file in docs/schemas/."""
    messages: dict[str, type[Struct]] = {
        "detections": DetectionsMessage,
        "events": EventMessage,
        "counts": CountsMessage,
        "camera-status": CameraStatusMessage,
        "node-status": NodeStatusMessage,
        "ask": ReplayRequest,
        "replay": ReplayReply,
    }
    return {
        f"{name}-{schema_of(message).rpartition('/')[2]}.json": msgspec.json.schema(message)
        for name, message in messages.items()
    }
