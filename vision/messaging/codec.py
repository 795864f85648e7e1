"""Encoding and decoding of messages, and the conversion of results to messages.

Publisher, recorder and subscriber import this module, so they cannot differ. The fields are those of
`vision.messaging.schema`. Boxes are rounded to 0.1 px, scores to 0.0001, times to 1 µs.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from vision.errors import MessageError
from vision.messaging.schema import (
    KINDS,
    NODE,
    UNNUMBERED,
    AnyMessage,
    AttributeOfObject,
    CameraStatusMessage,
    CountsMessage,
    DetectedObject,
    DetectionsMessage,
    DetectorStatus,
    Encoding,
    EventMessage,
    Kind,
    LatencyPercentiles,
    LineCounts,
    Message,
    NodeStatusMessage,
    ReplayReply,
    ReplayRequest,
    StageTimes,
    StatusMessage,
    ZoneCounts,
    doc,
    json_schemas,
    rfc3339,
    schema_of,
    utc_ns,
)
from vision.types import Counts, Detections, Event, Result, Tracks

__all__ = [
    "KINDS",
    "NODE",
    "AnyMessage",
    "AttributeOfObject",
    "CameraStatusMessage",
    "CountsMessage",
    "DetectedObject",
    "DetectionsMessage",
    "DetectorStatus",
    "Encoding",
    "EventMessage",
    "Kind",
    "LatencyPercentiles",
    "LineCounts",
    "Message",
    "NodeStatusMessage",
    "Numbering",
    "ReplayReply",
    "ReplayRequest",
    "StageTimes",
    "StatusMessage",
    "ZoneCounts",
    "boot_id",
    "counts",
    "decode",
    "decode_event",
    "decode_recorded",
    "decode_reply",
    "decode_request",
    "detections",
    "doc",
    "encode",
    "event",
    "json_schemas",
    "rfc3339",
    "schema_of",
    "utc_ns",
    "with_number",
    "with_replay",
]

_MessageT = TypeVar("_MessageT", bound=Message)
_StructT = TypeVar("_StructT", bound=msgspec.Struct)


class Numbering:
    """Sequence numbers of one publisher, per topic. One thread at a time."""

    def __init__(self, node: str, instance: str | None = None) -> None:
        self.node = node
        self.instance = instance if instance is not None else secrets.token_hex(4)
        self._last: dict[str, int] = {}

    def stamp(self, message: _MessageT) -> _MessageT:
        """Return the message with its sender and the next number of its topic."""
        topic = message.topic
        seq = self._last[topic] = self._last.get(topic, 0) + 1
        return msgspec.structs.replace(message, node=self.node, instance=self.instance, boot=boot_id(), seq=seq)


def detections(result: Result, class_names: Sequence[str], now_ns: int = 0) -> DetectionsMessage:
    """Return the message of one result, not yet numbered. `now_ns` replaces a `published_ns` that is not set yet."""
    meta = result.meta
    objects, invalid = _objects(result.objects, class_names)
    if result.attributes:
        objects = [_with_attributes(detected, result) for detected in objects]
    return DetectionsMessage(
        **UNNUMBERED,
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
        truncated_candidates=result.objects.truncated_candidates,
        invalid=invalid,
    )


def _objects(detections: Detections | Tracks, class_names: Sequence[str]) -> tuple[list[DetectedObject], int]:
    scores = detections.scores.astype(np.float64).round(4).tolist()
    boxes = detections.boxes_xyxy.astype(np.float64).round(1).tolist()
    if not isfinite(sum(scores) + sum(map(sum, boxes))):
        finite = np.isfinite(detections.scores) & np.isfinite(detections.boxes_xyxy).all(axis=1)
        return _objects(_rows(detections, finite), class_names)[0], len(detections) - int(finite.sum())
    class_ids = detections.class_ids.tolist()
    names = [class_names[i] if 0 <= i < len(class_names) else f"class {i}" for i in class_ids]
    track_ids: list[int] | list[None] = [None] * len(scores)
    ages_ms: list[int] | list[None] = [None] * len(scores)
    if isinstance(detections, Tracks):
        track_ids, ages_ms = detections.track_ids.tolist(), detections.age_ms.tolist()
    rows = zip(track_ids, names, class_ids, scores, boxes, ages_ms, strict=True)
    return [
        DetectedObject(track_id=track_id, class_name=name, class_id=class_id, score=score, box=box, age_ms=age_ms)
        for track_id, name, class_id, score, box, age_ms in rows
    ], 0


def _with_attributes(detected: DetectedObject, result: Result) -> DetectedObject:
    if detected.track_id is None or not (attributes := result.attributes.get(detected.track_id)):
        return detected
    now_ns = result.meta.captured_ns
    return msgspec.structs.replace(
        detected,
        attributes=[
            AttributeOfObject(
                model=attribute.model,
                class_name=attribute.class_name,
                score=round(attribute.score, 4),
                age_ms=max(0, round((now_ns - attribute.seen_ns) / 1e6)),
            )
            for attribute in attributes
        ],
    )


def _rows(detections: Detections | Tracks, keep: NDArray[np.bool_]) -> Detections | Tracks:
    boxes, scores, class_ids = detections.boxes_xyxy[keep], detections.scores[keep], detections.class_ids[keep]
    if isinstance(detections, Tracks):
        return Tracks(boxes, scores, class_ids, detections.track_ids[keep], detections.age_ms[keep])
    return Detections(boxes, scores, class_ids)


def _stage_times(result: Result, now_ns: int) -> StageTimes:
    timing = result.timing  # a point that was not reached has the time of the point before
    batched_ns = timing.batched_ns or timing.captured_ns
    submitted_ns = timing.submitted_ns or batched_ns
    inferred_ns = timing.inferred_ns or submitted_ns
    published_ns = timing.published_ns or now_ns or inferred_ns
    return StageTimes(
        wait=_ms(batched_ns - timing.captured_ns),
        submit=_ms(submitted_ns - batched_ns),
        infer=_ms(inferred_ns - submitted_ns),
        publish=_ms(published_ns - inferred_ns),
        total=_ms(published_ns - timing.captured_ns),
    )


def event(happened: Event, result: Result) -> EventMessage:
    """Return the message of one event of `result`, not yet numbered."""
    meta = result.meta
    return EventMessage(
        **UNNUMBERED,
        camera=happened.camera_id,
        epoch=meta.epoch,
        frame=meta.index,
        at=rfc3339(meta.captured_utc_ns + happened.at_ns - meta.captured_ns),
        at_monotonic_ns=happened.at_ns,
        kind=happened.kind,
        name=happened.name,
        track_id=happened.track_id,
        data=dict(happened.data),
        box=_box_of(happened.track_id, result.objects),
        snapshot=happened.snapshot or None,
    )


def _box_of(track_id: int | None, objects: Detections | Tracks) -> tuple[float, float, float, float] | None:
    if track_id is None or not isinstance(objects, Tracks):
        return None
    rows = (objects.track_ids == track_id).nonzero()[0]
    if not len(rows) or not np.isfinite(box := objects.boxes_xyxy[rows[0]]).all():
        return None
    x1, y1, x2, y2 = box.astype(np.float64).round(1).tolist()
    return x1, y1, x2, y2


def with_number(event: EventMessage, journal: str, number: int) -> EventMessage:
    """Return the event with its number in a journal."""
    return msgspec.structs.replace(event, journal=journal, number=number)


def with_replay(status: NodeStatusMessage, address: str) -> NodeStatusMessage:
    """Return the status with the address for requests of missed events."""
    return msgspec.structs.replace(status, replay=address)


def counts(camera: str, counted: Counts, now_ns: int, now_utc_ns: int) -> CountsMessage:
    """Return the message of the counts of a camera, not yet numbered."""
    return CountsMessage(
        **UNNUMBERED,
        camera=camera,
        at=rfc3339(now_utc_ns),
        at_monotonic_ns=now_ns,
        lines={
            name: LineCounts(
                in_=totals.get("in", 0),
                out=totals.get("out", 0),
                in_by_class=_by_class("in:", totals),
                out_by_class=_by_class("out:", totals),
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
            )
            for name, totals in counted.zones.items()
        },
    )


def _by_class(prefix: str, totals: Mapping[str, int]) -> dict[str, int]:
    return {key.removeprefix(prefix): count for key, count in totals.items() if key.startswith(prefix)}


def _counts(by_reason: Mapping[str, int]) -> dict[str, int]:
    return {str(reason.value if isinstance(reason, Enum) else reason): n for reason, n in by_reason.items() if n}


def _ms(duration_ns: int) -> float:
    return round(duration_ns / 1e6, 3)


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return 8 characters that identify this boot of this machine, or "" if the system has no boot id."""
    try:
        return hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes()).hexdigest()[:8]
    except OSError:
        return ""


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise NotImplementedError(f"expected numbers, texts, lists and mappings in a message, got {type(value).__name__}")


