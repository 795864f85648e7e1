"""Encoding and decoding of messages, and the conversion of results to messages.

Publisher, recorder, and subscriber import this module, so that their formats cannot differ.
`vision.messaging.schema` defines the fields. Boxes are rounded to 0.1 px, scores to 0.0001, and the durations of stages
to 1 µs. Times in UTC are truncated to 1 µs. Monotonic times are not rounded.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import inf, isfinite, isnan, nan
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from vision.errors import MessageError, conceal
from vision.messaging.message_fields import Box
from vision.messaging.replay_schema import ReplayReply, ReplayRequest
from vision.messaging.schema import (
    KINDS,
    NODE,
    AnyMessage,
    AttributeOfObject,
    CameraReport,
    CameraStatusMessage,
    CountsMessage,
    CountsReport,
    DetectedObject,
    DetectionsMessage,
    DiskStatus,
    Encoding,
    EventMessage,
    Header,
    LineCounts,
    LineCrossing,
    MaskFormat,
    NodeStatusMessage,
    ObjectMessage,
    SinkStatus,
    StageTimes,
    StatusMessage,
    StatusReport,
    ZoneCounts,
    ZoneVisit,
    schema_of,
)
from vision.messaging.shapes import add_shapes, shape_fields
from vision.messaging.times import rfc3339
from vision.types import Attribute, Counts, Detections, Event, ObjectSummary, Result, Tracks

_StructT = TypeVar("_StructT", bound=msgspec.Struct)

UNNUMBERED: Header = {"node": "", "instance": "", "boot": "", "seq": 0}
"""Header of a message that the publisher has not numbered yet."""


@lru_cache(maxsize=256)
def _steps(number: int) -> NDArray[np.float64]:
    """Return the factors (5, `number`) with which `_rounded` rounds the boxes and scores of `number` objects.

    The rows for x1, y1, x2, and y2 contain 10, which rounds to 0.1 px. The row for the score contains 10,000. The
    factors are repeated for each object, because NumPy needs only a third of the time if both operands have the same
    shape.
    """
    return np.array([10.0, 10.0, 10.0, 10.0, 10_000.0]).repeat(number).reshape(5, number)


_NUMBERS: Final = (int, float)


class _TrackedObject(DetectedObject, frozen=True, kw_only=False, omit_defaults=True, gc=False):
    """A `DetectedObject` with a track. Use positional arguments, which take only a third of the time of keywords."""

    track_id: int
    class_name: str = msgspec.field(name="class")
    class_id: int
    score: float
    box: Box
    age_ms: int


class Numbering:
    """Generator of the sequence numbers of one publisher, with one sequence for each topic. It is not thread-safe."""

    def __init__(self, node: str, instance: str | None = None) -> None:
        """Start all topics at 1. `instance` identifies the start of the publisher.

        If it is None, create an identifier.
        """
        self.node = node
        self.instance = instance or secrets.token_hex(4)
        self._last: dict[str, int] = {}

    def continue_after(self, topic: str, seq: int) -> None:
        """Give the next message of a topic the number after `seq`."""
        self._last[topic] = seq

    def header(self, topic: str) -> Header:
        """Return the header of the next message of a topic."""
        seq = self._last[topic] = self._last.get(topic, 0) + 1
        return {"node": self.node, "instance": self.instance, "boot": boot_id(), "seq": seq}


def detections(
    header: Header,
    result: Result,
    class_names: Sequence[str],
    published_ns: int,
    masks: MaskFormat = "polygon",
) -> DetectionsMessage:
    """Return the detections message of a result that is published at `published_ns` (monotonic).

    `masks` is the format of the objects' masks.
    """
    meta, shapes = result.meta, result.objects.shapes
    objects = _objects(result, class_names, masks)
    if result.attributes:
        objects = [_with_attributes(detected, result) for detected in objects]
    return DetectionsMessage(
        **header,
        camera=meta.camera_id,
        epoch=meta.epoch,
        frame=meta.index,
        captured_at=rfc3339(meta.captured_utc_ns),
        captured_monotonic_ns=meta.captured_ns,
        clock=meta.clock,
        timing_ms=_stage_times(result, published_ns),
        dropped_before={reason: count for reason, count in result.dropped_before.items() if count},
        width=meta.width_px,
        height=meta.height_px,
        objects=objects,
        truncated_candidates=result.objects.truncated_candidates,
        invalid=len(result.objects) - len(objects),
        keypoint_names=list(shapes.keypoint_names) or None if shapes is not None else None,
    )


def _objects(result: Result, class_names: Sequence[str], masks: MaskFormat) -> list[DetectedObject]:
    """Return the objects of a result as in messages, without objects whose score or box is not finite."""
    detections = result.objects
    *corners, scores = values = _rounded(detections)
    boxes = zip(*corners, strict=True)
    class_ids = detections.class_ids.tolist()
    names = {i: class_names[i] if 0 <= i < len(class_names) else f"class {i}" for i in set(class_ids)}
    texts = map(names.__getitem__, class_ids)
    if isinstance(detections, Tracks):
        track_ids, ages_ms = detections.track_ids.tolist(), detections.age_ms.tolist()
        objects: list[DetectedObject] = [*map(_TrackedObject, track_ids, texts, class_ids, scores, boxes, ages_ms)]
    else:
        objects = [
            DetectedObject(class_name=text, class_id=i, score=score, box=box)
            for text, i, score, box in zip(texts, class_ids, scores, boxes, strict=True)
        ]
    if isinstance(detections, Tracks) and not (detections.hidden_px is None and detections.previous_xyxy is None):
        objects = _with_track_boxes(objects, detections)
    if detections.shapes is not None:
        objects = add_shapes(objects, detections.shapes, result.meta, masks)
    if isfinite(sum(map(sum, values))):
        return objects
    return [detected for detected in objects if isfinite(detected.score + sum(detected.box))]


def _rounded(detections: Detections | Tracks) -> list[list[float]]:
    """Return x1, y1, x2, y2, and the score of all objects, rounded as in messages.

    This function does not use `numpy.round`, which is slower.
    """
    values = np.empty((5, len(detections)))
    values[:4], values[4] = detections.boxes_xyxy.T, detections.scores
    steps = _steps(len(detections))
    values *= steps
    np.rint(values, out=values)
    values /= steps
    rounded: list[list[float]] = values.tolist()
    return rounded


def _with_track_boxes(objects: Sequence[DetectedObject], tracks: Tracks) -> list[DetectedObject]:
    """Add the hidden height and the previous box to the objects for which `tracks` contains these values."""
    number = len(objects)
    hidden = np.zeros(number) if tracks.hidden_px is None else tracks.hidden_px.astype(np.float64).round(1)
    previous = np.full((number, 4), nan) if tracks.previous_xyxy is None else tracks.previous_xyxy.astype(np.float64)
    rows = zip(objects, hidden.tolist(), previous.round(1).tolist(), strict=True)
    return [
        msgspec.structs.replace(each, hidden_px=below or None, previous_box=None if isnan(box[0]) else tuple(box))
        if below or not isnan(box[0])
        else each
        for each, below, box in rows
    ]


def _with_attributes(detected: DetectedObject, result: Result) -> DetectedObject:
    if detected.track_id is None or not (attributes := result.attributes.get(detected.track_id)):
        return detected
    return msgspec.structs.replace(detected, attributes=_attributes(attributes, result.meta.captured_ns))


def _attributes(attributes: Sequence[Attribute], now_ns: int) -> list[AttributeOfObject]:
    return [
        AttributeOfObject(
            model=attribute.model,
            class_name=attribute.class_name,
            score=round(attribute.score, 4),
            age_ms=max(0, round((now_ns - attribute.seen_ns) / 1e6)),
        )
        for attribute in attributes
    ]


def _stage_times(result: Result, published_ns: int) -> StageTimes:
    """Return the time in milliseconds that a result needed for each step from the capture to the publication."""
    captured_ns, timing = result.meta.captured_ns, result.timing
    return StageTimes(
        wait=_ms(timing.batched_ns - captured_ns),
        submit=_ms(timing.submitted_ns - timing.batched_ns),
        infer=_ms(timing.inferred_ns - timing.submitted_ns),
        publish=_ms(published_ns - timing.inferred_ns),
        total=_ms(published_ns - captured_ns),
    )


def event(
    header: Header,
    happened: Event,
    result: Result,
    *,
    masks: MaskFormat = "polygon",
    journal: str | None = None,
    number: int | None = None,
) -> EventMessage:
    """Return the message of one event of `result`. `masks` is the format of masks.

    `number` is the number of the event in `journal`. It is None if the event is not stored.
    """
    meta = result.meta
    return EventMessage(
        **header,
        camera=happened.camera_id,
        epoch=meta.epoch,
        frame=meta.index,
        at=rfc3339(meta.captured_utc_ns + happened.at_ns - meta.captured_ns),
        at_monotonic_ns=happened.at_ns,
        kind=happened.kind,
        name=happened.name,
        track_id=happened.track_id,
        data={key: _concealed(value) for key, value in happened.data.items()},
        **_outline(happened.track_id, result, masks),
        snapshot=happened.snapshot or None,
        journal=journal,
        number=number,
        id=happened.id or None,
    )


def object_summary(header: Header, summary: ObjectSummary, result: Result, class_names: Sequence[str]) -> ObjectMessage:
    """Return the message with `summary`, the summary of an object that left the scene in the frame of `result`."""
    meta, class_id, snapshot = result.meta, summary.class_id, summary.snapshot

    def utc(at_ns: int) -> str:
        return rfc3339(meta.captured_utc_ns + at_ns - meta.captured_ns)

    return ObjectMessage(
        **header,
        camera=meta.camera_id,
        epoch=summary.epoch,
        track_id=summary.track_id,
        class_name=class_names[class_id] if 0 <= class_id < len(class_names) else f"class {class_id}",
        class_id=class_id,
        score=round(summary.score, 4),
        first_seen=utc(summary.first_ns),
        at=utc(summary.last_ns),
        at_monotonic_ns=summary.last_ns,
        duration_s=round((summary.last_ns - summary.first_ns) / 1e9, 3),
        width=summary.width_px,
        height=summary.height_px,
        box=_rounded_box(summary.box_xyxy),
        path=[(at_ms, round(x, 1), round(y, 1)) for at_ms, x, y in summary.path],
        lines=[LineCrossing(name=name, direction=way, at=utc(at_ns)) for name, way, at_ns in summary.crossings],
        zones=[
            ZoneVisit(name=name, entered_at=utc(from_ns), left_at=None if to_ns is None else utc(to_ns))
            for name, from_ns, to_ns in summary.visits
        ],
        attributes=_attributes(summary.attributes, summary.last_ns) or None,
        snapshot=None if snapshot is None else snapshot.jpeg,
        snapshot_at=None if snapshot is None else utc(snapshot.at_ns),
        snapshot_box=None if snapshot is None else _rounded_box(snapshot.box_xyxy),
    )


def _rounded_box(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return round(x1, 1), round(y1, 1), round(x2, 1), round(y2, 1)


def _concealed(value: object) -> object:
    """Return an event's value without registered secrets, because a custom stage can put any text into the value."""
    if isinstance(value, str):
        return conceal(value)
    if isinstance(value, _NUMBERS):  # the test for `Mapping` takes much longer
        return value
    if isinstance(value, Mapping):
        return {key: _concealed(part) for key, part in value.items()}
    return [_concealed(part) for part in value] if isinstance(value, list | tuple) else value


