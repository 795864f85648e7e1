"""From results to messages and back: every message is made, numbered, encoded and decoded here.

Publisher, recorder and subscriber all import this module, so that none can differ from another. The fields are those
of `vision.messaging.schema`; the two are the only users of msgspec. Numbers are rounded to what they are good for:
boxes to
0.1 px, scores to 0.0001, times to 1 µs.
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
    about,
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
    "about",
    "boot_id",
    "counts",
    "decode",
    "decode_event",
    "decode_recorded",
    "decode_reply",
    "decode_request",
    "detections",
    "encode",
    "event",
    "json_schemas",
    "kept",
    "rfc3339",
    "schema_of",
    "utc_ns",
    "with_replay",
]

_M = TypeVar("_M", bound=Message)
_S = TypeVar("_S", bound=msgspec.Struct)


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
    """One frame's result, not yet numbered. `now_ns` stands in for a `published_ns` that is not set yet."""
    meta, found = result.meta, result.objects
    objects, invalid = _objects(found, class_names)
    if result.attributes:
        objects = [_with_attributes(one, result) for one in objects]
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
        truncated_candidates=found.truncated_candidates,
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
    track_ids: list[int] | list[None] = [None] * len(scores)
    ages_ms: list[int] | list[None] = [None] * len(scores)
    if isinstance(found, Tracks):
        track_ids, ages_ms = found.track_ids.tolist(), found.age_ms.tolist()
    rows = zip(track_ids, names, class_ids, scores, boxes, ages_ms, strict=True)
    return [
        DetectedObject(track_id=track_id, class_name=name, class_id=class_id, score=score, box=box, age_ms=age_ms)
        for track_id, name, class_id, score, box, age_ms in rows
    ], 0


def _with_attributes(found: DetectedObject, result: Result) -> DetectedObject:
    if found.track_id is None or not (attributes := result.attributes.get(found.track_id)):
        return found
    now_ns = result.meta.captured_ns
    told = [
        AttributeOfObject(
            model=one.model,
            class_name=one.class_name,
            score=round(one.score, 4),
            age_ms=max(0, round((now_ns - one.seen_ns) / 1e6)),
        )
        for one in attributes
    ]
    return msgspec.structs.replace(found, attributes=told)


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


def _box_of(track_id: int | None, found: Detections | Tracks) -> tuple[float, float, float, float] | None:
    if track_id is None or not isinstance(found, Tracks):
        return None
    rows = (found.track_ids == track_id).nonzero()[0]
    if not len(rows) or not np.isfinite(box := found.boxes_xyxy[rows[0]]).all():
        return None
    x1, y1, x2, y2 = box.astype(np.float64).round(1).tolist()
    return x1, y1, x2, y2


def kept(event: EventMessage, journal: str, number: int) -> EventMessage:
    """The event as a journal keeps it."""
    return msgspec.structs.replace(event, journal=journal, number=number)


def with_replay(status: NodeStatusMessage, address: str) -> NodeStatusMessage:
    """The status with the address where events can be asked for."""
    return msgspec.structs.replace(status, replay=address)


def counts(camera: str, counted: Counts, now_ns: int, now_utc_ns: int) -> CountsMessage:
    """What a camera's lines and zones have counted, not yet numbered."""
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
    "counts": CountsMessage,
    "status": CameraStatusMessage,
    f"status/{NODE}": NodeStatusMessage,
}
_JSON_DECODERS = {key: msgspec.json.Decoder(kind) for key, kind in _TYPES.items()}
_MSGPACK_DECODERS = {key: msgspec.msgpack.Decoder(kind) for key, kind in _TYPES.items()}


def encode(message: Message | ReplayRequest | ReplayReply, encoding: Encoding = "json") -> bytes:
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


def decode_event(payload: bytes) -> EventMessage:
    """An event that was kept, in either encoding.

    Raises:
        MessageError: another schema or version, or no message at all.
    """
    return cast(EventMessage, decode("events", payload))


def decode_request(payload: bytes) -> ReplayRequest:
    """What a subscriber asks for, in JSON.

    Raises:
        MessageError: no request, or of another version.
    """
    return _decoded(ReplayRequest, payload, "a request")


def decode_reply(payload: bytes) -> ReplayReply:
    """The first part of what it is answered, in JSON.

    Raises:
        MessageError: no answer, or of another version.
    """
    return _decoded(ReplayReply, payload, "an answer")


def _decoded(kind: type[_S], payload: bytes, what: str) -> _S:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(
            f"expected {what} of schema {schema_of(kind)}: {error}", hint="docs/messages.md describes it"
        ) from error


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
