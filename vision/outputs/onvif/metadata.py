"""Functions that convert messages of the program to ONVIF metadata documents.

A document is a `tt:MetadataStream`. It contains one frame, the notifications of one event, or all counters of a camera.
Coordinates are normalized as in ONVIF: x from -1 (left) to 1 (right), and y from -1 (bottom) to 1 (top).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from vision.messaging.schema import CountsMessage, DetectedObject, DetectionsMessage, EventMessage

TOPICS: Final = "urn:vision-streams:onvif:topics"
"""Namespace of the topics that ONVIF does not define."""

_OPEN: Final = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<tt:MetadataStream xmlns:tt="http://www.onvif.org/ver10/schema"'
    ' xmlns:wsnt="http://docs.oasis-open.org/wsn/b-2" xmlns:tns1="http://www.onvif.org/ver10/topics"'
    f' xmlns:vision="{TOPICS}">'
)
_CLOSE: Final = "</tt:MetadataStream>"
_DIALECT: Final = "http://www.onvif.org/ver10/tev/topicExpression/ConcreteSet"
_KIND: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_UNPRINTABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot contain."""

_VEHICLES: Final = {"car": "Car", "bus": "Bus", "truck": "Truck", "bicycle": "Bicycle", "motorcycle": "Motorcycle"}
"""Value of `tt:VehicleInfo/tt:Type` for each class of vehicles that ONVIF defines."""

_ANIMALS: Final = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
_TYPES: Final = {
    "person": "Human",
    "face": "HumanFace",
    "bicycle": "Bicycle",
    "license plate": "LicensePlate",
    **dict.fromkeys(("car", "bus", "truck", "motorcycle", "train", "boat", "airplane"), "Vehicle"),
    **dict.fromkeys(_ANIMALS, "Animal"),
}
"""Value of `tt:Class/tt:Type` for each class that ONVIF defines. Other classes keep their names."""

_Point = tuple[float, float]


def frame_document(message: DetectionsMessage) -> bytes:
    """Return the document with the objects of one frame."""
    objects = "".join(_object(each, message.width, message.height) for each in message.objects)
    frame = f'<tt:Frame UtcTime="{message.captured_at}" Source="vision">{objects}</tt:Frame>'
    return f"{_OPEN}<tt:VideoAnalytics>{frame}</tt:VideoAnalytics>{_CLOSE}".encode()


def _object(found: DetectedObject, width_px: int, height_px: int) -> str:
    number = "" if found.track_id is None else f' ObjectId="{found.track_id}"'
    left, top, right, bottom = found.box
    (left, top), (right, bottom) = (_normalized(each, width_px, height_px) for each in ((left, top), (right, bottom)))
    shape = (
        f'<tt:BoundingBox left="{left:.4f}" top="{top:.4f}" right="{right:.4f}" bottom="{bottom:.4f}"/>'
        f'<tt:CenterOfGravity x="{(left + right) / 2:.4f}" y="{(top + bottom) / 2:.4f}"/>'
    )
    shape += "".join(_polygon(outline, width_px, height_px) for outline in _outlines(found))
    kind = _attribute(_TYPES.get(found.class_name, found.class_name))
    likelihood = f'Likelihood="{found.score:.3f}"'
    vehicle = _VEHICLES.get(found.class_name)
    info = "" if vehicle is None else f"<tt:VehicleInfo><tt:Type {likelihood}>{vehicle}</tt:Type></tt:VehicleInfo>"
    return (
        f"<tt:Object{number}><tt:Appearance><tt:Shape>{shape}</tt:Shape>"
        f"<tt:Class><tt:Type {likelihood}>{escape(kind)}</tt:Type></tt:Class>{info}</tt:Appearance></tt:Object>"
    )


def _outlines(found: DetectedObject) -> Iterator[list[_Point]]:
    if found.corners is not None:
        yield found.corners
    elif found.mask is not None and found.mask.polygons is not None:
        yield from (outline for outline in found.mask.polygons if len(outline) > 2)


def _polygon(outline: Iterable[_Point], width_px: int, height_px: int) -> str:
    normalized = (_normalized(point, width_px, height_px) for point in outline)
    points = "".join(f'<tt:Point x="{x:.4f}" y="{y:.4f}"/>' for x, y in normalized)
    return f"<tt:Polygon>{points}</tt:Polygon>"


def _normalized(point: _Point, width_px: int, height_px: int) -> _Point:
    return 2 * point[0] / width_px - 1, 1 - 2 * point[1] / height_px


@dataclass(frozen=True, slots=True)
class _Notification:
    """One `wsnt:NotificationMessage`. `operation` is empty unless the topic is an ONVIF property, which has a state."""

    topic: str
    source: Mapping[str, str]
    data: Mapping[str, str]
    key: Mapping[str, str]
    operation: str = "Changed"


def event_document(message: EventMessage) -> bytes | None:
    """Return the document with the notifications of an event.

    Return None if the message amends an event, or if the kind of the event cannot be part of a topic.
    """
    if message.amends is not None or not _KIND.fullmatch(message.kind):
        return None
    notifications = _NOTIFICATIONS.get(message.kind, _other)(message)
    return _events(notifications, message.at)


