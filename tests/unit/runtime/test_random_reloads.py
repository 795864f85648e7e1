"""Tests that apply random changes to a running program. Other parts continue, and invalid changes have no effect."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.sinks.servers import Server, requests_of, webhook_server
from tests.unit.runtime import test_reload
from tests.unit.runtime.test_reload import DOOR, HALL, Site, camera, check_unbroken, ids, running
from vision.messaging.control_protocol import (
    AddCameraRequest,
    AnalyticsReply,
    GetAnalyticsRequest,
    RefusedRequest,
    RemoveCameraRequest,
    SetAnalyticsRequest,
)
from vision.messaging.schema import CountsMessage, DetectionsMessage, EventMessage

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

folder = test_reload.folder  # a fixture

NAMES = "abcdef"
ALWAYS = "a"  # is never removed, so that the program has a camera
Step: TypeAlias = tuple[str, str, int]  # kind of the change, camera, and a number that determines the value
Content: TypeAlias = dict[str, Any]

VALID = ("camera", "source", "rate", "line", "zone", "section", "rule", "track", "report", "realign", "privacy")
INVALID = ("text", "key", "class", "restart", "unknown camera", "unknown line", "control")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(VALID), st.sampled_from(NAMES), st.integers(0, 3)),
        st.tuples(st.sampled_from(INVALID), st.sampled_from(NAMES), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=8,
)


def section(**changes: Any) -> Content:
    return {"units": "fraction", "lines": [DOOR], "zones": [HALL], **changes}


class RandomSite(Site):
    """Program with a sink and with `realign`, and the checks after each change."""

    def __init__(self, folder: Path, processes: int, hook: Server) -> None:
        super().__init__(folder, processes=processes)
        self.hook = hook
        self.opened = dict.fromkeys(NAMES, 0)  # times that a camera was opened since `begin`
        self.write(
            state_dir=f"{folder}/state-{processes}",
            analytics={name: section(realign=name == ALWAYS) for name in "abcd"},
            publish={"bind": f"ipc://{folder}/out-{processes}", "max_events": 100_000},
            sinks=[{"name": "hook", "address": f"http://127.0.0.1:{hook.port}/", "messages": ["events"]}],
        )
        self.first = copy.deepcopy(self.content)

    def begin(self) -> None:
        """Restore the original configuration, and clear the record of the received messages."""
        self.restore()
        self.opened = {name: int(name in self.present()) for name in NAMES}

    def present(self) -> list[str]:
        return [each["id"] for each in self.content["cameras"]]

    def analytics(self) -> dict[str, AnalyticsReply]:
        replies = {name: self.ask(GetAnalyticsRequest(camera=name)) for name in self.present()}
        return {name: reply for name, reply in replies.items() if isinstance(reply, AnalyticsReply)}

    def apply(self, step: Step) -> None:
        """Make one change, and check the program's response."""
        what, name, number = step
        if what in INVALID:
            self._refuse(what, name, number)
            return
        before = {each["id"]: each for each in self.content["cameras"]}
        changed = _changed(copy.deepcopy(self.content), what, name, number)
        after = {each["id"]: each for each in changed["cameras"]}
        reply = self._request(changed, what, name, number)
        reopened = {each for each in before.keys() & after.keys() if before[each]["source"] != after[each]["source"]}
        assert set(reply.get("added", [])) == after.keys() - before.keys()
        assert set(reply.get("removed", [])) == before.keys() - after.keys()
        assert set(reply.get("reopened", [])) == reopened
        for each in (after.keys() - before.keys()) | reopened:
            self.opened[each] += 1

    def _request(self, changed: Content, what: str, name: str, number: int) -> dict[str, list[str]]:
        """Write a change to the file. Apply the change with a reload, or with requests about one camera."""
        before = self.present()
        self.write(**changed)
        if number % 2 == 0:
            return self.change()
        if what == "camera" and name not in before:
            added = next(each for each in changed["cameras"] if each["id"] == name)
            reply = self.change(AddCameraRequest(camera=added))
            assert "added" in reply
            if name in changed["analytics"]:
                self.change(SetAnalyticsRequest(camera=name, analytics=changed["analytics"][name]))
            return reply
        if what == "camera" and name not in self.present():
            return self.change(RemoveCameraRequest(id=name))
        if what in ("line", "zone", "section") and name in before:
            return self.change(SetAnalyticsRequest(camera=name, analytics=changed["analytics"].get(name)))
        return self.change()

    def _refuse(self, what: str, name: str, number: int) -> None:
        """Request an invalid change, and check that the change has no effect."""
        before = self.analytics()
        if what == "control":
            requests = (
                AddCameraRequest(camera=camera(ALWAYS)),
                RemoveCameraRequest(id="nowhere"),
                AddCameraRequest(camera={"id": "x"}),
                SetAnalyticsRequest(camera=ALWAYS, analytics=section(lines=[{"name": "door"}])),
            )
            with pytest.raises(RefusedRequest):
                self.ask(requests[number])
        else:
            text = self.path.read_text()
            self.path.write_text(_invalid(self.content, what, name, number))
            with pytest.raises(RefusedRequest) as caught:
                self.change()
            assert caught.value.exit_code == 78
            self.path.write_text(text)
        assert {name: reply.version for name, reply in self.analytics().items()} == {
            name: reply.version for name, reply in before.items()
        }

    def check(self) -> None:
        """Check the frames, tracks, counts, and events in all messages since `begin`."""
        self.wait_frames("".join(self.present()), 5)
        self.wait(lambda: sorted(self.cameras()) == sorted(self.present()), "a status with the present cameras")
        items = list(self.items)
        assert not [item for item in items if isinstance(item, DetectionsMessage) and item.camera not in NAMES]
        for name in NAMES:
            epochs: dict[int, list[DetectionsMessage]] = {}
            for message in items:
                if isinstance(message, DetectionsMessage) and message.camera == name:
                    epochs.setdefault(message.epoch, []).append(message)
            assert len(epochs) <= self.opened[name], f"{name} was interrupted"
            for frames in epochs.values():
                check_unbroken(frames)
                check_tracks(frames)
            check_counts([item for item in items if isinstance(item, CountsMessage) and item.camera == name])
        numbers = [item.number or 0 for item in items if isinstance(item, EventMessage)]
        assert numbers == [*range(min(numbers, default=0), max(numbers, default=-1) + 1)]

    def delivered(self) -> list[int]:
        """Return the numbers of the events that the sink delivered."""
        with suppress(json.JSONDecodeError):  # the server is writing
            return [json.loads(body)["number"] for _, body in requests_of(self.hook)]
        return []


