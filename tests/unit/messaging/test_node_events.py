"""Tests of events about the program and its cameras, which are derived from status reports."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.messages.samples import camera_status, node_status
from vision.client import EventMessage, Subscription
from vision.config import AppConfig, load_config
from vision.config.reporting import ReportAfter
from vision.messaging.node_events import NodeEvents, NodeEventSettings
from vision.messaging.publisher import Publisher
from vision.messaging.schema import DetectorStatus, NodeStatusMessage
from vision.state.database import StateDatabase

S = 1_000_000_000


def kinds(events: NodeEvents, *states: tuple[float, str], **more: Any) -> list[tuple[float, str]]:
    """Return the time and the kind of each event. `states` contains (time in seconds, state of a camera)."""
    found, before, since_s = [], "", 0.0
    for at_s, state in states:
        before, since_s = state, at_s if state != before else since_s
        report = camera_status(
            at_monotonic_ns=int(at_s * S), state=state, state_for_s=at_s - since_s, last_error="E-17", **more
        )
        found += [(at_s, event.kind) for event in events.of(report)]
    return found


def camera_events(patience_s: float | None = 10.0, **others: float | None) -> NodeEvents:
    patience = ReportAfter.model_validate({"lost": patience_s, "frozen": patience_s, **others})
    return NodeEvents(NodeEventSettings({"gate": patience}))


def test_camera_is_reported_once_after_its_patience_and_when_it_is_back() -> None:
    states = [(t, "backing-off" if t % 2 else "connecting") for t in range(1, 30)]
    found = kinds(camera_events(), (0, "streaming"), *states, (30, "streaming"), (31, "streaming"))
    assert found == [(11, "camera_lost"), (30, "camera_back")]


def test_short_outage_is_not_reported() -> None:
    assert kinds(camera_events(), (0, "streaming"), (1, "backing-off"), (9, "connecting"), (10, "streaming")) == []


def test_frozen_camera_is_one_outage() -> None:
    states = [(t, "connecting" if t % 7 == 0 else "frozen") for t in range(1, 40)]
    found = kinds(camera_events(), *states, (41, "streaming"), (42, "frozen"), (53, "frozen"))
    assert found == [(11, "camera_frozen"), (41, "camera_back"), (53, "camera_frozen")]


def test_camera_without_patience_is_never_reported() -> None:
    assert kinds(camera_events(None), (0, "backing-off"), (1000, "backing-off"), (2000, "streaming")) == []


def test_lost_and_frozen_have_their_own_patience() -> None:
    lost, frozen = [(t, "backing-off") for t in range(40)], [(t, "frozen") for t in range(40)]
    assert kinds(camera_events(10, frozen=20), *lost) == [(10, "camera_lost")]
    assert kinds(camera_events(10, frozen=20), *frozen) == [(20, "camera_frozen")]
    assert kinds(camera_events(10, frozen=None), *frozen) == []
    assert kinds(camera_events(10, frozen=None), *lost, error_code="frozen") == []  # while it is connected again


def test_camera_is_back_when_it_has_delivered_for_long_enough() -> None:
    flapping = [(t, "streaming" if t % 5 else "backing-off") for t in range(1, 31)]
    states = [(0, "backing-off"), *flapping, *[(t, "streaming") for t in range(31, 60)]]
    assert kinds(camera_events(back=10), *states) == [(10, "camera_lost"), (41, "camera_back")]
    ended = [(0, "backing-off"), (11, "backing-off"), (12, "ended")]
    assert kinds(camera_events(back=10), *ended) == [(11, "camera_lost"), (12, "camera_back")]


def test_patience_of_a_camera_replaces_single_times() -> None:
    gate = {"id": "gate", "source": "csi:0", "report_after_s": {"lost": None, "moved": 5}}
    yard = {"id": "yard", "source": "csi:1"}
    document = {"cameras": [gate, yard], "report_after_s": {"lost": 30, "back": 7, "covered": 20}}
    config = AppConfig.model_validate({**document, "pipeline": "count", "analytics": {"yard": {"realign": True}}})
    gate_times, yard_times = (config.report_after(camera) for camera in config.cameras)
    assert gate_times == ReportAfter(lost=None, frozen=60, back=7, moved=5, covered=20)
    assert yard_times == ReportAfter(lost=30, frozen=60, back=7, moved=10, covered=20)
    assert NodeEventSettings.of(config).patience == {"gate": gate_times, "yard": yard_times}


def test_event_contains_the_reason_and_the_duration() -> None:
    events = camera_events()
    kinds(events, (0, "backing-off"))
    report = camera_status(at_monotonic_ns=12 * S, state="backing-off", last_error="E-17", epoch=4)
    (event,) = events.of(report)
    assert (event.topic, event.name, event.epoch) == ("events/gate", "gate", 4)
    assert event.data == {"state": "backing-off", "outage_s": 12.0, "reason": "E-17"}


def program(events: NodeEvents, at_s: float, **counters: int) -> list[tuple[str, dict[str, Any]]]:
    named = {name.replace("_", "."): value for name, value in counters.items()}
    report = msgspec.structs.replace(node_status(), at_monotonic_ns=int(at_s * S), counters=named)
    return [(event.kind, event.data) for event in events.of(report)]


def test_start_is_reported_once() -> None:
    events = NodeEvents(NodeEventSettings())
    assert [kind for kind, _ in program(events, 0)] == ["started"]
    assert program(events, 1) == []


def test_gpu_that_is_not_used_is_reported_once() -> None:
    events = NodeEvents(NodeEventSettings())
    detector = DetectorStatus(batches_in_flight=3, max_batch=1, gpu_unused="old driver")
    report = msgspec.structs.replace(node_status(), detector=detector)
    assert [event.kind for event in events.of(report)] == ["started", "gpu_unused"]
    assert list(events.of(report)) == []


def test_start_says_how_the_last_run_ended(tmp_path: Path) -> None:
    for _ in range(2):
        with closing(StateDatabase(tmp_path, boot="b")) as database, database.run:
            (found,) = program(NodeEvents(NodeEventSettings(), database.run), 0)
    assert found[1]["after"] == "stop"
    assert "ended_at" in found[1]


def test_start_after_a_damaged_state_is_reported(tmp_path: Path) -> None:
    with closing(StateDatabase(tmp_path, boot="b")) as database, database.run:
        assert "state_lost" not in program(NodeEvents(NodeEventSettings(), database.run), 0)[0][1]
    for path in tmp_path.glob("state.db*"):
        path.write_bytes(b"damaged" * 1000)
    with closing(StateDatabase(tmp_path, boot="b")) as database, database.run:
        assert program(NodeEvents(NodeEventSettings(), database.run), 0)[0][1]["state_lost"] is True


def test_all_folders_of_a_configuration_are_checked(tmp_path: Path) -> None:
    names = ("state", "snapshots", "recordings", "archive")
    (tmp_path / "camera.yaml").write_text(
        "pipeline: count\ncameras: [{id: a, source: 'rtsp://192.0.2.1/x'}]\nstate_dir: state\n"
        "snapshots: {folder: snapshots}\nrecording: {folder: recordings}\narchive: {folder: archive}\n"
    )
    settings = NodeEventSettings.of(load_config(tmp_path / "camera.yaml", {}))
    assert list(settings.folders) == [tmp_path / name for name in names]


def test_status_contains_the_free_space_of_each_folder(tmp_path: Path) -> None:
    settings = NodeEventSettings(folders=[tmp_path, tmp_path / "missing"], min_free_bytes=500_000_000)
    with (
        Publisher("tcp://127.0.0.1:*", node="n", node_events=NodeEvents(settings)) as publisher,
        Subscription(publisher.address, kinds=("status",)) as subscription,
    ):
        publisher.publish_status(node_status())
        message = subscription.receive(20)
    assert isinstance(message, NodeStatusMessage)
    assert list(message.disks) == [str(tmp_path)]
    disk = message.disks[str(tmp_path)]
    assert 0 < disk.free_bytes < disk.size_bytes == os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    assert disk.min_free_bytes == 500_000_000


def test_lost_events_are_reported_at_most_once_per_minute() -> None:
    events = NodeEvents(NodeEventSettings())
    program(events, 0)
    found = [program(events, at_s, journal_lost=at_s) for at_s in range(1, 100)]
    assert [(n, each[0]) for n, each in enumerate(found, 1) if each] == [
        (1, ("events_lost", {"count": 1})),
        (61, ("events_lost", {"count": 60})),
    ]


def test_recording_that_stops_is_reported_once_and_again_when_it_resumes() -> None:
    events = NodeEvents(NodeEventSettings())
    program(events, 0)
    found = [program(events, at_s, recording_stopped=stopped) for at_s, stopped in enumerate((0, 2, 1, 0, 0, 1))]
    assert found == [
        [],
        [("recording_stopped", {"cameras": 2})],
        [],
        [("recording_resumed", {})],
        [],
        [("recording_stopped", {"cameras": 1})],
    ]


@pytest.mark.parametrize("name", ["journal", "archive", "snapshots"])
def test_storage_that_stops_is_reported_once_and_again_when_it_resumes(name: str) -> None:
    events = NodeEvents(NodeEventSettings())
    program(events, 0)
    found = [program(events, at_s, **{f"{name}_stopped": stopped}) for at_s, stopped in enumerate((0, 1, 2, 0, 0))]
    assert found == [[], [("storage_stopped", {"of": name})], [], [("storage_resumed", {"of": name})], []]


def test_low_disk_is_reported_once_and_again_when_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Disk:
        f_frsize = 1_000_000
        f_bavail = 1000
        f_blocks = 2000

    monkeypatch.setattr(os, "statvfs", lambda _: Disk)
    events = NodeEvents(NodeEventSettings(folders=[tmp_path], min_free_bytes=500_000_000))
    program(events, 0)
    found = []
    for free_mb in (501, 499, 300, 520, 590, 601, 700):
        Disk.f_bavail = free_mb
        found += program(events, 1)
    assert [(kind, data["free_mb"]) for kind, data in found] == [("disk_low", 499), ("disk_free", 601)]


def test_events_are_stored_and_can_be_requested(tmp_path: Path) -> None:
    node_events = camera_events(0.001)
    with (
        closing(StateDatabase(tmp_path, boot="b", max_events=100)) as database,
        Publisher(
            "tcp://127.0.0.1:*",
            node="n",
            event_log=database.events,
            replay="tcp://127.0.0.1:*",
            node_events=node_events,
        ) as publisher,
    ):
        publisher.report([camera_status(state="backing-off", state_for_s=1.0), node_status()])
        with Subscription(publisher.address, kinds=("events",), since=0) as subscription:
            found = [subscription.receive(20), subscription.receive(20)]
    assert [(event.kind, event.number) for event in found if isinstance(event, EventMessage)] == [
        ("camera_lost", 1),
        ("started", 2),
    ]


def test_counters_that_wait_for_their_event_are_not_stored_with_other_events(tmp_path: Path) -> None:
    with closing(StateDatabase(tmp_path, boot="b", max_events=100)) as database:
        database.defers_counters = True
        database.store_counters([("gate", "door", "in", 1)])
        assert database.events.append([b"{}"], counters=False)
        assert database.load_counters("gate") == []
        assert database.events.append([b"{}"])
        assert database.load_counters("gate") == [("gate", "door", "in", 1)]