def _outline(track_id: int | None, result: Result, masks: MaskFormat) -> dict[str, Any]:
    """Return the box, mask, and keypoints of an event's object as fields, or {} if the frame lacks the object."""
    objects = result.objects
    if track_id is None or not isinstance(objects, Tracks):
        return {}
    track_ids = objects.track_ids.tolist()
    if track_id not in track_ids:
        return {}
    row = track_ids.index(track_id)
    box = objects.boxes_xyxy[row].tolist()
    if not isfinite(sum(box)):
        return {}
    fields: dict[str, Any] = {"box": tuple(round(corner * 10.0) / 10.0 for corner in box)}  # as `_rounded`
    shapes = objects.shapes
    if shapes is not None:
        fields |= shape_fields(shapes.take(np.array([row])), result.meta, masks)[0]
        fields["keypoint_names"] = list(shapes.keypoint_names) or None
    return fields


def counts(camera: str, counted: Counts, now_ns: int, now_utc_ns: int) -> CountsReport:
    """Return the report of a camera's counts at the current time: `now_ns` (monotonic) and `now_utc_ns` (UTC)."""
    return CountsReport(
        camera=camera,
        at=rfc3339(now_utc_ns),
        at_monotonic_ns=now_ns,
        lines={
            name: LineCounts(
                in_=totals.get("in", 0),
                out=totals.get("out", 0),
                in_by_class=_by_class("in:", totals),
                out_by_class=_by_class("out:", totals),
                in_interval=counted.intervals.get(name, {}).get("in"),
                out_interval=counted.intervals.get(name, {}).get("out"),
            )
            for name, totals in counted.lines.items()
        },
        zones={
            name: ZoneCounts(
                occupancy=counted.occupancy.get(name, 0),
                entered=totals.get("entered", 0),
                left=totals.get("left", 0),
                entered_by_class=_by_class("entered:", totals),
                left_by_class=_by_class("left:", totals),
                entered_interval=counted.intervals.get(name, {}).get("entered"),
                left_interval=counted.intervals.get(name, {}).get("left"),
            )
            for name, totals in counted.zones.items()
        },
        view=counted.view,
    )


