"""Tests that decoded messages equal encoded messages in both encodings, and of the handling of other versions."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.messages.samples import (
    CLASSES,
    HEADER,
    META,
    PUBLISHED_NS,
    camera_status,
    crossed,
    found,
    node_status,
    result,
    tracked,
)
from vision.errors import MessageError
from vision.messaging import codec, schema, times
from vision.types import Attribute, Counts, Detections, Event, Tracks


def event() -> schema.EventMessage:
    return codec.event(HEADER, crossed(), result())


COUNTED = Counts(
    {"door": {"in": 7, "out": 2, "in:person": 4, "in:car": 3, "out:person": 2}},
    {"queue": {"entered": 5, "left": 2, "entered:person": 5, "left:person": 2}, "yard": {}},
    {"queue": 3, "yard": 0},
)
ATTRIBUTES = {
    40: (Attribute("vest", "yes", 0.91234, META.captured_ns - 840_000_000),),
    99: (Attribute("a", "b", 1, 0),),
}

MESSAGES: dict[str, schema.AnyMessage] = {
    "detections": codec.detections(HEADER, result(), CLASSES, PUBLISHED_NS),
    "tracks": codec.detections(HEADER, result(tracked()), CLASSES, PUBLISHED_NS),
    "attributes": codec.detections(HEADER, result(tracked(), attributes=ATTRIBUTES), CLASSES, PUBLISHED_NS),
    "counts": codec.status(HEADER, codec.counts("gate", COUNTED, 5, 0)),
    "nothing found": codec.detections(HEADER, result(Detections.empty()), CLASSES, PUBLISHED_NS),
    "event": event(),
    "camera": codec.status(HEADER, camera_status(last_error="rtsp://***@h/: refused", width=640, decoder="ffmpeg")),
    "node": codec.status(HEADER, node_status(), replay="tcp://127.0.0.1:5556"),
    "node without graphs": codec.status(
        HEADER,
        msgspec.structs.replace(
            node_status(),
            detector=schema.DetectorStatus(batches_in_flight=2, max_batch=8, graphs=False, graphs_off="a reason"),
        ),
    ),
}


def as_json(message: schema.AnyMessage) -> dict[str, Any]:
    content = json.loads(codec.encode(message))
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize("name", MESSAGES)
def test_decoded_message_equals_encoded_message(name: str, encoding: schema.Encoding) -> None:
    sent = MESSAGES[name]
    read = codec.decode(sent.topic, codec.encode(sent, encoding))
    assert type(read) is type(sent)
    assert as_json(read) == as_json(sent)


def test_detections_message_has_all_fields() -> None:
    message = codec.detections(HEADER, result(tracked(1)), CLASSES, PUBLISHED_NS)
    assert as_json(message) == {
        "schema": "vision.detections/1",
        "node": "node-1",
        "instance": "cafe",
        "boot": "b007",
        "seq": 1,
        "camera": "gate",
        "epoch": 2,
        "frame": 17,
        "captured_at": "2023-11-14T22:13:20.123456Z",
        "captured_monotonic_ns": 5_000_000_000,
        "clock": "rtcp",
        "timing_ms": {"wait": 3.0, "submit": 0.2, "infer": 24.0, "publish": 0.6, "total": 27.8},
        "dropped_before": {"stale": 3},
        "width": 640,
        "height": 480,
        "objects": [
            {
                "track_id": 40,
                "class": "person",
                "class_id": 0,
                "score": 0.8765,
                "box": [0.1, 1.1, 2.1, 3.1],
                "age_ms": 1500,
            },
        ],
    }


def test_detection_without_tracking_has_no_track_id() -> None:
    content = as_json(codec.detections(HEADER, result(), CLASSES, PUBLISHED_NS))
    assert all("track_id" not in detected for detected in content["objects"])
    read = codec.decode("detections/gate", json.dumps(content).encode())
    assert isinstance(read, schema.DetectionsMessage)
    assert [detected.track_id for detected in read.objects] == [None, None]


def test_stage_times_add_up_to_total() -> None:
    times = codec.detections(HEADER, result(), CLASSES, PUBLISHED_NS).timing_ms
    assert (times.wait, times.submit, times.infer, times.publish, times.total) == (3.0, 0.2, 24.0, 0.6, 27.8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("objects", [found(3), tracked(3)], ids=["detections", "tracks"])
def test_objects_with_infinite_values_are_left_out_and_counted(bad: float, objects: Detections | Tracks) -> None:
    objects.boxes_xyxy[1, 2] = bad
    message = codec.detections(HEADER, result(objects), CLASSES, PUBLISHED_NS)
    assert ([detected.score for detected in message.objects], message.invalid) == ([0.8765, 0.1], 1)
    assert b"null" not in codec.encode(message)


@pytest.mark.parametrize("objects", [found(1), tracked(1)], ids=["detections", "tracks"])
def test_truncated_candidates_are_reported(objects: Detections | Tracks) -> None:
    message = codec.detections(HEADER, result(replace(objects, truncated_candidates=7)), CLASSES, PUBLISHED_NS)
    assert as_json(message)["truncated_candidates"] == 7


@pytest.mark.parametrize(("class_id", "name"), [(0, "person"), (1, "car"), (2, "class 2"), (-1, "class -1")])
def test_class_name_of_unknown_id_has_number(class_id: int, name: str) -> None:
    one = found(1)
    objects = Detections(one.boxes_xyxy, one.scores, np.array([class_id], np.int32))
    assert codec.detections(HEADER, result(objects), CLASSES, PUBLISHED_NS).objects[0].class_name == name


def test_event_has_own_time_and_plain_data() -> None:
    content = as_json(event())
    assert content["at"] == "2023-11-14T22:13:20.124456Z"
    assert content["at_monotonic_ns"] == 5_001_000_000
    assert content["data"] == {"direction": "in", "count": 3}
    assert (content["frame"], content["track_id"], content["kind"], content["name"]) == (17, 40, "line_crossed", "door")


def test_event_has_box_and_snapshot() -> None:
    shown = Event("line_crossed", "door", "gate", 41, 5_001_000_000, snapshot="/var/shots/gate.jpg")
    content = as_json(codec.event(HEADER, shown, result(tracked(3))))
    assert content["box"] == [4.1, 5.1, 6.1, 7.1]
    assert content["snapshot"] == "/var/shots/gate.jpg"


@pytest.mark.parametrize("objects", [found(3), tracked(0), Detections.empty()])
def test_event_without_object_in_frame_has_no_box(objects: Detections | Tracks) -> None:
    content = as_json(codec.event(HEADER, Event("zone_left", "queue", "gate", 41, 0), result(objects)))
    assert not {"box", "snapshot", "journal", "number"} & set(content)


def test_event_with_infinite_box_has_no_box() -> None:
    objects = tracked(2)
    objects.boxes_xyxy[1, 0] = np.nan
    assert "box" not in as_json(codec.event(HEADER, Event("zone_left", "queue", "gate", 41, 0), result(objects)))


def test_attributes_are_sent_with_their_track_and_age() -> None:
    objects = as_json(MESSAGES["attributes"])["objects"]
    assert objects[0]["attributes"] == [{"model": "vest", "class": "yes", "score": 0.9123, "age_ms": 840}]
    assert "attributes" not in objects[1]


def test_counts_message_has_all_fields() -> None:
    content = as_json(MESSAGES["counts"])
    assert content["lines"] == {
        "door": {"in": 7, "out": 2, "in_by_class": {"person": 4, "car": 3}, "out_by_class": {"person": 2}}
    }
    assert content["zones"] == {
        "queue": {
            "occupancy": 3, "entered": 5, "left": 2, "entered_by_class": {"person": 5}, "left_by_class": {"person": 2}
        },
        "yard": {"occupancy": 0, "entered": 0, "left": 0, "entered_by_class": {}, "left_by_class": {}},
    }  # fmt: skip
    assert (content["at"], content["at_monotonic_ns"]) == ("1970-01-01T00:00:00.000000Z", 5)


def test_unsupported_event_data_is_refused() -> None:
    with pytest.raises(TypeError):
        codec.encode(codec.event(HEADER, Event("kind", "name", "gate", None, 0, {"what": object()}), result()))


def test_fields_without_a_value_are_absent() -> None:
    content = as_json(codec.status(HEADER, camera_status()))
    assert not {"width", "height", "decoder", "clock", "last_frame_age_s", "last_error", "hint"} & set(content)


def test_sequence_numbers_are_per_topic() -> None:
    numbering = codec.Numbering("n")
    headers = [
        numbering.header(topic) for topic in ("detections/gate", "status/gate", "detections/gate", "status/node")
    ]
    assert [header["seq"] for header in headers] == [1, 1, 2, 1]
    assert {header["instance"] for header in headers} == {numbering.instance}
    assert {header["boot"] for header in headers} == {codec.boot_id()}
    assert codec.Numbering("n").instance != numbering.instance


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_fields_of_a_newer_publisher_are_ignored(encoding: str) -> None:
    import msgspec

    content = as_json(MESSAGES["detections"]) | {"colour": "red"}
    content["objects"][0]["age"] = 3
    payload = msgspec.json.encode(content) if encoding == "json" else msgspec.msgpack.encode(content)
    assert as_json(codec.decode("detections/gate", payload)) == as_json(MESSAGES["detections"])


def _changed(**changes: Any) -> bytes:
    return json.dumps(as_json(MESSAGES["detections"]) | changes).encode()


@pytest.mark.parametrize(
    ("topic", "payload", "code", "detail"),
    [
        ("detections/gate", _changed(schema="vision.detections/2"), "message-schema", "vision.detections/2"),
        ("detections/gate", _changed(schema="other.thing/1"), "message-schema", "other.thing/1"),
        ("detections/gate", codec.encode(MESSAGES["node"]), "message-schema", "vision.node-status/1"),
        ("detections/gate", codec.encode(MESSAGES["node"], "msgpack"), "message-schema", "vision.node-status/1"),
        ("detections/gate", _changed(seq="three"), "message-unreadable", "`$.seq`"),
        ("detections/gate", b"", "message-unreadable", "vision.detections/1"),
        ("detections/gate", b"{", "message-unreadable", "vision.detections/1"),
        ("detections/gate", b"hello", "message-unreadable", "vision.detections/1"),
        ("detections/gate", b"[1, 2]", "message-unreadable", "vision.detections/1"),
        ("detections/gate", b'{"schema": "\xff"}', "message-unreadable", "vision.detections/1"),
        ("detections/gate", b'{"x":' + b"[" * 100_000, "message-unreadable", "vision.detections/1"),
        ("status/gate", b'{"schema": "vision.camera-status/1"}', "message-unreadable", "`camera`"),
        ("weather/gate", b"{}", "message-topic", "weather/gate"),
    ],
)  # fmt: skip
def test_unreadable_payload_is_refused(topic: str, payload: bytes, code: str, detail: str) -> None:
    with pytest.raises(MessageError) as caught:
        codec.decode(topic, payload)
    assert caught.value.code == code
    assert detail in caught.value.args[0]


@given(st.integers(0, 4_000_000_000_000_000_000))
def test_times_round_trip_to_microseconds(utc_ns: int) -> None:
    assert times.utc_ns(times.rfc3339(utc_ns)) == utc_ns // 1000 * 1000


@given(st.binary(max_size=40))
def test_random_bytes_raise_only_message_error(payload: bytes) -> None:
    try:
        codec.decode("detections/gate", payload)
    except MessageError:
        return
    raise AssertionError("random bytes were read as a message")


def test_printed_message_is_one_line() -> None:
    message = codec.detections(HEADER, result(tracked()), CLASSES, PUBLISHED_NS)
    for part in ("gate", "17", "person #40", "0.88", "0,1,2,3", "car #41"):
        assert part in str(message)
    empty = str(codec.detections(HEADER, result(Detections.empty()), CLASSES, PUBLISHED_NS))
    assert "\n" not in str(message) + empty
    assert "17" in empty


def test_representations_have_no_empty_fields() -> None:
    assert "None" not in repr(codec.detections(HEADER, result(), CLASSES, PUBLISHED_NS))
    assert "None" not in repr(camera_status())
