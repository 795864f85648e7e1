"""Sample states of a program, which tests display on the page."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from tests.messages.samples import HEADER, camera_status, node_status, result
from vision.messaging import codec
from vision.messaging.schema import (
    CameraStatusMessage,
    CountsMessage,
    Description,
    EventMessage,
    LineCounts,
    NodeStatusMessage,
    SinkStatus,
    Verdict,
    ZoneCounts,
)
from vision.messaging.times import rfc3339
from vision.outputs.page.history import LiveHistory
from vision.outputs.page.state import PageState
from vision.types import Event

STATES = ("streaming", "connecting", "frozen", "backing-off", "ended")


def status(camera: str, state: str = "streaming", **changes: Any) -> CameraStatusMessage:
    """Return the status of a camera. Its id can contain characters that camera.yaml does not allow."""
    message = codec.status(HEADER, camera_status("gate", state=state))
    assert isinstance(message, CameraStatusMessage)
    return msgspec.structs.replace(message, camera=camera, **changes)


def node(**changes: Any) -> NodeStatusMessage:
    """Return the status of a program that has a sink."""
    message = codec.status(HEADER, node_status())
    assert isinstance(message, NodeStatusMessage)
    sinks = {"home": SinkStatus(protocol="mqtt", connected=False, queued=3, sent=7, last_error="refused")}
    return msgspec.structs.replace(message, sinks=sinks, counters={"journal.kept": 4, "page.restarts": 1}, **changes)


def event(index: int, camera: str, **changes: Any) -> EventMessage:
    """Return an event that happened `index` minutes ago."""
    data = {"class": "person", "direction": "in", "phase": "instant", "speed": 1.5, "place": {"x": 1}}
    made = codec.event(HEADER, Event("line_crossed", "door", "gate", index, 0, data), result())
    assert isinstance(made, EventMessage)
    at = rfc3339(time.time_ns() - index * 60_000_000_000)
    return msgspec.structs.replace(made, camera=camera, at=at, seq=index + 1, **changes)


def counts(camera: str, ago_s: float, crossed: int) -> CountsMessage:
    """Return the counts of a line and a zone that a camera reported `ago_s` seconds ago."""
    line = LineCounts(in_=crossed, out=crossed // 2, in_by_class={}, out_by_class={})
    zone = ZoneCounts(occupancy=crossed % 7, entered=crossed, left=crossed // 3, entered_by_class={}, left_by_class={})
    at = rfc3339(time.time_ns() - int(ago_s * 1e9))
    return CountsMessage(**HEADER, camera=camera, at=at, at_monotonic_ns=0, lines={"door": line}, zones={"queue": zone})


def busy_state(*cameras: str) -> PageState:
    """Return the state of a program with events and counts. The cameras have the states of `STATES` in rotation."""
    history = LiveHistory()
    history.since_s = time.time() - 6 * 3600
    state = PageState(3600.0, history)
    state.add(node())
    for number, camera in enumerate(cameras):
        kind = STATES[number % len(STATES)]
        error = {"last_error": "port 1 refuses connections", "hint": "check the address"}
        changes = error if kind == "backing-off" else {}
        state.add(status(camera, kind, dropped={"superseded": 3 * number}, **changes))
        for step in range(60):
            state.add(counts(camera, 6 * 3600 - 300 * step, 5 * step + number))
    verdict = Verdict(check="real", answer="yes", model="m", latency_ms=1.0)
    description = Description(check="what", text="A person walks through the door.", model="m", latency_ms=1.0)
    for index in range(5, -1, -1):
        state.add(event(index, cameras[0], verdict=verdict, description=description))
    return state