def _by_class(prefix: str, totals: Mapping[str, int]) -> dict[str, int]:
    return {key.removeprefix(prefix): count for key, count in totals.items() if key.startswith(prefix)}


def status(
    header: Header,
    report: StatusReport,
    replay: str | None = None,
    sinks: Mapping[str, SinkStatus] = MappingProxyType({}),
    disks: Mapping[str, DiskStatus] = MappingProxyType({}),
    *,
    view_fault: str | None = None,
) -> StatusMessage:
    """Return the message that publishes a report.

    Args:
        replay: address for requests for missed events, or None if subscribers cannot request events.
        sinks: status of each sink, by name.
        disks: free space, by folder.
        view_fault: ``moved`` or ``covered`` if the camera was moved or is covered, otherwise None.
    """
    fields = msgspec.structs.asdict(report)
    if isinstance(report, CameraReport):
        return CameraStatusMessage(**header, **fields, view_fault=view_fault)
    if isinstance(report, CountsReport):
        return CountsMessage(**header, **fields)
    return NodeStatusMessage(**header, **fields, replay=replay, sinks=dict(sinks), disks=dict(disks))


def _ms(duration_ns: int) -> float:
    return (duration_ns + 500) // 1000 / 1000  # several times faster than `round`


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return 8 characters that identify the current boot of this machine, or "" if the kernel provides no boot id."""
    try:
        return hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes()).hexdigest()[:8]
    except OSError:
        return ""


def plain(value: object) -> object:
    """Return a NumPy value as a number or list. Raise `TypeError` for all other types that messages do not support."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"expected numbers, texts, lists, and mappings in a message, got {type(value).__name__}")


