"""The wire: what is sent equals what is read, in both encodings, from this version and its neighbours."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messages.samples import CLASSES, TIMING, camera_status, crossed, found, node_status, result, tracked
from vision.errors import MessageError
from vision.messaging import codec
from vision.types import Attribute, Counts, Detections, Event, Timing, Tracks


def event() -> codec.EventMessage:
    return codec.event(crossed(), result())


COUNTED = Counts(
    {"door": {"in": 7, "out": 2, "in:person": 4, "in:car": 3, "out:person": 2}},
    {"queue": {"entered": 5, "left": 2, "entered:person": 5, "left:person": 2}, "yard": {}},
    {"queue": 3, "yard": 0},
)
SEEN = {40: (Attribute("vest", "yes", 0.91234, TIMING.captured_ns - 840_000_000),), 99: (Attribute("a", "b", 1, 0),)}

MESSAGES = {
    "detections": codec.detections(result(), CLASSES),
    "tracks": codec.detections(result(tracked()), CLASSES),
    "attributes": codec.detections(result(tracked(), attributes=SEEN), CLASSES),
    "counts": codec.counts("gate", COUNTED, 5, 0),
    "nothing found": codec.detections(result(Detections.empty()), CLASSES),
    "event": event(),
    "camera": camera_status(last_error="rtsp://***@h/: refused", width=640, height=480, decoder="ffmpeg"),
    "node": node_status(),
    "node without graphs": msgspec.structs.replace(
        node_status(),
        detector=codec.DetectorStatus(batches_in_flight=2, max_batch=8, graphs=False, graphs_off="a reason"),
    ),
}


def as_json(message: codec.Message) -> dict[str, Any]:
    content = json.loads(codec.encode(message))
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize("name", MESSAGES)
def test_what_is_read_says_what_was_sent(name: str, encoding: codec.Encoding) -> None:
    sent = codec.Numbering("node-1", "cafe").stamp(MESSAGES[name])
    read = codec.decode(sent.topic, codec.encode(sent, encoding))
    assert type(read) is type(sent)
    assert as_json(read) == as_json(sent)
    assert (read.node, read.instance, read.boot, read.seq) == ("node-1", "cafe", codec.boot_id(), 1)


def test_a_detections_message_in_full() -> None:
    message = codec.Numbering("node-1", "cafe").stamp(codec.detections(result(tracked(1)), CLASSES))
    assert as_json(message) == {
        "schema": "vision.detections/1",
        "node": "node-1",
        "instance": "cafe",
        "boot": codec.boot_id(),
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


def test_without_tracking_there_is_no_track_id() -> None:
    content = as_json(codec.detections(result(), CLASSES))
    assert all("track_id" not in one for one in content["objects"])
    read = codec.decode("detections/gate", json.dumps(content).encode())
    assert isinstance(read, codec.DetectionsMessage)
    assert [one.track_id for one in read.objects] == [None, None]


@pytest.mark.parametrize(
    ("timing", "expected"),
    [
        (TIMING, (3.0, 0.2, 24.0, 0.6, 27.8)),
        (Timing(1_000_000, 2_000_000, 4_000_000, 7_000_000), (1.0, 2.0, 3.0, 2.0, 8.0)),  # stamped when published
        (Timing(1_000_000), (0.0, 0.0, 0.0, 8.0, 8.0)),
    ],
)
def test_timing_adds_up(timing: Timing, expected: tuple[float, ...]) -> None:
    times = codec.detections(result(timing=timing), CLASSES, now_ns=9_000_000).timing_ms
    assert (times.wait, times.submit, times.infer, times.publish, times.total) == expected


def test_timing_line_says_where_the_time_went() -> None:
    line = codec.detections(result(), CLASSES).timing_line()
    assert line == "gate frame 17: 27.8 ms = 3.0 wait + 0.2 submit + 24.0 infer + 0.6 publish"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("objects", [found(3), tracked(3)], ids=["detections", "tracks"])
def test_numbers_that_are_not_finite_are_left_out_and_counted(bad: float, objects: Detections | Tracks) -> None:
    objects.boxes_xyxy[1, 2] = bad
    message = codec.detections(result(objects), CLASSES)
    assert ([one.score for one in message.objects], message.invalid) == ([0.8765, 0.1], 1)
    assert b"null" not in codec.encode(message)


@pytest.mark.parametrize("objects", [found(1), tracked(1)], ids=["detections", "tracks"])
def test_truncated_candidates_are_reported(objects: Detections | Tracks) -> None:
    message = codec.detections(result(replace(objects, truncated_candidates=7)), CLASSES)
    assert as_json(message)["truncated_candidates"] == 7


@pytest.mark.parametrize(("class_id", "name"), [(0, "person"), (1, "car"), (2, "class 2"), (-1, "class -1")])
def test_class_names(class_id: int, name: str) -> None:
    one = found(1)
    objects = Detections(one.boxes_xyxy, one.scores, np.array([class_id], np.int32))
    assert codec.detections(result(objects), CLASSES).objects[0].class_name == name


def test_an_event_has_its_own_time_and_plain_data() -> None:
    content = as_json(codec.Numbering("n", "i").stamp(event()))
    assert content["at"] == "2023-11-14T22:13:20.124456Z"
    assert content["at_monotonic_ns"] == 5_001_000_000
    assert content["data"] == {"direction": "in", "count": 3}
    assert (content["frame"], content["track_id"], content["kind"], content["name"]) == (17, 40, "line_crossed", "door")


def test_an_event_shows_where_its_object_was_and_its_snapshot() -> None:
    shown = Event("line_crossed", "door", "gate", 41, 5_001_000_000, snapshot="/var/shots/gate.jpg")
    content = as_json(codec.event(shown, result(tracked(3))))
    assert content["box"] == [4.1, 5.1, 6.1, 7.1]
    assert content["snapshot"] == "/var/shots/gate.jpg"


@pytest.mark.parametrize("objects", [found(3), tracked(0), Detections.empty()])
def test_an_event_whose_object_is_not_in_the_frame_has_no_box(objects: Detections | Tracks) -> None:
    content = as_json(codec.event(Event("zone_left", "queue", "gate", 41, 0), result(objects)))
    assert not {"box", "snapshot", "journal", "number"} & set(content)


def test_an_event_has_no_box_that_is_not_finite() -> None:
    objects = tracked(2)
    objects.boxes_xyxy[1, 0] = np.nan
    assert "box" not in as_json(codec.event(Event("zone_left", "queue", "gate", 41, 0), result(objects)))


def test_attributes_go_with_their_track_and_tell_their_age() -> None:
    objects = as_json(MESSAGES["attributes"])["objects"]
    assert objects[0]["attributes"] == [{"model": "vest", "class": "yes", "score": 0.9123, "age_ms": 840}]
    assert "attributes" not in objects[1]


def test_counts_in_full() -> None:
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


def test_event_data_that_no_message_can_hold() -> None:
    with pytest.raises(NotImplementedError, match="got object"):
        codec.encode(codec.event(Event("kind", "name", "gate", None, 0, {"what": object()}), result()))


def test_fields_without_a_value_are_absent() -> None:
    content = as_json(camera_status())
    assert not {"width", "height", "decoder", "clock", "last_frame_age_s", "last_error", "hint"} & set(content)


def test_numbers_count_per_topic() -> None:
    numbering = codec.Numbering("n")
    stamped = [numbering.stamp(MESSAGES[name]) for name in ("detections", "camera", "detections", "node", "detections")]
    assert [(one.topic, one.seq) for one in stamped] == [
        ("detections/gate", 1),
        ("status/gate", 1),
        ("detections/gate", 2),
        ("status/node", 1),
        ("detections/gate", 3),
    ]
    assert len({one.instance for one in stamped}) == 1
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
    ("topic", "payload", "words"),
    [
        ("detections/gate", _changed(schema="vision.detections/2"), "vision.detections/1, got vision.detections/2"),
        ("detections/gate", _changed(schema="other.thing/1"), "got other.thing/1"),
        ("detections/gate", codec.encode(MESSAGES["node"]), "expected schema vision.detections/1, got vision.node"),
        ("detections/gate", codec.encode(MESSAGES["node"], "msgpack"), "got vision.node-status/1"),
        ("detections/gate", _changed(seq="three"), "Expected `int`, got `str`"),
        ("detections/gate", b"", "expected a message of schema vision.detections/1"),
        ("detections/gate", b"{", "expected a message of schema"),
        ("detections/gate", b"hello", "expected a message of schema"),
        ("detections/gate", b"[1, 2]", "expected a message of schema"),
        ("detections/gate", b'{"schema": "\xff"}', "expected a message of schema"),
        ("detections/gate", b'{"x":' + b"[" * 100_000, "expected a message of schema"),
        ("status/gate", b'{"schema": "vision.camera-status/1"}', "missing required field `node`"),
        ("weather/gate", b"{}", "starts with one of detections, status, events, counts, got 'weather/gate'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_the_reason(topic: str, payload: bytes, words: str) -> None:
    with pytest.raises(MessageError) as caught:
        codec.decode(topic, payload)
    assert words in str(caught.value)


@given(st.integers(0, 4_000_000_000_000_000_000))
def test_times_come_back_to_the_microsecond(utc_ns: int) -> None:
    assert codec.utc_ns(codec.rfc3339(utc_ns)) == utc_ns // 1000 * 1000


@given(st.binary(max_size=40))
def test_no_bytes_make_the_reader_fail_otherwise(payload: bytes) -> None:
    try:
        codec.decode("detections/gate", payload)
    except MessageError:
        return
    raise AssertionError("random bytes were read as a message")


def test_a_printed_message_is_one_short_line() -> None:
    message = codec.detections(result(tracked()), CLASSES)
    assert str(message) == "gate frame 17: person #40 0.88 at 0,1,2,3, car #41 0.10 at 4,5,6,7"
    assert str(codec.detections(result(Detections.empty()), CLASSES)) == "gate frame 17: no objects"


def test_representations_have_no_empty_fields() -> None:
    assert "None" not in repr(codec.detections(result(), CLASSES))
    assert "None" not in repr(camera_status())