def counts_document(message: CountsMessage) -> bytes:
    """Return the document with the current values of all counters of a camera, for a client that has just started."""

    def notifications() -> Iterator[_Notification]:
        for name, line in message.lines.items():
            yield _counter(message.camera, f"{name}/in", line.in_, "Initialized")
            yield _counter(message.camera, f"{name}/out", line.out, "Initialized")
        for name, zone in message.zones.items():
            yield _counter(message.camera, name, zone.occupancy, "Initialized")

    return _events(notifications(), message.at)


def _events(notifications: Iterable[_Notification], at: str) -> bytes:
    content = "".join(_notification(each, at) for each in notifications)
    return f"{_OPEN}<tt:Event>{content}</tt:Event>{_CLOSE}".encode()


def _notification(notification: _Notification, at: str) -> str:
    operation = f' PropertyOperation="{notification.operation}"' if notification.operation else ""
    parts = (("Source", notification.source), ("Key", notification.key), ("Data", notification.data))
    content = "".join(f"<tt:{name}>{_items(items)}</tt:{name}>" for name, items in parts if items)
    return (
        f'<wsnt:NotificationMessage><wsnt:Topic Dialect="{_DIALECT}">{notification.topic}</wsnt:Topic>'
        f'<wsnt:Message><tt:Message UtcTime="{at}"{operation}>{content}</tt:Message></wsnt:Message>'
        "</wsnt:NotificationMessage>"
    )


def _items(items: Mapping[str, str]) -> str:
    return "".join(
        f"<tt:SimpleItem Name={quoteattr(_attribute(name))} Value={quoteattr(_attribute(value))}/>"
        for name, value in items.items()
    )


def _attribute(text: str) -> str:
    return _UNPRINTABLE.sub("?", text)


def _rule(message: EventMessage) -> dict[str, str]:
    return _rule_of(message.camera, message.name)


def _rule_of(camera: str, name: str) -> dict[str, str]:
    tokens = ("VideoSourceConfigurationToken", "VideoAnalyticsConfigurationToken")
    return {**dict.fromkeys(tokens, camera), "Rule": name}


def _object_id(message: EventMessage) -> dict[str, str]:
    return {} if message.track_id is None else {"ObjectId": str(message.track_id)}


def _counter(camera: str, rule: str, count: object, operation: str = "Changed") -> _Notification:
    topic = "tns1:RuleEngine/CountAggregation/Counter"
    return _Notification(topic, _rule_of(camera, rule), {"Count": str(count)}, {}, operation)


def _line_crossed(message: EventMessage) -> Iterator[_Notification]:
    direction = str(message.data.get("direction", ""))
    data = {**_object_id(message), **({"Direction": direction} if direction else {})}
    yield _Notification("tns1:RuleEngine/LineDetector/Crossed", _rule(message), data, {}, "")
    total = message.data.get(f"total_{direction}")
    if total is not None:
        yield _counter(message.camera, f"{message.name}/{direction}", total)


def _zone(message: EventMessage) -> Iterator[_Notification]:
    data = {"IsInside": _boolean(message.kind == "zone_entered")}
    yield _Notification("tns1:RuleEngine/FieldDetector/ObjectsInside", _rule(message), data, _object_id(message))
    if "occupancy" in message.data:
        yield _counter(message.camera, message.name, message.data["occupancy"])


def _dwelling(message: EventMessage) -> Iterator[_Notification]:
    topic = "tns1:RuleEngine/LoiteringDetector/ObjectIsLoitering"
    yield _Notification(topic, _rule(message), {"State": _boolean(_has_begun(message))}, _object_id(message))


def _signal(message: EventMessage) -> Iterator[_Notification]:
    data = {"State": _boolean(message.kind != "camera_back")}
    yield _Notification("tns1:VideoSource/SignalLoss", {"Source": message.camera}, data, {})


def _moved(message: EventMessage) -> Iterator[_Notification]:
    topic = "tns1:VideoSource/GlobalSceneChange/AnalyticsService"
    yield _Notification(topic, {"Source": message.camera}, {"State": _boolean(_has_begun(message))}, {})


def _other(message: EventMessage) -> Iterator[_Notification]:
    """Yield the notification of an event for whose kind ONVIF has no topic.

    If the event is the start or the end of a state, the notification contains the item `State`.
    """
    topic = f"tns1:RuleEngine/vision:{message.kind}"
    phase = message.data.get("phase")
    values = {
        name: _boolean(value) if isinstance(value, bool) else str(value)
        for name, value in message.data.items()
        if isinstance(value, str | int | float) and name != "phase"
    }
    if phase in ("begin", "end"):
        data = {"State": _boolean(phase == "begin"), **values}
        yield _Notification(topic, _rule(message), data, _object_id(message))
    else:
        yield _Notification(topic, _rule(message), {**_object_id(message), **values}, {}, "")


def _has_begun(message: EventMessage) -> bool:
    return message.data.get("phase") == "begin"


def _boolean(value: bool) -> str:
    return "true" if value else "false"


_NOTIFICATIONS: Final[Mapping[str, Callable[[EventMessage], Iterator[_Notification]]]] = {
    "line_crossed": _line_crossed,
    "zone_entered": _zone,
    "zone_left": _zone,
    "dwelling": _dwelling,
    "camera_lost": _signal,
    "camera_frozen": _signal,
    "camera_back": _signal,
    "camera_moved": _moved,
    "camera_covered": _moved,
}