_TO_JSON = msgspec.json.Encoder(enc_hook=plain)
_TO_MSGPACK = msgspec.msgpack.Encoder(enc_hook=plain)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_TYPES: dict[str, type[AnyMessage]] = {
    "detections": DetectionsMessage,
    "events": EventMessage,
    "counts": CountsMessage,
    "objects": ObjectMessage,
    "status": CameraStatusMessage,
    f"status/{NODE}": NodeStatusMessage,
}


def encode(message: AnyMessage | ReplayRequest | ReplayReply, encoding: Encoding = "json") -> bytes:
    """Encode a message, and return the payload. Raise `TypeError` if the `data` of an event has unsupported types."""
    return _TO_MSGPACK.encode(message) if encoding == "msgpack" else _TO_JSON.encode(message)


def decode(topic: str, payload: bytes) -> AnyMessage:
    """Decode a payload with the schema of its topic.

    Raises:
        MessageError: the topic is unknown, the payload is not a message, or the schema or version is different.
    """
    kind = _TYPES.get(topic) or _TYPES.get(topic.partition("/")[0])
    if kind is None:
        text = f"expected a topic that starts with one of {', '.join(KINDS)}, got {topic!r}"
        raise MessageError(text, code="message-topic")
    return decode_as(kind, payload, topic)


