"""Tests that the end of a state whose start was published is also published, even if the program was killed."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.messages.processes import python
from tests.messages.samples import camera_status, node_status, result
from vision.client import EventMessage, Subscription
from vision.messaging import codec
from vision.messaging.publisher import Publisher
from vision.messaging.schema import REMOVED, CameraStatusMessage
from vision.state.database import StateDatabase
from vision.types import Event

KILLED = """
import sys, time
from tests.messages.samples import result
from tests.messages.test_open_states import opened, state
events = opened(sys.argv[1]).events
from vision.messaging.publisher import Publisher
publisher = Publisher(sys.argv[2], node="n", event_log=events)
publisher.publish(result(events=(state("begin", "stays"), state("begin", "over"), state("begin", "both"))))
publisher.publish(result(events=(state("end", "over"),)))
print("published", flush=True)
time.sleep(600)
"""


def opened(folder: Path | str) -> StateDatabase:
    return StateDatabase(Path(folder))


def state(phase: str, name: str, *, camera: str = "gate") -> Event:
    data = {"phase": phase, "when": f"crowded {name} for 10s", "place": name, "lasted_s": 10.0, "occupancy": 7}
    return Event("rule", name, camera, None, 5_000_000_000, data)


def stored(database: StateDatabase) -> list[EventMessage]:
    return [codec.decode_as(EventMessage, payload, "event") for payload in database.events.read(0).payloads]


def phases(events: list[EventMessage], name: str) -> list[str]:
    return [event.data["phase"] for event in events if event.name == name]


@pytest.mark.integration
def test_next_start_ends_the_states_of_a_killed_program(tmp_path: Path) -> None:
    with python("-c", KILLED, tmp_path / "state", f"ipc://{tmp_path}/out") as program:
        program.wait_line(lambda line: line == "published")
        program.send(signal.SIGKILL)
        program.wait()
    bind = f"ipc://{tmp_path}/out"
    with closing(opened(tmp_path / "state")) as database, Publisher(bind, node="n", event_log=database.events) as again:
        again.publish(result(events=(state("begin", "both"),)))  # the state has begun again
        events = stored(database)
        assert phases(events, "stays") == ["begin", "end"]
        assert phases(events, "over") == ["begin", "end"]
        assert phases(events, "both") == ["begin", "end", "begin"]
        end = next(event for event in events if event.name == "stays" and event.data["phase"] == "end")
        assert (end.camera, end.kind, end.epoch) == ("gate", "rule", events[0].epoch)
        about = {"when": "crowded stays for 10s", "place": "stays"}
        assert end.data == {"phase": "end", "interrupted": True, **about}
    with closing(opened(tmp_path / "state")) as database, Publisher(bind, node="n", event_log=database.events) as again:
        again.publish(result(events=(state("begin", "stays"),)))
        assert phases(stored(database), "stays") == ["begin", "end", "begin"]  # no state ends twice


def test_removed_camera_ends_its_states(tmp_path: Path) -> None:
    bind = f"ipc://{tmp_path}/out"
    with closing(opened(tmp_path)) as database, Publisher(bind, node="n", event_log=database.events) as publisher:
        publisher.publish(result(events=(state("begin", "queue"),)))
        publisher.publish(result(camera="yard", events=(state("begin", "hall", camera="yard"),)))
        publisher.report([node_status(), camera_status(state=REMOVED)])
        assert phases(stored(database), "queue") == ["begin", "end"]
        assert phases(stored(database), "hall") == ["begin"]
        publisher.end_states()
        publisher.end_states()
        assert phases(stored(database), "hall") == ["begin", "end"]
        assert phases(stored(database), "queue") == ["begin", "end"]


def test_database_without_states_is_extended(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as database:
        database.write([("DROP TABLE states", [()])])
    with closing(opened(tmp_path)) as database:
        assert database.events.open_states() == []


def test_amendment_of_a_start_does_not_begin_the_state_again(tmp_path: Path) -> None:
    bind = f"ipc://{tmp_path}/out"
    with closing(opened(tmp_path)) as database, Publisher(bind, node="n", event_log=database.events) as publisher:
        publisher.publish(result(events=(state("begin", "queue"),)))
        (start,) = stored(database)
        publisher.publish(result(events=(state("end", "queue"),)))
        publisher.publish_late([replace(start, amends=start.seq, journal=None, number=None)])
        assert database.events.open_states() == []


def test_status_of_a_camera_contains_the_fault_of_its_view() -> None:
    def fault(phase: str) -> Event:
        return Event("camera_covered", "view", "gate", None, 0, {"phase": phase})

    found = []
    with (
        Publisher("tcp://127.0.0.1:*", node="n") as publisher,
        Subscription(publisher.address, kinds=("status",)) as subscription,
    ):
        for phase in ("end", "begin", "end"):
            publisher.publish(result(events=(fault(phase),)))
            publisher.publish_status(camera_status())
            message = subscription.receive(20)
            assert isinstance(message, CameraStatusMessage)
            found.append(message.view_fault)
    assert found == [None, "covered", None]
