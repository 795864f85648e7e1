"""Tests that announcements for Home Assistant have the documented keys, and that their templates are correct.

The tables contain the keys that the documentation of Home Assistant lists for each component. The schemas of Home
Assistant 2024.3.3 (`homeassistant.components.mqtt`) also accept the announcements.
"""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.messages.processes import wait_until
from tests.messages.samples import camera_status
from tests.sinks.test_delivery import settings
from tests.sinks.test_selection import Source
from vision.client import CountsMessage
from vision.messaging import codec
from vision.messaging.publisher import Publisher
from vision.messaging.schema import LineCounts, ZoneCounts
from vision.outputs.sinks.delivery import Outgoing
from vision.outputs.sinks.home_assistant import Discovery
from vision.outputs.sinks.program import Reader
from vision.outputs.sinks.spool import Spool
from vision.types import Counts

_COMMON = {
    "availability",
    "availability_mode",
    "availability_template",
    "availability_topic",
    "device",
    "enabled_by_default",
    "encoding",
    "entity_category",
    "entity_picture",
    "icon",
    "json_attributes_template",
    "json_attributes_topic",
    "name",
    "origin",
    "payload_available",
    "payload_not_available",
    "qos",
    "unique_id",
    "value_template",
    "state_topic",
    "device_class",
}
KEYS = {
    "sensor": _COMMON
    | {"expire_after", "force_update", "last_reset_value_template", "options", "state_class"}
    | {"suggested_display_precision", "unit_of_measurement"},
    "binary_sensor": _COMMON | {"expire_after", "force_update", "off_delay", "payload_off", "payload_on"},
    "event": _COMMON | {"event_types"},
}
REQUIRED = {"sensor": {"state_topic"}, "binary_sensor": {"state_topic"}, "event": {"state_topic", "event_types"}}
STATE_CLASSES = {None, "measurement", "total", "total_increasing"}
DEVICE_KEYS = {"configuration_url", "connections", "hw_version", "identifiers", "manufacturer", "model", "model_id"} | {
    "name",
    "serial_number",
    "suggested_area",
    "sw_version",
    "via_device",
}
ALL = ("events", "objects", "counts", "status")


def counts(*, lines: tuple[str, ...] = ("door",), zones: tuple[str, ...] = ("queue",)) -> CountsMessage:
    line = LineCounts(in_=5, out=6, in_by_class={}, out_by_class={})
    zone = ZoneCounts(occupancy=2, entered=3, left=1, entered_by_class={}, left_by_class={})
    empty = Source().counts()
    return msgspec.structs.replace(empty, lines=dict.fromkeys(lines, line), zones=dict.fromkeys(zones, zone))


def content(messages: list[Outgoing]) -> dict[str, Any]:
    return {each.topic: json.loads(each.payload) if each.payload else None for each in messages}


def announced(kinds: tuple[str, ...] = ALL) -> dict[str, Any]:
    discovery = Discovery(settings("mqtt://h"), kinds)
    return content([*discovery.add(Source().status("streaming")), *discovery.add(counts())])


def test_announcements_have_only_documented_keys() -> None:
    assert len(announced()) == 6
    for topic, entity in announced().items():
        _, root, component, unique_id, last = topic.split("/")
        assert (root, last) == ("homeassistant", "config")
        assert unique_id == entity["unique_id"]
        assert REQUIRED[component] <= entity.keys() <= KEYS[component]
        assert entity.get("state_class") in STATE_CLASSES
        assert entity["device"].keys() <= DEVICE_KEYS
        assert entity["device"]["identifiers"]
        assert entity["origin"]["name"]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("connection", {"state": "streaming"}, "ON"),
        ("connection", {"state": "backing-off"}, "OFF"),
        ("objects", {"objects": 3}, "3"),
        ("events", {"kind": "rule", "name": "<long>"}, {"event_type": "rule", "name": "<long>"}),
        ("events", {"kind": "disk_low", "name": "x"}, ""),
        ("events", {"kind": "rule", "name": "long", "amends": 7}, ""),
        ("queue occupancy", msgspec.to_builtins(counts()), "2"),
        ("door in", msgspec.to_builtins(counts()), "5"),
        ("door out", msgspec.to_builtins(counts()), "6"),
    ],
)
def test_template_gives_the_value(name: str, values: dict[str, Any], expected: object) -> None:
    (template,) = (each["value_template"] for each in announced().values() if each["name"] == name)
    text = ImmutableSandboxedEnvironment().from_string(template).render(value_json=values)
    assert (json.loads(text) if isinstance(expected, dict) else text) == expected


def test_only_kinds_that_are_sent_are_announced() -> None:
    assert {each["name"] for each in announced(("status",)).values()} == {"connection", "objects"}
    assert announced(("events",)) == {}


def test_only_cameras_that_are_sent_are_announced() -> None:
    source = Source()
    for cameras, number in ((["other"], 0), ([counts().camera, "other"], 6)):
        discovery = Discovery(settings("mqtt://h"), ALL, cameras)
        items = source.status("streaming"), counts()
        assert sum(len(list(discovery.add(item))) for item in items) == number


def test_announcements_are_repeated_only_after_changes() -> None:
    discovery = Discovery(settings("mqtt://h"), ALL)
    assert len(list(discovery.add(counts()))) == 3
    assert list(discovery.add(counts())) == []
    changed = content(list(discovery.add(counts(lines=(), zones=("queue", "hall")))))
    assert {topic.rsplit("_", 1)[1]: each is None for topic, each in changed.items()} == {
        "hall-occupancy/config": False,
        "door-in/config": True,
        "door-out/config": True,
    }


def test_removed_camera_is_no_longer_announced() -> None:
    discovery, source = Discovery(settings("mqtt://h"), ALL), Source()
    added = content([message for item in (source.status("streaming"), counts()) for message in discovery.add(item)])
    assert len(added) == 6
    assert content(list(discovery.add(source.status("removed")))) == dict.fromkeys(added)
    assert len(list(discovery.add(counts()))) == 3  # the camera was added again


def test_sink_without_status_messages_also_notices_that_a_camera_was_removed(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "messages": ["counts"], "cameras": None, "interval_s": 0.0, "position": None, "home_assistant": True,
        "keys": None, "replay": None, "address": f"ipc://{tmp_path}/out",
    }  # fmt: skip
    sent: list[Outgoing] = []
    with (
        closing(Spool(tmp_path / "spool", max_bytes=1 << 20, max_age_s=60.0)) as spool,
        Publisher(options["address"], node="n") as publisher,
    ):
        reader = Reader(options, spool, settings("mqtt://h"))
        thread = threading.Thread(target=reader.run, args=(lambda: None,))
        thread.start()
        try:
            wait_until(lambda: publisher.socket.joins > 0, "the sink subscribes")
            publisher.publish_status(codec.counts("gate", Counts({"door": {}}, {}, {}), 0, 0))
            wait_until(lambda: spool.count == 3, "the announcement of two counters, and the counts")
            publisher.publish_status(camera_status(state="removed"))
            wait_until(
                lambda: [each.payload for each in spool.first(10)].count(b"") == 2, "the end of the announcement"
            )
            sent = spool.first(10)
        finally:
            reader.stop()
            thread.join()
    assert [each.topic for each in sent if each.payload] == ["counts/gate"]