_TIME: Final = re.compile(r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])T[0-2]\d:[0-5]\d:\d\d\.\d{6}Z")


def check_values(topic: str, message: AnyMessage) -> None:
    """Check that the values of a message from an untrusted publisher are plausible.

    Raises:
        MessageError: the topic belongs to a different camera, the time is malformed, the sequence number is out of
            range, or a score or box is impossible.
    """
    of = message.camera if not isinstance(message, NodeStatusMessage) else NODE
    if topic.partition("/")[2] != of:
        raise _invalid(topic, f"the message is about {of!r}")
    if not _TIME.fullmatch(message.captured_at if isinstance(message, DetectionsMessage) else message.at):
        raise _invalid(topic, "the time is not in the form of RFC 3339")
    if not 0 < message.seq < 1 << 63:
        raise _invalid(topic, f"the number is {message.seq}")
    if isinstance(message, DetectionsMessage):
        for detected in message.objects:
            x1, y1, x2, y2 = detected.box
            if not (0 <= detected.score <= 1 and -inf < x1 <= x2 < inf and -inf < y1 <= y2 < inf):
                raise _invalid(topic, f"an object has the score {detected.score} and the box {detected.box}")


def _invalid(topic: str, reason: str) -> MessageError:
    return MessageError(f"{topic}: {reason}", hint="check that the publisher is `vision run`", code="message-invalid")


def decode_as(kind: type[_StructT], payload: bytes, name: str) -> _StructT:
    """Decode a JSON or MessagePack payload, and return a message of type `kind`. Error texts start with `name`.

    Raises:
        MessageError: the payload is not a message, or has a different schema or version.
    """
    try:
        if payload[:1] == b"{":  # a JSON object; no MessagePack map starts with a brace
            return msgspec.json.decode(payload, type=kind)
        return msgspec.msgpack.decode(payload, type=kind)
    except _UNREADABLE as error:
        raise _unreadable(name, schema_of(kind), payload, error) from error


def _unreadable(name: str, expected: str, payload: bytes, error: Exception) -> MessageError:
    try:
        content = (msgspec.json if payload[:1] == b"{" else msgspec.msgpack).decode(payload)
    except _UNREADABLE:
        content = None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema is not None and schema != expected:
        hint = "publisher and subscriber have different versions: install the same version of vision on both sides"
        return MessageError(f"{name}: expected schema {expected}, got {schema}", hint=hint, code="message-schema")
    text = f"{name}: expected a message of schema {expected}: {error}"
    return MessageError(text, hint="check that the publisher is `vision run`", code="message-unreadable")
