"""Announcement of cameras, lines, and zones to Home Assistant, with the discovery messages of its MQTT integration."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from vision.client import CountsMessage, Item
from vision.messaging.schema import REMOVED, CameraStatusMessage
from vision.outputs.sinks.delivery import Outgoing, SinkSettings
from vision.outputs.sinks.mqtt import availability_topic
from vision.version import version

_ROOT: Final = "homeassistant"  # the discovery prefix that Home Assistant uses unless it is changed there
_EVENT_TYPES: Final = ["line_crossed", "zone_entered", "zone_left", "crowded", "dwelling", "rule"]


class Discovery:
    """Generator of discovery messages for the cameras, lines, and zones in the program's messages. Not thread-safe."""

    def __init__(self, settings: SinkSettings, kinds: Collection[str], cameras: Collection[str] | None = None) -> None:
        """Create the generator.

        Args:
            settings: settings of the sink.
            kinds: the kinds of messages that the sink sends. Only these kinds get entities.
            cameras: ids of the cameras whose messages the sink sends. None means all cameras.
        """
        self._kinds = frozenset(kinds)
        self._cameras = None if cameras is None else frozenset(cameras)
        self._node = settings.node
        self._prefix = "/".join(settings.prefix)
        self._availability = availability_topic(settings)
        self._announced: dict[str, frozenset[str]] = {}  # discovery topics by topic of the message

    def add(self, item: Item) -> Iterator[Outgoing]:
        """Yield messages that announce new entities, and messages that remove entities of deleted cameras or shapes."""
        if not isinstance(item, CameraStatusMessage | CountsMessage):
            return
        if self._cameras is not None and item.camera not in self._cameras:
            return
        if isinstance(item, CameraStatusMessage) and item.state == REMOVED:
            removed = {topic for topic, _ in self._of_camera(item.camera)} if "status" in self._kinds else set()
            removed |= self._announced.pop(item.topic, frozenset())
            removed |= self._announced.pop(f"counts/{item.camera}", frozenset())
            yield from (_message(topic, b"") for topic in sorted(removed))
            return
        if isinstance(item, CameraStatusMessage) and "status" in self._kinds:
            entities = dict(self._of_camera(item.camera))
        elif isinstance(item, CountsMessage) and "counts" in self._kinds:
            entities = dict(self._of_counts(item))
        else:
            return
        topics, known = frozenset(entities), self._announced.get(item.topic, frozenset())
        if topics == known:
            return
        for topic in sorted(topics - known):
            yield _message(topic, json.dumps(entities[topic]).encode())
        for topic in sorted(known - topics):
            yield _message(topic, b"")
        self._announced[item.topic] = topics

    def _of_camera(self, camera: str) -> Iterator[tuple[str, dict[str, Any]]]:
        topic = f"{self._prefix}/status/{camera}"
        connected = {
            "state_topic": topic,
            "value_template": "{{ 'ON' if value_json.state == 'streaming' else 'OFF' }}",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
        }
        yield self._entity("binary_sensor", camera, "connection", connected)
        objects = {"state_topic": topic, "value_template": "{{ value_json.objects }}", "state_class": "measurement"}
        yield self._entity("sensor", camera, "objects", objects)
        if "events" in self._kinds:
            types = _EVENT_TYPES
            fields = "{'event_type': value_json.kind, 'name': value_json.name}"
            event = {
                "state_topic": f"{self._prefix}/events/{camera}",
                "event_types": _EVENT_TYPES,
                # An amendment is not a new event.
                "value_template": (
                    f"{{% if value_json.kind in {types} and value_json.amends is not defined %}}"
                    f"{{{{ {fields} | tojson }}}}{{% endif %}}"
                ),
            }
            yield self._entity("event", camera, "events", event)

    def _of_counts(self, counts: CountsMessage) -> Iterator[tuple[str, dict[str, Any]]]:
        camera, topic = counts.camera, f"{self._prefix}/counts/{counts.camera}"
        for name in counts.zones:
            value = f"{{{{ value_json.zones['{name}'].occupancy }}}}"
            options = {"state_topic": topic, "value_template": value, "state_class": "measurement"}
            yield self._entity("sensor", camera, f"{name} occupancy", options)
        for name in counts.lines:
            for way in ("in", "out"):
                value = f"{{{{ value_json.lines['{name}']['{way}'] }}}}"
                options = {"state_topic": topic, "value_template": value, "state_class": "total_increasing"}
                yield self._entity("sensor", camera, f"{name} {way}", options)

    def _entity(self, component: str, camera: str, name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the topic and the content of the message that announces an entity to Home Assistant.

        `component` is the type of the entity, such as ``sensor``, and `options` are further values of the content.
        """
        unique_id = "_".join(re.sub("[^A-Za-z0-9_-]", "-", part) for part in ("vision", self._node, camera, name))
        content = {
            "name": name,
            "unique_id": unique_id,
            **options,
            "availability_topic": self._availability,
            "device": {
                "identifiers": [f"vision_{self._node}_{camera}"],
                "name": f"{self._node} {camera}",
                "manufacturer": "vision",
                "model": "camera",
                "sw_version": version(),
            },
            "origin": {"name": "vision", "sw_version": version()},
        }
        return f"{_ROOT}/{component}/{unique_id}/config", content


def _message(topic: str, payload: bytes) -> Outgoing:
    return Outgoing(f"{topic}-{zlib.crc32(payload):x}", f"/{topic}", payload, is_state=True)