_TO_JSON = msgspec.json.Encoder(enc_hook=_plain)
_TO_MSGPACK = msgspec.msgpack.Encoder(enc_hook=_plain)
_TYPES: dict[str, type[AnyMessage]] = {
    "detections": DetectionsMessage,
    "events": EventMessage,
    "counts": CountsMessage,
    "status": CameraStatusMessage,
    f"status/{NODE}": NodeStatusMessage,
}
_JSON_DECODERS = {key: msgspec.json.Decoder(kind) for key, kind in _TYPES.items()}
_MSGPACK_DECODERS = {key: msgspec.msgpack.Decoder(kind) for key, kind in _TYPES.items()}


def encode(message: Message | ReplayRequest | ReplayReply, encoding: Encoding = "json") -> bytes:
    """Return the payload of a numbered message.

    Raises:
        NotImplementedError: the `data` of an event has a value that is not a number, text, list or mapping.
    """
    return _TO_MSGPACK.encode(message) if encoding == "msgpack" else _TO_JSON.encode(message)


def decode(topic: str, payload: bytes) -> AnyMessage:
    """Return the message of a payload in either encoding. The topic determines the expected schema.

    Raises:
        MessageError: another schema or version, or not a message.
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


def decode_event(payload: bytes) -> EventMessage:
    """Return a stored event, in either encoding.

    Raises:
        MessageError: another schema or version, or not a message.
    """
    return cast(EventMessage, decode("events", payload))


def decode_request(payload: bytes) -> ReplayRequest:
    """Return the request of a subscriber, in JSON.

    Raises:
        MessageError: not a request, or one of another version.
    """
    return _decoded(ReplayRequest, payload, "a request")


def decode_reply(payload: bytes) -> ReplayReply:
    """Return the first part of a reply, in JSON.

    Raises:
        MessageError: not a reply, or one of another version.
    """
    return _decoded(ReplayReply, payload, "a reply")


def _decoded(kind: type[_StructT], payload: bytes, name: str) -> _StructT:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(
            f"expected {name} of schema {schema_of(kind)}: {error}", hint="docs/messages.md describes it"
        ) from error


def decode_recorded(line: bytes) -> DetectionsMessage:
    """Return the message of one line of a recording.

    Raises:
        MessageError: another schema or version, or not a message.
    """
    return cast(DetectionsMessage, decode("detections", line))


def _unreadable(where: str, key: str, payload: bytes, error: Exception) -> MessageError:
    expected = schema_of(_TYPES[key])
    codec = msgspec.json if payload[:1] == b"{" else msgspec.msgpack
    try:
        content = codec.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        content = None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema is not None and schema != expected:
        return MessageError(
            f"{where}: expected schema {expected}, got {schema}",
            hint="publisher and subscriber have different versions: install the same version of vision on both sides",
        )
    return MessageError(
        f"{where}: expected a message of schema {expected}: {error}", hint="is the publisher really `vision run`?"
    )
