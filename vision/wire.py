"""What a message says: every field of every schema once, and JSON and MessagePack made from the same objects.

Publisher, recorder and subscriber all import this module, so that none can differ from another; the tables of
docs/messages.md and docs/schemas/ are generated from it. It is the only user of msgspec.

A schema is called ``vision.<kind>/<version>``. Within a version fields are only added, and a reader ignores those it
does not know; an added field has a default, because older publishers do not send it. Numbers are rounded to what they
are good for: boxes to 0.1 px, scores to 0.0001, times to 1 µs.
"""

from __future__ import annotations

import calendar
import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from enum import Enum
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypedDict, TypeVar, cast, get_args

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from vision.errors import ConfigError, MessageError, redact
from vision.metrics import Percentiles
from vision.types import Detections, Event, Result, Tracks

Encoding: TypeAlias = Literal["json", "msgpack"]

Kind: TypeAlias = Literal["detections", "status", "events"]
"""First part of a topic: ``detections/<camera>``, ``status/<camera>``, ``status/node``, ``events/<camera>``."""

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


class DetectedObject(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object in one picture."""

    track_id: Annotated[int | None, about("the same from picture to picture; absent where nothing tracks")] = None
    class_name: Annotated[str, about("what it is")] = msgspec.field(name="class")
    class_id: Annotated[int, about("the model's number of the class")]
    score: Annotated[float, about("0 to 1")]
    box: Annotated[tuple[float, float, float, float], about("x1, y1, x2, y2 in pixels of the picture; y goes down")]


class StageTimes(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the milliseconds between camera and socket went."""

    wait: Annotated[float, about("captured → bound to a batch: waiting for the detector")]
    submit: Annotated[float, about("bound → handed to the detector")]
    infer: Annotated[float, about("handed to the detector → boxes back")]
    publish: Annotated[float, about("boxes back → handed to the socket, with every stage between")]
    total: Annotated[float, about("captured → handed to the socket")]


class DetectionsMessage(Message, frozen=True, kw_only=True, omit_defaults=True, tag="vision.detections/1"):
    """What is in one picture of one camera. Sent for each picture that was inferred, also when nothing was found."""

    camera: Annotated[str, about("the camera's `id` in camera.yaml")]
    epoch: Annotated[int, about("grows by 1 when the camera reconnects or changes its picture size")]
    frame: Annotated[int, about("number of the picture in its epoch, dropped ones counted")]
    captured_at: Annotated[str, about("UTC, RFC 3339")]
    captured_monotonic_ns: Annotated[int, about("the same instant on the machine's monotonic clock")]
    clock: Annotated[
        str, about("where the time comes from: `rtcp` (the camera), `arrival` (this machine), `media` (a file)")
    ]
    timing_ms: Annotated[StageTimes, about("how long each stage took")]
    dropped_before: Annotated[dict[str, int], about("pictures dropped since the camera's last message, by reason")]
    width: Annotated[int, about("of the picture, pixels")]
    height: Annotated[int, about("of the picture, pixels")]
    objects: Annotated[list[DetectedObject], about("best score first")]
    excess: Annotated[int, about("candidates beyond the detector's capacity, not looked at; absent: 0")] = 0
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
    epoch: Annotated[int, about("of the picture in which it was seen")]
    frame: Annotated[int, about("of the picture in which it was seen")]
    at: Annotated[str, about("when it happened; UTC, RFC 3339")]
    at_monotonic_ns: Annotated[int, about("the same instant on the machine's monotonic clock")]
    kind: Annotated[str, about("what happened")]
    name: Annotated[str, about("of the line or zone where it happened")]
    track_id: Annotated[int | None, about("who did it; absent where no single object did")] = None
    data: Annotated[dict[str, Any], about("more, by `kind`")]

    @property
    def topic(self) -> str:
        return f"events/{self.camera}"


class CameraStatusMessage(Message, frozen=True, kw_only=True, omit_defaults=True, tag="vision.status/1"):
    """How one camera is. Counts are since the publisher's start."""

    camera: Annotated[str, about("the camera's `id` in camera.yaml")]
    at: Annotated[str, about("UTC, RFC 3339")]
    at_monotonic_ns: Annotated[int, about("the same instant on the machine's monotonic clock")]
    state: Annotated[str, about("`connecting`, `streaming`, `frozen`, `backing-off` or `ended`")]
    state_for_s: Annotated[float, about("how long it has been in this state, seconds")]
    epoch: Annotated[int, about("grows by 1 when the camera reconnects or changes its picture size")]
    reconnects: Annotated[int, about("connections after the first")]
    grabbed: Annotated[int, about("pictures that came; `published` + `dropped` + those in flight")]
    published: Annotated[int, about("pictures whose detections were published")]
    dropped: Annotated[dict[str, int], about("pictures not inferred, by reason")]
    fps: Annotated[float, about("pictures that come per second")]
    published_fps: Annotated[float, about("messages per second")]
    last_frame_age_s: Annotated[float | None, about("since the last picture, seconds; absent before the first")] = None
    last_error: Annotated[str | None, about("why the last connection failed or ended")] = None
    next_retry_in_s: Annotated[float | None, about("until the next attempt to connect, seconds")] = None
    width: Annotated[int | None, about("of the picture, pixels; absent before the first connection")] = None
    height: Annotated[int | None, about("of the picture, pixels; absent before the first connection")] = None
    decoder: Annotated[str | None, about("who decodes")] = None
    clock: Annotated[str | None, about("where capture times come from")] = None

    @property
    def topic(self) -> str:
        return f"status/{self.camera}"


class StageLatency(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of one stage since the last status message, milliseconds."""

    p50: Annotated[float, about("half were quicker, ms")]
    p99: Annotated[float, about("99 of 100 were quicker, ms")]
    max: Annotated[float, about("the slowest, ms")]


class NodeStatusMessage(Message, frozen=True, kw_only=True, omit_defaults=True, tag="vision.status/1"):
    """How the program is. Counts are since its start, over all cameras."""

    at: Annotated[str, about("UTC, RFC 3339")]
    at_monotonic_ns: Annotated[int, about("the same instant on the machine's monotonic clock")]
    uptime_s: Annotated[float, about("since the program's start, seconds")]
    version: Annotated[str, about("of the program")]
    backend: Annotated[str, about("detector, device and precision")]
    model: Annotated[str, about("name of the model")]
    rates: Annotated[dict[str, float], about("pictures per second, by what happened to them")]
    latency_ms: Annotated[dict[str, StageLatency], about("how long each stage took since the last status")]
    dropped: Annotated[dict[str, int], about("pictures not inferred, by reason")]
    queues: Annotated[dict[str, int], about("what waits, by queue")]
    rss_bytes: Annotated[int, about("memory of the process")]

    @property
    def topic(self) -> str:
        return f"status/{NODE}"


StatusMessage: TypeAlias = CameraStatusMessage | NodeStatusMessage
AnyMessage: TypeAlias = DetectionsMessage | EventMessage | CameraStatusMessage | NodeStatusMessage
_M = TypeVar("_M", bound=Message)


class _Head(TypedDict):
    node: str
    instance: str
    boot: str
    seq: int


_UNNUMBERED: _Head = {"node": "", "instance": "", "boot": "", "seq": 0}


class Numbering:
    """One publisher's name and its counters. One thread at a time."""

    def __init__(self, node: str, instance: str | None = None) -> None:
        self.node = node
        self.instance = instance if instance is not None else secrets.token_hex(4)
        self._last: dict[str, int] = {}

    def stamp(self, message: _M) -> _M:
        """The message with its sender and the next number of its topic."""
        topic = message.topic
        seq = self._last[topic] = self._last.get(topic, 0) + 1
        return msgspec.structs.replace(message, node=self.node, instance=self.instance, boot=boot_id(), seq=seq)


def detections(result: Result, class_names: Sequence[str], now_ns: int = 0) -> DetectionsMessage:
    """One picture's result, not yet numbered. `now_ns` stands in for a `published_ns` that is not set yet."""
    meta, found = result.meta, result.objects
    objects, invalid = _objects(found, class_names)
    return DetectionsMessage(
        **_UNNUMBERED,
        camera=meta.camera_id,
        epoch=meta.epoch,
        frame=meta.index,
        captured_at=rfc3339(meta.captured_utc_ns),
        captured_monotonic_ns=meta.captured_ns,
        clock=meta.clock,
        timing_ms=_stage_times(result, now_ns),
        dropped_before=_counts(result.dropped_before),
        width=meta.width_px,
        height=meta.height_px,
        objects=objects,
        excess=found.excess if isinstance(found, Detections) else 0,
        invalid=invalid,
    )


def _objects(found: Detections | Tracks, class_names: Sequence[str]) -> tuple[list[DetectedObject], int]:
    scores = found.scores.astype(np.float64).round(4).tolist()
    boxes = found.boxes_xyxy.astype(np.float64).round(1).tolist()
    if not isfinite(sum(scores) + sum(map(sum, boxes))):
        finite = np.isfinite(found.scores) & np.isfinite(found.boxes_xyxy).all(axis=1)
        return _objects(_rows(found, finite), class_names)[0], len(found) - int(finite.sum())
    class_ids = found.class_ids.tolist()
    names = [class_names[i] if 0 <= i < len(class_names) else f"class {i}" for i in class_ids]
    track_ids = found.track_ids.tolist() if isinstance(found, Tracks) else [None] * len(scores)
    rows = zip(track_ids, names, class_ids, scores, boxes, strict=True)
    return [
        DetectedObject(track_id=track_id, class_name=name, class_id=class_id, score=score, box=box)
        for track_id, name, class_id, score, box in rows
    ], 0


def _rows(found: Detections | Tracks, keep: NDArray[np.bool_]) -> Detections | Tracks:
    boxes, scores, class_ids = found.boxes_xyxy[keep], found.scores[keep], found.class_ids[keep]
    if isinstance(found, Tracks):
        return Tracks(boxes, scores, class_ids, found.track_ids[keep], found.age_ms[keep])
    return Detections(boxes, scores, class_ids)


def _stage_times(result: Result, now_ns: int) -> StageTimes:
    t = result.timing  # a point that was not passed takes the time of the one before
    batched_ns = t.batched_ns or t.captured_ns
    submitted_ns = t.submitted_ns or batched_ns
    inferred_ns = t.inferred_ns or submitted_ns
    published_ns = t.published_ns or now_ns or inferred_ns
    return StageTimes(
        wait=_ms(batched_ns - t.captured_ns),
        submit=_ms(submitted_ns - batched_ns),
        infer=_ms(inferred_ns - submitted_ns),
        publish=_ms(published_ns - inferred_ns),
        total=_ms(published_ns - t.captured_ns),
    )


def event(happened: Event, result: Result) -> EventMessage:
    """One of `result`'s events, not yet numbered."""
    meta = result.meta
    return EventMessage(
        **_UNNUMBERED,
        camera=happened.camera_id,
        epoch=meta.epoch,
        frame=meta.index,
        at=rfc3339(meta.captured_utc_ns + happened.at_ns - meta.captured_ns),
        at_monotonic_ns=happened.at_ns,
        kind=happened.kind,
        name=happened.name,
        track_id=happened.track_id,
        data=dict(happened.data),
    )


def camera_status(
    *,
    camera: str,
    now_ns: int,
    now_utc_ns: int,
    state: str,
    since_ns: int,
    epoch: int,
    reconnects: int,
    grabbed: int,
    published: int,
    dropped: Mapping[str, int],
    fps: float,
    published_fps: float,
    last_frame_age_s: float | None = None,
    last_error: str | None = None,
    next_retry_in_s: float | None = None,
    width: int | None = None,
    height: int | None = None,
    decoder: str | None = None,
    clock: str | None = None,
) -> CameraStatusMessage:
    """How a camera is, not yet numbered. `since_ns` (monotonic) is when it came into its state.

    Raises:
        ConfigError: the camera is called ``node``, which is the program's own topic.
    """
    if camera == NODE:
        raise ConfigError(f"no camera may be called {NODE!r}: status/{NODE} is about the program", hint="rename it")
    return CameraStatusMessage(
        **_UNNUMBERED,
        camera=camera,
        at=rfc3339(now_utc_ns),
        at_monotonic_ns=now_ns,
        state=state,
        state_for_s=round((now_ns - since_ns) / 1e9, 3),
        epoch=epoch,
        reconnects=reconnects,
        grabbed=grabbed,
        published=published,
        dropped=_counts(dropped),
        fps=round(fps, 2),
        published_fps=round(published_fps, 2),
        last_frame_age_s=_rounded(last_frame_age_s),
        last_error=redact(last_error) if last_error else None,
        next_retry_in_s=_rounded(next_retry_in_s),
        width=width or None,
        height=height or None,
        decoder=decoder or None,
        clock=clock or None,
    )


def node_status(
    *,
    now_ns: int,
    now_utc_ns: int,
    uptime_s: float,
    version: str,
    backend: str,
    model: str,
    rates: Mapping[str, float],
    latency: Mapping[str, Percentiles],
    dropped: Mapping[str, int],
    queues: Mapping[str, int],
    rss_bytes: int,
) -> NodeStatusMessage:
    """How the program is, not yet numbered."""
    return NodeStatusMessage(
        **_UNNUMBERED,
        at=rfc3339(now_utc_ns),
        at_monotonic_ns=now_ns,
        uptime_s=round(uptime_s, 3),
        version=version,
        backend=backend,
        model=model,
        rates={name: round(rate, 2) for name, rate in rates.items()},
        latency_ms={
            stage: StageLatency(p50=round(one.p50_ms, 3), p99=round(one.p99_ms, 3), max=round(one.max_ms, 3))
            for stage, one in latency.items()
        },
        dropped=_counts(dropped),
        queues=dict(queues),
        rss_bytes=rss_bytes,
    )


def _counts(by_reason: Mapping[str, int]) -> dict[str, int]:
    return {str(reason.value if isinstance(reason, Enum) else reason): n for reason, n in by_reason.items() if n}


def _ms(duration_ns: int) -> float:
    return round(duration_ns / 1e6, 3)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


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


@lru_cache(maxsize=1)
def boot_id() -> str:
    """8 characters that no two starts of any machine share, or "" where the system has no such thing."""
    try:
        return hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes()).hexdigest()[:8]
    except OSError:
        return ""


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise NotImplementedError(f"a message holds numbers, texts, lists and mappings, got {type(value).__name__}")


_TO_JSON = msgspec.json.Encoder(enc_hook=_plain)
_TO_MSGPACK = msgspec.msgpack.Encoder(enc_hook=_plain)
_TYPES: dict[str, type[AnyMessage]] = {
    "detections": DetectionsMessage,
    "events": EventMessage,
    "status": CameraStatusMessage,
    f"status/{NODE}": NodeStatusMessage,
}
_JSON_DECODERS = {key: msgspec.json.Decoder(kind) for key, kind in _TYPES.items()}
_MSGPACK_DECODERS = {key: msgspec.msgpack.Decoder(kind) for key, kind in _TYPES.items()}


def encode(message: Message, encoding: Encoding = "json") -> bytes:
    """The payload of a numbered message.

    Raises:
        NotImplementedError: an event's `data` holds something that is no number, text, list or mapping.
    """
    return _TO_MSGPACK.encode(message) if encoding == "msgpack" else _TO_JSON.encode(message)


def decode(topic: str, payload: bytes) -> AnyMessage:
    """The opposite of `encode`, whichever encoding it was; the topic says which schema to expect.

    Raises:
        MessageError: another schema or version, or no message at all.
    """
    key = topic if topic in _TYPES else topic.partition("/")[0]
    if key not in _TYPES:
        raise MessageError(f"expected a topic that starts with one of {', '.join(KINDS)}, got {topic!r}")
    # A JSON object starts with a brace; no MessagePack map does.
    decoders = _JSON_DECODERS if payload[:1] == b"{" else _MSGPACK_DECODERS
    try:
        return decoders[key].decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(topic, key, payload, error) from error


def decode_recorded(line: bytes) -> DetectionsMessage:
    """One line of a recording.

    Raises:
        MessageError: another schema or version, or no message at all.
    """
    return cast(DetectionsMessage, decode("detections", line))


def _unreadable(where: str, key: str, payload: bytes, error: Exception) -> MessageError:
    expected = schema_of(_TYPES[key])
    codec = msgspec.json if payload[:1] == b"{" else msgspec.msgpack
    try:
        content = codec.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        content = None
    found = content.get("schema") if isinstance(content, dict) else None
    if found is not None and found != expected:
        return MessageError(
            f"{where}: expected schema {expected}, got {found}",
            hint="publisher and subscriber are of different versions: install the same version of vision on both sides",
        )
    return MessageError(
        f"{where}: expected a message of schema {expected}: {error}", hint="is the publisher really `vision run`?"
    )


def schema_of(message: type[Message]) -> str:
    """Such as ``vision.detections/1``."""
    return str(message.__struct_config__.tag)


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema of every message, by the name of its file in docs/schemas/."""
    messages: dict[str, type[Message]] = {
        "detections": DetectionsMessage,
        "events": EventMessage,
        "camera-status": CameraStatusMessage,
        "node-status": NodeStatusMessage,
    }
    return {
        f"{name}-{schema_of(message).rpartition('/')[2]}.json": msgspec.json.schema(message)
        for name, message in messages.items()
    }