def check_tracks(frames: list[DetectionsMessage]) -> None:
    """Check that the tracks of a camera never all end in the same frame while the camera has several objects.

    A new track is published with its second detection, so one frame without tracks can lie between old and new tracks.
    If the program dropped several frames, fast objects also get new tracks.
    """
    tracked = [message for message in frames if ids(message)]
    for before, after in pairwise(tracked):
        if len(ids(before)) > 1 and after.frame <= before.frame + 2:
            assert ids(before) & ids(after), f"the tracks of {before.camera} ended before frame {after.frame}"


def check_counts(messages: list[CountsMessage]) -> None:
    """Check that the totals of a line never decrease as long as the line exists."""
    for before, after in pairwise(messages):
        for name in before.lines.keys() & after.lines.keys():
            assert after.lines[name].in_ >= before.lines[name].in_
            assert after.lines[name].out >= before.lines[name].out


def _changed(content: Content, what: str, name: str, number: int) -> Content:
    """Return a valid configuration with one change.

    If the change is not possible, for example because the camera does not exist, return an equal configuration.
    """
    own = next((each for each in content["cameras"] if each["id"] == name), None)
    analytics = content["analytics"]
    if what == "camera":
        if own is None:
            content["cameras"].append(camera(name, number))
            if number:
                analytics[name] = section()
        elif name != ALWAYS:
            content["cameras"].remove(own)
            analytics.pop(name, None)
    elif what == "rule":
        whens = ("line_crossed door", "zone_entered hall", "zone_left hall")
        rules = [{"name": f"rule-{index}", "when": when, "cooldown": "1s"} for index, when in enumerate(whens)]
        content["rules"] = rules[:number]
    elif what == "track":
        content["track"] = {"lost_s": 1.0 + number / 2}
    elif what == "report":
        content["report_after_s"] = {"lost": 10.0 + number, "covered": number + 1 if number else None}
    elif own is None:
        pass
    elif what == "source":
        own["source"] = camera(name, number)["source"]
    elif what == "rate":
        own.update({"max_fps": 15 + number} if number else {"report_after_s": {"moved": 5}})
    elif what == "section" and name != ALWAYS:
        analytics.pop(name, None) if number else analytics.setdefault(name, section())
    elif what == "privacy":
        content["privacy"] = {name: {"blur": ["red"]}} if number else {}
    elif name in analytics:
        if what == "line":
            analytics[name]["lines"] = [{**DOOR, "points": [[0.3 + number / 10, 0], [0.3 + number / 10, 1]]}]
        elif what == "zone":
            analytics[name]["zones"] = [{**HALL, "crowd_threshold": number}]
        elif what == "realign" and name != ALWAYS:
            analytics[name]["realign"] = not analytics[name].get("realign", False)
    return content


def _invalid(content: Content, what: str, name: str, number: int) -> str:
    """Return the text of a configuration that the program must reject."""
    if what == "text":
        return ("cameras: [", "", "- a", "cameras: {id: a}")[number]
    content = copy.deepcopy(content)
    if what == "key":
        content["cameras"][0].pop("source") if number else content["cameras"][0].update(colour="red")
    elif what == "class":
        content["analytics"][ALWAYS]["zones"] = [{**HALL, "classes": ["unicorn"]}]
    elif what == "restart":
        content |= ({"hang_s": 20.0}, {"model": "picodet-s-320"}, {"sinks": []}, {"processes": 3})[number]
    elif what == "unknown camera":
        content["analytics"] = {**content["analytics"], "nowhere": section()}
    elif what == "unknown line":
        content["rules"] = [{"name": "r", "when": "line_crossed gate"}]
    content["cameras"].append(camera("g"))  # the valid parts must not be applied either
    return json.dumps(content)


@pytest.fixture(scope="module", params=[1, 2], ids=["one-process", "workers"])
def site(
    folder: Path,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RandomSite]:
    with webhook_server(tmp_path_factory.mktemp("hook")) as hook:
        site = RandomSite(folder, request.param, hook)
        with running(site):
            yield site
            last = max((item.number or 0 for item in site.items if isinstance(item, EventMessage)), default=0)
            site.wait(lambda: last in [0, *site.delivered()], "the last event at the sink")
        numbers = site.delivered()
        assert numbers == [*range(numbers[0], numbers[0] + len(numbers))]  # no event is lost, repeated, or out of order


@settings(
    max_examples=8,
    phases=[Phase.reuse, Phase.generate],  # the search for a shorter example would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_random_changes_concern_only_what_they_name(site: RandomSite, steps: list[Step]) -> None:
    site.begin()
    for step in steps:
        site.apply(step)
    site.check()
