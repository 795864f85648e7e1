"""Tests that metadata documents are valid according to the published schema, and agree with the messages."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, fromstring

import pytest
import xmlschema
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.messages.samples import HEADER
from vision.messaging.message_fields import MaskOfObject
from vision.messaging.schema import (
    CountsMessage,
    DetectedObject,
    DetectionsMessage,
    EventMessage,
    LineCounts,
    StageTimes,
    ZoneCounts,
)
from vision.outputs.onvif.metadata import counts_document, event_document, frame_document

AT = "2026-11-29T12:00:00.123456Z"
NAMES = {
    "tt": "http://www.onvif.org/ver10/schema",
    "wsnt": "http://docs.oasis-open.org/wsn/b-2",
}
HOSTILE = "<&\"']]>\x00\ud800"
TIMES = StageTimes(wait=0, submit=0, infer=0, publish=0, total=0)


def found(name: str = "person", **changes: Any) -> DetectedObject:
    fields: dict[str, Any] = {
        "track_id": 7,
        "class_name": name,
        "class_id": 0,
        "score": 0.5,
        "box": (0.0, 0.0, 320.0, 240.0),
    }
    return DetectedObject(**(fields | changes))


def frame(*objects: DetectedObject) -> DetectionsMessage:
    return DetectionsMessage(
        **HEADER, camera="gate", epoch=1, frame=2, captured_at=AT, captured_monotonic_ns=3, clock="rtcp",
        timing_ms=TIMES, dropped_before={}, width=640, height=480, objects=list(objects),
    )  # fmt: skip


def event(kind: str, data: dict[str, Any], **changes: Any) -> EventMessage:
    fields: dict[str, Any] = {
        "camera": "gate",
        "epoch": 1,
        "frame": 2,
        "at": AT,
        "at_monotonic_ns": 3,
        "kind": kind,
        "name": "door",
    }
    return EventMessage(**HEADER, **(fields | {"data": data} | changes))


def notifications(document: bytes | None) -> list[tuple[str, str | None, dict[str, dict[str, str]]]]:
    """Return the topic, the property operation, and the items of each notification."""
    assert document is not None
    listed = []
    for each in fromstring(document).iterfind("tt:Event/wsnt:NotificationMessage", NAMES):
        message = each.find("wsnt:Message/tt:Message", NAMES)
        assert message is not None
        assert message.get("UtcTime") == AT
        items = {
            part.tag.partition("}")[2]: {item.get("Name", ""): item.get("Value", "") for item in part}
            for part in message
        }
        listed.append((each.findtext("wsnt:Topic", "", NAMES), message.get("PropertyOperation"), items))
    return listed


SOURCE = {"VideoSourceConfigurationToken": "gate", "VideoAnalyticsConfigurationToken": "gate", "Rule": "door"}
RULE = "tns1:RuleEngine"


def test_coordinates_are_those_of_onvif(schema: xmlschema.XMLSchema11) -> None:
    document = frame_document(frame(found()))
    assert schema.is_valid(document)
    root = fromstring(document)
    box, center = root.find(".//tt:BoundingBox", NAMES), root.find(".//tt:CenterOfGravity", NAMES)
    assert isinstance(box, Element)
    assert isinstance(center, Element)
    assert {name: float(value) for name, value in box.attrib.items()} == {"left": -1, "top": 1, "right": 0, "bottom": 0}
    assert {name: float(value) for name, value in center.attrib.items()} == {"x": -0.5, "y": 0.5}
    assert root.find(".//tt:Frame", NAMES).get("UtcTime") == AT  # type: ignore[union-attr]
    assert root.find(".//tt:Object", NAMES).get("ObjectId") == "7"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("person", ["Human"]),
        ("dog", ["Animal"]),
        ("car", ["Vehicle", "Car"]),
        ("bicycle", ["Bicycle", "Bicycle"]),
        ("helmet", ["helmet"]),
        (HOSTILE, ["<&\"']]>??"]),
    ],
)
def test_classes_have_the_names_of_onvif(schema: xmlschema.XMLSchema11, name: str, types: list[str]) -> None:
    document = frame_document(frame(found(name)))
    assert schema.is_valid(document)
    assert [each.text for each in fromstring(document).iterfind(".//tt:Type", NAMES)] == types


def test_outlines_are_polygons(schema: xmlschema.XMLSchema11) -> None:
    corners = [(0.0, 0.0), (640.0, 0.0), (640.0, 480.0), (0.0, 480.0)]
    mask = MaskOfObject(polygons=[[(0.0, 0.0), (320.0, 0.0), (320.0, 480.0)], [(1.0, 1.0), (2.0, 2.0)]])
    document = frame_document(frame(found(corners=corners), found(mask=mask, track_id=None)))
    assert schema.is_valid(document)
    polygons = fromstring(document).findall(".//tt:Polygon", NAMES)
    points = [[(float(point.get("x", "")), float(point.get("y", ""))) for point in each] for each in polygons]
    assert points == [[(-1, 1), (1, 1), (1, -1), (-1, -1)], [(-1, 1), (0, 1), (0, -1)]]


def test_a_frame_without_objects_is_valid(schema: xmlschema.XMLSchema11) -> None:
    assert schema.is_valid(frame_document(frame()))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            event("line_crossed", {"direction": "in", "total_in": 4, "total_out": 3}, track_id=7),
            [
                (
                    f"{RULE}/LineDetector/Crossed",
                    None,
                    {"Source": SOURCE, "Data": {"ObjectId": "7", "Direction": "in"}},
                ),
                (
                    f"{RULE}/CountAggregation/Counter",
                    "Changed",
                    {"Source": {**SOURCE, "Rule": "door/in"}, "Data": {"Count": "4"}},
                ),
            ],
        ),
        *(
            (
                event(kind, {"how": "crossed", "occupancy": 2}, track_id=7),
                [
                    (
                        f"{RULE}/FieldDetector/ObjectsInside",
                        "Changed",
                        {"Source": SOURCE, "Key": {"ObjectId": "7"}, "Data": {"IsInside": inside}},
                    ),
                    (f"{RULE}/CountAggregation/Counter", "Changed", {"Source": SOURCE, "Data": {"Count": "2"}}),
                ],
            )
            for kind, inside in (("zone_entered", "true"), ("zone_left", "false"))
        ),
        (
            event("dwelling", {"phase": "end", "stayed_s": 5.0}, track_id=7),
            [
                (
                    f"{RULE}/LoiteringDetector/ObjectIsLoitering",
                    "Changed",
                    {"Source": SOURCE, "Key": {"ObjectId": "7"}, "Data": {"State": "false"}},
                )
            ],
        ),
        *(
            (
                event(kind, {"outage_s": 60}, name="camera"),
                [("tns1:VideoSource/SignalLoss", "Changed", {"Source": {"Source": "gate"}, "Data": {"State": state}})],
            )
            for kind, state in (("camera_lost", "true"), ("camera_frozen", "true"), ("camera_back", "false"))
        ),
        (
            event("camera_moved", {"phase": "begin", "reason": "covered"}, name="camera"),
            [
                (
                    "tns1:VideoSource/GlobalSceneChange/AnalyticsService",
                    "Changed",
                    {"Source": {"Source": "gate"}, "Data": {"State": "true"}},
                )
            ],
        ),
        (
            event("crowded", {"phase": "begin", "above": 5, "list": [1], "flag": True}),
            [
                (
                    f"{RULE}/vision:crowded",
                    "Changed",
                    {"Source": SOURCE, "Data": {"State": "true", "above": "5", "flag": "true"}},
                )
            ],
        ),
        (
            event("rule", {"phase": "instant", "when": HOSTILE}, track_id=7),
            [
                (
                    f"{RULE}/vision:rule",
                    None,
                    {"Source": SOURCE, "Data": {"ObjectId": "7", "when": "<&\"']]>??"}},
                )
            ],
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, EventMessage) else "",
)
def test_events_have_topics(schema: xmlschema.XMLSchema11, message: EventMessage, expected: list[Any]) -> None:
    document = event_document(message)
    assert document is not None
    assert schema.is_valid(document)
    assert notifications(document) == expected


def test_amendments_and_kinds_that_are_no_topics_have_no_document() -> None:
    assert event_document(event("line_crossed", {}, amends=3)) is None
    assert event_document(event("a/b", {})) is None
    assert event_document(event("a<b", {})) is None


def test_counters_have_present_values(schema: xmlschema.XMLSchema11) -> None:
    line = LineCounts(in_=4, out=3, in_by_class={}, out_by_class={})
    zone = ZoneCounts(occupancy=2, entered=5, left=3, entered_by_class={}, left_by_class={})
    message = CountsMessage(
        **HEADER, camera="gate", at=AT, at_monotonic_ns=1, lines={"door": line}, zones={"queue": zone}
    )
    document = counts_document(message)
    assert schema.is_valid(document)
    values = {items["Source"]["Rule"]: items["Data"]["Count"] for _, _, items in notifications(document)}
    assert values == {"door/in": "4", "door/out": "3", "queue": "2"}
    assert {operation for _, operation, _ in notifications(document)} == {"Initialized"}


@settings(max_examples=8)
@given(name=st.text(max_size=20), values=st.dictionaries(st.text(max_size=10), st.text(max_size=10), max_size=4))
def test_any_text_gives_a_valid_document(schema: xmlschema.XMLSchema11, name: str, values: dict[str, str]) -> None:
    document = event_document(event("rule", values, name=name))
    assert document is not None
    assert schema.is_valid(document)
