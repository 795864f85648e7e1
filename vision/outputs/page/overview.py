"""Functions that convert messages to the texts that the page shows: the content of `/api/state` and `/api/health`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from vision.messaging.schema import CameraStatusMessage, CountsMessage, NodeStatusMessage
from vision.outputs.page.event_texts import KIND_OPTIONS
from vision.outputs.page.state import Snapshot
from vision.outputs.page.texts import Rows, duration, number, rows_of, text_of

_STARTED_S: Final = 15.0  # time after a start during which the page says that the program has started
_NAMED: Final = 3  # number of cameras without frames that the summary names
_WORKING: Final = ("streaming", "ended")
_STATES: Final = {"backing-off": "no connection"}  # states whose names users do not know
_LEVELS: Final = {"streaming": "good", "connecting": "warn", "frozen": "warn", "backing-off": "bad"}  # CSS classes
_DETAILS: Final = ("published_fps", "fps", "latency_ms", "dropped", "objects", "decoder", "reconnects")
_NOT_SHOWN: Final = ("schema", "node", "instance", "boot", "seq", "at", "at_monotonic_ns", "counters", "sinks")


def overview(snapshot: Snapshot, opened: str = "") -> dict[str, Any]:
    """Return the state of the program and of all cameras. The camera whose id is `opened` has the key ``details``."""
    node, cameras, counts = snapshot.node, snapshot.cameras, snapshot.counts
    return {
        "notice": _notice(snapshot),
        "silent": snapshot.silent and node is not None,
        "summary": "" if node is None else _summary(node, cameras),
        "cameras": [
            _camera(each) | ({"details": _details(each, counts.get(each.camera))} if each.camera == opened else {})
            for each in cameras
        ],
        "counting": [each.camera for each in cameras if each.camera in counts] or [each.camera for each in cameras],
        "kinds": KIND_OPTIONS,
        "events": snapshot.event_count,
    }


def _notice(snapshot: Snapshot) -> str:
    if snapshot.node is None:
        return "Waiting for the program."
    if snapshot.silent:
        return f"No status from the program for {snapshot.age_s:.0f} s."
    uptime_s = snapshot.node.uptime_s + snapshot.age_s
    return f"The program started {uptime_s:.0f} s ago." if uptime_s < _STARTED_S else ""


def _summary(node: NodeStatusMessage, cameras: list[CameraStatusMessage]) -> str:
    others = [camera.camera for camera in cameras if camera.state not in _WORKING]
    names = f", except {', '.join(others[:_NAMED])}{', …' if len(others) > _NAMED else ''}" if others else ""
    working = f"{len(cameras) - len(others)} of {len(cameras)} cameras work{names}"
    rate = f"{number(node.rates.get('published'))} frames/s"
    return " · ".join([node.node, working, rate, f"up {duration(node.uptime_s)}"])


def _camera(status: CameraStatusMessage) -> dict[str, Any]:
    latency = status.latency_ms
    retry = "" if status.next_retry_in_s is None else f"Next attempt in {number(status.next_retry_in_s)} s."
    return {
        "camera": status.camera,
        "state": status.state,
        "label": _STATES.get(status.state, status.state),
        "level": _LEVELS.get(status.state, ""),
        "reason": " – ".join(filter(None, (status.last_error, status.hint, retry))),
        "figures": [
            ("frames/s", number(status.published_fps, 1)),
            ("p50 ms", number(None if latency is None else latency.p50)),
            ("p99 ms", number(None if latency is None else latency.p99)),
            ("objects", number(status.objects)),
        ],
        "dropped": _dropped(status),
        "width": status.width,
        "height": status.height,
    }


def _dropped(status: CameraStatusMessage) -> str:
    return text_of("dropped", status.dropped) or "none"


def _details(status: CameraStatusMessage, counts: CountsMessage | None) -> Rows:
    values = {name: msgspec.to_builtins(getattr(status, name)) for name in _DETAILS}
    size = f"{status.width} × {status.height}" if status.width else None
    rows = rows_of({**values, "dropped": _dropped(status), "frame": size})
    if counts is not None:
        rows += rows_of(msgspec.to_builtins(counts.lines), "line ")
        rows += rows_of(msgspec.to_builtins(counts.zones), "zone ")
    return rows


def program_rows(node: NodeStatusMessage) -> Rows:
    """Return the status of the program as rows. The counters of each part of the program are one row."""
    content: dict[str, Any] = msgspec.to_builtins(node)
    rows = rows_of({name: value for name, value in content.items() if name not in _NOT_SHOWN})
    parts: dict[str, dict[str, int]] = {}
    for name, value in node.counters.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest.replace(".", " ")] = value
    sinks = {name: {"connected": sink.connected, **msgspec.to_builtins(sink)} for name, sink in node.sinks.items()}
    return rows + rows_of(parts) + rows_of(sinks, "sink ")


def machine_rows(machine: Mapping[str, Any]) -> Rows:
    """Return the state of the machine as rows. `machine` has the keys ``gpus``, ``disks``, and others."""
    content: dict[str, Any] = msgspec.to_builtins(machine)
    gpus = {str(index): gpu for index, gpu in enumerate(content.pop("gpus"))}
    places = content.pop("disks")
    return rows_of(gpus, "GPU ") + rows_of(places, "disk of ") + rows_of(content)
