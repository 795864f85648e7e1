"""Tests of the texts that the page shows for the values of messages."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.page.samples import counts, event, node, status
from tests.unit.outputs.page.client import client_of
from vision.messaging.schema import LatencyPercentiles, Verdict
from vision.outputs.page.state import PageState
from vision.outputs.page.texts import duration, rows_of, text_of

CASES: list[tuple[str, Any, str]] = [
    ("rss_bytes", 0, "0 B"),
    ("memory_bytes.main", 1_234_567, "1.23 MB"),
    ("rss_bytes", 999_900, "1000 kB"),
    ("rss_bytes", 5e15, "5000 TB"),
    ("uptime_s", 1.25, "1.2 s"),
    ("uptime_s", 59.0, "59 s"),
    ("uptime_s", 3599.0, "59 min"),
    ("uptime_s", 7260.0, "2 h 1 min"),
    ("uptime_s", 90_000.0, "1 d 1 h"),
    ("utilization_ratio", 0.456, "46 %"),
    ("temperatures.0-x86_pkg_temp", 54.6, "55 °C"),
    ("temperature_celsius", 54.6, "55 °C"),
    ("clock_hertz", 1_980_000_000.0, "1,980 MHz"),
    ("objects", 1234, "1,234"),
    ("fps", 20.0, "20.0"),
    ("graphs", True, "yes"),
    ("hint", None, ""),
    ("disk", {"used_bytes": 5_000, "total_bytes": 20_000}, "5 kB of 20 kB (25 %)"),
    ("latency_ms", {"detect": {"p50": 1.0, "p99": 2.5}}, "detect (p50 1.0, p99 2.5)"),
    ("door", {"in": 3, "in_by_class": {"person": 3}}, "in 3"),
    ("door", {"in": 3, "in_by_class": {"person": 2, "car": 1}}, "in 3, in by class (person 2, car 1)"),
    ("door", {"in": 3, "in_interval": (2, 5)}, "in 3, in interval 2 to 5"),
    ("sinks", {"last_error": None, "queued": 0}, "queued 0"),
]


@pytest.mark.parametrize(("name", "value", "text"), CASES)
def test_value_is_shown_with_its_unit(name: str, value: object, text: str) -> None:
    assert text_of(name, value) == text


def test_rows_have_titles_without_units_and_no_empty_texts() -> None:
    assert rows_of({"rss_bytes": 1000, "uptime_s": 3.0, "empty": {}, "none": None}) == [
        ("memory of the main process", "1 kB"),
        ("uptime", "3 s"),
    ]
    assert rows_of({"front_door": {"in": 1}}, "line ") == [("line front door", "in 1")]


def test_durations_have_no_exponent() -> None:
    assert (duration(0.0), duration(1e-9), duration(86_400 * 1e4)) == ("0 s", "0 s", "10000 d 0 h")


def state_of(**changes: Any) -> Any:
    """Return the response of `/api/state` for a program with one camera, whose status contains `changes`."""
    state = PageState(1.0)
    state.add(node(rates={"published": 25.0}, uptime_s=7260.0))
    state.add(status("gate", **changes))
    state.add(status("yard", "connecting"))
    state.add(counts("gate", 0.0, 5))
    return client_of(state).get("/api/state?camera=gate").json()


def test_camera_has_texts_for_its_tile_and_its_details() -> None:
    content = state_of(latency_ms=LatencyPercentiles(p50=7.4, p99=20.0, max=30.0), width=640, height=480)
    gate, yard = content["cameras"]
    assert gate["figures"] == [["frames/s", "20.0"], ["p50 ms", "7"], ["p99 ms", "20"], ["objects", "2"]]
    assert yard["figures"][1:3] == [["p50 ms", "–"], ["p99 ms", "–"]]
    assert "details" not in yard
    details = dict(gate["details"])
    assert (details["frame"], details["latency in ms"]) == ("640 × 480", "p50 7.4, p99 20.0, max 30.0")
    assert (details["line door"], details["zone queue"]) == ("in 5, out 2", "occupancy 5, entered 5, left 1")
    assert content["summary"] == "node-1 · 1 of 2 cameras work, except yard · 25 frames/s · up 2 h 1 min"
    assert (content["counting"], content["notice"], content["silent"]) == (["gate"], "", False)


def test_camera_without_a_connection_states_the_reason_and_the_next_attempt() -> None:
    content = state_of(state="backing-off", last_error="refused", hint="check the address", next_retry_in_s=4.2)
    camera = content["cameras"][0]
    assert (camera["state"], camera["label"]) == ("backing-off", "no connection")
    assert camera["reason"] == "refused – check the address – Next attempt in 4 s."


def test_page_says_that_the_program_has_started_and_that_it_is_silent() -> None:
    now_s = 0.0
    state = PageState(1.0, clock=lambda: now_s)
    client = client_of(state)

    def notice() -> str:
        return str(client.get("/api/state").json()["notice"])

    assert notice() == "Waiting for the program."
    state.add(node(uptime_s=3.0))
    now_s = 2.0
    assert notice() == "The program started 5 s ago."
    state.add(node(uptime_s=30.0))
    assert notice() == ""
    now_s = 17.0
    assert notice() == "No status from the program for 15 s."
    assert client.get("/api/state").json()["silent"]


def test_summary_names_at_most_three_cameras_that_do_not_work() -> None:
    state = PageState(1.0)
    state.add(node())
    for name in "edcba":
        state.add(status(name, "connecting"))
    assert "0 of 5 cameras work, except a, b, c, … ·" in client_of(state).get("/api/state").json()["summary"]


def test_health_lists_the_program_and_the_machine() -> None:
    state = PageState(1.0)
    assert dict(client_of(state).get("/api/health").json()["rows"]).keys() >= {"memory of the machine"}
    state.add(node())
    rows = dict(client_of(state).get("/api/health").json()["rows"])
    assert (rows["journal"], rows["page"]) == ("kept 4", "restarts 1")
    assert rows["sink home"] == "connected no, protocol mqtt, queued 3, sent 7, last error refused"
    assert "disk of system" in rows


def test_event_has_a_title_rows_and_a_key_of_its_own() -> None:
    state = PageState(1.0)
    state.add(event(1, "gate", verdict=Verdict(check="real", answer="yes", model="m", latency_ms=1.0)))
    state.add(event(0, "gate", kind="camera_moved", name="gate", data={"phase": "begin", "class": 3}))
    state.add(msgspec.structs.replace(event(1, "gate"), track_id=41))
    events = client_of(state).get("/api/events").json()["events"]
    titles = ["person crossed the line door (in)", "camera moved gate (begin)"]
    assert [each["title"] for each in events] == [titles[0], titles[1], titles[0]]
    assert events[2]["rows"] == [
        ["class", "person"], ["direction", "in"], ["speed", "1.5"], ["place", "x 1"], ["real", "yes"],
    ]  # fmt: skip
    assert len({each["key"] for each in events}) == 3
